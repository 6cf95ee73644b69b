"""The entropy model of a run stays the one that it began with."""

import shutil

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from tiny_runs import tiny_config

from blt_jax.runs import entropy_digest, stored_params
from blt_jax.storage.folders import Folder

find = entropy_digest.find


@pytest.fixture(name="model")
def _model(tmp_path):
  stored_params.save(tmp_path / "entropy", 1, {"w": jnp.arange(3.0)})
  return tmp_path / "entropy"


def _section(model, **values):
  patching = tiny_config("blt").patching
  patching.update(entropy_model=str(model), **values)
  return patching


def test_it_is_that_of_the_newest_parameters(model, tmp_path):
  first = find(model)
  stored_params.save(model, 2, {"w": jnp.arange(3.0)})
  assert find(model) == first  # the same ones
  entropy_digest.check(_section(model, entropy_digest=first))
  stored_params.save(model, 3, {"w": jnp.arange(3.0) + 1})
  assert find(model) != first
  with pytest.raises(ValueError, match=f"{model} is not the one .* was {first}, now .*Put the"):
    entropy_digest.check(_section(model, entropy_digest=first))


def test_that_of_a_table_is_its_own(tmp_path):
  Folder(tmp_path).write_json("table.json", {"digest": "5a"})
  assert find(tmp_path) == "5a"
  with pytest.raises(ValueError, match="was 5b, now 5a"):
    entropy_digest.check(_section(tmp_path, entropy_digest="5b"))


def test_what_tells_nothing_passes(model, tmp_path):
  assert find(tmp_path / "nowhere") is None
  shutil.rmtree(model / "checkpoints/1/extra")  # as in weights that were exported before
  assert find(model) is None
  entropy_digest.check(_section(model, entropy_digest="5b"))


def test_a_run_keeps_its_own(model):
  def resolved(began_with, allow_changes=False, **values):
    began_with = ConfigDict({"patching": began_with} if began_with else {})
    return entropy_digest.resolve(_section(model, **values), began_with, allow_changes)

  assert resolved(None) == find(model)
  assert resolved(None, scheme="space") is None
  assert resolved(None, entropy_digest="5b") == "5b"  # somebody knows what it must be
  assert resolved(_section(model, entropy_digest="5b")) == "5b"
  assert resolved(_section(model, entropy_digest="5b"), allow_changes=True) == find(model)
  assert resolved(_section("other", entropy_digest="5b")) == find(model)
  assert resolved({"entropy_model": str(model)}) is None  # a run of before
