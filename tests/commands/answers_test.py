"""Fine-tuning on answers, from records to a dialogue."""

import itertools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags
from tiny_runs import logged_losses, losses, stopped_at_batch, tiny_config

from blt_jax import calibrate, evaluate, score_entropies, tokenizer, train
from blt_jax.cli import source_flags
from blt_jax.cli.parsing import Parser
from blt_jax.data import template
from blt_jax.data.reading import scored, sources
from blt_jax.data.reading.documents import SourceOptions
from blt_jax.parallel import sharding
from blt_jax.runs import bounds, corpus, folder
from blt_jax.runs.feed import Feed
from blt_jax.runs.resolve import resolve
from blt_jax.training import steps

TEMPLATE = {
  "system": {"prefix": "", "suffix": "\n"},
  "user": {"prefix": "Q ", "suffix": "\n"},
  "assistant": {"prefix": "A ", "suffix": "\n"},
}


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory):
  """Questions with answers, and a template of one's own."""
  home = tmp_path_factory.mktemp("answers")
  records = [{"prompt": f"{i} + 1?", "completion": str(i + 1)} for i in range(40)]
  (home / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  (home / "template.json").write_text(json.dumps(TEMPLATE))
  return home


def _config(home, workdir, kind="byte_lm", **data):
  config = tiny_config(kind, workdir=str(workdir), num_steps=8)
  config.data.update(
    path=str(home / "data.jsonl"), heldout_fraction=0.2, seq_len=64, num_patches=65,
    format="answers", template=str(home / "template.json"),
  )  # fmt: skip
  config.data.update(data)
  config.optimizer.learning_rate, config.schedule.warmup_steps = 1e-2, 1
  config.checkpoint.every_steps = 4
  return config


@pytest.fixture(scope="module", name="run")
def _run(home):
  """The folder of a run that was stopped and went on, and its last numbers."""
  config = _config(home, home / "run")
  with pytest.MonkeyPatch.context() as monkeypatch, stopped_at_batch(8, monkeypatch):
    train.train(config)
  config.data.template = ""  # another one is refused, the run's own has no need of its file
  with pytest.raises(ValueError, match="config.data.template was"):
    train.train(config)
  config.data.template = folder.load_config(home / "run").data.template
  return home / "run", train.train(config)


def _documents(run):
  """The held-out documents of a run."""
  data = folder.load_config(run).data
  ((_, documents),) = corpus.open_heldout(data, corpus.source_options(data)).values()
  return list(sources.each_document(documents))


def _nats(run, documents):
  """Cross entropy of answers and what ends them, each document alone, and their bytes."""
  loaded = folder.load_run(run)
  forward = jax.jit(lambda ids: loaded.model.apply({"params": loaded.params}, ids))
  nats = count = 0
  for document in documents:
    lines = document.text.decode().splitlines()
    assert [line[:2] for line in lines] == ["Q ", "A "]
    start = len(lines[0]) + 1 + 2  # the answer's bytes, and a newline
    ids = tokenizer.encode(document.text)
    logits = np.asarray(forward(np.pad(ids, (0, 64 - len(ids)))[None]), np.float64)[0]
    log_z = np.log(np.exp(logits).sum(axis=1))
    at = np.arange(start, len(ids) - 1)  # the prediction of each byte of it, and of the EOS
    nats += (log_z[at] - logits[at, ids[1:][at]]).sum()
    count += len(document.text) - start
  return nats, count


# --- Training


def test_held_out_bits_are_of_answers_alone(run):
  workdir, numbers = run
  nats, count = _nats(workdir, _documents(workdir))
  assert numbers["bytes"] == count
  assert numbers["bpb"] == pytest.approx(nats / np.log(2) / count, rel=1e-4)
  rows = sum(len(d.text) + 1 for d in _documents(workdir))  # prompts are in the rows
  assert numbers["byte_slot_use"] == rows / (8 * 64)


@pytest.mark.parametrize("context", [None, 1000])
def test_evaluate_counts_answers_alone(home, run, capsys, context):
  options = [] if context is None else [f"--context={context}"]
  evaluate.main([f"--run={run[0]}", "--data=heldout", *options])
  found = json.loads(capsys.readouterr().out)
  nats, count = _nats(run[0], _documents(run[0]))
  assert found["bytes"] == count and found["documents"] == len(_documents(run[0]))
  assert found["bpb"] == pytest.approx(nats / np.log(2) / count, rel=1e-4)


class _Bigrams(nn.Module):
  """Logits of the next byte from the last one."""

  batch_keys = ()

  @nn.compact
  def __call__(self, tokens, patch_lengths):
    return nn.Embed(260, 260)(tokens)


def test_prompts_are_not_in_the_loss(home):
  """Other targets in prompts change neither the loss nor the gradient; in answers they do."""
  feed = Feed(resolve(_config(home, home / "none")), sharding.make_mesh())
  batch = next(feed.heldout_batches())
  params = {"Embed_0": {"embedding": np.random.default_rng(0).normal(size=(260, 260))}}
  gradient = jax.value_and_grad(lambda p, b: steps.sums(_Bigrams(), p, b)["nats"])
  want = gradient(params, batch)
  is_context = ~batch["loss_mask"] & (batch["targets"] > 0)
  assert is_context.sum() > batch["loss_mask"].sum() > 0
  other = batch | {"targets": np.where(is_context, 200, batch["targets"])}
  jax.tree.map(np.testing.assert_array_equal, gradient(params, other), want)
  other = batch | {"targets": np.where(batch["loss_mask"], 200, batch["targets"])}
  assert gradient(params, other)[0] > want[0]


def test_what_was_stopped_goes_on_to_the_bit(run):
  steps = [step for step, _ in logged_losses(run[0])]
  assert steps == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]  # from the checkpoint of the fourth
  losses(run[0])  # those that ran again gave the same to the bit


def test_workers_give_the_same_batches(home):
  flags.FLAGS.mark_as_parsed()  # Grain's worker processes read flags
  mesh = sharding.make_mesh()
  batches = []
  for num_workers in (0, 1):
    feed = Feed(resolve(_config(home, home / "none", num_workers=num_workers)), mesh)
    stream = feed.training_batches()
    batches.append([jax.device_get(next(stream)) for _ in range(3)])
    feed.close()
  jax.tree.map(np.testing.assert_array_equal, *batches)


def test_flags_go_before_the_way_of_a_run():
  parser = Parser("test", "")
  source_flags.add(parser)

  def parse(*given):
    return source_flags.parse(parser.parse_args(given), of_run).template

  own, of_run = json.dumps(TEMPLATE), SourceOptions(template=template.Template())
  assert parse() == of_run.template and parse("--format=text") is None
  assert parse("--format=answers") == of_run.template
  assert parse("--format=answers", f"--template={own}") == template.parse(own)
  with pytest.raises(ValueError, match="--template says how --format=answers becomes text"):
    parse(f"--template={own}")


def test_settings_that_do_not_go_together(home):
  with pytest.raises(ValueError, match="config.data.template says how prompts"):
    bounds.check(_config(home, home / "x", format="text"))
  with pytest.raises(ValueError, match="config.data.text_field='body' would do nothing"):
    bounds.check(_config(home, home / "x", text_field="body"))
  with pytest.raises(ValueError, match="config.data.format is 'chat'; it must be one of"):
    bounds.check(_config(home, home / "x", format="chat"))
  with pytest.raises(FileNotFoundError, match="none.json"):
    resolve(_config(home, home / "x", template=str(home / "none.json")))


# --- Stored entropies


def _targets(batch):
  """Of each document in a batch its targets, what is learned of them, and its patches."""
  for tokens, targets, mask, lengths in zip(
    *(batch[k] for k in ("tokens", "targets", "loss_mask", "patch_lengths")), strict=True
  ):
    starts = np.append(np.flatnonzero(tokens == tokenizer.BOS_ID), len(tokens))
    bounds_ = np.cumsum(lengths)
    for start, stop in itertools.pairwise(starts.tolist()):
      stop = start + int(np.argmax(targets[start:stop] == tokenizer.EOS_ID)) + 1
      inside = bounds_[(bounds_ > start) & (bounds_ < stop)] - start
      yield targets[start:stop].tolist(), mask[start:stop].tolist(), inside.tolist()


def test_scored_text_knows_its_answers(home, run, tmp_path, capsys):
  given = [
    f"--model={run[0]}", f"--input={home}/data.jsonl", f"--output={tmp_path}/scored",
    "--format=answers", f"--template={home}/template.json", "--dtype=float32",
  ]  # fmt: skip
  score_entropies.main(given)
  options = SourceOptions(template=template.load(str(home / "template.json")))
  want = {
    d.text: d.answers.tolist()
    for d in sources.each_document(sources.open_source(str(home / "data.jsonl"), options))
  }
  reader = scored.ScoredReader(tmp_path / "scored")
  found = {d.text: d.answers.tolist() for d in map(reader.__getitem__, range(len(reader)))}
  assert found == want and len(want) == 40
  # --- Calibrated and trained with: the same batches as with the model at hand
  calibrate.main([f"--run={tmp_path}/scored", "--target_bytes_per_patch=2"])
  assert "threshold" in capsys.readouterr().out
  batches = []
  for path, entropies in ((home / "data.jsonl", "model"), (tmp_path / "scored", "stored")):
    config = _config(home, tmp_path / entropies, "blt", path=str(path))
    config.patching.update(entropies=entropies, entropy_model=str(run[0]), threshold=4.0)
    feed = Feed(resolve(config), sharding.make_mesh())
    batches.append(sorted(row for b in feed.heldout_batches() for row in _targets(b)))
  assert batches[0] == batches[1] != []
  # --- Another template is not that of the shards
  with pytest.raises(ValueError, match="was scored with .*, and is to be read with format"):
    corpus.open_corpus(_config(home, "x", path=str(tmp_path / "scored"), format="text").data)
