"""What a byte costs a model, and how long a budget of FLOPs lasts."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.runs import folder


@dataclasses.dataclass(frozen=True)
class Cost:
  """FLOPs of the forward pass per byte of text; training takes three times as many.

  Attributes:
    paper: by the paper's count, of the model alone.
    real: what the program must do at its real sizes, padding left out.
    entropy_paper: of the entropy model beside it; 0 for tables and where there is none.
    entropy_real: likewise.
  """

  paper: float
  real: float
  entropy_paper: float = 0.0
  entropy_real: float = 0.0

  @property
  def whole_paper(self) -> float:
    """With the entropy model."""
    return self.paper + self.entropy_paper

  @property
  def whole_real(self) -> float:
    """With the entropy model."""
    return self.real + self.entropy_real


def of_run(config: ConfigDict, patch_size: float) -> Cost:
  """The cost of a run.

  Args:
    config: its settings.
    patch_size: mean bytes per patch, or per piece, that it met.
  """
  model = settings.make_model_config(config.model)
  reads_pieces = kinds.find_kind(config.model.kind).reads_pieces
  slots = config.data.seq_len
  row_bytes = slots * (patch_size if reads_pieces else 1)
  patches = max(round(row_bytes / patch_size), 1)
  own = Cost(
    paper=kinds.flops_per_byte(model, max(patch_size, 1.0), round(row_bytes)),
    real=kinds.model_flops(model, slots, patches) / (3 * row_bytes),
  )
  source = config.patching
  if source.scheme != "entropy" or source.entropies == "table":
    return own
  entropy = folder.load_config(source.entropy_model)
  return with_entropy_model(own, entropy)


def with_entropy_model(cost: Cost, config: ConfigDict) -> Cost:
  """The same beside an entropy model of these settings."""
  model: Any = settings.make_model_config(config.model)
  size = config.data.seq_len
  return dataclasses.replace(
    cost,
    entropy_paper=kinds.flops_per_byte(model, 1.0, size),
    entropy_real=kinds.model_flops(model, size, size) / (3 * size),
  )


def num_steps(budget: float, paper: float, bytes_per_step: float, arm: str) -> int:
  """Updates that a budget of training FLOPs pays.

  Args:
    budget: training FLOPs, by the paper's count.
    paper: FLOPs of the forward pass per byte.
    bytes_per_step: of a batch.
    arm: whose, for errors.

  Raises:
    ValueError: not one.
  """
  of_step = 3 * paper * bytes_per_step
  steps = round(budget / of_step)
  if steps < 1:
    raise ValueError(
      f"The budget {budget:g} is less than one step of arm {arm!r}, which takes {of_step:.3g} "
      "FLOPs: raise the budget, or make config.data.batch_size smaller."
    )
  return steps
