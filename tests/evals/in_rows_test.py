"""Multiple choice by the training's forward step, sharded, against the scores of a reader."""

import dataclasses
import json
import os
import types

import jax
import numpy as np
import pytest
from forward import stack
from tiny_runs import tiny_config, write_text
from uncached import random_params

from blt_jax import kinds, train
from blt_jax.data.transforms import PatchDocument
from blt_jax.decode import Scorer
from blt_jax.evals import in_rows
from blt_jax.models.config import ByteLMConfig
from blt_jax.patching import PatchingConfig
from blt_jax.runs import folder as runs
from blt_jax.runs import patcher, program, resolve
from blt_jax.runs.feed import Feed

ROWS = [
  {"context": "The sky is", "choices": ["blue", "of cheese, patched"], "label": 0},
  {"context": "", "choices": ["a", "ééé schön"], "label": 1},
  {
    "context": "the text of the patch",
    "choices": ["es are green.", "x y z", ", and"],
    "label": 2,
  },
  {"context": "- " * 40, "choices": ["1", "2"], "label": 0},
  {"context": "é" * 150 + " is long", "choices": ["and", "cut from the left"], "label": 0},
]
SEQ_LEN = 96
MESH = dict(data=2, fsdp=2, tensor=2)
ALL_KINDS = os.environ.get("BLT_JAX_ALL_KINDS")  # set: all, which take minutes
CASES = [  # kind of model, and scheme of patching
  ("blt", "entropy"), ("bpe_lm", "byte"), ("blt", "static"), ("blt", "space"),
  ("blt", "byte"), ("byte_lm", "byte"), ("megabyte", "byte"), ("spacebyte", "byte"),
  ("mixture", "static"),
]  # fmt: skip


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory):
  """Text to train on, rows of tasks and a tokenizer."""
  home = tmp_path_factory.mktemp("rows")
  write_text(home / "text", 4)
  (home / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  (home / "ask.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "answer": "2"}) + "\n")
  return home


def _config(kind, home, scheme="byte", **changes):
  config = tiny_config(kind, workdir=str(home / "run"))
  config.data.update(path=str(home / "text"), heldout_fraction=0.3, seq_len=SEQ_LEN)
  config.data.num_patches = 40 if scheme != "byte" else None
  config.patching.scheme = scheme
  config.mesh.update(MESH)
  if scheme == "static":
    config.patching.patch_size = 3
  if kind == "mixture":
    config.patching.coarser = (6.0,)
    config.model.update(num_patches=8, finer_attention=True, read_finer=True)
  if kind == "megabyte":
    config.model.max_patches = 64
  if kind == "bpe_lm":
    pytest.importorskip("sentencepiece", reason="BPE pieces are an extra")
    from tiny_pieces import SIZE, write_tokenizer

    config.model.vocab_size = SIZE
    config.patching.tokenizer = str(write_tokenizer(home / "bpe.model"))
  config.update(changes)
  return config


def _entropy_model():
  config = ByteLMConfig(stack(16, 1, window=5))
  params = random_params(config)
  params["output"]["kernel"] *= 3
  return runs.EntropyModel(config, params)


@pytest.mark.parametrize(("kind", "scheme"), CASES if ALL_KINDS else CASES[:2])
def test_answers_are_those_of_the_scorer(kind, scheme, home, monkeypatch, caplog):
  config = _config(kind, home, scheme)
  if scheme == "entropy":
    random = patcher.Patcher(PatchingConfig(threshold=3.0), _entropy_model())
    monkeypatch.setattr(patcher, "load_patcher", lambda *_: random)
  config = resolve.resolve(config)
  made = program.make_program(config)
  params = random_params(made.model.config)
  params = jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, params)

  # In rows, the parameters sharded.
  prepared = in_rows.prepare("own", str(home))
  ask = in_rows.TasksInRows(prepared, Feed(config, made.mesh), made.model, made.mesh)
  placed = jax.tree.map(lambda x: x.sharding, made.abstract_state.params)
  (found,) = ask.answers(jax.device_put(params, placed))

  # By a reader, text by text.
  loaded = patcher.load_patcher(config.patching)
  reader, options = kinds.kind_of(made.model.config).reader, {}
  if kind in ("blt", "mixture"):
    options = dict(entropy_model=loaded.entropy_model, patching=loaded.config)
  model = reader(made.model, params, **options)
  if loaded.pieces is not None:
    model = type(model)(model.reader, model.weights, loaded.pieces)
  pairs = [(row["context"].encode(), f" {end}") for row in ROWS for end in row["choices"]]
  if kind in ("byte_lm", "spacebyte"):  # what a row with BOS and EOS has room for
    kept = SEQ_LEN - 1 - len(pairs[-1][1])
    pairs[-2:] = [(context[-kept:], end) for context, end in pairs[-2:]]
  else:
    pairs, found = pairs[:-2], found[:-1]
  wanted = Scorer(model, chunk=16).loglikelihood(pairs)
  flat = [answer for own in found for answer in own[0]]
  np.testing.assert_allclose(
    [nats for nats, _ in flat], [x.log_prob for x in wanted], rtol=0, atol=1e-4
  )
  assert [best for _, best in flat] == [x.is_greedy for x in wanted]
  assert "1 of 5 items of own are longer than a row" in caplog.text


def test_no_position_of_a_row_is_left_out():
  kind = kinds.KINDS["spacebyte"]
  config = dataclasses.replace(kind.tiny(), num_patches=3)
  assert kind.unlimited(config) == dataclasses.replace(config, num_patches=None)


@pytest.mark.parametrize(
  ("tasks", "error"),
  [
    ("hellaswagg", "There is no task 'hellaswagg'.*near are hellaswag"),
    ("own,blimp", "blimp.jsonl is missing"),
    ("own,own", "named twice"),
    ("own,ask", "has 'ask', for which a model must write"),
  ],
)
def test_tasks_that_cannot_be_asked_are_refused_before_anything_starts(tasks, error, home):
  asked = dict(tasks=tasks, task_data=str(home))
  config = tiny_config("byte_lm", workdir=str(home / "refused"), eval=asked)
  config.data.path = str(home / "text")
  with pytest.raises((ValueError, FileNotFoundError), match=error):
    train.train(config)
  assert not (home / "refused").exists()


def test_patches_that_look_ahead_are_refused(home):
  feed = types.SimpleNamespace(patch=PatchDocument(PatchingConfig(scheme="bpe")))
  with pytest.raises(ValueError, match="cannot be asked.*The bpe scheme"):
    in_rows.TasksInRows(in_rows.prepare("own", str(home)), feed, None, None)
