"""Tests of patching.py: where patches start."""

import functools
import string

import chex
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blt_jax import patching, tokenizer
from blt_jax.patching import PatchingConfig

CASES = [(c, f) for c, f in golden_cases.load("patcher_cases") if "raises" not in c]
EXAMPLE = np.array([[0.1, 2.0, 0.5, 0.6, 3.0, 3.1, 0.2, 1.9]], np.float32)
CAUSAL = {
  "global": PatchingConfig(threshold=1.0),
  "monotonic": PatchingConfig(threshold=0.4, monotonic=True),
  "add": PatchingConfig(threshold=0.8, threshold_add=0.3),
  "monotonic and add": PatchingConfig(threshold=0.4, threshold_add=0.3, monotonic=True),
  "short": PatchingConfig(threshold=1.5, max_patch_length=3),
  "single": PatchingConfig(threshold=1.5, max_patch_length=1),
  "space": PatchingConfig("space"),
  "short space": PatchingConfig("space", max_patch_length=4),
  "static": PatchingConfig("static", patch_size=4),
  "fractional": PatchingConfig("static", patch_size=4.5),
  "whole static": PatchingConfig("static", patch_size=3, split_first=False),
  "byte": PatchingConfig("byte"),
  "bpe": PatchingConfig("bpe"),
  "lookup": PatchingConfig("lookup"),
  "short lookup": PatchingConfig("lookup", max_patch_length=2),
}
SETTINGS = CAUSAL | {
  "top-k": PatchingConfig(threshold=None, patch_size=3),
  "top-k of single bytes": PatchingConfig(threshold=None, patch_size=1),
  "short top-k": PatchingConfig(threshold=None, patch_size=3, max_patch_length=2),
}
TABLE = np.random.default_rng(0).random((260, 260)) < 0.2


def patch(tokens, config, entropies=None, include_next=True, table=TABLE):
  table = table if config.scheme == "lookup" else None
  entropies = entropies if config.scheme == "entropy" else None
  return patching.patch_lengths(tokens, config, entropies, include_next, table)


@functools.partial(jax.jit, static_argnames=("config", "include_next"))
def jitted_patch(tokens, config, entropies, include_next, table=TABLE):
  return patch(tokens, config, entropies, include_next, table)


def random_rows(seed, batch, seq_len):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(4, 260, (batch, seq_len))
  text = rng.choice([*range(8), *map(int, tokenizer.encode("ab 0,;"))], tokens.shape)
  tokens = np.where(rng.random((batch, 1)) < 0.5, tokens, text).astype(np.int32)
  entropies = rng.gamma(1.5, 0.7, tokens.shape).astype(np.float32)
  return tokens, entropies


def cut(lengths, total):
  """The patches of a row, cut after `total` bytes."""
  ends = np.minimum(np.cumsum(lengths), total)
  pieces = np.diff(ends, prepend=0)
  return pieces[pieces > 0]


def golden_config(case):
  args, mode = case["args"], case["mode"]
  schemes = {"entropy_topk": "entropy", "lookup_table": "lookup"}
  threshold = None if mode == "entropy_topk" else args.get("threshold", 1.335442066192627)
  return PatchingConfig(
    scheme=schemes.get(mode, mode),
    threshold=threshold,
    threshold_add=args.get("threshold_add"),
    monotonic=args.get("monotonicity", False),
    patch_size=args.get("patch_size"),
    max_patch_length=args.get("max_patch_length"),
    split_first=mode != "static",
  )


def golden_table(fields):
  table = np.zeros((260, 260), bool)
  if "bigram_hit" in fields:
    tokens = fields["tokens"]
    table[tokens[:, :-1], tokens[:, 1:]] = fields["bigram_hit"]
  return table


def find_ids(lengths, seq_len):
  ids = patching.patch_ids(lengths, seq_len), patching.decoder_patch_ids(lengths, seq_len)
  return dict(zip(("patch_ids", "decoder_patch_ids"), ids, strict=True))


def check_ids(lengths, fields):
  """Compares ids with the reference, where it has some, on numpy and on jax."""
  wanted = {k: v for k, v in fields.items() if k in ("patch_ids", "decoder_patch_ids")}
  if not wanted:
    return
  seq_len = fields["patch_ids"].shape[1]
  ids = find_ids(lengths, seq_len)
  chex.assert_trees_all_equal({k: ids[k] for k in wanted}, wanted)
  traced = jax.jit(find_ids, static_argnums=1)(jnp.asarray(lengths), seq_len)
  chex.assert_trees_all_equal(jax.tree.map(np.asarray, traced), ids)


def golden_modes(*modes):
  return [
    pytest.param(c, f, id=f"{c['id']}-{c['name']}") for c, f in CASES if c["mode"] in modes
  ]


@pytest.mark.parametrize(
  "case, fields",
  golden_modes("entropy", "entropy_topk", "space", "static", "byte", "bpe", "lookup_table"),
)
def test_golden_patches(case, fields):
  config, table = golden_config(case), golden_table(fields)
  entropies = fields.get("entropies")
  tokens = fields.get("tokens", np.zeros(np.shape(entropies), np.int32))
  include_next = case["include_next_token"]
  lengths = patch(tokens, config, entropies, include_next, table)
  assert isinstance(lengths, np.ndarray) and lengths.dtype == np.int32
  chex.assert_trees_all_equal(lengths, fields["patch_lengths"])
  check_ids(lengths, fields)
  traced = jitted_patch(jnp.asarray(tokens), config, entropies, include_next, table)
  chex.assert_shape(traced, (len(tokens), tokens.shape[1] + include_next))
  chex.assert_trees_all_equal(golden_cases.trim(traced), fields["patch_lengths"])


@pytest.mark.parametrize("case, fields", golden_modes("bpe_patcher"))
@pytest.mark.parametrize("to_array", [np.asarray, jnp.asarray])
def test_golden_patches_of_a_delimiter_model(case, fields, to_array):
  predicted = fields["argmax_after_position_1"]
  boundaries = np.zeros(fields["tokens"].shape, bool)
  boundaries[:, 1 : 1 + predicted.shape[1]] = predicted == tokenizer.BPE_ID
  starts = patching.starts_from_boundaries(to_array(boundaries), case["include_next_token"])
  lengths = patching.lengths_from_starts(starts)
  chex.assert_trees_all_equal(np.asarray(lengths), fields["patch_lengths"])
  check_ids(np.asarray(lengths), fields)


@pytest.mark.parametrize("case, fields", golden_modes("split"))
def test_golden_splits(case, fields):
  lengths, want = np.atleast_2d(fields["lengths"]), np.atleast_2d(fields["out"])
  limit = case["args"]["max_patch_length"]
  chex.assert_trees_all_equal(patching.split_long(lengths, limit), want)
  split = jax.jit(patching.split_long, static_argnums=(1, 2))
  traced = split(jnp.asarray(lengths), limit, want.shape[1])
  chex.assert_trees_all_equal(np.asarray(traced), want)
  eager = patching.split_long(jnp.asarray(lengths), limit)
  chex.assert_trees_all_equal(np.asarray(eager), want)
  split = jax.jit(
    functools.partial(patching.split_long, max_patch_length=limit, num_patches=50)
  )
  padded = np.asarray(split(jnp.asarray(lengths)))
  chex.assert_trees_all_equal(padded[:, : want.shape[1]], want)
  assert not padded[:, want.shape[1] :].any()


def test_every_golden_mode_is_covered():
  assert {c["mode"] for c, _ in CASES} == {
      "entropy", "entropy_topk", "space", "static", "byte", "bpe", "bpe_patcher",
      "lookup_table", "split",
  }  # fmt: skip


@pytest.mark.parametrize("case, fields", golden_cases.load("mask_cases"))
def test_golden_ids_of_packed_rows(case, fields):
  del case
  check_ids(fields["patch_lengths"], fields)


@pytest.mark.parametrize(
  "config, without_next, with_next",
  [
    (PatchingConfig(threshold=1.0), [1, 1, 3, 1, 2], [1, 1, 3, 1, 2, 1]),
    (PatchingConfig(threshold=1.0, monotonic=True), [1, 1, 3, 3], [1, 1, 3, 3, 1]),
    (PatchingConfig(threshold=1.0, threshold_add=0.3), [1, 1, 3, 3], [1, 1, 3, 3, 1]),
    (
      PatchingConfig(threshold=1.0, max_patch_length=2),
      [1, 1, 2, 1, 1, 2],
      [1, 1, 2, 1, 1, 2, 1],
    ),
    (PatchingConfig(threshold=None, patch_size=2), [1, 4, 1, 2], [1, 4, 1, 3]),
  ],
)
def test_entropy_rules_by_hand(config, without_next, with_next):
  tokens = np.zeros(EXAMPLE.shape, np.int32)
  assert patch(tokens, config, EXAMPLE, False).tolist() == [without_next]
  assert patch(tokens, config, EXAMPLE, True).tolist() == [with_next]


@pytest.mark.parametrize(
  "config, starts",
  [
    (PatchingConfig(threshold=1.0, threshold_add=0.3), [0, 1, 2, 5, 6]),
    (PatchingConfig(threshold=1.0, monotonic=True), [0, 1, 2, 3, 5, 6]),
  ],
)
def test_rise_rules_force_byte_two_and_add_suppresses_byte_three(config, starts):
  entropies = np.array([[0.1, 0.2, 5, 0.1, 5, 9, 0.1]], np.float32)
  lengths = patch(np.zeros((1, 7), np.int32), config, entropies, False)
  assert np.cumsum([0, *lengths[0, :-1]]).tolist() == starts


def test_entropy_equal_to_the_threshold_does_not_start_a_patch():
  entropies = np.array([[9, 1, 1.5, 1]], np.float32)
  lengths = patch(np.zeros((1, 4), np.int32), PatchingConfig(threshold=1.0), entropies)
  assert lengths.tolist() == [[1, 2, 2]]


@pytest.mark.parametrize(
  "threshold", [-0.5, 0.0, 1e-9, 6e-8, 1.0, 1.0001, 1.335442066192627, 65504.0, 1e9, np.inf]
)
def test_float16_entropies_are_compared_as_float32_ones(threshold):
  entropies = np.arange(2**16, dtype=np.uint16).view(np.float16)[None]  # all, NaN among them
  tokens = np.full(entropies.shape, 80)
  rule = PatchingConfig(threshold=threshold)
  expected = patching.find_boundaries(tokens, rule, entropies.astype(np.float32))
  np.testing.assert_array_equal(patching.find_boundaries(tokens, rule, entropies), expected)


def test_first_entropy_is_never_used():
  high, low = (np.array([[h, 0, 0]], np.float32) for h in (9, 0))
  tokens = np.zeros((1, 3), np.int32)
  for config in (CAUSAL["global"], CAUSAL["add"]):
    chex.assert_trees_all_equal(patch(tokens, config, high), patch(tokens, config, low))


def test_shorter_rows_end_in_zeros():
  entropies = np.concatenate([EXAMPLE, np.zeros_like(EXAMPLE)])
  lengths = patch(np.zeros((2, 8), np.int32), PatchingConfig(threshold=1.0), entropies)
  assert lengths.tolist() == [[1, 1, 3, 1, 2, 1], [1, 8, 0, 0, 0, 0]]


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_one_byte(config):
  tokens, entropies = random_rows(0, 2, 1)
  with_next = [2] if not config.split_first else [1, 1]
  assert patch(tokens, config, entropies, False).tolist() == [[1]] * 2
  assert patch(tokens, config, entropies, True).tolist() == [with_next] * 2


@pytest.mark.parametrize(
  "text, lengths",
  [
    ("Hello, world! Café 漢字", [1, 6, 7, 5, 2, 4, 3]),
    ("a  b", [1, 2, 3]),
    ("3.14 and 42", [1, 2, 3, 4, 3]),
    ("...", [1, 4]),
    ("a-b_c", [1, 2, 2, 2]),
  ],
)
def test_space_by_hand(text, lengths):
  tokens = tokenizer.encode(text)[None]
  assert patch(tokens, PatchingConfig("space"), include_next=False).tolist() == [lengths]
  assert patching.patch_lengths(tokens, PatchingConfig("space")).tolist() == [[*lengths, 1]]


def test_letters_digits_and_continuation_bytes_are_not_spacelike():
  letters = set(b"0123456789" + string.ascii_letters.encode()) | set(range(0x80, 0xC0))
  found = patching.is_spacelike(np.arange(256) + tokenizer.OFFSET)
  assert set(np.flatnonzero(~found)) == letters


@pytest.mark.parametrize(
  "size, seq_len, split_first, without_next, with_next",
  [
    (4, 8, False, [4, 4], [4, 4, 1]),
    (4, 7, False, [4, 3], [4, 4]),
    (4, 8, True, [1, 3, 4], [1, 3, 4, 1]),
    (4, 7, True, [1, 3, 3], [1, 3, 4]),
    (4.5, 18, True, [1, 4, 4, 5, 4], [1, 4, 4, 5, 4, 1]),
    (2.5, 6, False, [3, 2, 1], [3, 2, 2]),
    (1, 3, True, [1, 1, 1], [1, 1, 1, 1]),
  ],
)
def test_static_by_hand(size, seq_len, split_first, without_next, with_next):
  config = PatchingConfig("static", patch_size=size, split_first=split_first)
  tokens = np.zeros((1, seq_len), np.int32)
  assert patch(tokens, config, include_next=False).tolist() == [without_next]
  assert patch(tokens, config).tolist() == [with_next]


def test_bpe_by_hand():
  tokens = np.array([[1, 3, 80, 105, 3, 43, 3, 119, 2]], np.int32)
  assert patch(tokens, PatchingConfig("bpe"), include_next=False).tolist() == [[1, 1, 3, 2, 2]]
  assert patch(tokens, PatchingConfig("bpe")).tolist() == [[1, 1, 3, 2, 3]]


def test_bpe_delimiter_at_the_end_closes_nothing():
  assert patch(np.array([[1, 80, 3]], np.int32), PatchingConfig("bpe")).tolist() == [[1, 3]]


def test_lookup_by_hand():
  table = np.zeros((260, 260), bool)
  table[10, 11] = True
  tokens = np.array([[9, 10, 11, 12, 10, 11]], np.int32)
  config = PatchingConfig("lookup")
  assert patch(tokens, config, include_next=False, table=table).tolist() == [[1, 2, 3]]
  assert patch(tokens, config, table=table).tolist() == [[1, 2, 3, 1]]


def test_max_patch_length_equals_splitting_afterwards():
  tokens, entropies = random_rows(3, 200, 30)
  whole = patch(tokens, PatchingConfig(threshold=1.5), entropies)
  limited = patch(tokens, CAUSAL["short"], entropies)
  split = patching.split_long(whole, 3)
  for row, other in zip(limited, split, strict=True):
    chex.assert_trees_all_equal(row[row > 0], other[other > 0])


@pytest.mark.parametrize("include_next", [False, True])
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_numpy_and_jax_agree(config, include_next):
  tokens, entropies = random_rows(len(config.scheme), 400, 23)
  lengths = patch(tokens, config, entropies, include_next)
  traced = np.asarray(jitted_patch(jnp.asarray(tokens), config, entropies, include_next))
  assert traced.dtype == np.int32
  chex.assert_trees_all_equal(golden_cases.trim(traced), lengths)
  assert (lengths.sum(axis=1) == 23 + include_next).all()
  assert (lengths >= 0).all()
  assert not ((lengths[:, :-1] == 0) & (lengths[:, 1:] > 0)).any()
  if config.split_first:
    assert (lengths[:, 0] == 1).all()
  if config.max_patch_length:
    assert lengths.max() <= config.max_patch_length


def test_jax_outside_jit_drops_empty_columns_as_numpy_does():
  tokens, entropies = random_rows(5, 3, 12)
  eager = patch(jnp.asarray(tokens), CAUSAL["global"], entropies)
  assert isinstance(eager, jax.Array)
  chex.assert_trees_all_equal(np.asarray(eager), patch(tokens, CAUSAL["global"], entropies))


@pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
def test_patches_of_a_prefix_are_the_patches_cut(config):
  tokens, entropies = random_rows(7, 60, 20)
  whole = patch(tokens, config, entropies)
  for length in range(1, tokens.shape[1]):
    prefix = patch(tokens[:, :length], config, entropies[:, :length])
    for row in range(len(tokens)):
      if config.scheme == "bpe" and tokens[row, length - 1] == tokenizer.BPE_ID:
        continue
      want = cut(whole[row], length + 1)
      chex.assert_trees_all_equal(prefix[row][prefix[row] > 0], want)


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_rows_do_not_depend_on_each_other(config):
  tokens, entropies = random_rows(8, 30, 17)
  together = patch(tokens, config, entropies)
  for row in range(len(tokens)):
    alone = patch(tokens[row : row + 1], config, entropies[row : row + 1])[0]
    chex.assert_trees_all_equal(together[row][together[row] > 0], alone[alone > 0])


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(scheme="words"), "Unknown scheme 'words'.*entropy.*lookup"),
    (dict(max_patch_length=0), "max_patch_length is 0"),
    (dict(scheme="static"), "static scheme needs patch_size.*None"),
    (dict(scheme="static", patch_size=0.5), "static scheme needs patch_size.*0.5"),
    (dict(threshold=None), "needs a threshold, or patch_size"),
    (dict(threshold=None, patch_size=0), "needs a threshold, or patch_size"),
    (dict(threshold=None, patch_size=4, monotonic=True), "need a threshold"),
    (dict(threshold=None, patch_size=4, threshold_add=1.0), "need a threshold"),
  ],
)
def test_config_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    PatchingConfig(**settings)


@pytest.mark.parametrize("to_array", [np.asarray, jnp.asarray])
def test_input_errors(to_array):
  tokens = to_array(np.zeros((2, 5), np.int32))
  with pytest.raises(ValueError, match=r"tokens must be \[B, S\].*\(5,\)"):
    patching.patch_lengths(tokens[0], PatchingConfig("byte"))
  with pytest.raises(ValueError, match=r"S >= 1, got \(2, 0\)"):
    patching.patch_lengths(tokens[:, :0], PatchingConfig("byte"))
  with pytest.raises(ValueError, match=r"needs entropies \(2, 5\), got None"):
    patching.patch_lengths(tokens, PatchingConfig())
  with pytest.raises(ValueError, match=r"needs entropies \(2, 5\), got \(2, 4\)"):
    patching.patch_lengths(tokens, PatchingConfig(), np.zeros((2, 4)))
  with pytest.raises(ValueError, match="needs a lookup_table"):
    patching.patch_lengths(tokens, PatchingConfig("lookup"))


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_narrow_and_unsigned_tokens_give_the_same_patches(dtype):
  tokens = np.array([[80, 80, 2, 2, 80]])
  config = PatchingConfig(scheme="space")
  got = patching.patch_lengths(tokens.astype(dtype), config, include_next=False)
  np.testing.assert_array_equal(got, [[1, 2, 1, 1]])
