"""A run as generation needs it."""

import os

from blt_jax import patchers, runs
from blt_jax.data.table import TableModel
from blt_jax.decode import language_model
from blt_jax.decode.table import TableSource
from blt_jax.models.byte_lm import ByteLM


def load_language_model(
  workdir: str | os.PathLike,
  entropy_model: str | None = None,
  threshold: float | None = None,
) -> language_model.LanguageModel:
  """What generation needs of a run: the model, patching and entropy model included.

  Args:
    workdir: folder of the run.
    entropy_model: folder of the entropy model's run, instead of the one trained with.
    threshold: nats, likewise.

  Raises: as `runs.load_run` and `patchers.load_patcher` do; the message says how to give
    what is missing.
  """
  run = runs.load_run(workdir)
  if isinstance(run.model, ByteLM):
    return language_model.from_byte_lm(run.model, run.params)
  section = run.config.patching
  section.entropy_model = entropy_model or section.entropy_model
  section.entropies = "model" if entropy_model else section.entropies
  section.threshold = section.threshold if threshold is None else threshold
  try:
    patcher = patchers.load_patcher(section)
  except (FileNotFoundError, ValueError) as error:
    raise type(error)(
      f"{error} To generate, --entropy_model=FOLDER and --threshold=NATS give what is "
      f"missing in {workdir}."
    ) from error
  model = patcher.entropy_model
  if isinstance(model, TableModel):
    source = TableSource(model), model.jax_tables()
    return language_model.from_blt(run.model, run.params, patcher.config, source=source)
  return language_model.from_blt(run.model, run.params, patcher.config, model)
