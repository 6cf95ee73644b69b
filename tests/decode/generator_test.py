"""Generation against the full forward pass, in all the ways in which it can be run."""

import dataclasses
import functools
import json

import chex
import jax
import numpy as np
import pytest
from forward import TINY
from generated import GREEDY, PROMPTS, generate, model
from golden_cases import FLOAT32
from references import hf, meta
from uncached import Uncached, random_blt

from blt_jax import tokenizer
from blt_jax.decode import loop, placement, rows, sampling
from blt_jax.decode.drafting import Drafting
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.models.config import CrossAttentionConfig
from blt_jax.parallel import sharding
from blt_jax.patching import PatchingConfig

DRAWN = Sampling(max_bytes=24, temperature=1.0, top_k=200, top_p=0.95, min_p=0.001,
                 repetition_penalty=1.1, seed=5, valid_utf8=True)  # fmt: skip
DRAFTS = [None, Drafting("entropy", 3, 9.0), Drafting("decoder", 3, 3.0)]


def same(one, other):
  np.testing.assert_array_equal(one.ids, other.ids)
  chex.assert_trees_all_close(one.log_probs, other.log_probs, **FLOAT32)
  np.testing.assert_array_equal(one.starts, other.starts)
  assert one.finish == other.finish


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_generates_what_the_full_forward_says(options):
  for prompt, result in zip(PROMPTS, generate(options), strict=True):
    assert tokenizer.decode_bytes(result.prompt) == (
      prompt if isinstance(prompt, bytes) else prompt.encode()
    )
    assert result.finish == "end" or len(result.ids) == 24
    random_blt(TINY).check(result, options is GREEDY)


@pytest.mark.parametrize("drafting", DRAFTS, ids=lambda d: d and d.by)
def test_a_document_after_another_in_the_prompt(drafting):
  """Its n-grams and windows begin anew, as in the full forward."""
  window = CrossAttentionConfig(4, window=3, all_layers=True)
  uncached = random_blt(dataclasses.replace(TINY, encoder_cross=window, decoder_cross=window))
  first, second = tokenizer.encode("ab ab"), tokenizer.encode("ab a", add_eos=False)
  prompt = np.concatenate([first, second])
  generator = Generator(uncached.cached(), drafting=drafting, prefill_chunk=4)
  for result in generator.generate([prompt, second], GREEDY):
    uncached.check(result, is_greedy=True)


def test_prompts_that_begin_alike(monkeypatch):
  """Their start is read once, also for rows that are free before others, two at a time."""
  monkeypatch.setattr(rows, "_REFILLS", 2)
  start = "Examples before all of the questions. "
  prompts = [start + end for end in ("five", "", "six", "ei", "n", "ten", "one")]
  options = [Sampling(max_bytes=n, temperature=0.0) for n in (4, 9, 2, 8, 6, 3, 5)]
  generator = Generator(model(), batch_size=4, prefill_chunk=16, share_starts=True)
  for result, wanted in zip(generator.generate(prompts, options), options, strict=True):
    assert result.finish == "end" or len(result.ids) == wanted.max_bytes
    random_blt(TINY).check(result, is_greedy=True)


def test_a_row_does_not_depend_on_the_others():
  """Five prompts on two rows, so that three refill one; against each on its own."""
  for number, prompt in enumerate(PROMPTS):
    same(generate(batch_size=1, prompts=(prompt,))[0], generate()[number])


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("drafting", DRAFTS[1:], ids=lambda d: d.by)
def test_drafts_change_nothing(options, drafting):
  drafted = generate(options, drafting)
  for one, other in zip(drafted, generate(options), strict=True):
    same(one, other)
  if drafting.by == "decoder" and options is GREEDY:  # random models agree by chance only
    assert sum(len(r.ids) for r in drafted) > 1.5 * sum(r.passes for r in drafted)


def test_seeds_choose_the_draws():
  other = dataclasses.replace(DRAWN, seed=6)
  got = Generator(model(), batch_size=2, prefill_chunk=4).generate(
    ["a"] * 3, [DRAWN, other, DRAWN]
  )
  same(got[0], got[2])
  same(got[0], generate(DRAWN)[1])
  assert got[0].ids.tolist() != got[1].ids.tolist()


def test_stops():
  """At the first place where a stop string ends, in the continuation alone."""
  free = generate()[2]
  stop = tokenizer.decode_bytes(free.ids[4:6])
  longer = bytes([next(i for i in range(256) if i not in free.bytes)]) + stop  # never written
  options = dataclasses.replace(GREEDY, stop=["hello", stop, longer, b"no such text"])
  generator = Generator(model(), batch_size=2, prefill_chunk=4)
  pieces = list(generator.stream(["hello world", "a"], options, stride=3))
  result = next(p.result for p in pieces if p.result and p.index == 0)
  first = free.bytes.find(stop)
  assert result.finish == "stop" and result.bytes == free.bytes[:first]
  streamed = np.concatenate([p.ids for p in pieces if p.index == 0])
  np.testing.assert_array_equal(streamed, result.ids)
  streamed = np.concatenate([p.ids for p in pieces if p.index == 1])
  np.testing.assert_array_equal(streamed, generate()[1].ids)


def test_prompts_that_are_too_long():
  long = "x" * 40 + "hello world"
  generator = Generator(model(), batch_size=2, max_length=32, prefill_chunk=4)
  bad, good = generator.generate([long, "a"], Sampling(max_bytes=4))
  assert bad.finish == "error" and "52 bytes" in bad.error and "max_length" in bad.error
  assert good.finish == "length" and len(good.ids) == 4
  generator = Generator(model(), batch_size=2, max_length=32, truncate=True, prefill_chunk=4)
  cut = generator.generate([long], Sampling(max_bytes=4))[0]
  assert len(cut.prompt) == 28 and cut.prompt[0] == tokenizer.BOS_ID
  assert tokenizer.decode_bytes(cut.prompt).endswith(b"xhello world")
  generator = Generator(model(), batch_size=2, max_length=14, prefill_chunk=4)
  assert len(generator.generate(["hello world"])[0].ids) == 2


def test_truncated_prompts_leave_room_for_all_bytes():
  generator = Generator(model(), max_length=32, truncate=True, prefill_chunk=4)
  first, second = generator.generate(["x" * 25] * 2, [Sampling(max_bytes=n) for n in (6, 20)])
  assert len(first.prompt) == 26 and len(second.prompt) == 16


def test_room_for_patches_runs_out():
  """Some way into a continuation; a prompt that goes as far has no room from the start."""
  full = generate()[2]
  room = int(full.starts[: len(full.prompt) + 12].sum())
  assert full.starts.sum() > room > full.starts[: len(full.prompt)].sum()
  small = random_blt(TINY).cached(max_patches=room)
  whole = np.concatenate([full.prompt, full.ids])
  runs = [
    Generator(small, batch_size=2, prefill_chunk=4, drafting=drafting).generate(
      ["hello world", whole], GREEDY
    )
    for drafting in DRAFTS[:2]  # with drafts and without
  ]
  got = runs[0]
  assert {(r[0].finish, r[0].bytes) for r in runs} == {("patches", got[0].bytes)}
  assert got[0].finish == "patches" and 0 < len(got[0].ids) < 24
  np.testing.assert_array_equal(got[0].ids, full.ids[: len(got[0].ids)])
  assert got[1].finish == "error" and "max_patches" in got[1].error


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="2 prompts and 1 options"):
    Generator(model()).generate(["a", "b"], [GREEDY])
  for prompts, options, error in (
    ("hello", GREEDY, "prompts must be a list, got str"),
    (np.array([1, 5]), GREEDY, "prompts must be a list, got ndarray"),
    (["a"], {"max_bytes": 3}, "options must be Sampling"),
    (["a", "b"], [GREEDY, None], "options must be Sampling"),
  ):
    with pytest.raises(ValueError, match=error):
      Generator(model()).generate(prompts, options)
  with pytest.raises(ValueError, match="stride is 0; it must be >= 1"):
    Generator(model()).stream(["a"], GREEDY, stride=0)
  for size in ("batch_size", "max_length", "prefill_chunk"):
    with pytest.raises(ValueError, match=f"{size} is 0; it must be >= "):
      Generator(model(), **{size: 0})
  with pytest.raises(ValueError, match="Unknown drafter 'me'"):
    Drafting("me")
  with pytest.raises(ValueError, match="2 bytes or more, got length 1"):
    Drafting(length=1)
  assert Drafting(length=2).length == 2
  bad, empty, half = Generator(model(), batch_size=2).generate(
    [np.array([1, 300]), np.zeros(0, np.int32), "a\ud800"], Sampling(max_bytes=1)
  )
  assert "260" in bad.error and "BOS first" in empty.error and "lone surrogate" in half.error


def test_text_stays_well_formed_to_its_last_byte():
  hot = [Sampling(11, temperature=9.0, seed=s, valid_utf8=True) for s in range(8)]
  results = Generator(model(), prefill_chunk=4).generate(["é"] * 8, hot)
  assert {len(r.ids) for r in results} >= {11}
  assert all(r.bytes.decode() == r.text for r in results)


def test_patches_without_entropies():
  uncached = dataclasses.replace(random_blt(TINY), patching=PatchingConfig(scheme="space"))
  result = Generator(uncached.cached(), prefill_chunk=4).generate(["a b"], GREEDY)[0]
  assert result.entropies is None and result.starts.sum() > 1


def test_one_program_for_all_prompts_of_a_bucket(monkeypatch):
  once = chex.assert_max_traces(loop.generate.__wrapped__, n=1)
  static = ("reader", "drafting", "parts")
  monkeypatch.setattr(loop, "generate", jax.jit(once, static_argnames=static))
  generator = Generator(model(), batch_size=2, prefill_chunk=4)
  generator.generate(["a", "hello world" * 5, "b" * 20], Sampling(max_bytes=7))


def test_hf_greedy_generation():
  c, run = hf()
  uncached = Uncached(c.config, c.params, c.patching, c.entropy_config, c.entropy_params)
  want = run["generate_greedy"]
  prompts = list(run["generate_prompt"])
  new = want.shape[1] - len(prompts[0])
  generator = Generator(uncached.cached(), drafting=Drafting("decoder", 3), prefill_chunk=16)
  got = generator.generate(prompts, Sampling(max_bytes=new))
  np.testing.assert_array_equal([np.concatenate([r.prompt, r.ids]) for r in got], want)


def test_meta_greedy_generation():
  """Their batches let rows bleed into each other, so the single prompt is compared."""
  c, run = meta()
  uncached = Uncached(c.config, c.params, c.patching, c.entropy_config, c.entropy_params)
  prompt = json.loads(str(run["generate_prompts_json"]))[0]
  generator = Generator(uncached.cached(), prefill_chunk=16)
  result = generator.generate([prompt], Sampling(max_bytes=int(run["generate_max_gen_len"])))[0]
  want = run["generate_single"][0]
  got = np.concatenate([result.prompt, result.ids])
  np.testing.assert_array_equal(got, want[: len(got)])  # theirs goes on after an EOS
  assert len(got) == (want >= 0).sum() or got[-1] == tokenizer.EOS_ID


def test_sharded_over_devices():
  if jax.device_count() < 8:
    pytest.skip("needs eight devices")
  mesh = sharding.make_mesh(1, 4, 2)
  sharded = placement.shard(model(), mesh)
  assert len(sharded.weights.latent[0].gate_up.sharding.device_set) == 8
  got = Generator(sharded, batch_size=2, prefill_chunk=4).generate(PROMPTS, GREEDY)
  for one, other in zip(got, generate(), strict=True):
    same(one, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@jax.default_matmul_precision(None)
def test_products_of_float32_are_exact(dtype):
  """Also where a device has faster ones: which it takes depends on who reads along."""
  cached = random_blt(TINY).cached(dtype=dtype)
  prompts = np.ones((2, 8), np.int32), np.full(2, 8, np.int32)
  prefill = functools.partial(loop.prefill, cached.reader, chunk=4)
  cache, logits, log_probs, _ = jax.eval_shape(prefill, cached.weights, *prompts)
  options = sampling.make_options([GREEDY] * 2, 1, 1)
  rest = dict(tokens=prompts[0], lengths=prompts[1], limits=prompts[1], options=options)
  begin = functools.partial(loop.start, cached.reader, **rest)
  state = jax.eval_shape(begin, cache, logits, log_probs)
  generate = loop.generate.trace(cached.reader, cached.weights, state, 1, False)
  for program in (jax.make_jaxpr(prefill)(cached.weights, *prompts), generate.jaxpr):
    products = str(program).count("= dot_general[")
    exact = str(program).count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
    assert products > 20
    assert exact == (products if dtype == "float32" else 0)
