"""Draws, and what may be drawn."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blt_jax import tokenizer
from blt_jax.decode import sampling, utf8
from blt_jax.decode.sampling import Sampling

_PROBABILITIES = np.array([0.4, 0.3, 0.2, 0.1])


@functools.partial(jax.jit, static_argnames="parts")
def _draw(logits, options, state, seen, parts=sampling.ALL_PARTS, room=9):
  index = jnp.broadcast_to(jnp.arange(logits.shape[1]), logits.shape[:2])
  rooms = jnp.full(logits.shape[:2], room)
  return sampling.draw(logits, index, rooms, options, state, seen, parts)


def _shares(seen=(), state=utf8.BETWEEN, ids=(54, 64, 74, 84), room=9, **options):
  """How often four bytes of known probability are drawn, in 4000 draws."""
  logits = np.full(260, -30.0, np.float32)
  logits[list(ids)] = np.log(_PROBABILITIES)
  logits = jnp.broadcast_to(jnp.asarray(logits), (1, 4000, 260))
  occurred = np.zeros((1, 4000, 260), bool)
  occurred[..., list(seen)] = True
  chosen = Sampling(**{"temperature": 1.0, **options})
  made = sampling.make_options([chosen], 1, 1)
  arguments = logits, made, jnp.full((1, 4000), state), jnp.asarray(occurred)
  drawn = np.asarray(_draw(*arguments, parts=chosen.parts, room=room))
  all_parts = _draw(*arguments, room=room)
  np.testing.assert_array_equal(drawn, all_parts)  # what is not needed changes nothing
  return [float(np.mean(drawn == i)) for i in ids]


@pytest.mark.parametrize("options, want", [
    ({}, _PROBABILITIES),
    ({"temperature": 0.5}, _PROBABILITIES**2 / 0.3),
    ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
    ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
    ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),  # .7 of what top_k leaves
    ({"min_p": 0.45}, [4 / 9, 3 / 9, 2 / 9, 0]),
    ({"temperature": 0}, [1, 0, 0, 0]),
])  # fmt: skip
def test_draws_follow_the_distribution(options, want):
  np.testing.assert_allclose(_shares(**options), want, atol=0.03)


def _filtered(logits, top_k, top_p, min_p):
  """Logits [V], -inf where filtered out: one rule after the other, by NumPy."""
  order = np.lexsort((np.arange(len(logits)), -logits))
  order = order[: top_k or None]
  shares = np.exp(logits[order] - logits[order[0]])
  shares /= shares.sum()
  inside = np.cumsum(shares) - shares < top_p
  order = order[inside & (shares >= min_p * shares[0])]
  want = np.full_like(logits, -np.inf)
  want[order] = logits[order]
  return want


@pytest.mark.parametrize("top_k, top_p, min_p", [
  (3, 1.0, 0.0), (0, 0.61, 0.0), (0, 1.0, 0.3), (9, 0.83, 0.05), (0, 1.0, 0.0), (1, 0.1, 0.9),
])  # fmt: skip
def test_filters_keep_the_likeliest_and_of_equals_the_first(top_k, top_p, min_p):
  logits = np.random.default_rng(0).integers(-6, 3, (4, 3, 40)).astype(np.float32) / 2
  filters = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
  options = sampling.make_options([filters] * 4, 1, 1)
  got = sampling.adjust(logits, 0, options, 0, None, frozenset(["filters"]))
  want = [_filtered(row, top_k, top_p, min_p) for row in logits.reshape(-1, 40)]
  np.testing.assert_array_equal(np.reshape(got, (-1, 40)), want)


def test_penalised_bytes_are_rarer():
  """Of log-probability log(.4), doubled to log(.16)."""
  want = np.array([0.16, 0.3, 0.2, 0.1]) / 0.76
  got = _shares(seen=[54], repetition_penalty=2.0)
  np.testing.assert_allclose(got, want, atol=0.03)


def test_bytes_that_break_utf8_are_never_drawn():
  """After C3 only the second of these four bytes goes on."""
  ids = [4 + b for b in (0x41, 0xA9, 0xC3, 0xFF)]
  state = utf8.state_after(np.array([4 + 0xC3]))
  assert _shares(ids=ids, state=state, valid_utf8=True) == [0, 1, 0, 0]
  first, *rest = _shares(ids=ids, valid_utf8=True)
  np.testing.assert_allclose([first, *rest], [2 / 3, 0, 1 / 3, 0], atol=0.03)


def test_the_end_can_be_ruled_out():
  """The end is the likeliest of four ids, also before a filter keeps one of them."""
  ids = [tokenizer.EOS_ID, 64, 74, 84]
  want = [0, 3 / 6, 2 / 6, 1 / 6]
  np.testing.assert_allclose(_shares(ids=ids, ignore_eos=True), want, atol=0.03)
  assert _shares(ids=ids, ignore_eos=True, top_k=1) == [0, 1, 0, 0]


@pytest.mark.parametrize("room", [1, 2, 3, 4])
def test_no_character_begins_that_would_be_cut(room):
  """First bytes of characters of one to four bytes, as many as fit equally likely."""
  ids = [4 + b for b in (0x41, 0xC3, 0xE3, 0xF1)]
  fit = np.where(np.arange(4) < room, _PROBABILITIES, 0)
  shares = _shares(ids=ids, room=room, valid_utf8=True)
  np.testing.assert_allclose(shares, fit / fit.sum(), atol=0.03)
  state = utf8.state_after(np.array([4 + 0xF1, 4 + 0x80]))  # what has begun goes on
  assert _shares(ids=[4 + 0x80, *ids[:3]], room=room, state=state, valid_utf8=True)[0] == 1


def test_room_for_every_first_byte():
  """As long as the characters are that begin with it."""
  samples = [*range(0x800), *range(0x800, 0xD800, 64), *range(0xE000, 0x110000, 4096)]
  size = {raw[0]: len(raw) for raw in (chr(c).encode() for c in samples)}
  between = jnp.full(4, utf8.BETWEEN)
  fits = utf8.allowed(between, jnp.arange(1, 5))[:, tokenizer.OFFSET :]
  want = [[room >= size.get(byte, 5) for byte in range(256)] for room in range(1, 5)]
  np.testing.assert_array_equal(fits, want)


def test_only_what_options_ask_for_is_computed():
  assert Sampling().parts == frozenset()
  options = Sampling(temperature=1.0, repetition_penalty=2.0, min_p=0.1, valid_utf8=True)
  options = dataclasses.replace(options, ignore_eos=True)
  assert options.parts == sampling.ALL_PARTS


def test_seeds_and_indices_choose_the_noise():
  logits = jnp.zeros((2, 50, 260))
  options = sampling.make_options([Sampling(temperature=1, seed=s) for s in (0, 1)], 1, 1)
  state, seen = jnp.zeros((2, 50), jnp.int32), jnp.zeros((2, 50, 260), bool)
  drawn = np.asarray(_draw(logits, options, state, seen))
  assert len(set(drawn[0])) > 20 and (drawn[0] != drawn[1]).mean() > 0.9
  np.testing.assert_array_equal(drawn, _draw(logits, options, state, seen))


def _is_prefix(raw):
  """Whether some well-formed text begins with these bytes, by Python's decoder."""
  try:
    raw.decode()
    return True
  except UnicodeDecodeError as error:
    return error.reason == "unexpected end of data"


@given(st.text(max_size=3), st.integers(0, 255))
def test_utf8_agrees_with_python(text, byte):
  for end in range(len(text.encode()) + 1):
    raw = text.encode()[:end]
    ids = tokenizer.encode(raw, add_eos=False)
    state = utf8.state_after(ids)
    assert utf8.ALLOWED[state, byte + 4] == _is_prefix(raw + bytes([byte]))
    assert utf8.ALLOWED[state, tokenizer.EOS_ID] == (
      raw.decode(errors="ignore").encode() == raw
    )


@given(st.binary(max_size=8), st.text(max_size=2))
def test_malformed_bytes_do_no_harm_for_long(raw, text):
  state = utf8.state_after(tokenizer.encode(raw + b"a" + text.encode(), add_eos=False))
  assert state == utf8.BETWEEN


def test_mistakes_are_named():
  for options, error in (
    ({"temperature": -1.0}, "temperature is -1"),
    ({"top_p": 0.0}, "top_p is 0"),
    ({"min_p": 1.0}, "min_p is 1"),
    ({"top_k": -1}, "top_k is -1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
    ({"max_bytes": 0}, "max_bytes is 0"),
    ({"seed": -1}, "seed is -1"),
    ({"top_p": 0.9}, "temperature 0 .*top_p"),
    ({"stop": ["a", ""]}, "stop string '' is empty"),
    ({"stop": "a\ud800"}, "has a lone surrogate"),
    ({"stop": 5}, "stop is 5; it must be a text or a list"),
    ({"stop": ["a", None]}, "stop is .*a list of texts"),
    ({"temperature": math.inf}, "temperature is inf"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
    ({"temperature": None}, "temperature is None"),
    ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
    ({"repetition_penalty": 1e-7}, "repetition_penalty is 1e-07; it must be in"),
    ({"temperature": 1e39}, "temperature is 1e"),
    ({"top_k": 2**40, "temperature": 1.0}, "top_k is 1099511627776"),
    ({"max_bytes": 2.5}, "max_bytes is 2.5; it must be an integer"),
    ({"max_bytes": True}, "max_bytes is True"),
    ({"valid_utf8": "no"}, "valid_utf8 is 'no'"),
  ):
    with pytest.raises(ValueError, match=error):
      Sampling(**options)
