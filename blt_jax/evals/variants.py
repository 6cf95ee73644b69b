"""What is compared side by side: several runs, or one run under several thresholds."""

import dataclasses
from collections.abc import Sequence

from blt_jax.evals import labels, patches
from blt_jax.evals.patches import PatchUse, TaskTexts
from blt_jax.evals.suite import Prepared
from blt_jax.runs import loading


@dataclasses.dataclass(frozen=True)
class Variant:
  """One model of those that are asked.

  Attributes:
    label: that tells it from the others, fit for the name of a folder.
    run: its folder.
    threshold: of its patches, where it is not that of the training.
    rule: the threshold that it has; None where it patches without, or tells none.
    patches: task -> its patches there; empty where they are not known without the model.
  """

  label: str
  run: str
  threshold: float | None
  rule: float | None
  patches: dict[str, PatchUse]


def make(
  runs: Sequence[str],
  prepared: Sequence[Prepared],
  entropy_model: str | None = None,
  thresholds: Sequence[float] = (),
  bytes_per_patch: Sequence[float] = (),
  cumulative: bool = False,
) -> list[Variant]:
  """All that is to be compared; the texts of the tasks are patched by each.

  Args:
    runs: their folders.
    prepared: the tasks.
    entropy_model: folder of an entropy model, instead of that of the training.
    thresholds: as for `loading.load_patcher`, likewise.
    bytes_per_patch: sizes of patches on the texts of the tasks, instead of thresholds.
    cumulative: whether thresholds are of the cumulative rule, instead of the run's rule.

  Raises:
    FileNotFoundError: there is no such run.
    ValueError: a run stands twice, there are several runs and several thresholds, or a run
      has no use for a threshold.
  """
  check(runs, thresholds, bytes_per_patch)
  if bytes_per_patch and entropy_model in (loading.HEAD, loading.OWN):
    raise ValueError(
      f"--entropy_model={entropy_model} patches as it reads, so --bytes_per_patch finds no "
      "threshold; try some, by --threshold=A,B,..., with --data or --tasks."
    )
  default = loading.HEAD_THRESHOLD if entropy_model == loading.HEAD else None
  variants = []
  for label, run in zip(labels.shorten(runs), runs, strict=True):
    texts = patches.read(run, prepared, entropy_model, next(iter(thresholds), None), cumulative)
    found: list[float] = list(thresholds) or [
      _find(texts, run, size) for size in bytes_per_patch
    ]
    if not found:
      variants.append(_make(label, run, default, texts))
    for threshold in found:
      name = f"threshold={threshold:.8g}" if len(found) > 1 else label
      variants.append(_make(name, run, threshold, texts))
  if len({v.label for v in variants}) < len(variants):
    raise ValueError(
      f"Two of {[v.threshold for v in variants]} are the same threshold; give others."
    )
  return variants


def check(
  runs: Sequence[str], thresholds: Sequence[float], bytes_per_patch: Sequence[float]
) -> None:
  """Raises ValueError where these do not go together; see `make`."""
  if len(runs) != len({labels.parts(run) for run in runs}):
    raise ValueError(f"A run is given twice: {', '.join(runs)}; give each once.")
  if thresholds and bytes_per_patch:
    raise ValueError("--threshold and --bytes_per_patch say the same thing; give one of them.")
  given = thresholds or bytes_per_patch
  if len(runs) > 1 and len(given) > 1:
    raise ValueError("Several runs and several thresholds are too much; give one of either.")
  if len(given) != len(set(given)):
    raise ValueError(f"{', '.join(map(str, given))} has a number twice; give each once.")


def _make(label: str, run: str, threshold: float | None, texts: TaskTexts | None) -> Variant:
  if texts is None:
    return Variant(label, run, threshold, threshold, {})
  rule = texts.patcher.config
  own = rule.threshold if rule.scheme == "entropy" else None
  used = own if threshold is None else threshold
  return Variant(label, run, threshold, used, texts.measure(threshold))


def _find(texts: TaskTexts | None, run: str, size: float) -> float:
  if texts is None:
    raise ValueError(f"{run} reads no patches, so --bytes_per_patch would do nothing; omit it.")
  return texts.find_threshold(size)
