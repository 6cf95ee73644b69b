"""What batches lack when they are packed: all that a model reads beside ids and patches."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax.data.pipeline import Batch
from blt_jax.data.transforms import LookUpNgrams, NestPatches
from blt_jax.hashing import NgramTable


def make(tables: Sequence[NgramTable], model: ConfigDict) -> Callable[[Batch], Batch]:
  """What adds to a batch the n-gram ids, and patches of all resolutions, that a model reads.

  Args:
    tables: of frequency n-grams.
    model: `config.model`.
  """
  steps: list[Callable[[Batch], Batch]] = []
  if tables:
    steps.append(LookUpNgrams(tables, model.hash_document_masks))
  if resolutions := settings.resolutions(model):
    steps.append(NestPatches(resolutions))

  def complete(batch: Batch) -> Batch:
    for step in steps:
      batch = step(batch)
    return batch

  return complete
