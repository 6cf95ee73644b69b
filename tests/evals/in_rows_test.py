"""Multiple choice by the training's forward step, sharded, against the scores of a reader."""

import json

import jax
import numpy as np
import pytest
from forward import stack
from tiny_runs import tiny_config, write_text
from uncached import random_params

from blt_jax import kinds, train
from blt_jax.decode import Scorer
from blt_jax.evals import in_rows
from blt_jax.models.config import ByteLMConfig
from blt_jax.parallel import sharding
from blt_jax.patching import PatchingConfig
from blt_jax.runs import folder as runs
from blt_jax.runs import patcher, program, resolve
from blt_jax.runs.feed import Feed

ROWS = [
  {"context": "The sky is", "choices": ["blue", "of cheese, patched"], "label": 0},
  {"context": "", "choices": ["a", "ééé schön"], "label": 1},
  {"context": "the text of the patch", "choices": ["es are green.", "x y z", ", and"], "label": 2},
  {"context": "- " * 40, "choices": ["1", "2"], "label": 0},
  {"context": "é" * 150 + " is long", "choices": ["and", "cut from the left"], "label": 0},
]
SEQ_LEN = 96
MESH = dict(data=2, fsdp=2, tensor=2)
TASKS = "--config.eval.tasks"
SCHEMES = {
  "entropy": dict(),
  "static": dict(scheme="static", patch_size=3),
  "space": dict(scheme="space"),
}


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory):
  """Text to train on, rows of tasks and a tokenizer."""
  home = tmp_path_factory.mktemp("rows")
  write_text(home / "text", 4)
  (home / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  (home / "ask.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "answer": "2"}) + "\n")
  return home


def _config(kind, home, **changes):
  config = tiny_config(kind, workdir=str(home / "run"))
  config.data.update(path=str(home / "text"), heldout_fraction=0.3, seq_len=SEQ_LEN)
  config.data.num_patches = 40 if kind == "blt" else None
  config.patching.scheme = "byte"
  config.mesh.update(MESH)
  if kind == "megabyte":
    config.model.max_patches = 64
  config.update(changes)
  return config


def _entropy_model():
  config = ByteLMConfig(stack(16, 1, window=5))
  params = random_params(config)
  params["output"]["kernel"] *= 3
  return runs.EntropyModel(config, params)


@pytest.mark.parametrize(
  ("kind", "scheme"),
  [("blt", "entropy"), ("blt", "static"), ("blt", "space"), ("byte_lm", ""), ("megabyte", ""),
   ("spacebyte", ""), ("bpe_lm", "")],
)  # fmt: skip
def test_answers_are_those_of_the_scorer(kind, scheme, home, monkeypatch, caplog):
  config = _config(kind, home)
  config.patching.update(SCHEMES.get(scheme, {}))
  if kind == "bpe_lm":
    pytest.importorskip("sentencepiece", reason="BPE pieces are an extra")
    from tiny_pieces import SIZE, write_tokenizer

    config.model.vocab_size = SIZE
    config.patching.tokenizer = str(write_tokenizer(home / "bpe.model"))
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
  ((*found, cut),) = ask.answers(jax.device_put(params, placed))

  # By a reader, text by text.
  loaded = patcher.load_patcher(config.patching)
  reader, options = kinds.kind_of(made.model.config).reader, {}
  if kind == "blt":
    options = dict(entropy_model=loaded.entropy_model, patching=loaded.config)
  model = reader(made.model, params, **options)
  if loaded.pieces is not None:
    model = type(model)(model.reader, model.weights, loaded.pieces)
  scorer = Scorer(model)
  pairs = [(row["context"], f" {end}") for row in ROWS[:-1] for end in row["choices"]]
  wanted = scorer.loglikelihood(pairs)
  flat = [answer for own in found for answer in own[0]]
  np.testing.assert_allclose(
    [nats for nats, _ in flat], [x.log_prob for x in wanted], rtol=0, atol=1e-4
  )
  assert [best for _, best in flat] == [x.is_greedy for x in wanted]
