"""How a run patches the texts of tasks, and the threshold for patches of a wanted size."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blt_jax import patching
from blt_jax.entropy.neural import BatchScorer
from blt_jax.evals.suite import Prepared
from blt_jax.evals.task import Choice, Continue, Request
from blt_jax.patching import thresholds
from blt_jax.runs import folder, loading
from blt_jax.runs.patcher import Patcher

MAX_ITEMS = 100  # of a task, evenly from all


class PatchUse(NamedTuple):
  """Of a task's texts: the mean size of patches in bytes, and their number for an item."""

  bytes_per_patch: float
  patches_per_item: float


Texts = list[tuple[np.ndarray, np.ndarray | None]]  # of each ids [n], and entropies [n]


@dataclasses.dataclass(frozen=True)
class TaskTexts:
  """The texts of some items of tasks, as a run reads them.

  What counts of a choice is its context with the first continuation, of a continuation the
  prompt.

  Attributes:
    patcher: of the run.
    texts: task -> its texts.
    items: task -> the number of these items.
  """

  patcher: Patcher
  texts: dict[str, Texts]
  items: dict[str, int]

  def find_threshold(self, bytes_per_patch: float) -> float:
    """The threshold in nats whose patches have this size on all texts together.

    Raises:
      ValueError: no threshold gives it, or the run has none.
    """
    if self.patcher.config.scheme != "entropy":
      raise ValueError(
        f"--bytes_per_patch goes with entropy patching, and the run's is "
        f"{self.patcher.config.scheme!r}; leave it out."
      )
    scored = [(t, h) for texts in self.texts.values() for t, h in texts if h is not None]
    return thresholds.find_threshold(scored, self.patcher.config, bytes_per_patch)

  def measure(self, threshold: float | None = None) -> dict[str, PatchUse]:
    """Task -> its patches under a threshold, by default that of the run."""
    rule = self.patcher.config
    if threshold is not None:
      rule = dataclasses.replace(rule, threshold=threshold)
    found = {}
    for task, texts in self.texts.items():
      pieces = self.patcher.pieces
      sizes = [len(t) if pieces is None else int(pieces.sizes[t].sum()) for t, _ in texts]
      numbers = [len(t) if pieces else _count(rule, t, h) for t, h in texts]
      found[task] = PatchUse(sum(sizes) / sum(numbers), sum(numbers) / self.items[task])
    return found


def read(
  run: str,
  prepared: Sequence[Prepared],
  entropy_model: str | None = None,
  threshold: float | None = None,
  cumulative: bool = False,
) -> TaskTexts | None:
  """Reads texts of tasks as a run does, of `MAX_ITEMS` items of each at most.

  Args:
    run: its folder.
    prepared: the tasks.
    entropy_model: folder of an entropy model, instead of that of the training.
    threshold: nats, likewise.
    cumulative: whether it is one of the cumulative rule, instead of the run's rule.

  Returns:
    The texts; None for a run that reads bytes without patches.

  Raises:
    FileNotFoundError: there is no run, or its entropy model is missing.
    ValueError: as `loading.load_patcher`.
  """
  section = folder.load_config(run).patching
  by_itself = entropy_model in (loading.HEAD, loading.OWN)  # not told without the model
  if by_itself or (section.scheme == "byte" and not section.get("tokenizer")):
    return None
  patcher = loading.load_patcher(section, run, entropy_model, threshold, None, cumulative)
  encode = patcher.documents().encode
  chosen = {p.task.name: p.asked[:: -(-len(p.asked) // MAX_ITEMS)] for p in prepared}
  texts = {}
  for name, asked in chosen.items():
    ids = [encode(_text_of(r).encode())[:-1] for some in asked for r in some]  # no EOS
    texts[name] = _add_entropies(patcher, ids)
  return TaskTexts(patcher, texts, {name: len(asked) for name, asked in chosen.items()})


def _add_entropies(patcher: Patcher, ids: list[np.ndarray]) -> Texts:
  """Ids [n] with their entropies [n], where the scheme has some."""
  model = patcher.entropy_model
  if model is None:
    return [(tokens, None) for tokens in ids]
  if isinstance(model, folder.EntropyModel):
    found = BatchScorer(*model, patcher.config.reset_at_newline)(ids)
  else:
    found = [model(tokens) for tokens in ids]
  return list(zip(ids, found, strict=True))


def _count(rule: patching.PatchingConfig, ids: np.ndarray, entropies: np.ndarray | None) -> int:
  """The number of patches of ids [n] with entropies [n]."""
  given = None if entropies is None else entropies[None]
  return patching.patch_lengths(ids[None], rule, given, include_next=False).shape[1]


def _text_of(request: Request) -> str:
  if isinstance(request, Choice):
    return request.context + request.continuations[0]
  return request.prompt if isinstance(request, Continue) else request.text
