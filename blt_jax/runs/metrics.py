"""Numbers of a run: from sums to rates, to JSON lines, TensorBoard and the console."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tensorboardX
from absl import logging

from blt_jax import kinds
from blt_jax.cost import flops
from blt_jax.storage.folders import Mirror

Numbers = dict[str, float]
_LINES = "metrics.jsonl"
_UPLOAD_SECONDS = 60
_COMPARED = {"state_distance": "compared_patches", "piece_likelihood": "compared_pieces"}


def summarise(sums: Mapping[str, float]) -> Numbers:
  """Turns the sums of `steps.sums`, and of `DocumentCounter` if there are any, into rates.

  Returns:
    `loss` in nats per target; `bpb`, bits per byte: the cross entropy of all targets,
    EOS included, over the number of bytes, in either of which only what is to be learned
    counts; `patch_size` in bytes per patch; the shares `one_byte_patches` of all patches, of
    byte slots with a target and of patch slots with a patch; `documents_per_batch`, different
    documents that a step learns from, and `documents_repeated`, the share of them that the step
    before had; of a distillation `state_distance` and `piece_likelihood`, see
    `training.distillation`; of models that cannot predict all, the share `dropped_targets` of
    those that they leave out; of several resolutions `latent_patch_size`, bytes per patch of
    the coarsest, where `patch_size` is of the finest; of those whose slots may run out, the
    share `slotless_inputs` of bytes that would be in patches of their own if their row had
    more; of those that measure entropies inside, `head_loss`, nats of each prediction of their
    head; and of entropies on the device, the share `cut_inputs` of bytes whose document began
    in another row; of a boundary head, `boundary_loss`, nats of each of its predictions, the
    share `boundary_agreement` of those that are right, and `boundary_recall` of the starts
    that it finds.
  """
  others = {}
  if "documents" in sums:
    others["documents_per_batch"] = float(sums["documents"] / sums["batches"])
    others["documents_repeated"] = _repeated(sums)
  for name, count in _COMPARED.items():
    if name in sums:
      others[name] = float(sums[name] / max(sums[count], 1))
  if (dropped := sums.get("dropped_targets")) is not None:
    others["dropped_targets"] = float(dropped / (dropped + sums["targets"]))
  if "head_nats" in sums:
    others["head_loss"] = float(sums["head_nats"] / max(sums["head_targets"], 1))
  if "boundary_nats" in sums:
    targets = max(sums["boundary_targets"], 1)
    others["boundary_loss"] = float(sums["boundary_nats"] / targets)
    others["boundary_agreement"] = float(sums["boundary_hits"] / targets)
    others["boundary_recall"] = float(sums["boundary_found"] / max(sums["boundary_starts"], 1))
  if "latent_patches" in sums:
    others["latent_patch_size"] = float(sums["inputs"] / max(sums["latent_patches"], 1))
  for name in ("slotless_inputs", "cut_inputs"):
    if name in sums:
      others[name] = float(sums[name] / max(sums["inputs"], 1))
  return {
    "loss": float(sums["nats"] / max(sums["targets"], 1)),
    "bpb": float(sums["nats"] / math.log(2) / max(sums["bytes"], 1)),
    "patch_size": _patch_size(sums),
    "one_byte_patches": float(sums["one_byte_patches"] / max(sums["patches"], 1)),
    "byte_slot_use": float(sums["read_targets"] / sums["byte_slots"]),
    "patch_slot_use": float(sums["patches"] / sums["patch_slots"]),
    **others,
  }


def warn_of_few_documents(sums: Mapping[str, float]) -> bool:
  """Says if steps hold few different documents, by the sums of `DocumentCounter`.

  That is less than a quarter of the rows, or of the documents that are open; or mostly those
  of the step before.
  """
  if "documents" not in sums:
    return False
  count, rows, num_open = (
    sums[name] / sums["batches"] for name in ("documents", "rows", "documents_open")
  )
  repeated = _repeated(sums)
  is_few = count < min(rows, num_open) / 4 or repeated > 0.5
  if is_few:
    logging.warning(
      "A step's %d rows hold %.1f different documents on average, and %.0f %% of these were in "
      "the step before: the model will know them by heart. Give more documents, or raise "
      "config.data.pool_size and pool_bytes, by which %d are open at a time.",
      rows, count, 100 * repeated, num_open,
    )  # fmt: skip
  return bool(is_few)


def _repeated(sums: Mapping[str, float]) -> float:
  return float(sums["documents_repeated"] / max(sums["documents"], 1))


def _patch_size(sums: Mapping[str, float]) -> float:
  return float(sums["inputs"] / max(sums["patches"], 1))


class Speed:
  """Rates of training, of all chips and of each."""

  def __init__(
    self,
    config: Any,
    seq_len: int,
    devices: Sequence[jax.Device],
    holds_pieces: bool = False,
  ):
    """Takes the model, slots in a row, the chips, and whether slots hold pieces, not bytes."""
    self._config, self._seq_len, self._num_chips = config, seq_len, len(devices)
    self._holds_pieces = holds_pieces
    self._peak = flops.peak_flops(devices[0].device_kind)

  def __call__(self, sums: Mapping[str, float], seconds: float) -> Numbers:
    """Rates of what `sums`, as of `steps.sums`, took.

    Returns:
      `bytes_per_second` of all chips, answers and their context alike,
      `chip_bytes_per_second` and `chip_patches_per_second` of one, padding left out; and
      `mfu`, the share of the chips' peak FLOPs that the model needs by the paper's formula,
      where the peak is known.
    """
    rate = float(sums["read_bytes"] / seconds / self._num_chips)
    numbers = {
      "bytes_per_second": rate * self._num_chips,
      "chip_bytes_per_second": rate,
      "chip_patches_per_second": float(sums["patches"] / seconds / self._num_chips),
    }
    if self._peak is not None:
      patch_size = max(_patch_size(sums), 1.0)
      context = round(self._seq_len * (patch_size if self._holds_pieces else 1))
      forward = kinds.flops_per_byte(self._config, patch_size, context)
      numbers["mfu"] = 3 * forward * rate / self._peak
    return numbers


class MetricWriter:
  """Writes numbers to `metrics.jsonl` and TensorBoard events in a run's folder.

  Into a remote one they come once a minute or so.
  """

  def __init__(self, workdir: str | os.PathLike, use_tensorboard: bool = True):
    self._mirror = Mirror(workdir, _LINES)
    path = self._mirror.path / _LINES
    before = path.read_text(errors="replace") if path.exists() else ""
    self._evaluated = _evaluated_steps(before)
    self._lines = path.open("a")
    if before and not before.endswith("\n"):
      self._lines.write("\n")  # after half a line, which a kill left
    folder = str(self._mirror.path)
    self._board = tensorboardX.SummaryWriter(folder) if use_tensorboard else None
    self._pushed_at = time.monotonic()

  def write(self, step: int, prefix: str, numbers: Mapping[str, float]) -> None:
    """Writes numbers under `prefix`, "train" or "eval", as of `step`."""
    self._lines.write(json.dumps({"step": step, "kind": prefix, **numbers}) + "\n")
    self._lines.flush()
    if self._board is not None:
      for name, value in numbers.items():
        self._board.add_scalar(f"{prefix}/{name}", value, step)
    if time.monotonic() > self._pushed_at + _UPLOAD_SECONDS:
      if self._board is not None:
        self._board.flush()
      self._mirror.push()
      self._pushed_at = time.monotonic()

  def has_evaluation(self, step: int) -> bool:
    """Whether there are numbers of an evaluation at this step, as of a run that was done."""
    return step in self._evaluated

  def close(self) -> None:
    """Writes out what is buffered."""
    self._lines.close()
    if self._board is not None:
      self._board.close()
    self._mirror.push()


def _evaluated_steps(lines: str) -> set[int]:
  """The steps that rows of `metrics.jsonl` evaluate."""
  steps = set()
  for line in lines.splitlines():
    with contextlib.suppress(ValueError):  # cut short by a kill
      row = json.loads(line)
      if isinstance(row, dict) and row.get("kind") == "eval" and "step" in row:
        steps.add(row["step"])
  return steps


def progress_line(
  step: int, num_steps: int, numbers: Mapping[str, float], interval: int = 1
) -> str:
  """One line for the console.

  Args:
    step: the last one done.
    num_steps: of the run.
    numbers: means over the steps since the line before, and the time of a step.
    interval: how many steps those are.

  Returns:
    The line, with the time that is left.
  """
  mean = f" (mean of {interval} steps)" if interval > 1 else ""
  left = (num_steps - step) * numbers["step_seconds"]
  minutes, seconds = divmod(round(left), 60)
  mfu = f"MFU {numbers['mfu']:.1%}  " if "mfu" in numbers else ""
  return (
    f"step {step}/{num_steps}  loss {numbers['loss']:.3f}  bpb {numbers['bpb']:.3f}{mean}  "
    f"{numbers['bytes_per_second'] / 1000:.1f} kB/s  {mfu}"
    f"patch {numbers['patch_size']:.2f} B  data wait {numbers['data_wait']:.1%}  "
    f"lr {numbers['learning_rate']:.2e}  ETA {minutes}:{seconds:02d}"
  )
