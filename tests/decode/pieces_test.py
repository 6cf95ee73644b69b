"""Text out of a model over BPE pieces, and scores, against its full forward pass."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from golden_cases import FLOAT32
from uncached import random_params

from blt_jax import tokenizer
from blt_jax.data.piece_vocabulary import PieceVocabulary
from blt_jax.decode import language_model, piece_text
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.decode.scoring import Scorer
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BPELMConfig, TransformerConfig

pytest.importorskip("sentencepiece", reason="BPE pieces are an extra")
from tiny_pieces import SIZE, TEXTS, write_tokenizer  # noqa: E402

STACK = TransformerConfig(16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=24)
CONFIG = BPELMConfig(STACK, vocab_size=SIZE, tie_embeddings=True)
PROMPTS = ["", "the te", "Die schönen Bä", b"the \xff\xe2", "def patch(text):\n   ", "вот"]
DRAWN = Sampling(max_bytes=40, temperature=1.0, top_p=0.95, repetition_penalty=1.1, seed=3)


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory):
  path = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "bpe.model")
  params = random_params(CONFIG)
  params["embedding"]["embedding"] *= 3  # so that likeliest pieces vary
  bare = language_model.from_byte_lm(ByteLM(CONFIG), params)
  return dataclasses.replace(bare, pieces=PieceVocabulary(path)), params


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, tokens):
  return jax.nn.log_softmax(ByteLM(config).apply({"params": params}, tokens))


def _log_probs(params, ids):
  """Log-probabilities [n, V] of the id after each of ids [n], in one pass without caches."""
  tokens = np.pad(ids, (0, 128 - len(ids)))[None]
  return np.asarray(_forward(CONFIG, params, tokens))[0, : len(ids)]


def _text(prompt):
  return prompt.encode() if isinstance(prompt, str) else prompt


@pytest.mark.parametrize("options", [Sampling(max_bytes=40), DRAWN], ids=["greedy", "drawn"])
def test_generates_what_the_full_forward_says(model, options):
  language, params = model
  pieces = language.pieces
  for prompt, result in zip(
    PROMPTS, Generator(language, batch_size=2).generate(PROMPTS, options), strict=True
  ):
    kept = pieces.decode_bytes(result.prompt)
    start = _text(prompt)[len(kept) :]  # what the first piece has to begin with
    assert _text(prompt).startswith(kept) and pieces.decode_bytes(result.ids).startswith(start)
    assert (start + result.bytes) == pieces.decode_bytes(result.ids)[: len(start) + 40]
    log_probs = _log_probs(params, np.concatenate([result.prompt, result.ids]))
    log_probs = log_probs[len(result.prompt) - 1 : -1].copy()
    if start:
      first = np.where(pieces.starting_with(start), log_probs[0], -np.inf)
      log_probs[0] = first - np.log(np.exp(first).sum())
    if options.temperature == 0:
      np.testing.assert_array_equal(result.ids, log_probs.argmax(axis=1))
    chosen = log_probs[np.arange(len(result.ids)), result.ids]
    chex.assert_trees_all_close(result.log_probs, chosen, **FLOAT32)
    assert result.finish == "end" or len(result.bytes) == 40


def test_a_row_does_not_depend_on_the_others(model):
  together = Generator(model[0], batch_size=2).generate(PROMPTS, DRAWN)
  for prompt, result in zip(PROMPTS, together, strict=True):
    (alone,) = Generator(model[0], batch_size=1).generate([prompt], DRAWN)
    np.testing.assert_array_equal(alone.ids, result.ids)
    chex.assert_trees_all_close(alone.log_probs, result.log_probs, **FLOAT32)
    assert (alone.bytes, alone.finish) == (result.bytes, result.finish)


def test_a_prompt_may_end_inside_a_piece(model):
  """Its last piece is drawn anew, among those that begin with it, where there are others."""
  pieces = model[0].pieces
  ids = np.concatenate([[1], pieces.encode(b"text t")])
  kept, start = piece_text.open_end(pieces, ids)
  assert pieces.decode_bytes(kept) + start == b"text t" and start.endswith(b"t")
  for closed in (np.array([1]), np.array([1, 2]), np.array([1, 0xFF + 4])):
    same, start = piece_text.open_end(pieces, closed)
    assert start == b"" and same is closed
  # Ids are taken as they are.
  result = Generator(model[0]).generate([ids], Sampling(max_bytes=3))[0]
  np.testing.assert_array_equal(result.prompt, ids)


def test_shorter_continuations_are_the_beginnings_of_longer_ones(model):
  generator, checked = Generator(model[0]), 0
  for prompt in PROMPTS:
    long = generator.generate([prompt], dataclasses.replace(DRAWN, max_bytes=30))[0]
    for size in (1, 7, 29):
      short = generator.generate([prompt], dataclasses.replace(DRAWN, max_bytes=size))[0]
      np.testing.assert_array_equal(short.ids, long.ids[: len(short.ids)])
      if (short.ids >= tokenizer.OFFSET).all():  # specials, which say nothing, count too
        assert short.bytes == long.bytes[:size]
        assert short.finish == "length"
        checked += 1
  assert checked > 9


def test_stop_strings_end_inside_pieces_too(model):
  long = Generator(model[0]).generate(["the te"], DRAWN)[0]
  whole = long.bytes
  for start, size in ((0, 1), (3, 2), (5, 4), (11, 1)):
    stop = whole[start : start + size]
    options = dataclasses.replace(DRAWN, stop=[stop, b"never seen"])
    result = Generator(model[0]).generate(["the te"], options)[0]
    assert result.finish == "stop" and result.bytes == whole[: whole.find(stop)]
    np.testing.assert_array_equal(result.ids, long.ids[: len(result.ids)])


@pytest.mark.parametrize("stop", [(), ("text", "e"), (b"\x80\x80\x80\x80\x80",)])
def test_a_stream_gives_whole_characters_and_then_all(model, stop):
  options = dataclasses.replace(DRAWN, max_bytes=60, stop=stop)
  whole = Generator(model[0], batch_size=2).generate(PROMPTS, options)
  texts, ids = [""] * len(PROMPTS), [[] for _ in PROMPTS]
  for piece in Generator(model[0], batch_size=2).stream(PROMPTS, options, stride=1):
    assert piece.bytes or piece.result is not None
    texts[piece.index] += piece.bytes.decode(errors="replace")
    ids[piece.index] += piece.ids.tolist()
  assert texts == [result.text for result in whole]
  assert ids == [result.ids.tolist() for result in whole]


def test_only_well_formed_text_where_it_is_asked_for(model):
  prompts = [p for p in PROMPTS if isinstance(p, str)]
  for seed in range(3):
    options = dataclasses.replace(DRAWN, temperature=3.0, seed=seed, valid_utf8=True, top_p=1.0)
    results = Generator(model[0], batch_size=2).generate(prompts, options)
    for result in results:
      result.bytes.decode()
    assert any(len(result.bytes) != len(result.text) for result in results)


def test_whole_characters():
  tree = "🌳".encode()
  for text, count in (
    (b"", 0), (b"a", 1), (b"a\xc3", 1), (b"a\xc3\xa9", 3), (b"\xe2\x82", 0), (b"\xff", 1),
    (b"\x82", 1), (tree + tree[:3], 4),
  ):  # fmt: skip
    assert piece_text.whole_characters(text) == count


def test_scores_are_sums_of_the_full_forward(model):
  language, params = model
  pieces = language.pieces
  pairs = [
    ("the te", "xt"), ("", "text"), ("the", " patches"), ("the ", "patches"),
    (b"the \xe2", b"\x82\xac"), ("def patch", "(text):"), (np.array([1, 300]), "te"),
  ]  # fmt: skip
  scores = Scorer(language, batch_size=3, chunk=4).loglikelihood(pairs)
  for (context, continuation), score in zip(pairs, scores, strict=True):
    if isinstance(context, np.ndarray):
      both, start = np.concatenate([context, pieces.encode(_text(continuation))]), 2
    else:
      both = np.concatenate([[1], pieces.encode(_text(context) + _text(continuation))])
      alone = [1, *pieces.encode(_text(context))]
      start = next(
        i for i in range(len(both)) if i >= len(alone) or both[i] != alone[i]
      )  # the first piece that the context alone does not have
    log_probs = _log_probs(params, both)[start - 1 : -1]
    chosen = log_probs[np.arange(len(log_probs)), both[start:]]
    np.testing.assert_allclose(score.log_prob, chosen.sum(), **FLOAT32)
    assert score.is_greedy == bool((log_probs.argmax(axis=1) == both[start:]).all())


def test_scores_of_whole_texts(model):
  language, params = model
  texts = list(TEXTS.values())
  scores = Scorer(language, batch_size=3).loglikelihood_rolling(texts)
  singly = [Scorer(language, batch_size=1).loglikelihood_rolling([t])[0] for t in texts]
  np.testing.assert_allclose(scores, singly, **FLOAT32)
  for text, score in zip(texts, scores, strict=True):
    ids = np.concatenate([[1], language.pieces.encode(text)])
    log_probs = _log_probs(params, ids)[:-1]
    expected = log_probs[np.arange(len(ids) - 1), ids[1:]].sum()
    np.testing.assert_allclose(score, expected, **FLOAT32)


def test_ids_beyond_the_vocabulary_are_named(model):
  result = Generator(model[0]).generate([np.array([1, SIZE])])[0]
  assert result.error == f"Prompt ids must be in [0, {SIZE})."
  assert tokenizer.VOCAB_SIZE < SIZE
  result = Generator(model[0], max_length=4).generate(["the text is patched"])[0]
  assert "pieces, BOS included, and max_length is 4" in result.error
