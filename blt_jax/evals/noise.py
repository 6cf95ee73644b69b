"""Five ways to spoil a text (paper, section 6.1), on its code points, spaces included."""

import hashlib
from collections.abc import Callable

import numpy as np

Noise = Callable[[str, np.random.Generator], str]


def antspeak(text: str, rng: np.random.Generator) -> str:
  """Upper case, with a space between all characters."""
  del rng
  return " ".join(text.upper())


def drop(text: str, rng: np.random.Generator) -> str:
  """Leaves each character out with probability 0.1."""
  kept = rng.random(len(text)) >= 0.1
  return "".join(c for c, is_kept in zip(text, kept, strict=True) if is_kept)


def random_case(text: str, rng: np.random.Generator) -> str:
  """Makes each character upper or lower case, evenly."""
  is_upper = rng.random(len(text)) < 0.5
  return "".join(c.upper() if up else c.lower() for c, up in zip(text, is_upper, strict=True))


def repeat(text: str, rng: np.random.Generator) -> str:
  """With probability 0.2 a character stands two to four times."""
  times = np.where(rng.random(len(text)) < 0.2, rng.integers(2, 5, len(text)), 1)
  return "".join(c * n for c, n in zip(text, times.tolist(), strict=True))


def upper_case(text: str, rng: np.random.Generator) -> str:
  """Upper case."""
  del rng
  return text.upper()


NOISES: dict[str, Noise] = {
  "antspeak": antspeak,
  "drop": drop,
  "random_case": random_case,
  "repeat": repeat,
  "upper_case": upper_case,
}


def generator(seed: int, noise: str, item: str, part: str) -> np.random.Generator:
  """What an item's noise is drawn from, whatever else is evaluated."""
  key = hashlib.sha256("\0".join([str(seed), noise, item, part]).encode()).digest()
  return np.random.default_rng(int.from_bytes(key[:16], "big"))
