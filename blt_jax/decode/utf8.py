"""Well-formed UTF-8 as a table: what may follow, byte by byte (Unicode, table 3-7)."""

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


def _tables():
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


def allowed(state: jax.Array, room: jax.Array) -> jax.Array:
  """Which bytes may follow, and begin no character that does not fit: bool [..., V].

  Args:
    state: int [...].
    room: int [...], how many bytes there may still be.
  """
  fits = _MISSING[NEXT[BETWEEN]] < jnp.maximum(room, 1)[..., None]
  return jnp.asarray(ALLOWED)[state] & (fits | (state != BETWEEN)[..., None])


def state_after(ids: np.ndarray) -> int:
  """The state after ids [n]; a malformed sequence counts as ended."""
  state = BETWEEN
  for token in ids[-4:]:  # no character is longer
    token = int(token)
    if not ALLOWED[state, token]:
      state = BETWEEN  # this byte may begin a character
    state = int(NEXT[state, token])
  return state
