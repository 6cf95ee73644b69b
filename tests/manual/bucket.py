"""Runs the commands against a Google Cloud Storage of this machine, and looks what is there.

  pip install gcsfs gcp-storage-emulator
  python tests/manual/bucket.py

A table is trained, calibrated and read from gs://, and with it a tiny BLT, its checkpoints
included: it is stopped halfway, continued, continued past a damaged checkpoint, exported,
evaluated and asked to generate. All in the memory of a server on the loopback, and minutes.
Prints what the bucket holds at the end.
"""

import contextlib
import json
import logging
import os
import socket
import socketserver
import tempfile

from gcp_storage_emulator import exceptions
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import objects

_download = objects.download


def download(request, response, storage) -> None:
  """As the server's, with the header that TensorStore wants and the server leaves out."""
  _download(request, response, storage)
  names = request.params["bucket_name"], request.params["object_id"]
  with contextlib.suppress(exceptions.NotFound):
    response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]


def main() -> None:
  """Starts the server, runs all, and fails if a folder `gs:` or a missing file is seen."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  address = f"http://localhost:{port}"
  os.environ.update(
    STORAGE_EMULATOR_HOST=address,  # for gcsfs
    TENSORSTORE_GCS_HTTP_URL=address,  # for what Orbax stores arrays with
    GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # asks Google about the bucket
    GCE_METADATA_ROOT="localhost:1",  # no credentials are looked for
    NO_GCE_CHECK="true",
    JAX_PLATFORMS="cpu",
  )
  logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)
  socketserver.BaseServer.handle_error = lambda *_: None  # of clients that hang up
  objects.download = download
  for _, methods in emulator.HANDLERS:
    methods.update({m: download for m, handler in methods.items() if handler is _download})
  server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
  server.start()
  try:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
      os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
      run("gs://bucket/deep")
      assert os.listdir(folder) == ["cache"], os.listdir(folder)
  finally:
    server.stop()


def run(root: str) -> None:
  """Runs the commands on a folder of a bucket."""
  from tiny_runs import tiny_config

  from blt_jax import calibrate, evaluate, export, generate, train, train_table
  from blt_jax.storage import atomic, files
  from blt_jax.storage.folders import Folder

  lines = [json.dumps({"text": f"document {i} says {i % 7} and more"}) for i in range(300)]
  with atomic.writing(f"{root}/text/a.jsonl") as file:
    file.write("\n".join(lines))

  # --- A table, and the threshold beside it
  train_table.main([f"--input={root}/text", f"--output={root}/table", "--orders=1,2,3"])
  calibrate.main([f"--run={root}/table", "--target_bytes_per_patch=3"])
  calibrate.main([f"--run={root}/table", "--target_bytes_per_patch=3", f"--png={root}/a.png"])

  # --- A run that is stopped halfway
  config = tiny_config("blt", workdir=f"{root}/run", num_steps=4)
  config.data.update(path=f"{root}/text", heldout_fraction=0.1)
  config.patching.update(scheme="entropy", entropies="table", entropy_model=f"{root}/table")
  config.logging.tensorboard = True
  config.profile.update(start=2, steps=1)
  for config.num_steps in (2, 4):
    train.train(config)
  with atomic.writing(f"{root}/run/checkpoints/4/extra/metadata") as file:
    file.write("{")
  train.train(config)
  steps = [
    json.loads(n)["step"] for n in files.read_bytes(f"{root}/run/metrics.jsonl").splitlines()
  ]
  assert steps == [1, 2, 2, 3, 4, 4, 3, 4, 4], steps

  # --- What others do with it
  export.main([f"--run={root}/run", f"--output={root}/weights"])
  evaluate.main([f"--run={root}/weights", f"--data={root}/text", "--max_batches=2"])
  with atomic.writing(f"{root}/in.jsonl") as file:
    file.write('{"prompt": "document", "max_bytes": 5}')
  with contextlib.suppress(SystemExit):
    paths = f"--input={root}/in.jsonl", f"--output={root}/out.jsonl"
    generate.main([f"--run={root}/weights", *paths, "--max_length=64", "--batch_size=1"])
  print(files.read_json(f"{root}/out.jsonl"))
  found = files.list_files(root)
  print(*found, sep="\n")
  names = {name.removeprefix(f"{root}/") for name in found}
  wanted = {
    "table/table.json",
    "table/threshold.json",
    "run/config.json",
    "weights/config.json",
  }
  assert any(name.startswith("run/damaged/4-") for name in names)
  assert wanted <= names and Folder(f"{root}/run/checkpoints").sizes().keys() >= {"2", "4"}


if __name__ == "__main__":
  main()
