"""How a text falls into patches: lines for a terminal, or a figure."""

import dataclasses

import numpy as np

from blt_jax import tokenizer
from blt_jax.cli import plots

# Background colours that take turns, readable under black text.
_COLOURS = (223, 153, 117, 218)


@dataclasses.dataclass(frozen=True)
class Patched:
  """A text in patches.

  Attributes:
    tokens: int [n] ids, BOS first.
    starts: bool [n], whether a byte starts a patch.
    entropies: float [n] nats, of the prediction made at each byte; None where the
      scheme has none.
    threshold: nats, or None.
  """

  tokens: np.ndarray
  starts: np.ndarray
  entropies: np.ndarray | None
  threshold: float | None


def render(patched: Patched, use_colour: bool, width: int = 72) -> str:
  """The text with its patches apart, and under each byte the entropy of the next.

  Args:
    patched: what to show.
    use_colour: tell patches apart by background colours, else by bars.
    width: bytes in a line.

  Returns:
    Lines; entropies are digits, tenths of the largest possible (ln 256).
  """
  cells = [_cell(t) for t in patched.tokens]
  patch = np.cumsum(patched.starts)
  bars = ["|" if start and not use_colour else "" for start in patched.starts]
  lines = []
  for first in range(0, len(cells), width):
    here = range(first, min(first + width, len(cells)))
    if use_colour:
      colours = [f"\x1b[30;48;5;{_COLOURS[patch[i] % 4]}m" for i in here]
      lines.append(
        "".join(c + cells[i] for c, i in zip(colours, here, strict=True)) + "\x1b[0m"
      )
    else:
      lines.append("".join(bars[i] + cells[i] for i in here))
    if patched.entropies is not None:
      digits = np.clip(patched.entropies / np.log(256) * 10, 0, 9).astype(int)
      lines.append("".join(" " * len(bars[i]) + str(digits[i]) for i in here))
  if patched.entropies is not None:
    lines.append("Digits: entropy of the next byte, in tenths of that of a random byte.")
  sizes = np.diff(np.flatnonzero(patched.starts), append=len(cells))
  lines.append(f"{len(cells)} bytes in {len(sizes)} patches, {sizes.mean():.2f} bytes each")
  return "\n".join(lines)


def _cell(token: int) -> str:
  """One column for a byte."""
  if token < tokenizer.OFFSET:
    return "·"
  byte = int(token) - tokenizer.OFFSET
  if byte == ord("\n"):
    return "↵"
  return chr(byte) if 32 <= byte < 127 else "▯"


def draw(patched: Patched, path: str) -> None:
  """Draws entropy per byte, the threshold and the patch starts (paper, figure 4).

  Raises:
    ImportError: matplotlib is missing.
  """
  pyplot = plots.import_pyplot()
  count = len(patched.tokens)
  figure, axes = pyplot.subplots(figsize=(max(count / 6, 6), 2.6), layout="constrained")
  for start in np.flatnonzero(patched.starts):
    axes.axvline(start - 0.5, color="0.7", linestyle="--", linewidth=0.8)
  if patched.entropies is not None:
    # The entropy that decides about a byte was predicted at the byte before it.
    axes.plot(np.arange(1, count), patched.entropies[:-1], marker=".", linewidth=1)
    axes.set_ylabel("Entropy of the byte (nats)")
  if patched.threshold is not None:
    axes.axhline(patched.threshold, color="tab:red", linestyle="--", linewidth=1)
  axes.set_xticks(range(count), [_cell(t).replace(" ", "_") for t in patched.tokens])
  axes.set_xlim(-0.5, count - 0.5)
  figure.savefig(path, dpi=150)
  pyplot.close(figure)
