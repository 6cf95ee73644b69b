"""Llama over BPE pieces from its tokenizer to generated text, and its bits per byte."""

import importlib.util
import json
import math
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import losses, stopped_at_batch, tiny_config

from blt_jax import config as settings
from blt_jax import (
  evaluate,
  export,
  generate,
  kinds,
  show_patches,
  tokenizer,
  train,
  train_tokenizer,
)
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.decode.scoring import Scorer
from blt_jax.parallel import sharding
from blt_jax.runs import folder, loading, patcher

sentencepiece = pytest.importorskip("sentencepiece", reason="BPE pieces are an extra")
from tiny_pieces import LEARNED, SIZE, TEXTS, write_home, write_tokenizer  # noqa: E402


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory):
  """Text of several languages, code and a tokenizer."""
  home = tmp_path_factory.mktemp("bpe")
  write_home(home)
  return home


def _config(home, workdir, **overrides):
  config = tiny_config("bpe_lm", workdir=str(workdir), num_steps=6)
  config.data.update(
    path=str(home / "text"), heldout_fraction=0.2, seq_len=512, num_patches=None
  )
  config.patching.tokenizer = str(home / "bpe.model")
  config.model.update(vocab_size=SIZE, tie_embeddings=True)
  config.model.transformer.update(
    dim=16, num_layers=1, num_heads=4, num_kv_heads=2, mlp_dim=24, window=None
  )
  config.optimizer.learning_rate = 1e-2
  config.schedule.warmup_steps = 2
  config.checkpoint.every_steps = 2
  config.update(overrides)
  return config


@pytest.fixture(scope="module", name="run")
def _run(home):
  train.train(_config(home, home / "run"))
  return home / "run"


def _nats(run, texts):
  """Cross entropy of documents, each alone, ends included, by NumPy from bare logits."""
  loaded = folder.load_run(run)
  pieces = patcher.load_patcher(loaded.config.patching).pieces
  forward = jax.jit(lambda tokens: loaded.model.apply({"params": loaded.params}, tokens))
  total = 0.0
  for text in texts:
    ids = np.concatenate([[1], pieces.encode(text), [2]])
    logits = forward(np.pad(ids, (0, 128 - len(ids)))[None])
    logits = np.asarray(logits, np.float64)[0, : len(ids) - 1]
    log_z = np.log(np.exp(logits - logits.max()).sum(axis=1)) + logits.max()
    total += (log_z - logits[np.arange(len(logits)), ids[1:]]).sum()
  return total


def test_bits_per_byte_are_those_of_an_independent_count(run, tmp_path, capsys):
  """All kinds of text in packed rows, against each document alone and the sizes of files."""
  (tmp_path / "text").mkdir()
  texts = {name: text for name, text in TEXTS.items() if text}
  for name, text in texts.items():
    (tmp_path / "text" / name).write_bytes(text)
  evaluate.main([f"--run={run}", f"--data={tmp_path / 'text'}"])
  numbers = json.loads(capsys.readouterr().out)
  sizes = [path.stat().st_size for path in (tmp_path / "text").iterdir()]
  assert numbers["bytes"] == sum(sizes)
  nats = _nats(run, texts.values())
  assert numbers["bpb"] == pytest.approx(nats / math.log(2) / sum(sizes), rel=1e-5)
  model = sentencepiece.SentencePieceProcessor(model_file=str(run / "tokenizer.model"))
  assert model.vocab_size() == SIZE


def test_bits_per_byte_of_plain_text_by_sentencepiece_alone(run, tmp_path, capsys):
  """Pieces, their text and the model's scores by other programs than the pipeline."""
  text = TEXTS["leading spaces"].decode()
  model = sentencepiece.SentencePieceProcessor(model_file=str(run / "tokenizer.model"))
  ids = model.encode(text, add_bos=True, add_eos=True)
  assert model.decode(ids) == text
  (tmp_path / "text").write_text(text)
  evaluate.main([f"--run={run}", f"--data={tmp_path / 'text'}"])
  numbers = json.loads(capsys.readouterr().out)
  assert numbers["patch_size"] == pytest.approx(len(text) / (len(ids) - 2))
  language = loading.load_language_model(run)
  rolling = -Scorer(language).loglikelihood_rolling([text])[0]
  end = np.array(folder.load_run(run).model.apply(
    {"params": folder.load_run(run).params}, jnp.asarray([ids])
  ))[0, -2]  # fmt: skip
  nats = rolling - float(jax.nn.log_softmax(end)[2])
  assert numbers["bpb"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


def test_stopped_and_resumed_equals_undisturbed_to_the_bit(run, home, tmp_path, monkeypatch):
  with stopped_at_batch(5, monkeypatch):
    train.train(_config(home, tmp_path / "cut"))
  # The run goes on with the tokenizer in its own folder.
  config = _config(home, tmp_path / "cut")
  config.patching.tokenizer = ""
  train.train(config)
  assert losses(tmp_path / "cut") == losses(run) and len(losses(run)) == 6


@pytest.mark.parametrize("mesh", [dict(fsdp=2), dict(tensor=2)])
def test_several_devices_give_the_same_losses(home, run, mesh, tmp_path, monkeypatch):
  real = sharding.make_mesh
  two = {"devices": jax.devices()[:2]}
  monkeypatch.setattr(sharding, "make_mesh", lambda **sizes: real(**sizes | two))
  config = _config(home, tmp_path / "run")
  config.mesh.update(mesh)
  train.train(config)
  for step, loss in losses(run).items():
    assert losses(tmp_path / "run")[step] == pytest.approx(loss, rel=1e-5), step


def test_a_training_step_reads_no_later_piece(run):
  loaded = folder.load_run(run)
  ids = np.random.default_rng(0).integers(4, SIZE, (1, 32))
  logits = loaded.model.apply({"params": loaded.params}, jnp.asarray(ids))
  changed = ids.copy()
  changed[0, 20:] = (changed[0, 20:] + 7) % SIZE
  after = loaded.model.apply({"params": loaded.params}, jnp.asarray(changed))
  np.testing.assert_array_equal(np.asarray(logits)[0, :20], np.asarray(after)[0, :20])
  assert np.abs(np.asarray(logits) - np.asarray(after))[0, 20:].max() > 1e-3


def test_generate_continues_text(run, capfdbinary):
  text = Generator(loading.load_language_model(run)).generate(["the te"], Sampling(max_bytes=9))
  assert generate.main([f"--run={run}", "--prompt=the te", "--max_bytes=9"]) == 0
  assert capfdbinary.readouterr().out == b"the te" + text[0].bytes + b"\n"


def test_an_exported_run_has_its_tokenizer(run, tmp_path):
  export.main([f"--run={run}", f"--output={tmp_path / 'out'}"])
  shutil.copytree(tmp_path / "out", tmp_path / "moved")
  shutil.rmtree(tmp_path / "out")
  texts = [
    Generator(loading.load_language_model(folder)).generate(["the te"], Sampling(max_bytes=9))
    for folder in (run, tmp_path / "moved")
  ]
  assert texts[0][0].bytes == texts[1][0].bytes


def test_a_blt_with_patches_of_pieces_keeps_its_tokenizer_too(home, tmp_path, capsys):
  config = tiny_config("blt", workdir=str(tmp_path / "run"), num_steps=1)
  config.data.update(path=str(home / "text"), heldout_fraction=0.2)
  path = write_tokenizer(tmp_path / "mine.model")
  config.patching.update(scheme="bpe", tokenizer=str(path))
  train.train(config)
  path.unlink()
  evaluate.main([f"--run={tmp_path / 'run'}", f"--data={home / 'text' / '0.txt'}"])
  numbers = json.loads(capsys.readouterr().out)
  assert numbers["bytes"] > 0 and numbers["patch_size"] > 2


# --- Mistakes


def test_a_tokenizer_of_another_run_is_refused(run, home, tmp_path):
  other = write_tokenizer(tmp_path / "other.model", texts=LEARNED[:2] * 2)
  config = _config(home, run)
  config.patching.tokenizer = str(other)
  with pytest.raises(ValueError, match="began with another tokenizer"):
    train.train(config)
  copy = shutil.copytree(run, tmp_path / "copy")
  shutil.copyfile(other, copy / "tokenizer.model")
  for load in (
    lambda: loading.load_language_model(copy),
    lambda: evaluate.main([f"--run={copy}", f"--data={home / 'text'}"]),
  ):
    with pytest.raises(ValueError, match="not the tokenizer that the run was trained with"):
      load()


def test_mistakes_are_named_before_anything_is_written(home, tmp_path):
  def fails(error, match, **patching):
    config = _config(home, tmp_path / "run")
    config.model.vocab_size = patching.pop("vocab_size", SIZE)
    config.patching.update(patching)
    with pytest.raises(error, match=match):
      train.train(config)
    assert not (tmp_path / "run").exists()

  fails(ValueError, f"vocab_size is 500, and .* has {SIZE} ids", vocab_size=500)
  fails(ValueError, "need config.patching.tokenizer.* it is empty", tokenizer="")
  missing = f"{tmp_path}/none"
  fails(FileNotFoundError, "there is no .*/none; .*train_tokenizer", tokenizer=missing)
  fails(ValueError, "a bpe_lm reads pieces one by one", scheme="space")
  byte_lm = tiny_config("byte_lm", workdir=str(tmp_path / "run"))
  byte_lm.patching.tokenizer = str(home / "bpe.model")
  with pytest.raises(ValueError, match="neither the byte_lm nor .* has pieces"):
    train.train(byte_lm)


def test_a_run_without_its_tokenizer(run, tmp_path):
  copy = shutil.copytree(run, tmp_path / "copy")
  (copy / "tokenizer.model").unlink()
  fields = json.loads((copy / "config.json").read_text())
  fields["patching"]["tokenizer"] = str(tmp_path / "gone.model")
  (copy / "config.json").write_text(json.dumps(fields))
  with pytest.raises(
    FileNotFoundError, match="No file .*gone.model, and no tokenizer.model in"
  ):
    loading.load_language_model(copy)


def test_pieces_are_shown_as_patches(run):
  loaded = patcher.load_patcher(folder.load_run(run).config.patching)
  pieces = loaded.pieces
  shown = show_patches.patch_text("the текст", loaded)
  assert tokenizer.decode_bytes(shown.tokens) == "the текст".encode()
  ends = np.append(np.flatnonzero(shown.starts)[1:], len(shown.tokens))
  found = [tokenizer.decode_bytes(part) for part in np.split(shown.tokens, ends[:-1])]
  ids = pieces.encode("the текст".encode())
  assert found == [b"", *(pieces.decode_bytes([i]) for i in ids)]


# --- The command that makes tokenizers


def _config_file(home, tmp_path, size=SIZE):
  path = tmp_path / "config.py"
  path.write_text(
    "from blt_jax.config import get_config as get_default\n"
    "def get_config():\n"
    "  config = get_default('bpe_lm')\n"
    f"  config.data.path = {str(home / 'text')!r}\n"
    f"  config.data.heldout_fraction = 0.2\n"
    f"  config.patching.tokenizer = {str(tmp_path / 'new' / 'new.model')!r}\n"
    f"  config.model.vocab_size = {size}\n"
    "  return config\n"
  )
  return path


def test_train_tokenizer_learns_from_training_text_alone(home, tmp_path, capsys, monkeypatch):
  seen = []
  real = train_tokenizer.train

  def spy(texts, size):
    seen.extend(texts)
    return real(texts, size)

  monkeypatch.setattr(train_tokenizer, "train", spy)
  path = _config_file(home, tmp_path)
  train_tokenizer.main([f"--config={path}"])
  numbers = json.loads(capsys.readouterr().out)
  every = {p.read_bytes() for p in (home / "text").iterdir()}
  assert set(seen) < every and len(seen) == len(set(seen))
  assert numbers["vocab_size"] == SIZE and numbers["bytes"] == sum(map(len, seen))
  model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "new" / "new.model"))
  count = sum(len(model.encode(text.decode())) for text in seen)
  assert numbers["pieces"] == count
  assert numbers["bytes_per_piece"] == pytest.approx(numbers["bytes"] / count)
  with pytest.raises(ValueError, match="new.model exists; remove it"):
    train_tokenizer.main([f"--config={path}"])


def test_train_tokenizer_learns_from_words_of_any_length():
  word = bytes(random.Random(0).choices(b"abc", k=1 << 16))  # one character too many
  assert train_tokenizer.train([word], tokenizer.VOCAB_SIZE + 8)


def test_every_source_of_a_mixture_has_its_share(home, tmp_path):
  for name in ("a", "b"):
    lines = [json.dumps({"text": name * (60 + i)}) + "\n" for i in range(50)]
    (tmp_path / f"{name}.jsonl").write_text("".join(lines))
  config = _config(home, tmp_path / "run")
  config.data.mixture = {
    n: (str(tmp_path / f"{n}.jsonl"), w) for n, w in (("a", 1.0), ("b", 3.0))
  }
  text = b"".join(train_tokenizer.read_texts(config, 1000))
  assert (text.count(b"a"), text.count(b"b")) == (250, 750)


def test_what_train_tokenizer_refuses(home, tmp_path):
  path = _config_file(home, tmp_path, size=100_000)
  with pytest.raises(ValueError, match="vocab_size 100000 does not go with"):
    train_tokenizer.main([f"--config={path}"])
  with pytest.raises(ValueError, match="max_bytes must be 1 or more, got 0"):
    train_tokenizer.main([f"--config={path}", "--max_bytes=0"])
  with pytest.raises(ValueError, match="tokenizer is empty"):
    train_tokenizer.main([f"--config={path}", "--config.patching.tokenizer="])
  assert not (tmp_path / "new" / "new.model").exists()


# --- A pod


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_step_compiles_for_a_tpu():
  from blt_jax import train_compile
  from blt_jax.cost import topologies

  config = settings.get_config("bpe_lm")
  config.model.update(vocab_size=1024, tie_embeddings=True)
  config.model.transformer.update(dim=256, num_layers=2, num_heads=2, num_kv_heads=1)
  config.data.update(batch_size=8, seq_len=256)
  config.mesh.fsdp = 2
  result = train_compile.compile_step(config, topologies.get_topology("v4-8", 1))
  assert result.memory.peak < result.memory.limit
  model = settings.make_model_config(config.model)
  row = kinds.model_flops(model, 256, 257)
  assert result.flops.model == row * 8 / 4
