"""Trainings that start from the parameters of other runs: taken, fresh, left, refused."""

import chex
import jax
import llama_folder
import numpy as np
import pytest
from tiny_runs import tiny_config
from uncached import random_params

from blt_jax import config as settings
from blt_jax import convert
from blt_jax.runs import checkpoint, folder, init_from, parameters, stored_params
from blt_jax.runs.program import make_program

WIDE = dict(dim=32, window=None)  # as the latent transformer of a tiny BLT


def _run(path, kind, **stack):
  """The folder of a run that holds weights alone; its parameters."""
  config = tiny_config(kind, workdir=str(path))
  if stack:
    config.model.transformer.update(stack)
  params = random_params(settings.make_model_config(config.model))
  stored_params.save(path, 3, params)
  folder.save_config(path, config)
  return params


def _config(workdir, parts=(), kind="blt", **values):
  config = tiny_config(kind, init_from=str(workdir), **values)
  config.init_parts.update(dict(parts))
  return config


def _start(config):
  program = make_program(config)
  start = init_from.plan(config, program)
  return program, start, start.create_state(program)


def test_everything_is_taken_where_it_belongs(tmp_path):
  params = _run(tmp_path / "other", "byte_lm")
  config = _config(tmp_path / "other", kind="byte_lm")
  config.mesh.fsdp = 2
  program, start, state = _start(config)
  chex.assert_trees_all_equal(state.params, params)
  assert int(state.step) == 0 and not start.fresh and not start.left
  places = jax.tree.map(lambda x: x.sharding, program.abstract_state.params)
  assert jax.tree.map(lambda x: x.sharding, state.params) == places


def test_a_latent_transformer_takes_the_blocks_of_a_language_model(tmp_path):
  blocks = _run(tmp_path / "lm", "bpe_lm", **WIDE)["transformer"]
  config = _config(tmp_path / "lm", {"latent": "transformer"})
  program, start, state = _start(config)
  chex.assert_trees_all_equal(state.params["latent"]["transformer"], blocks)
  fresh = program.create_state().params
  chex.assert_trees_all_equal(state.params["decoder"], fresh["decoder"])
  assert "output/kernel" in start.fresh and "output/kernel" in start.left
  assert not any(name.startswith("latent/transformer") for name in start.fresh)


def test_a_folder_of_hugging_face_gives_blocks_too(tmp_path):
  """A Llama of 32 features, as its own config makes a BLT of it, but for sizes."""
  llama_folder.write(
    tmp_path, hidden_size=32, intermediate_size=48, num_attention_heads=2,
    num_key_value_heads=1, rope_theta=5e4,
  )  # fmt: skip
  config = _config(tmp_path, {"latent": "transformer"})
  settings.set_stack(config.model.latent, parameters.find_blocks(tmp_path))
  assert config.model.latent.num_kv_heads == 1 and config.model.latent.rope_theta == 5e4
  _, start, state = _start(config)
  blocks = convert.from_llama(tmp_path)[1]
  chex.assert_trees_all_equal(state.params["latent"]["transformer"], blocks)
  assert "norm/scale" in start.left


def test_blocks_are_found_before_processes_connect(tmp_path, monkeypatch):
  """JAX connects processes only where no device was looked at."""
  (tmp_path / "llama").mkdir()
  wanted = llama_folder.write(
    tmp_path / "llama", hidden_size=32, intermediate_size=48, num_attention_heads=2
  ).transformer
  _run(tmp_path / "lm", "byte_lm", **WIDE)

  def wake(*_):
    raise AssertionError("a device was looked at")

  for name in ("devices", "local_devices", "eval_shape"):
    monkeypatch.setattr(jax, name, wake)
  assert parameters.find_blocks(tmp_path / "llama") == wanted
  assert parameters.find_blocks(tmp_path / "lm").dim == 32


def test_parts_of_the_same_kind(tmp_path):
  params = _run(tmp_path / "other", "blt")
  parts = {"decoder": "decoder", "embedder": "embedder"}
  program, start, state = _start(_config(tmp_path / "other", parts))
  chex.assert_trees_all_equal(state.params["decoder"], params["decoder"])
  chex.assert_trees_all_equal(state.params["encoder"], program.create_state().params["encoder"])
  assert {name.partition("/")[0] for name in start.left} == {"encoder", "latent", "output"}


def test_only_what_fits(tmp_path):
  params = _run(tmp_path / "other", "blt")
  config = _config(tmp_path / "other", init_fitting=True)
  config.model.latent.num_layers = 2
  _, start, state = _start(config)
  chex.assert_trees_all_equal(state.params["decoder"], params["decoder"])
  assert "latent/transformer/layers/mlp/up/kernel" in start.fresh
  assert "latent/transformer/layers/mlp/up/kernel" in start.left


def test_its_own_checkpoint_comes_first(tmp_path):
  _run(tmp_path / "other", "byte_lm")
  config = _config(tmp_path / "other", kind="byte_lm")
  program = make_program(config)
  start, own = init_from.plan(config, program), checkpoint.Checkpoint(5, None, {"data": 1})

  class Checkpoints:
    found = own

    def restore(self, abstract):
      return self.found

  assert init_from.find_state(start, program, Checkpoints()) is own
  Checkpoints.found = None
  step, state, extra = init_from.find_state(start, program, Checkpoints())
  assert (step, extra) == (0, {}) and int(state.step) == 0


@pytest.mark.parametrize(
  "kind, parts, changes, message",
  [
    ("blt", {}, {"model.latent.num_layers": 2}, r"\(2, 32\) here and \(1, 32\) there"),
    ("blt", {"latent": "transformer"}, {}, r"parts are \['decoder', .* here and \['decoder'"),
    ("byte_lm", {}, {}, r"key/kernel is \(1, 16, 16\) here and missing there"),
    ("byte_lm", {"latent": "transformer"}, {}, "head_dim is 16, and 8 in"),
    ("byte_lm", {"encoder": "transformer"}, {}, "nothing in 'transformer' of"),
    (
      "wide",
      {"latent": "transformer"},
      {"model.latent.num_heads": 4},
      "num_heads is 4, and 2 in",
    ),
  ],
)
def test_what_does_not_fit_is_refused(kind, parts, changes, message, tmp_path):
  stack = WIDE if kind == "wide" else {}
  _run(tmp_path / "other", "byte_lm" if kind == "wide" else kind, **stack)
  config = _config(tmp_path / "other", parts)
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    init_from.plan(config, make_program(config))


def test_heads_of_another_kind_are_compared_too(tmp_path):
  _run(tmp_path / "other", "byte_lm")
  config = _config(tmp_path / "other", kind="bpe_lm", init_fitting=True)
  config.model.transformer.update(num_heads=4)
  with pytest.raises(ValueError, match="config.model.transformer.num_heads is 4, and 2 in"):
    init_from.plan(config, make_program(config))


def test_parts_of_nothing_are_refused():
  for values in (dict(parts={"latent": "latent"}), dict(init_fitting=True)):
    config = _config("", **values)
    with pytest.raises(ValueError, match="config.init_from, which is empty"):
      init_from.plan(config, make_program(config))


def test_training_in_a_folder_of_weights_says_what_to_do(tmp_path):
  _run(tmp_path / "other", "byte_lm")
  config = tiny_config("byte_lm", workdir=str(tmp_path / "other"))
  checkpoints = checkpoint.Checkpoints(tmp_path / "other")
  with pytest.raises(ValueError, match="weights alone.* config.init_from=.*other and another"):
    checkpoints.restore(make_program(config).abstract_state)
  checkpoints.close()
  assert np.isfinite(checkpoint.find_step(tmp_path / "other"))
