"""Well-formed UTF-8 as a table: what may follow, byte by byte (Unicode, table 3-7)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer

BETWEEN = 0  # the state between two characters
# Of each state, what may follow: (first byte, last byte, next state).
_RULES = (
  ((0x00, 0x7F, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xE1, 0xEC, 2), (0xED, 0xED, 5),
   (0xEE, 0xEF, 2), (0xF0, 0xF0, 6), (0xF1, 0xF3, 3), (0xF4, 0xF4, 7)),
  ((0x80, 0xBF, 0),),  # one byte is missing
  ((0x80, 0xBF, 1),),  # two
  ((0x80, 0xBF, 2),),  # three
  ((0xA0, 0xBF, 1),),  # after E0: no overlong forms
  ((0x80, 0x9F, 1),),  # after ED: no surrogates
  ((0x90, 0xBF, 2),),  # after F0: no overlong forms
  ((0x80, 0x8F, 2),),  # after F4: nothing above U+10FFFF
)  # fmt: skip


def _tables() -> tuple[np.ndarray, np.ndarray]:
  allowed = np.zeros((len(_RULES), tokenizer.VOCAB_SIZE), bool)
  following = np.zeros((len(_RULES), tokenizer.VOCAB_SIZE), np.int32)
  for state, rules in enumerate(_RULES):
    for first, last, after in rules:
      ids = slice(first + tokenizer.OFFSET, last + 1 + tokenizer.OFFSET)
      allowed[state, ids], following[state, ids] = True, after
  allowed[BETWEEN, tokenizer.EOS_ID] = True
  return allowed, following


_MISSING = np.array([0, 1, 2, 3, 2, 2, 3, 3])  # bytes of the character, in each state
ALLOWED, NEXT = _tables()  # bool and int32 [states, V]; what is not allowed leads to BETWEEN


@functools.cache
def tables(size: int) -> tuple[np.ndarray, np.ndarray]:
  """`ALLOWED` and `NEXT` with columns for pieces up to `size`: those are whole characters."""
  more = (0, 0), (0, size - tokenizer.VOCAB_SIZE)
  allowed, following = np.pad(ALLOWED, more), np.pad(NEXT, more)
  allowed[BETWEEN, tokenizer.VOCAB_SIZE :] = True
  return allowed, following


def allowed(state: jax.Array, room: jax.Array, size: int = tokenizer.VOCAB_SIZE) -> jax.Array:
  """Which ids may follow, and begin no character that does not fit: bool [..., V].

  Args:
    state: int [...].
    room: int [...], how many ids there may still be.
    size: V.
  """
  may_follow, following = tables(size)
  missing = jnp.expand_dims(_MISSING[following[BETWEEN]], range(room.ndim))
  fits = missing < jnp.maximum(room, 1)[..., None]
  return jnp.asarray(may_follow)[state] & (fits | (state != BETWEEN)[..., None])


def state_after(ids: np.ndarray) -> int:
  """The state after ids [n]; a malformed sequence counts as ended, and so does a piece."""
  state = BETWEEN
  for token in ids[-4:]:  # no character is longer
    token = int(token)
    if token >= tokenizer.VOCAB_SIZE:
      state = BETWEEN
      continue
    if not ALLOWED[state, token]:
      state = BETWEEN  # this byte may begin a character
    state = int(NEXT[state, token])
  return state
