"""What becomes of a prompt."""

import builtins
import dataclasses

import numpy as np

from blt_jax import patching, tokenizer


@dataclasses.dataclass(frozen=True)
class Generation:
  """A prompt and its continuation; ValueError where entropies are NaN.

  Attributes:
    prompt: int32 [n] ids, BOS first; of pieces, those that are kept as they are.
    ids: int32 [m] new ids, an EOS included; a stop string is cut off.
    log_probs: float32 [m], of the new ids under the model itself, in nats.
    finish: "end" (EOS), "stop", "length" (`max_bytes`, or the row is full), "patches"
      (no room for more patches; see `max_patches`), or "error".
    error: what was wrong with the prompt, for "error".
    starts: bool [n + m], bytes that start a patch; None where there are none.
    entropies: float32 [n + m] nats, of the prediction made at each byte; likewise.
    passes: reads of the model that the new bytes took; fewer than m with drafts.
    raw: the continuation's bytes where ids are pieces, of which the first may begin in the
      prompt and the last be cut; None where ids are bytes.
  """

  prompt: np.ndarray
  ids: np.ndarray
  log_probs: np.ndarray
  finish: str
  error: str | None = None
  starts: np.ndarray | None = None
  entropies: np.ndarray | None = None
  passes: int = 0
  raw: builtins.bytes | None = None

  def __post_init__(self):
    if self.entropies is not None:
      patching.check_entropies(self.entropies)

  @property
  def bytes(self) -> builtins.bytes:
    """The continuation."""
    return tokenizer.decode_bytes(self.ids) if self.raw is None else self.raw

  @property
  def text(self) -> str:
    """The continuation; what is not UTF-8 shows as U+FFFD."""
    return self.bytes.decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class Piece:
  """News of one prompt: more bytes, and in the end everything."""

  index: int  # of the prompt
  ids: np.ndarray  # int32, new since the last piece
  result: Generation | None = None  # with the last piece
  raw: builtins.bytes | None = None  # what is new, where ids are no bytes

  @property
  def bytes(self) -> builtins.bytes:
    """What is new of the continuation."""
    return tokenizer.decode_bytes(self.ids) if self.raw is None else self.raw


def failed(error: str) -> Generation:
  """The outcome of a prompt that is wrong."""
  nothing = np.zeros(0, np.int32)
  return Generation(nothing, nothing, np.zeros(0, np.float32), "error", error)
