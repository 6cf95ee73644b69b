"""A stand-in for Google Cloud: TPU VMs are folders, their workers local processes.

`Cloud.install` puts programs into a folder of PATH that answer as gcloud and xpk do, as far as
launch/ uses them: they know the flags of the real ones, record each call, and fail on demand.
A command sent to a worker runs in the folder that is its home.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

NUM_WORKERS = 2  # of a slice
_DEVICES = 2  # of a worker


def main(argv):
  cloud = Cloud(pathlib.Path(os.environ["STANDIN_CLOUD"]))
  cloud.record(argv)
  words, rest = _split(argv)
  args = _PARSERS[words].parse_args(rest)
  cloud.fail_if_asked(words)
  command = _COMMANDS.get(words)
  sys.exit(command(cloud, args) if command else 0)


def _split(argv):
  for words in _PARSERS:
    if tuple(argv[: len(words)]) == words:
      return words, argv[len(words) :]
  sys.exit(f"ERROR: Invalid choice: {' '.join(argv)}")


@dataclasses.dataclass(frozen=True)
class Cloud:
  """What exists in the cloud, kept in a folder that all its programs share."""

  folder: pathlib.Path

  # --- For tests

  def install(self):
    """Makes the programs."""
    programs = self.folder / "bin"
    programs.mkdir(parents=True)
    for name in ("gcloud", "xpk", "docker"):
      _write_program(programs / name, f'exec "{sys.executable}" -S "{__file__}" {name} "$@"')
    _write_program(self.folder / "python", _PYTHON.format(python=sys.executable))

  @property
  def environment(self):
    """The variables with which launch/ finds the programs."""
    path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
    own = {"PATH": path, "STANDIN_CLOUD": str(self.folder)}
    # Who runs the tests may have chosen a Python and a folder for themselves.
    return {k: v for k, v in os.environ.items() if k not in ("PYTHON", "VENV")} | own

  def calls(self, *words):
    """Arguments of the calls whose first words these are."""
    path = self.folder / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    calls = [json.loads(line) for line in lines]
    return [call for call in calls if tuple(call[: len(words)]) == words]

  def fail(self, *words, message, code=1, times=1):
    """Lets the next calls of a command fail."""
    failure = {"words": words, "message": message, "code": code, "times": times}
    self._write("failure.json", failure)

  def set_trainer(self, script):
    """Replaces the training of workers by a shell script."""
    _write_program(self.folder / "trainer", script)

  def set_queue(self, *states):
    """The states that a new request goes through."""
    self._write("queue.json", list(states))

  def preempt(self, name, signal_number=signal.SIGTERM, grace=60):
    """Takes a TPU away: its processes get a signal, those that still run after that end."""
    request = self.request(name)
    for home in self.homes(name):
      _end(home, signal_number, grace)
    request["nodes"] = dict.fromkeys(request["nodes"], "PREEMPTED")
    request["states"] = ["ACTIVE"]
    self._write(f"{name}.request", request)

  def homes(self, name):
    """The folders of a TPU's workers."""
    nodes = self.request(name)["nodes"]
    return [self.folder / node / str(i) for node in nodes for i in range(NUM_WORKERS)]

  # --- For the programs

  def record(self, argv):
    with (self.folder / "calls.jsonl").open("a") as file:
      file.write(json.dumps(argv) + "\n")

  def fail_if_asked(self, words):
    failure = self._read("failure.json")
    if failure and failure["times"] and tuple(failure["words"]) == words:
      self._write("failure.json", failure | {"times": failure["times"] - 1})
      print(failure["message"], file=sys.stderr)
      sys.exit(failure["code"])

  def request(self, name):
    return self._read(f"{name}.request")

  def save_request(self, name, request):
    self._write(f"{name}.request", request)

  def forget(self, name):
    for home in self.homes(name):
      _end(home, signal.SIGKILL, 0)
    for node in self.request(name)["nodes"]:
      shutil.rmtree(self.folder / node)
    (self.folder / f"{name}.request").unlink()

  def queue(self):
    return self._read("queue.json") or ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]

  def find_node(self, node):
    """The request that a node belongs to and its name; exits as gcloud does without one."""
    for path in self.folder.glob("*.request"):
      request = json.loads(path.read_text())
      if node in request["nodes"]:
        return request
    return _fail(f"NOT_FOUND: Resource '{node}' was not found")

  def _read(self, name):
    path = self.folder / name
    return json.loads(path.read_text()) if path.exists() else None

  def _write(self, name, value):
    temporary = self.folder / f"{name}.{os.getpid()}"
    temporary.write_text(json.dumps(value))
    temporary.replace(self.folder / name)


# A worker's Python: it makes environments and installs without a network.
_PYTHON = """
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit ;;
  "-m pip "*) echo "$*" >>"$HOME/pip.log"; exit ;;
esac
if [ "$2" = blt_jax.train ] && [ -e "$STANDIN_CLOUD/trainer" ]; then
  exec "$STANDIN_CLOUD/trainer" "$@"
fi
exec "{python}" "$@"
"""


def _write_program(path, script):
  path.write_text(f"#!/bin/sh\n{script}\n")
  path.chmod(0o755)


def _fail(message, code=1):
  print(f"ERROR: {message}", file=sys.stderr)
  sys.exit(code)


def _end(home, signal_number, grace):
  """Ends a worker's processes, which form a group."""
  try:
    group = _find_group(home / "blt_jax")
    os.killpg(group, signal_number)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and _runs(group):
      time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
  except (FileNotFoundError, ProcessLookupError):
    pass  # nothing was started, or it has ended


def _find_group(folder):
  """The number that is written just after a worker starts."""
  deadline = time.monotonic() + 5
  while True:
    try:
      return int((folder / "worker.pid").read_text())
    except (FileNotFoundError, ValueError):
      if time.monotonic() > deadline or not (folder / "worker.log").exists():
        raise FileNotFoundError(f"{folder} has no worker.pid") from None
      time.sleep(0.01)


def _runs(group):
  try:
    os.killpg(group, 0)
  except ProcessLookupError:
    return False
  return True


# --- What the commands do


def _create(cloud, args):
  name = args.name
  if cloud.request(name):
    _fail(f"(gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: '{name}'", 1)
  nodes = [args.node_id] if args.node_id else []
  nodes += [f"{args.node_prefix or name}-{i}" for i in range(args.node_count or 0)]
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  request = {"states": cloud.queue(), "nodes": dict.fromkeys(nodes, "READY"), "port": port}
  cloud.save_request(name, request)
  for home in cloud.homes(name):
    home.mkdir(parents=True)


def _describe(cloud, args):
  request = cloud.request(args.name)
  if request is None:
    _fail(f"(gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: '{args.name}'")
  state, *later = request["states"]
  if args.format == "value(state.state)":
    cloud.save_request(args.name, request | {"states": later or [state]})
    print(state)
  elif args.format == "value(state.failedData.error.message)":
    print("No such capacity." if state == "FAILED" else "")
  else:
    _fail(f"format {args.format}", 2)


def _delete(cloud, args):
  request = cloud.request(args.name)
  if request is None:
    _fail(f"(gcloud.compute.tpus.queued-resources.delete) NOT_FOUND: '{args.name}'")
  if not args.force and request["states"][0] not in ("FAILED", "SUSPENDED"):
    _fail("FAILED_PRECONDITION: the queued resource has nodes")
  cloud.forget(args.name)


def _describe_node(cloud, args):
  request = cloud.find_node(args.name)
  answers = {"value(state)": request["nodes"][args.name]}
  print((answers | {"value(networkEndpoints.len())": NUM_WORKERS})[args.format])


def _workers(cloud, node, worker):
  """Homes and environments of a node's workers."""
  request = cloud.find_node(node)
  if request["nodes"][node] != "READY":
    _fail(f"(gcloud.compute.tpus.tpu-vm) {node} has state {request['nodes'][node]}")
  first = list(request["nodes"]).index(node) * NUM_WORKERS
  chosen = range(NUM_WORKERS) if worker == "all" else [int(worker)]
  remote = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONPATH", "VENV")}
  for i in chosen:
    home = cloud.folder / node / str(i)
    yield (
      home,
      remote
      | {
        "HOME": str(home),
        "PYTHON": str(cloud.folder / "python"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{remote.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={_DEVICES}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{request['port']}",
        "JAX_NUM_PROCESSES": str(len(request["nodes"]) * NUM_WORKERS),
        "JAX_PROCESS_ID": str(first + i),
      },
    )


def _ssh(cloud, args):
  started = [
    subprocess.Popen(["bash", "-c", args.command], cwd=home, env=environment)
    for home, environment in _workers(cloud, args.name, args.worker)
  ]
  return next((code for code in [process.wait() for process in started] if code), 0)


def _scp(cloud, args):
  to_node = args.destination.endswith(":")
  node, _, path = (args.destination if to_node else args.source).partition(":")
  for home, _ in _workers(cloud, node, args.worker):
    if to_node:
      shutil.copy(args.source, home)
    elif (home / path).exists():
      shutil.copy(home / path, args.destination)
    else:
      _fail(f"scp: {path}: No such file or directory")


# --- The flags of the real programs that launch/ uses


def _parser(*positional, flags=(), switches=()):
  parser = argparse.ArgumentParser(allow_abbrev=False)
  for name in positional:
    parser.add_argument(name)
  for flag in flags:
    parser.add_argument(f"--{flag.rstrip('!')}", required=flag.endswith("!"))
  for switch in switches:
    parser.add_argument(f"--{switch}", action="store_true")
  return parser


_WHERE = ("zone!", "project!")
_QUEUED = ("gcloud", "compute", "tpus", "queued-resources")
_VM = ("gcloud", "compute", "tpus", "tpu-vm")
_CREATE = _parser(
  "name",
  flags=[*_WHERE, "accelerator-type!", "runtime-version!", "node-prefix", "network"],
  switches=["quiet", "spot", "reserved", "internal-ips"],
)
_ONE_OR_MORE = _CREATE.add_mutually_exclusive_group(required=True)
_ONE_OR_MORE.add_argument("--node-id")
_ONE_OR_MORE.add_argument("--node-count", type=int, choices=range(2, 100))
_PARSERS = {
  (*_QUEUED, "create"): _CREATE,
  (*_QUEUED, "describe"): _parser("name", flags=[*_WHERE, "format!"], switches=["quiet"]),
  (*_QUEUED, "delete"): _parser("name", flags=_WHERE, switches=["quiet", "force"]),
  (*_VM, "describe"): _parser("name", flags=[*_WHERE, "format!"], switches=["quiet"]),
  (*_VM, "ssh"): _parser(
    "name", flags=[*_WHERE, "worker", "command"], switches=["quiet", "internal-ip"]
  ),
  (*_VM, "scp"): _parser(
    "source", "destination", flags=[*_WHERE, "worker"], switches=["quiet", "internal-ip"]
  ),
  ("xpk", "workload", "create"): _parser(
    flags=[
      *("workload!", "cluster!", "command!", "tpu-type!", *_WHERE, "docker-image"),
      *("num-slices", "max-restarts", "termination-grace-period-seconds"),
    ]
  ),
  ("xpk", "workload", "list"): _parser(flags=["cluster!", *_WHERE, "filter-by-job"]),
  ("xpk", "workload", "delete"): _parser(
    flags=["workload!", "cluster!", *_WHERE], switches=["force"]
  ),
  ("docker", "build"): _parser("folder", flags=["tag"]),
  ("docker", "push"): _parser("image"),
}
_COMMANDS = {
  (*_QUEUED, "create"): _create,
  (*_QUEUED, "describe"): _describe,
  (*_QUEUED, "delete"): _delete,
  (*_VM, "describe"): _describe_node,
  (*_VM, "ssh"): _ssh,
  (*_VM, "scp"): _scp,
}

if __name__ == "__main__":
  main(sys.argv[1:])
