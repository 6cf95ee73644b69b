"""Bits per byte of a trained model on text.

python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH
"""

import json

from absl import app, flags

from blt_jax import config as settings
from blt_jax import logs, runs, sharding
from blt_jax.data import pipeline, sources
from blt_jax.evaluation import Evaluator

_RUN = flags.DEFINE_string("run", None, "Folder of the run.", required=True)
_DATA = flags.DEFINE_string("data", None, "Text file or folder of text files.", required=True)
_MAX_BATCHES = flags.DEFINE_integer("max_batches", None, "Stop early; by default all.")


def main(argv: list[str]) -> None:
  """Prints one JSON object: loss, bpb, patch_size, bytes."""
  del argv
  logs.show_progress()
  documents = sources.read_documents(_DATA.value)
  run = runs.load_run(_RUN.value)
  patch = runs.load_patcher(run.config.patching).documents()
  batches = pipeline.evaluation_batches(documents, patch, settings.make_batch_shape(run.config))
  mesh = sharding.make_mesh()
  evaluate = Evaluator(run.model, batches, mesh, _MAX_BATCHES.value)
  print(json.dumps(evaluate(run.params)))


if __name__ == "__main__":
  app.run(main)
