"""Says what a compiled train step needs of a chip, and how fast it could be."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from blt_jax.cost import chips
from blt_jax.cost.work import Work


@dataclasses.dataclass(frozen=True)
class Step:
  """What is computed where.

  Attributes:
    topology: name of a slice.
    num_slices: of them.
    mesh: sizes by axis.
    num_parameters: of the model.
    batch_size: rows, over all chips.
    seq_len: slots of a row.
    num_patches: patch slots of a row.
    accumulate: parts of the batch, one after the other.
    unit: what slots hold, "bytes" or "pieces".
  """

  topology: str
  num_slices: int
  mesh: dict[str, int]
  num_parameters: int
  batch_size: int
  seq_len: int
  num_patches: int
  accumulate: int
  unit: str = "bytes"

  @property
  def num_slots(self) -> int:
    """Of a batch."""
    return self.batch_size * self.seq_len


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes per chip.

  Attributes:
    parameters: of the model.
    optimizer: its state.
    batch: the data.
    temporary: activations, gradients and whatever else lives at some time of a step.
    peak: of everything that lives at the same time.
    limit: the chip's memory.
  """

  parameters: int
  optimizer: int
  batch: int
  temporary: int
  peak: int
  limit: float


@dataclasses.dataclass(frozen=True)
class Flops:
  """Per chip and step.

  Attributes:
    products: compiled matrix products.
    kernels: compiled kernels.
    recomputed: the part of both done again in the backward pass.
    model: what the model asks for at least; see `kinds.model_flops`.
    paper: what the paper charges; see `kinds.flops_per_byte`.
  """

  products: float
  kernels: float
  recomputed: float
  model: float
  paper: float

  @property
  def compiled(self) -> float:
    """All that the chip does."""
    return self.products + self.kernels

  @property
  def remat_factor(self) -> float:
    """Compiled FLOPs over what they were without recomputation."""
    return self.compiled / (self.compiled - self.recomputed)

  @property
  def overhead(self) -> float:
    """Compiled FLOPs without recomputation over the model's."""
    return (self.compiled - self.recomputed) / self.model


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds that a step takes at least, if one thing alone limited it.

  Attributes:
    arithmetic: at the chip's peak.
    memory: of the main memory's traffic.
    torus: of collectives in a slice.
    network: of those between slices.
    compiler: what the compiler expects of all but kernels, gathers and collectives; None
      where the chip's clock is not known.
  """

  arithmetic: float
  memory: float
  torus: float
  network: float
  compiler: float | None

  @property
  def overlapped(self) -> float:
    """If all went on at the same time."""
    return max(self.arithmetic, self.memory, self.torus, self.network)

  @property
  def in_turn(self) -> float:
    """If arithmetic and memory overlapped, and collectives with nothing."""
    return max(self.arithmetic, self.memory) + self.torus + self.network


@dataclasses.dataclass(frozen=True)
class Fit:
  """Of a step that fits."""

  step: Step
  chip: chips.Chip
  memory: Memory
  compile_seconds: float

  def to_dict(self) -> dict[str, Any]:
    """All numbers, for JSON."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Report(Fit):
  """All of it."""

  flops: Flops
  work: Work

  @property
  def times(self) -> Times:
    """Lower bounds of a step's time."""
    seconds = {
      between: sum(e.seconds for e in self.work.exchanges if e.between_slices == between)
      for between in (False, True)
    }
    clock = self.chip.clock
    return Times(
      arithmetic=self.flops.compiled / self.chip.flops,
      memory=self.work.hbm_bytes / self.chip.hbm_bandwidth,
      torus=seconds[False],
      network=seconds[True],
      compiler=self.work.estimated_cycles / clock if clock else None,
    )

  def utilisation(self, seconds: float) -> float:
    """Model FLOPs utilisation by the paper's count, of a step of so many seconds."""
    return self.flops.paper / seconds / self.chip.flops

  def to_dict(self) -> dict[str, Any]:
    """All numbers, for JSON."""
    times, flops = self.times, self.flops
    return super().to_dict() | {
      "times": dataclasses.asdict(times),
      "compiled_flops": flops.compiled,
      "remat_factor": flops.remat_factor,
      "compiled_over_model_flops": flops.overhead,
      "mfu_overlapped": self.utilisation(times.overlapped),
      "mfu_in_turn": self.utilisation(times.in_turn),
    }


def to_text(report: Fit) -> str:
  """The report as tables."""
  lines = [*_head(report), *_memory(report)]
  if isinstance(report, Report):
    sections = (_flops, _collectives, _times, _buffers, _unknown)
    lines += [line for section in sections for line in section(report)]
  return "\n".join(lines)


def _head(report: Fit) -> Iterator[str]:
  s = report.step
  mesh = ", ".join(f"{axis}={size}" for axis, size in s.mesh.items())
  slices = f"{s.num_slices} x " if s.num_slices > 1 else ""
  rows = s.batch_size * s.mesh["tensor"] // _num_chips(s) // s.accumulate
  yield (
    f"{s.num_parameters:,} parameters on {slices}{s.topology}: {_num_chips(s)} x "
    f"{report.chip.device_kind}, mesh {mesh}"
  )
  yield (
    f"Step: {s.batch_size:,} rows of {s.seq_len:,} {s.unit} and {s.num_patches:,} patches, "
    f"{s.num_slots / 1e6:.2f}M {s.unit}; in {s.accumulate} parts of {rows} rows per chip"
  )


def _num_chips(step: Step) -> int:
  return math.prod(step.mesh.values())


def _memory(report: Fit) -> Iterator[str]:
  m = report.memory
  yield f"\nMemory per chip, GB of {m.limit / 1e9:.1f}"
  yield from _rows(
    ("parameters", m.parameters / 1e9),
    ("optimizer", m.optimizer / 1e9),
    ("batch", m.batch / 1e9),
    ("temporary", m.temporary / 1e9),
    ("peak of all", m.peak / 1e9),
  )
  total = m.parameters + m.optimizer + m.batch + m.temporary
  if total > m.limit:
    yield f"  Summed {total / 1e9:.1f} GB, but never alive at once by the compiler's count"


def _flops(report: Report) -> Iterator[str]:
  f = report.flops
  yield "\nTFLOPs per chip and step"
  yield from _rows(
    ("matrix products", f.products / 1e12),
    ("kernels", f.kernels / 1e12),
    ("recomputed, of both", f.recomputed / 1e12),
    ("the model's own", f.model / 1e12),
    ("remat factor", f.remat_factor),
    ("compiled without remat / model's", f.overhead),
  )


def _collectives(report: Report) -> Iterator[str]:
  yield "\nCollectives per chip and step    over             times   GB  sent, GB  at least, ms"
  for e in report.work.exchanges:
    if e.payload_bytes < 1e6:
      continue
    where = e.axes + (" (network)" if e.between_slices else "")
    yield (
      f"  {e.kind:31}{where:17}{e.times:5}{e.payload_bytes / 1e9:9.3f}"
      f"{e.wire_bytes / 1e9:10.3f}{e.seconds * 1e3:10.2f}"
    )


def _times(report: Report) -> Iterator[str]:
  t = report.times
  yield "\nMilliseconds per step at least"
  yield from _rows(
    ("arithmetic", t.arithmetic * 1e3),
    ("memory traffic", t.memory * 1e3),
    ("collectives in a slice", t.torus * 1e3),
    ("collectives between slices", t.network * 1e3),
  )
  if t.compiler is not None:
    yield from _rows(("compiler's guess, no kernels", t.compiler * 1e3))
  for name, seconds in (("all at once", t.overlapped), ("collectives in turn", t.in_turn)):
    rate = report.step.num_slots / seconds / _num_chips(report.step)
    yield (
      f"  {name:32}{seconds * 1e3:10.2f}   MFU {100 * report.utilisation(seconds):.1f} %, "
      f"{rate / 1e3:,.0f}k {report.step.unit}/s per chip"
    )


def _buffers(report: Report) -> Iterator[str]:
  yield "\nLargest arrays, GB"
  for buffer in report.work.buffers:
    yield f"  {buffer.num_bytes / 1e9:6.3f}  {buffer.array:28} {buffer.op_name[-90:]}"


def _unknown(report: Report) -> Iterator[str]:
  for what in report.work.unknown:
    yield f"\nNot counted right: {what}"


def _rows(*rows: Sequence[Any]) -> Iterator[str]:
  for name, value in rows:
    yield f"  {name:32}{value:10.3f}"
