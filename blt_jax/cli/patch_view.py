"""How a text falls into patches: lines for a terminal, or a figure."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from blt_jax.cli import plots
from blt_jax.cli.characters import characters, columns, standing_alone
from blt_jax.storage import atomic

_TIE = "‿"  # stands for the further bytes of a character
_COLOURS = (223, 153, 117, 218)  # backgrounds that take turns, readable under black text
_ROW = 100  # bytes beside each other in a figure
MAX_DRAWN = 2000  # bytes of a figure; more take minutes to draw


@dataclasses.dataclass(frozen=True)
class Patched:
  """A text in patches.

  Attributes:
    tokens: int [n] ids, BOS first.
    starts: bool [n], whether a byte starts a patch.
    entropies: float [n] nats, of the prediction made at each byte; None where the
      scheme has none.
    threshold: nats, or None.
    levels: int [n], of several resolutions, at how many coarser ones a byte starts a patch too;
      None where there is one resolution.
  """

  tokens: np.ndarray
  starts: np.ndarray
  entropies: np.ndarray | None
  threshold: float | None
  levels: np.ndarray | None = None

  def starts_of(self, level: int) -> np.ndarray:
    """Which bytes start patches of a resolution, the finest being 0: bool [n]."""
    return self.starts if self.levels is None else self.starts & (self.levels >= level)


# --- For a terminal


def render(patched: Patched, use_colour: bool, width: int = 72) -> str:
  """The text with its patches apart, and under each byte the entropy of the next.

  Args:
    patched: what to show.
    use_colour: tell patches apart by background colours, else by bars. Coarser patches begin
      with a bar more for each resolution.
    width: columns of a line, bars aside.

  Returns:
    Lines; entropies are digits, tenths of the largest possible (ln 256).
  """
  cells = [standing_alone(c) if c else _TIE for c in characters(patched.tokens)]
  levels = np.zeros(len(cells), int) if patched.levels is None else patched.levels
  counts = np.where(patched.starts, levels + (not use_colour), 0)
  bars = ["|" * count for count in counts]
  patch = np.cumsum(patched.starts)
  lines = []
  for line in _lines(cells, width):
    colours = [f"\x1b[30;48;5;{_COLOURS[patch[i] % 4]}m" if use_colour else "" for i in line]
    text = "".join(c + bars[i] + cells[i] for c, i in zip(colours, line, strict=True))
    lines.append(text + ("\x1b[0m" if use_colour else ""))
    if patched.entropies is not None:
      digits = np.clip(patched.entropies[line] / np.log(256) * 10, 0, 9).astype(int)
      places = [(" " * len(bars[i]), columns(cells[i])) for i in line]
      lines.append(
        "".join(f"{bar}{d:<{w}}" for (bar, w), d in zip(places, digits, strict=True)).rstrip()
      )
  lines.append(_legend(patched, cells))
  return "\n".join(lines)


def _lines(cells: list[str], width: int) -> Iterator[list[int]]:
  """The bytes of each line, whole characters."""
  line: list[int] = []
  used = 0
  for i, cell in enumerate(cells):
    ties = itertools.takewhile(_TIE.__eq__, cells[i + 1 : i + 4])
    if cell != _TIE and line and used + columns(cell) + len(list(ties)) > width:
      yield line
      line, used = [], 0
    line.append(i)
    used += columns(cell)
  yield line


def _legend(patched: Patched, cells: list[str]) -> str:
  """What the marks mean, and the mean patch size."""
  lines = []
  if _TIE in cells:
    lines.append(f"{_TIE}: a further byte of the character before it.")
  if patched.entropies is not None:
    lines.append("Digits: entropy of the next byte, in tenths of that of a random byte.")
  most = 0 if patched.levels is None else int(patched.levels.max())
  for level in range(most + 1):
    sizes = np.diff(np.flatnonzero(patched.starts_of(level)), append=len(cells))
    which = f"{'|' * (level + 1)} " if most else ""
    lines.append(
      f"{which}{len(cells)} bytes in {len(sizes)} patches, {sizes.mean():.2f} bytes each"
    )
  return "\n".join(lines)


# --- For a file


def check_length(count: int) -> None:
  """Raises ValueError if so many bytes are too many to draw."""
  if count > MAX_DRAWN:
    raise ValueError(f"A figure shows up to {MAX_DRAWN} bytes, got {count}; give less text.")


def draw(patched: Patched, path: str) -> None:
  """Draws entropy per byte, the threshold and the patch starts (paper, figure 4).

  Raises:
    ImportError: matplotlib is missing.
    ValueError: the text is longer than `MAX_DRAWN`.
  """
  count = len(patched.tokens)
  check_length(count)
  pyplot = plots.import_pyplot()
  labels, fonts = plots.with_fonts([c.replace(" ", "␣") for c in characters(patched.tokens)])
  num_rows = -(-count // _ROW)
  size = max(min(count, _ROW) / 6, 6), 0.6 + 2 * num_rows
  with pyplot.rc_context({"font.family": fonts}):
    figure, rows = pyplot.subplots(
      num_rows, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for number, axes in enumerate(rows[:, 0]):
      _draw_row(axes, patched, labels, number * _ROW)
    if patched.entropies is not None:
      figure.supylabel("Entropy of the byte (nats)")
    with atomic.new_file(path) as file:
      figure.savefig(file, dpi=150)
  pyplot.close(figure)


def _draw_row(axes: Any, patched: Patched, labels: list[str], first: int) -> None:
  """Draws the bytes from `first` on, as many as fit beside each other."""
  count = len(labels)
  last = min(first + _ROW, count)
  # --- Patches, entropies, threshold
  for start in np.flatnonzero(patched.starts[first:last]) + first:
    level = 0 if patched.levels is None else patched.levels[start]
    axes.axvline(start - 0.5, color="0.7", linestyle="--", linewidth=0.8 * (1 + level))
  if patched.entropies is not None:
    # The entropy that decides about a byte was predicted at the byte before it.
    here = np.arange(max(first - 1, 1), min(last + 1, count))
    axes.plot(here, patched.entropies[here - 1], marker=".", linewidth=1)
  if patched.threshold is not None:
    axes.axhline(patched.threshold, color="tab:red", linestyle="--", linewidth=1)
  # --- Characters
  axes.set_xticks(range(first, last), labels[first:last])
  for label in axes.get_xticklabels():
    label.set_rotation(90 if len(label.get_text()) > 1 else 0)
  axes.set_xlim(first - 0.5, first + min(_ROW, count) - 0.5)
