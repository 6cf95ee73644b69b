"""A BLT from a Llama over pieces in two stages: trained, resumed, continued, refused."""

import json

import chex
import flax.traverse_util
import jax
import pytest
from tiny_runs import logged_losses, losses, stopped_at_batch, tiny_config
from uncached import random_params

from blt_jax import config as settings
from blt_jax import train
from blt_jax.runs import (
  distillation,
  folder,
  init_from,
  resolve,
  stored_params,
  tokenizers,
  unread,
)
from blt_jax.runs.program import abstract_batch, make_program

pytest.importorskip("sentencepiece", reason="BPE pieces are an extra")
from tiny_pieces import SIZE, write_home  # noqa: E402

BLOCKS = dict(
  dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=24, window=None, rope_theta=1e4
)


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory):
  """Text, and the run of a teacher."""
  home = tmp_path_factory.mktemp("distillation")
  write_home(home)
  _write_teacher(home, home / "teacher")
  return home


def _write_teacher(home, path, kind="bpe_lm", tokenizer=True, **stack):
  """The folder of a run that holds weights alone; its parameters."""
  config = tiny_config(kind, workdir=str(path))
  config.model.transformer.update(BLOCKS | stack)
  if kind == "bpe_lm":
    config.model.vocab_size = SIZE
  params = random_params(settings.make_model_config(config.model))
  if tokenizer:
    file = str(home / "bpe.model")
    config.patching.update(tokenizer=file, tokenizer_digest=tokenizers.digest(file))
  stored_params.save(path, 3, params, config)
  folder.save_config(path, config)
  if tokenizer:
    tokenizers.copy_to(path, file)
  return params


def _config(home, workdir, teacher="teacher"):
  config = tiny_config("blt", workdir=str(workdir), num_steps=8)
  config.model.hash_sizes = (3,)
  config.data.update(path=str(home / "text"), heldout_fraction=0.2, seq_len=64, num_patches=48)
  config.patching.update(scheme="bpe", delimiters=False)
  config.model.latent.update(BLOCKS)
  config.init_from = config.distillation.teacher = str(home / teacher)
  config.init_parts.latent = "transformer"
  config.distillation.layers = 1
  config.optimizer.groups = {"latent/transformer/*": {"freeze": True}}
  config.optimizer.learning_rate = 1e-2
  config.schedule.warmup_steps = 1
  config.checkpoint.every_steps = 4
  config.mesh.update(fsdp=2, tensor=2)
  return config


@pytest.mark.skipif(jax.device_count() < 4, reason="needs the fake devices of conftest.py")
def test_both_stages_on_several_devices(home, tmp_path, monkeypatch):
  run = tmp_path / "first"
  config = _config(home, run)
  config.mesh.tensor, config.eval.max_batches = 1, 1
  with stopped_at_batch(8, monkeypatch):
    train.train(config)
  config.patching.tokenizer = str(home / "bpe.model")  # the same, by another name
  assert train.train(config)["bpb"] > 0
  steps = [step for step, _ in logged_losses(run)]
  assert steps == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]  # from the checkpoint of the fourth
  losses(run)  # those that ran again gave the same to the bit
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  first, last = ([x for x in lines if x["kind"] == "train"][i] for i in (0, -1))
  for name in ("state_distance", "piece_likelihood", "loss"):
    assert 0 < last[name] < first[name]

  # --- What is frozen is the teacher's, to the bit
  params, teacher = folder.load_run(run).params, folder.load_run(home / "teacher").params
  chex.assert_trees_all_equal(params["latent"]["transformer"], teacher["transformer"])

  # --- The second stage takes everything, patches in its own way, and knows no teacher
  second = tiny_config("blt", init_from=str(run), workdir=str(tmp_path / "second"))
  second.model.update(hash_sizes=(3,), latent=BLOCKS)
  second.patching.scheme = "space"
  program = make_program(second)
  start = init_from.plan(second, program)
  assert not start.fresh and not start.left and program.teacher is None
  wanted = flax.traverse_util.flatten_dict(program.abstract_state.params, sep="/")
  found = flax.traverse_util.unflatten_dict(start.source.load(wanted), sep="/")
  chex.assert_trees_all_equal(jax.device_get(found), params)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs the fake devices of conftest.py")
def test_the_teachers_parameters_lie_on_the_mesh(home, tmp_path):
  config = _config(home, tmp_path)
  program = make_program(config)
  head = program.teacher.load(program.head)
  wanted = folder.load_run(home / "teacher").params
  chex.assert_trees_all_equal(jax.device_get(head), {n: wanted[n] for n in head})
  assert head.keys() == wanted.keys() - {"transformer"}
  places = jax.tree.map(lambda x: x.sharding, program.head)
  assert jax.tree.map(lambda x: x.sharding, head) == places
  assert len(head["embedding"]["embedding"].sharding.device_set) == jax.device_count()
  shapes = abstract_batch(config, program.mesh)
  assert shapes["teacher_ids"].shape == shapes["teacher_targets"].shape == (8, 48)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model.latent.dim": 48}, "latent.dim is 48, and 32 in .*teacher"),
    ({"model.latent.num_layers": 1}, "latent.num_layers is 1, and 2 in"),
    ({"distillation.layers": 3}, "layers is 3, and the teacher in .* has 2"),
    ({"patching.scheme": "space"}, "scheme is 'space'; a distillation patches as its teacher"),
    ({"patching.delimiters": True}, "delimiters is True; .* set it to False"),
    ({"patching.max_patch_length": 4}, "max_patch_length is 4; .* set it to None"),
    ({"init_from": ""}, "starts from its teacher's blocks: set config.init_from='"),
    ({"init_parts.latent": "latent"}, "config.init_parts={'latent': 'transformer'}"),
    ({"distillation.teacher_digest": "0"}, "not the one that the run began with"),
    ({"distillation.teacher": "nowhere"}, "nowhere holds no run"),
  ],
)
def test_settings_that_do_not_go_together(changes, message, home, tmp_path):
  config = _config(home, tmp_path / "run")
  config.update_from_flattened_dict(changes)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    resolve.resolve(config)


@pytest.mark.parametrize(
  ("kind", "tokenizer", "message"),
  [
    ("byte_lm", False, "the run of a byte_lm; give that of a bpe_lm"),
    ("bpe_lm", False, r"has no tokenizer \(tokenizer.model\); put the file"),
  ],
)
def test_teachers_of_no_use(kind, tokenizer, message, home, tmp_path):
  _write_teacher(home, tmp_path / "other", kind, tokenizer)
  config = _config(home, tmp_path / "run", tmp_path / "other")
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    resolve.resolve(config)


def test_another_kind_has_no_latent_transformer(home, tmp_path):
  config = tiny_config("byte_lm", workdir=str(tmp_path))
  config.distillation.teacher = str(home / "teacher")
  config.data.path = str(home / "text")
  with pytest.raises(ValueError, match="config.model.kind is 'byte_lm'; only a blt has"):
    resolve.resolve(config)


def test_blocks_that_would_move(home, tmp_path):
  config = _config(home, tmp_path)
  config.optimizer.groups = {"latent/transformer/*": {"learning_rate_scale": 0.1}}
  with pytest.raises(ValueError, match="a distillation does not move: set config.optimizer.gr"):
    make_program(config)


def test_what_is_resolved_and_what_does_nothing(home, tmp_path):
  config = resolve.resolve(_config(home, tmp_path))
  assert config.patching.tokenizer == str(home / "teacher" / "tokenizer.model")
  assert len(config.distillation.teacher_digest) == 16
  assert not [x for x in unread.find(config) if "distillation" in x]
  other = tiny_config("blt")
  assert distillation.find(other) is None
  other.distillation.layers = 2
  (sentence,) = [x for x in unread.find(other) if "distillation" in x]
  assert "config.distillation.layers" in sentence
