"""Tests of models/: the references' numbers, causality, initialisation, options."""

import dataclasses
import functools
import json

import chex
import flax.linen as nn
import flax.traverse_util
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import BFLOAT16, FLOAT32, GRADIENT, SAME
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from blt_jax import convert, convert_config, convert_names, patching, tokenizer
from blt_jax.models import transformer
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import (
  BLTConfig,
  ByteLMConfig,
  CrossAttentionConfig,
  TransformerConfig,
)
from blt_jax.ops import losses
from blt_jax.patching import PatchingConfig

SEQ_LEN = 20  # bytes in a row, and rows in a batch


@functools.cache
def hf():
  return convert.from_hf(golden_cases.GOLDEN / "hf_tiny"), golden_cases.load_run("hf_tiny")


@functools.cache
def meta():
  args = golden_cases.load_json("meta_tiny/args.json")
  arrays, entropy_arrays = (
    load_file(golden_cases.GOLDEN / "meta_tiny" / f"{name}.safetensors")
    for name in ("model", "entropy_model")
  )
  converted = convert.from_meta_state(
    args["model"], arrays, args["entropy_model"], entropy_arrays
  )
  rule = PatchingConfig(threshold=args["patcher"]["threshold"])
  run = golden_cases.load_run("meta_tiny")
  return dataclasses.replace(converted, patching=rule), run


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens, lengths, ngram_ids=None):
  return BLT(config).apply({"params": params}, tokens, lengths, ngram_ids)


@functools.partial(jax.jit, static_argnums=0)
def entropies_of(config, params, tokens):
  return losses.entropy_nats(ByteLM(config).apply({"params": params}, tokens))


@functools.partial(jax.jit, static_argnums=0)
def intermediates(config, params, tokens, lengths):
  """Every array between bytes and logits that the references stored."""

  def run(model):
    seq_len = tokens.shape[1]
    ids = patching.patch_ids(lengths, seq_len)
    decoder_ids = patching.decoder_patch_ids(lengths, seq_len)
    states, patches = model.encode(tokens, ids, lengths.shape[1])
    latents = model.think(tokens, patches, ids)
    return dict(
      input_embeds=model.embedder(tokens),
      patch_ids=ids,
      decoder_patch_ids=decoder_ids,
      encoder_hidden=states,
      patches=patches,
      global_hidden=latents,
      logits=model.decode(tokens, states, latents, decoder_ids),
    )

  return nn.apply(run, BLT(config))({"params": params})


def masked_loss(config, params, tokens, lengths, targets, mask):
  logits = BLT(config).apply({"params": params}, tokens, lengths)
  token_losses = losses.cross_entropy_nats(logits, targets) * mask
  return token_losses.sum() / mask.sum(), token_losses


loss_and_gradient = jax.jit(
  jax.value_and_grad(masked_loss, argnums=1, has_aux=True), static_argnums=0
)


def foreign_names(entries, tree):
  """A tree of our parameters as flat arrays with the reference's names."""
  flat = flax.traverse_util.flatten_dict(tree, sep="/")
  return {k: v for e in entries for k, v in e.split(np.asarray(flat[e.path])).items()}


def check_gradients(got, run):
  norms_and_sums = json.loads(str(run["grad_norm_and_sum_json"]))
  norms_and_sums = {k: v for k, v in norms_and_sums.items() if ".patcher." not in k}
  assert norms_and_sums.keys() == got.keys()
  for name, (norm, total) in norms_and_sums.items():
    chex.assert_trees_all_close(np.linalg.norm(got[name]), np.float32(norm), **GRADIENT)
    # Sums cancel: their error grows with the norm and the number of terms.
    allowed = GRADIENT["rtol"] * (norm + abs(total))
    assert abs(got[name].sum() - total) <= allowed + GRADIENT["atol"], name
  for name in (k for k in run if k.startswith("grad/")):
    chex.assert_trees_all_close(got[name.removeprefix("grad/")], run[name], **GRADIENT)


def holds_bytes(ids, lengths):
  """Which patches [B, P] hold bytes; one that begins with the next byte does not yet."""
  return np.asarray(ids).max(axis=1)[:, None] >= np.arange(lengths.shape[1])


def hf_targets(run):
  """Targets and mask of labels that are shifted inside the loss."""
  labels = np.pad(run["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
  return np.maximum(labels, 0), labels >= 0


def test_hf_entropies_and_patches():
  c, run = hf()
  model = ByteLM(c.entropy_config)
  logits = model.apply({"params": c.entropy_params}, run["input_ids"])
  chex.assert_trees_all_close(logits, run["patcher_logits"], **FLOAT32)
  entropies = np.asarray(losses.entropy_nats(logits))
  chex.assert_trees_all_close(entropies, run["entropies"], **FLOAT32)
  lengths = patching.patch_lengths(run["input_ids"], c.patching, entropies)
  want = run["patch_lengths_hf"].copy()
  want[:, -1] += 1  # their last column is one short
  chex.assert_trees_all_equal(lengths, want)


def test_hf_intermediates():
  c, run = hf()
  tokens = run["input_ids"]
  lengths = patching.patch_lengths(tokens, c.patching, run["entropies"])
  got = intermediates(c.config, c.params, tokens, lengths)
  for name in ("input_embeds", "encoder_hidden", "logits"):
    chex.assert_trees_all_close(got[name], run[name], **FLOAT32)
  patches = run["encoder_cross_states"].reshape(*lengths.shape, -1)
  filled = holds_bytes(got["patch_ids"], lengths)
  chex.assert_trees_all_close(got["patches"][filled], patches[filled], **FLOAT32)
  latents = got["global_hidden"][filled]
  chex.assert_trees_all_close(latents, run["global_hidden"][filled], **FLOAT32)
  targets, mask = hf_targets(run)
  loss = losses.cross_entropy_nats(got["logits"], targets)[mask].mean()
  chex.assert_trees_all_close(loss, run["loss"], **FLOAT32)


def test_hf_decoder_states():
  c, run = hf()
  tokens = run["input_ids"]
  lengths = patching.patch_lengths(tokens, c.patching, run["entropies"])
  ids = patching.decoder_patch_ids(lengths, tokens.shape[1])

  def decode(model, states, latents):
    return model.decoder(states, latents, ids, None)

  states, latents = run["encoder_hidden"], run["global_hidden"]
  got = BLT(c.config).apply({"params": c.params}, states, latents, method=decode)
  chex.assert_trees_all_close(got, run["decoder_hidden_normed"], **FLOAT32)


def test_hf_loss_and_gradients():
  c, run = hf()
  tokens, lengths = run["input_ids"], run["patch_lengths_given"]
  logits = logits_of(c.config, c.params, tokens, lengths)
  chex.assert_trees_all_close(logits, run["logits_given"], **FLOAT32)
  (loss, _), gradient = loss_and_gradient(c.config, c.params, tokens, lengths, *hf_targets(run))
  chex.assert_trees_all_close(loss, run["grad_loss"], **FLOAT32)
  entries = convert_names.blt_entries(c.config, convert_names.HF)
  check_gradients(foreign_names(entries, gradient), run)


def test_meta_intermediates():
  c, run = meta()
  lengths = run["patch_lengths"]
  got = intermediates(c.config, c.params, run["x"], lengths)
  for name in ("patch_ids", "decoder_patch_ids"):
    chex.assert_trees_all_equal(np.asarray(got[name]), run[name])
  for name in ("input_embeds", "encoder_hidden", "logits"):
    chex.assert_trees_all_close(got[name], run[name], **FLOAT32)
  filled = holds_bytes(run["patch_ids"], lengths)
  patches = run["encoder_cross_states"].reshape(*lengths.shape, -1)
  for ours, theirs in (
    (got["patches"], patches),
    (got["patches"], run["global_input"]),
    (got["global_hidden"], run["global_hidden"]),
  ):
    chex.assert_trees_all_close(ours[filled], theirs[filled], **FLOAT32)


def test_meta_loss_and_gradients():
  c, run = meta()
  (loss, token_losses), gradient = loss_and_gradient(
    c.config, c.params, run["x"], run["patch_lengths"], run["y"], run["mask"]
  )
  chex.assert_trees_all_close(token_losses.reshape(-1), run["tok_loss"], **FLOAT32)
  chex.assert_trees_all_close(loss, run["loss"], **FLOAT32)
  chex.assert_trees_all_close(loss / np.log(2), run["bpb"], **FLOAT32)
  entries = convert_names.blt_entries(c.config, convert_names.META)
  check_gradients(foreign_names(entries, gradient), run)


def test_meta_entropies():
  c, run = meta()
  logits = ByteLM(c.entropy_config).apply({"params": c.entropy_params}, run["x"])
  chex.assert_trees_all_close(logits, run["entropy_logits_x"], **FLOAT32)
  chex.assert_trees_all_close(losses.entropy_nats(logits), run["entropies_x"], **FLOAT32)
  chunked = flattened_entropies(c, run["chunked_tokens"], int(run["chunk_length"]))
  chex.assert_trees_all_close(chunked, run["chunked_entropies"], **FLOAT32)


def flattened_entropies(converted, tokens, chunk_length):
  """Entropies of all rows as one stream, cut in chunks, as Meta computes them."""
  stream = tokens.reshape(-1)
  chunks = np.pad(stream, (0, -len(stream) % chunk_length)).reshape(-1, chunk_length)
  chunks = np.pad(chunks, ((0, 3 - len(chunks)), (0, 0)))  # one shape to compile
  entropies = entropies_of(converted.entropy_config, converted.entropy_params, chunks)
  return np.asarray(entropies).reshape(-1)[: len(stream)].reshape(tokens.shape)


def pad_lengths(lengths, seq_len, num_patches):
  """Widens [B, P] to `num_patches`; bytes that are added form one patch on the right."""
  padded = np.zeros((len(lengths), num_patches), np.int32)
  for row, used in zip(padded, lengths, strict=True):
    used = used[used > 0]
    row[: len(used)] = used
    row[len(used)] += seq_len + 1 - used.sum()
  return padded


def generate(converted, prompts, num_new, find_entropies):
  """Greedy continuation of each prompt, recomputing everything for each byte."""
  start, longest = min(map(len, prompts)), max(map(len, prompts))
  total = longest + num_new
  tokens = np.zeros((len(prompts), total), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[: len(prompt)] = prompt
  for position in range(start, total):
    entropies = find_entropies(tokens, position)
    lengths = patching.patch_lengths(tokens[:, :position], converted.patching, entropies)
    lengths = pad_lengths(lengths, total, total + 1)
    logits = logits_of(converted.config, converted.params, tokens, lengths)
    best = np.asarray(jnp.argmax(logits[:, position - 1], axis=-1))
    for row, prompt in enumerate(prompts):
      if position >= len(prompt):
        tokens[row, position] = best[row]
  return [list(row[: len(p) + num_new]) for row, p in zip(tokens, prompts, strict=True)]


def test_hf_greedy_generation():
  c, run = hf()

  def find_entropies(tokens, length):
    return np.asarray(entropies_of(c.entropy_config, c.entropy_params, tokens))[:, :length]

  num_new = run["generate_greedy"].shape[1] - run["generate_prompt"].shape[1]
  got = generate(c, run["generate_prompt"], num_new, find_entropies)
  assert got == run["generate_greedy"].tolist()


@pytest.mark.parametrize("name, num_prompts", [("generate_single", 1), ("generate_batch", 2)])
def test_meta_greedy_generation(name, num_prompts):
  c, run = meta()
  texts = json.loads(str(run["generate_prompts_json"]))[:num_prompts]
  prompts = [tokenizer.encode(text, add_eos=False) for text in texts]

  def find_entropies(tokens, length):
    return flattened_entropies(c, tokens[:, :length], int(run["chunk_length"]))

  got = generate(c, prompts, int(run["generate_max_gen_len"]), find_entropies)
  assert got == [[i for i in row if i >= 0] for row in run[name].tolist()]


def stack(dim, num_layers, **changes):
  return TransformerConfig(dim=dim, num_layers=num_layers, **{
      "num_heads": 4, "mlp_multiple_of": 16, "rope_theta": 500_000.0, **changes})  # fmt: skip


TINY = BLTConfig(
  encoder=stack(16, 2, window=5),
  latent=stack(32, 2),
  decoder=stack(16, 2, window=5),
  encoder_cross=CrossAttentionConfig(4, all_layers=True),
  decoder_cross=CrossAttentionConfig(4, all_layers=True),
  hash_sizes=(2, 3),
  hash_vocab_size=50,
)
ONCE = CrossAttentionConfig(4)
SHALLOW = dataclasses.replace(
  TINY, encoder=stack(16, 1, window=5), latent=stack(32, 1), decoder=stack(16, 1, window=5)
)
VARIANTS = {
    "meta": TINY,
    "hf": dataclasses.replace(
        TINY, repool=True, document_masks=False, latent_document_masks=False),
    "one read": dataclasses.replace(TINY, encoder_cross=ONCE, decoder_cross=ONCE),
    "windows": dataclasses.replace(
        SHALLOW,
        encoder_cross=CrossAttentionConfig(4, window=2, all_layers=True),
        decoder_cross=CrossAttentionConfig(4, window=3)),
    "pooled": dataclasses.replace(
        SHALLOW, encoder_cross=None, decoder_cross=None, pooling="avg_max", hash_sizes=()),
    "unprojected": dataclasses.replace(
        SHALLOW, project_latent=False, pooling="min", hash_functions=2),
    "grouped heads": dataclasses.replace(
        SHALLOW,
        encoder=stack(16, 1, num_kv_heads=2),
        latent=stack(24, 1, num_kv_heads=1, head_dim=4),
        decoder=stack(16, 1, num_kv_heads=2),
        encoder_cross=CrossAttentionConfig(4, num_kv_heads=2),
        vectors_per_patch=4),
    "tied": dataclasses.replace(
        SHALLOW, tie_embeddings=True, ngram_vocab_sizes=(9, 12), latent_document_masks=False),
}  # fmt: skip


def init(model, *inputs):
  """New parameters; the generator "rbg" compiles fastest."""
  key = jax.random.key(0, impl="rbg")
  return nn.meta.unbox(jax.jit(model.init)(key, *inputs))["params"]


@functools.cache
def tiny_params(name):
  """Random parameters, without compiling an initialisation."""
  batch = random_batch(0, VARIANTS[name])
  shapes = jax.eval_shape(BLT(VARIANTS[name]).init, jax.random.key(0), *batch)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    mean = float("scale" in jax.tree_util.keystr(path))
    return rng.normal(mean, 0.25, leaf.shape).astype(np.float32)

  return jax.tree.map_with_path(draw, nn.meta.unbox(shapes)["params"])


def random_batch(seed, config):
  """Tokens, some of them EOS, with patches that depend on prefixes, and n-gram ids."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(4, 260, (SEQ_LEN, SEQ_LEN)).astype(np.int32)
  tokens[rng.random(tokens.shape) < 0.1] = tokenizer.EOS_ID
  entropies = rng.random(tokens.shape, np.float32)
  lengths = patching.patch_lengths(tokens, PatchingConfig(threshold=0.6), entropies)
  sizes = np.array(config.ngram_vocab_sizes)[:, None, None]
  ngram_ids = rng.integers(0, 2**31, (len(sizes), *tokens.shape)) % sizes
  ngram_ids = ngram_ids if len(sizes) else None
  return tokens, pad_lengths(lengths, SEQ_LEN, SEQ_LEN + 1), ngram_ids


def run_tiny(name, tokens, lengths, ngram_ids):
  return np.asarray(logits_of(VARIANTS[name], tiny_params(name), tokens, lengths, ngram_ids))


each_variant = pytest.mark.parametrize("name", VARIANTS)
seeds = given(seed=st.integers(0, 2**32 - 1))


@each_variant
@settings(max_examples=15)
@seeds
def test_rows_do_not_depend_on_each_other(name, seed):
  tokens, lengths, ngram_ids = random_batch(seed, VARIANTS[name])
  together = run_tiny(name, tokens, lengths, ngram_ids)
  others, other_lengths, other_ngrams = random_batch(seed + 1, VARIANTS[name])
  others[1], other_lengths[1] = tokens[1], lengths[1]
  if ngram_ids is not None:
    other_ngrams[:, 1] = ngram_ids[:, 1]
  mixed = run_tiny(name, others, other_lengths, other_ngrams)
  chex.assert_trees_all_close(mixed[1], together[1], **SAME)


@each_variant
@settings(max_examples=15)
@seeds
def test_logits_of_a_prefix_are_those_of_the_whole(name, seed):
  """What follows a prefix, whatever its bytes and patches, changes none of its logits."""
  tokens, lengths, ngram_ids = random_batch(seed, VARIANTS[name])
  whole = run_tiny(name, tokens, lengths, ngram_ids)
  rng = np.random.default_rng(seed)
  length = rng.integers(1, SEQ_LEN)
  prefix = tokens.copy()
  prefix[:, length:] = rng.integers(0, 260, prefix[:, length:].shape)
  cut = np.diff(np.minimum(np.cumsum(lengths, axis=1), length + 1), axis=1, prepend=0)
  padded = pad_lengths(cut, SEQ_LEN, lengths.shape[1])
  got = run_tiny(name, prefix, padded, ngram_ids)
  chex.assert_trees_all_close(got[:, :length], whole[:, :length], **SAME)


@each_variant
def test_a_byte_changes_what_follows_and_nothing_before(name):
  tokens, lengths, ngram_ids = (
    x if x is None else np.repeat(x[..., :1, :], SEQ_LEN, axis=-2)
    for x in random_batch(11, VARIANTS[name])
  )
  changed = tokens.copy()
  position = np.arange(SEQ_LEN)
  changed[position, position] = (changed[position, position] - 4 + 100) % 256 + 4
  before = run_tiny(name, tokens, lengths, ngram_ids)
  difference = abs(run_tiny(name, changed, lengths, ngram_ids) - before).max(axis=-1)
  assert (difference[position[:, None] > position] <= SAME["atol"]).all()
  assert (difference[position, position] > 1e-3).all()


@pytest.mark.parametrize("name", ["hf", "windows", "pooled", "tied"])
def test_gradients_reach_every_parameter(name):
  config = VARIANTS[name]
  batch = random_batch(5, config)

  @jax.jit
  def gradient(params):
    def loss(params):
      logits = BLT(config).apply({"params": params}, *batch)
      return losses.cross_entropy_nats(logits, batch[0]).mean()

    return jax.grad(loss)(params)

  gradients = gradient(tiny_params(name))
  chex.assert_tree_all_finite(gradients)
  for path, value in flax.traverse_util.flatten_dict(gradients, sep="/").items():
    # Where every layer starts from pooled bytes, only the last one counts.
    is_used = not (config.repool and path.startswith("encoder/cross_0"))
    assert (abs(value).max() > 0) == is_used, path


def test_documents_do_not_see_each_other():
  """Self-attention stops at EOS; hashes, which reach across, are switched off."""
  config = dataclasses.replace(TINY, hash_sizes=())
  params = dict(tiny_params("meta"))
  params["embedder"] = {"bytes": params["embedder"]["bytes"]}
  tokens = np.full((2, SEQ_LEN), 70, np.int32)
  tokens[:, 7] = tokenizer.EOS_ID
  tokens[1, 6] = 90
  lengths = np.array([[1, 3, 4, 5, 8]] * 2)  # the second document is patches 3 and 4

  def differences(config):
    got = intermediates(config, params, tokens, lengths)
    names = "encoder_hidden", "patches", "global_hidden"
    return [np.asarray(abs(got[n][0] - got[n][1]).max(axis=-1)) for n in names]

  for found, end in zip(differences(config), (8, 3, 3), strict=True):
    assert (found[end:] <= SAME["atol"]).all() and found[:end].max() > 1e-3
  config = dataclasses.replace(config, document_masks=False, latent_document_masks=False)
  for found, end in zip(differences(config), (8, 3, 3), strict=True):
    assert found[end:].max() > 1e-3


@pytest.mark.parametrize("tied, window", [(False, 4), (True, None)])
def test_byte_lm_is_causal_and_stays_in_documents(tied, window):
  config = ByteLMConfig(stack(16, 2, window=window), vocab_size=50, tie_embeddings=tied)
  tokens = np.random.default_rng(0).integers(4, 50, (1, 12)).astype(np.int32)
  model = ByteLM(config)
  params = {"params": init(model, tokens)}
  assert ("output" in params["params"]) != tied
  changed = tokens.copy()
  changed[0, 6] = (changed[0, 6] - 3) % 46 + 4
  difference = abs(model.apply(params, tokens) - model.apply(params, changed))[0].max(axis=-1)
  assert (difference[:6] <= SAME["atol"]).all() and (difference[6:9] > 1e-4).all()
  tokens[0, 7] = changed[0, 7] = config.eos_id
  difference = abs(model.apply(params, tokens) - model.apply(params, changed))[0].max(axis=-1)
  assert (difference[8:] <= SAME["atol"]).all() and (difference[6:8] > 1e-4).all()


def with_stacks(config, **changes):
  stacks = {
    name: dataclasses.replace(getattr(config, name), **changes)
    for name in ("encoder", "latent", "decoder")
  }
  return dataclasses.replace(config, **stacks)


@pytest.mark.parametrize("remat, unroll", [("full", False), ("dots", True)])
def test_remat_and_unrolling_change_nothing(remat, unroll):
  tokens, lengths, _ = random_batch(2, TINY)
  mask = np.ones(tokens.shape, np.float32)
  arguments = tiny_params("meta"), tokens, lengths, tokens, mask
  want = loss_and_gradient(TINY, *arguments)
  changed = with_stacks(TINY, remat=remat, unroll=unroll)
  chex.assert_trees_all_close(loss_and_gradient(changed, *arguments), want, **SAME)


def test_bfloat16_is_close_to_float32():
  batch = random_batch(3, TINY)
  config = dataclasses.replace(TINY, dtype="bfloat16")
  got = logits_of(config, tiny_params("meta"), *batch)
  assert got.dtype == jnp.float32
  want = run_tiny("meta", *batch)
  error = np.sqrt(np.mean((got - want) ** 2)) / np.std(want)
  assert error < BFLOAT16["rtol"]


def test_bfloat16_keeps_float32_parameters():
  config = dataclasses.replace(TINY, dtype="bfloat16")
  shapes = jax.eval_shape(BLT(config).init, jax.random.key(0), *random_batch(0, TINY))
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def init_blt(config):
  return init(BLT(config), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 5), jnp.int32))


def check_statistics(got, stats):
  assert got.keys() == stats.keys()
  for name, want in stats.items():
    chex.assert_shape(got[name], tuple(want["shape"]))
    if want["std"] == 0:
      chex.assert_trees_all_equal(got[name], np.full(want["shape"], want["mean"], np.float32))
      continue
    sampling_error = 5 / np.sqrt(got[name].size)
    assert abs(got[name].std() / want["std"] - 1) < sampling_error, name
    assert abs(got[name].mean()) < sampling_error * want["std"], name
    # Cut at 3 standard deviations, of which 0.9866 remain.
    assert abs(got[name]).max() <= 3 * want["std"] / 0.9866 * (1 + sampling_error), name


@pytest.mark.parametrize("depth_init", ["disabled", "current_depth"])
def test_golden_initialisation(depth_init):
  stats = golden_cases.load_json("init_stats.json")[depth_init]
  config = convert_config.blt_from_meta(stats["args"])
  entries = convert_names.blt_entries(config, convert_names.META)
  got = foreign_names(entries, init_blt(config))
  prefix = "entropy_model."
  is_entropy = {name: name.startswith(prefix) for name in stats["params"]}
  check_statistics(got, {k: v for k, v in stats["params"].items() if not is_entropy[k]})

  config = ByteLMConfig(stack(96, 2, depth_init=depth_init))
  entries = convert_names.byte_lm_entries(config, convert_names.META, prefix)
  got = foreign_names(entries, init(ByteLM(config), jnp.zeros((1, 4), jnp.int32)))
  check_statistics(got, {k: v for k, v in stats["params"].items() if is_entropy[k]})


@pytest.mark.parametrize(
  "depth_init, factors",
  [
    ("disabled", [1, 1, 1]),
    ("current_depth", [2**0.5, 2, 6**0.5]),
    ("global_depth", [8**0.5] * 3),
    ("dim_ratio", [1 / 64] * 3),
  ],
)
def test_depth_factors(depth_init, factors):
  config = stack(64, 3, depth_init=depth_init)
  stds = [transformer.depth_std(config, layer)(100) for layer in range(3)]
  chex.assert_trees_all_close(np.float32(stds), np.float32(0.1 / np.array(factors)), **SAME)
  config = dataclasses.replace(config, init_std=0.01)
  assert transformer.depth_std(config, 2)(100) == 0.01


def count(model, *inputs):
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  return sum(x.size for x in jax.tree.leaves(shapes))


def test_released_sizes():
  local = dict(dim=1024, num_heads=16, window=512, rope_theta=500_000.0)
  config = BLTConfig(
    encoder=TransformerConfig(num_layers=1, **local),
    latent=TransformerConfig(dim=2048, num_layers=25, num_heads=16, rope_theta=500_000.0),
    decoder=TransformerConfig(num_layers=9, **local),
    encoder_cross=CrossAttentionConfig(16),
    decoder_cross=CrossAttentionConfig(16, all_layers=True),
  )
  assert (config.encoder.mlp_dim, config.latent.mlp_dim) == (2816, 5632)
  tokens, lengths = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 9), jnp.int32)
  assert count(BLT(config), tokens, lengths) == 4_533_879_808
  entropy = ByteLMConfig(TransformerConfig(dim=768, num_layers=14, num_heads=12, window=512))
  assert count(ByteLM(entropy), tokens) == 99_512_064


@pytest.mark.parametrize(
  "case, fields",
  [(c, f) for c, f in golden_cases.load("primitives") if c["name"] == "ffn_hidden_dim"],
)
def test_golden_mlp_widths(case, fields):
  config = TransformerConfig(
    dim=case["dim"],
    num_layers=1,
    num_heads=1,
    mlp_multiplier=case["ffn_dim_multiplier"] or 1.0,
    mlp_multiple_of=case["multiple_of"],
  )
  assert config.mlp_dim == fields["hidden"]


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(num_heads=5), "dim 16 must be a multiple of num_heads 5"),
    (dict(num_heads=16), "head_dim 1 must be even"),
    (dict(num_kv_heads=3), "num_heads 4 must be a multiple of num_kv_heads 3"),
    (dict(window=0), "window is 0"),
  ],
)
def test_transformer_config_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    stack(16, 1, **changes)


def test_cross_attention_config_error():
  with pytest.raises(ValueError, match="num_heads 4 must be a multiple of num_kv_heads 3"):
    CrossAttentionConfig(4, num_kv_heads=3)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(decoder=stack(32, 1)), "widths 16 and 32 must be equal"),
    (dict(pooling="median"), "pooling 'median'"),
    (dict(pooling="avg_mean", encoder_cross=None), "pooling 'avg_mean'"),
    (dict(pooling="avg_max"), "one pooling, got 'avg_max'"),
    (dict(project_latent=False, latent=stack(24, 1)), "latent.dim 24 must be 2 . decoder"),
  ],
)
def test_blt_config_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **changes)


def test_cross_attention_heads_need_not_divide_the_width():
  cross = CrossAttentionConfig(3, all_layers=True)
  config = dataclasses.replace(TINY, encoder_cross=cross, decoder_cross=cross)
  shapes = jax.eval_shape(BLT(config).init, jax.random.key(0), *random_batch(0, config))
  params = nn.meta.unbox(shapes)["params"]
  chex.assert_shape(params["encoder"]["cross_0"]["query"]["kernel"], (16, 15))
  chex.assert_shape(params["encoder"]["cross_0"]["output"]["kernel"], (15, 16))


def test_wrong_number_of_ngram_tables():
  tokens, lengths, ngram_ids = random_batch(0, VARIANTS["tied"])
  with pytest.raises(ValueError, match="2 frequency n-gram tables, ngram_ids has 0"):
    logits_of(VARIANTS["tied"], tiny_params("tied"), tokens, lengths)
  with pytest.raises(ValueError, match="0 frequency n-gram tables, ngram_ids has 2"):
    logits_of(TINY, tiny_params("meta"), tokens, lengths, ngram_ids)


def test_lengths_that_do_not_fit():
  tokens, lengths, _ = random_batch(0, TINY)
  with pytest.raises(ValueError, match=f"must sum to S . 1 = {SEQ_LEN + 1}"):
    BLT(TINY).apply({"params": tiny_params("meta")}, tokens, lengths[:, :3])
