"""Settings that decide a model are those that its checkpoint was trained with."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny_config

from blt_jax.runs import checkpoint, folder, model_settings, stored_params, stored_settings
from blt_jax.runs.stored_state import OtherModelError
from blt_jax.training.state import TrainState

PARAMS = {"w": jnp.arange(3.0)}


def _config(workdir, **values):
  config = tiny_config("blt", workdir=str(workdir))
  config.patching.update(scheme="space")
  config.update_from_flattened_dict(values)
  return config


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory):
  """A run with a checkpoint, to read only."""
  workdir = tmp_path_factory.mktemp("run")
  stored_params.save(workdir, 5, PARAMS, _config(workdir))
  return workdir


def _load(workdir, settings):
  found = stored_params.load(workdir, PARAMS, settings=settings)
  np.testing.assert_array_equal(found["w"], PARAMS["w"])


_OTHER = {
  "model.encoder.num_heads": (4, "was 2, now 4"),
  "model.latent.rope_theta": (1e4, "was 500000.0, now 10000.0"),
  "model.decoder.window": (4, "was 8, now 4"),
  "model.latent.norm_epsilon": (1e-6, "was 1e-05, now 1e-06"),
  "model.hash_functions": (2, "was 1, now 2"),
  "model.hash_sizes": ((3, 5), r"was \[3, 4\], now \[3, 5\]"),
  "model.hash_document_masks": (False, "was True, now None"),
  "model.document_masks": (False, "was True, now None"),
  "model.encoder_cross": (None, "was 2, now None"),
  "model.pooling": ("min", "was 'max', now 'min'"),
  "model.dtype": ("bfloat16", "was 'float32', now 'bfloat16'"),
  "patching.scheme": ("byte", "was 'space', now 'byte'"),
  "patching.max_patch_length": (6, "was None, now 6"),
  "patching.threshold": (0.0, "was None, now 0.0"),
}


@pytest.mark.parametrize("name", _OTHER)
def test_other_settings_are_one_error_that_names_them(name, run):
  value, change = _OTHER[name]
  message = (
    f"Checkpoint 5 of {run} was trained .*config.{name}[a-z_.]* {change}.*put those back"
  )
  with pytest.raises(OtherModelError, match=message):
    _load(run, _config(run, **{name: value}))


_SAME = {
  "model.encoder.remat": "full",
  "model.latent.unroll": True,
  "model.latent.window": 0,  # as settings of before say None
  "mesh.fsdp": 2,
  "data.path": "elsewhere",
  "patching.entropy_model": "moved/entropy",
}


@pytest.mark.parametrize("name", _SAME)
def test_what_changes_no_function_passes(name, run, caplog):
  _load(run, _config(run, **{name: _SAME[name]}))
  assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_other_patches_pass_with_a_word_where_changes_are_allowed(run, caplog):
  _load(run, _config(run, **{"patching.scheme": "byte", "allow_changes": True}))
  assert "other patches: config.patching.scheme was 'space', now 'byte'" in caplog.text
  with pytest.raises(OtherModelError, match="config.model.pooling"):
    _load(run, _config(run, **{"model.pooling": "min", "allow_changes": True}))


def test_training_goes_on_with_the_settings_of_its_checkpoint(tmp_path):
  state = TrainState(jnp.array(1), PARAMS, ())
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(lambda x: x.update(sharding=device), jax.eval_shape(lambda: state))

  def opened(**values):
    return contextlib.closing(checkpoint.Checkpoints(tmp_path, _config(tmp_path, **values)))

  with opened() as checkpoints:
    checkpoints.save(1, state, {"at": 1})
  with opened(seed=3) as checkpoints:
    assert checkpoints.restore(abstract).extra == {"at": 1}
  with opened(**{"model.pooling": "avg"}) as checkpoints, pytest.raises(OtherModelError):
    checkpoints.restore(abstract)
  assert not (tmp_path / "damaged").exists()


def test_checkpoints_of_before_pass(tmp_path):
  stored_params.save(tmp_path, 5, PARAMS)
  _load(tmp_path, _config(tmp_path, **{"model.pooling": "min"}))


@pytest.mark.parametrize("name", ["hash_document_masks", "project_latent"])
def test_what_a_checkpoint_does_not_know_yet_is_as_config_json_has_it(name, tmp_path):
  """The first was otherwise in those days, the second is at its default."""
  folder.save_config(tmp_path, _config(tmp_path))
  path = tmp_path / "config.json"
  stored = json.loads(path.read_text())
  del stored["model"][name]
  path.write_text(json.dumps(stored))
  loaded = folder.load_config(tmp_path)
  extra = {model_settings.ENTRY: model_settings.of(loaded)}
  del extra[model_settings.ENTRY]["model"][name]
  model_settings.check("It", extra, loaded)
  assert (name in stored_settings.FORMER_WAYS) != loaded.model[name]
  loaded.model[name] = not loaded.model[name]
  with pytest.raises(OtherModelError, match=f"config.model.{name}"):
    model_settings.check("It", extra, loaded)
