"""Five ways to spoil a text (paper, section 6.1), on its code points, spaces included."""

import hashlib
from collections.abc import Callable

import numpy as np

Noise = Callable[[str, np.random.Generator], list[str]]  # what each character becomes


def antspeak(text: str, rng: np.random.Generator) -> str:
  """Upper case, with a space between all characters."""
  return "".join(_antspeak(text, rng))


def drop(text: str, rng: np.random.Generator) -> str:
  """Leaves each character out with probability 0.1."""
  return "".join(_drop(text, rng))


def random_case(text: str, rng: np.random.Generator) -> str:
  """Makes each character upper or lower case, evenly."""
  return "".join(_random_case(text, rng))


def repeat(text: str, rng: np.random.Generator) -> str:
  """With probability 0.2 a character stands two to four times."""
  return "".join(_repeat(text, rng))


def upper_case(text: str, rng: np.random.Generator) -> str:
  """Upper case."""
  return "".join(_upper_case(text, rng))


def _antspeak(text: str, rng: np.random.Generator) -> list[str]:
  spaced = [" ".join(c) + " " for c in _upper_case(text, rng)]
  return [*spaced[:-1], *(last.removesuffix(" ") for last in spaced[-1:])]


def _drop(text: str, rng: np.random.Generator) -> list[str]:
  kept = rng.random(len(text)) >= 0.1
  return [c if is_kept else "" for c, is_kept in zip(text, kept, strict=True)]


def _random_case(text: str, rng: np.random.Generator) -> list[str]:
  is_upper = rng.random(len(text)) < 0.5
  return [c.upper() if up else c.lower() for c, up in zip(text, is_upper, strict=True)]


def _repeat(text: str, rng: np.random.Generator) -> list[str]:
  times = np.where(rng.random(len(text)) < 0.2, rng.integers(2, 5, len(text)), 1)
  return [c * n for c, n in zip(text, times.tolist(), strict=True)]


def _upper_case(text: str, rng: np.random.Generator) -> list[str]:
  del rng
  return [c.upper() for c in text]


NOISES: dict[str, Noise] = {
  "antspeak": _antspeak,
  "drop": _drop,
  "random_case": _random_case,
  "repeat": _repeat,
  "upper_case": _upper_case,
}


def spoil(text: str, noise: str, rng: np.random.Generator, strength: float = 1.0) -> str:
  """A text with a noise of some of its characters.

  Args:
    text: to spoil.
    noise: of `NOISES`.
    rng: of the noise, and of the choice of characters. A weaker noise from the same
      generator spoils some of the characters that a stronger one does.
    strength: the probability that a character gets the noise; at 1 it is the paper's.
  """
  spoiled = NOISES[noise](text, rng)
  if strength < 1:
    is_new = rng.random(len(text)) < strength
    both = zip(is_new, spoiled, text, strict=True)
    spoiled = [new if chosen else old for chosen, new, old in both]
  return "".join(spoiled)


def generator(seed: int, noise: str, item: str, part: str) -> np.random.Generator:
  """What an item's noise is drawn from, whatever else is evaluated."""
  key = hashlib.sha256("\0".join([str(seed), noise, item, part]).encode()).digest()
  return np.random.default_rng(int.from_bytes(key[:16], "big"))
