"""A run that goes on says which settings changed, and stops where it would be another run."""

import numpy as np
import pytest
from absl import logging
from tiny_runs import tiny_config

from blt_jax.runs import changes, folder, stored_params
from blt_jax.storage.folders import Folder


def _config(workdir="runs/a", **values):
  config = tiny_config("blt", workdir=str(workdir), num_steps=100)
  config.schedule.warmup_steps = 10
  config.update_from_flattened_dict(values)
  return config


_OTHER = {
  "data.path": "elsewhere",
  "data.text_field": "body",
  "data.heldout_path": "held",
  "data.heldout_fraction": 0.1,
  "data.heldout_salt": "other",
  "seed": 1,
  "patching.scheme": "space",
  "patching.threshold": 1.5,
  "patching.entropy_model": "runs/other",
  "patching.max_patch_length": 5,
  "optimizer.learning_rate": 5e-4,
  "num_steps": 1000,  # a finished cosine goes up again
  "schedule.name": "constant",
}


@pytest.mark.parametrize("name", _OTHER)
def test_what_makes_another_run_is_refused_unless_allowed(name, caplog):
  value = _OTHER[name]
  makes_rate = name in ("num_steps", "optimizer.learning_rate", "schedule.name")
  what = "the learning rate at step 100" if makes_rate else f"config.{name}"
  with pytest.raises(ValueError, match=f"{what} was .*, now .*--config.allow_changes=True"):
    changes.check(_config(), _config(**{name: value}), step=100)
  changes.check(_config(), _config(**{name: value}), step=None)  # nothing was learned
  caplog.clear()
  changes.check(_config(), _config(**{name: value, "allow_changes": True}), step=100)
  assert f"config.{name} was" in caplog.text and f"now {value!r}" in caplog.text
  assert "goes on from step 100 though" in caplog.text


def test_rates_are_compared_where_the_run_is():
  def rates(step, **values):
    return changes._rate_change(_config(), _config(**values), step)

  assert "at step 100 was 4.01e-05, now 0.000393" in rates(100, num_steps=1000)[0]
  assert not rates(5, num_steps=1000)  # both rise
  assert "at step 2 was" in rates(1, **{"schedule.warmup_steps": 20})[0]
  assert not rates(1, **{"schedule.min_ratio": 0.5})
  assert "at step 90 was" in rates(90, **{"schedule.min_ratio": 0.5})[0]


def test_a_mixture_is_compared_as_a_whole(caplog):
  one, other, same = _config(), _config(), _config()
  one.data.mixture.web = ("a", 1.0)
  other.data.mixture.web = ("a", 2.0)
  same.data.mixture.web = ["./a/", 1]
  with pytest.raises(ValueError, match=r"config.data.mixture was .*'web'.* 1.0.*now .* 2.0"):
    changes.check(one, other, step=1)
  assert not changes.find(one, same)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("data.batch_size", 16),
    ("data.num_workers", 2),
    ("mesh.fsdp", 2),
    ("logging.every_steps", 7),
    ("checkpoint.keep", 9),
    ("optimizer.weight_decay", 0.2),
    ("optimizer.learning_rate", 4.2e-4),  # 5 %
  ],
)
def test_all_else_is_only_said(name, value, caplog):
  old = _config()
  flat = dict(changes._flat(old.to_dict()))
  changes.check(old, _config(**{name: value}), step=20)
  assert f"config.{name} was {flat[name]!r}, now {value!r}" in caplog.text


def test_more_steps_at_the_same_rate_are_only_said(caplog):
  constant = {"schedule.name": "constant"}
  changes.check(_config(**constant), _config(**constant, num_steps=1000), step=100)
  assert "config.num_steps was 100, now 1000" in caplog.text


def test_the_same_place_by_another_path_is_no_change(tmp_path, monkeypatch, caplog):
  monkeypatch.chdir(tmp_path)
  names = "data.path", "data.heldout_path", "patching.entropy_model"
  old = _config("a", **{name: "text" for name in names})
  new = _config(tmp_path / "a", **{name: f"{tmp_path}/x/../text/" for name in names})
  changes.check(old, new, step=1)
  assert not caplog.text


def test_the_settings_of_every_start_are_kept(tmp_path, caplog):
  logging.set_verbosity(logging.INFO)
  for seed in (1, 2, 3):
    folder.share_config(tmp_path, _config(tmp_path, seed=seed))
  home = Folder(tmp_path)
  assert list(Folder(home.path_of("earlier_configs")).sizes()) == ["1.json", "2.json"]
  assert [home.read_json(f"earlier_configs/{i}.json")["seed"] for i in (1, 2)] == [1, 2]
  assert folder.load_config(tmp_path).seed == 3
  assert "config.seed was 2, now 3" in caplog.text


def test_what_is_refused_leaves_the_settings_as_they_were(tmp_path):
  folder.share_config(tmp_path, _config(tmp_path))
  stored_params.save(tmp_path, 5, {"w": np.ones(3)})
  with pytest.raises(ValueError, match="is at step 5 and was another before: config.seed was"):
    folder.share_config(tmp_path, _config(tmp_path, seed=7))
  assert folder.load_config(tmp_path).seed == 42
  assert not (tmp_path / "earlier_configs").exists()
