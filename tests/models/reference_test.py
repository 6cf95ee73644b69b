"""Models against stored results of both reference implementations."""

import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from forward import (
  entropies_of,
  foreign_names,
  intermediates,
  logits_of,
  loss_and_gradient,
  pad_lengths,
)
from golden_cases import FLOAT32, GRADIENT
from references import hf, meta

from blt_jax import patching, tokenizer
from blt_jax.convert import names
from blt_jax.models import transformer
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.ops import losses


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
  entries = names.blt_entries(c.config, names.HF)
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


@pytest.mark.parametrize("load, name", [(hf, "input_ids"), (meta, "x")])
def test_references_hash_across_documents(load, name):
  """The rows compared above hold several documents, and hashing apart would be seen."""
  c, run = load()
  tokens = run[name]
  assert (tokens[:, :-1] == tokenizer.EOS_ID).any()
  documents = transformer.document_ids(tokens, tokenizer.EOS_ID)

  def embed(model):
    return model.embedder(tokens, None, documents)

  embeddings = BLT(c.config).apply({"params": c.params}, method=embed)
  assert abs(embeddings - run["input_embeds"]).max() > 0.01


def test_meta_loss_and_gradients():
  c, run = meta()
  (loss, token_losses), gradient = loss_and_gradient(
    c.config, c.params, run["x"], run["patch_lengths"], run["y"], run["mask"]
  )
  chex.assert_trees_all_close(token_losses.reshape(-1), run["tok_loss"], **FLOAT32)
  chex.assert_trees_all_close(loss, run["loss"], **FLOAT32)
  chex.assert_trees_all_close(loss / np.log(2), run["bpb"], **FLOAT32)
  entries = names.blt_entries(c.config, names.META)
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
