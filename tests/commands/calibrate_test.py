"""Thresholds for a wanted mean patch size."""

import dataclasses
import json

import grain
import numpy as np
import pytest

from blt_jax import calibrate, config, patching, train_table
from blt_jax.data.reading.documents import Document
from blt_jax.entropy.table import TableModel
from blt_jax.patching import PatchingConfig, thresholds
from blt_jax.runs import patcher, resolve

_RNG = np.random.default_rng(0)
_SCORED = [
  (_RNG.integers(4, 260, n).astype(np.int32), _RNG.gamma(2.0, 1.0, n).astype(np.float32))
  for n in (500, 1, 40, 2, 1000)
]
_RULES = {
  "global": PatchingConfig(),
  "monotonic": PatchingConfig(monotonic=True),
  "add": PatchingConfig(threshold_add=-0.5),
  "cumulative": PatchingConfig(cumulative=True),
}


def lengths_under(threshold, rule):
  config = dataclasses.replace(rule, threshold=threshold)
  return np.concatenate(
    [
      patching.patch_lengths(t[None], config, h[None], include_next=False)[0]
      for t, h in _SCORED
    ]
  )


# --- Search


@pytest.mark.parametrize("rule", _RULES.values(), ids=_RULES)
@pytest.mark.parametrize("target", [2.0, 4.5, 8.0])
def test_mean_is_the_nearest_that_any_threshold_gives(target, rule):
  threshold = thresholds.find_threshold(_SCORED, rule, target)
  error = abs(lengths_under(threshold, rule).mean() - target)
  entropies = np.concatenate([h for _, h in _SCORED])
  rises = np.concatenate([np.diff(h) for _, h in _SCORED])
  others = [lengths_under(t, rule).mean() for t in np.concatenate([entropies, rises])[::15]]
  assert error <= np.abs(np.array(others) - target).min() + 1e-9


def test_sizes_are_those_of_the_patches():
  entropies = np.array([0, 3, 1, 1, 3, 3, 1, 1, 1, 1], np.float32)
  scored = [(np.full(10, 5, np.int32), entropies), (np.full(1, 5, np.int32), entropies[:1])]
  sizes = thresholds.patch_sizes(scored, PatchingConfig(), 2.0)  # 1 1 3 1 4, and 1
  assert sizes == (2.0, 11 / 6, 1.0, pytest.approx(3.75), 4 / 6)


@pytest.mark.parametrize(
  ("rule", "target", "smallest"),
  [
    ("global", 0.5, "1"),
    ("global", 10_000.0, "1"),
    ("add", 1.2, r"1\.\d+"),
    ("add", 999.0, ""),
  ],
)
def test_impossible_targets_are_named(rule, target, smallest):
  with pytest.raises(ValueError, match=f"between {smallest}.* and .*bytes.*got {target}"):
    thresholds.find_threshold(_SCORED, _RULES[rule], target)


# --- The command


@pytest.fixture(name="table", scope="module")
def _table(tmp_path_factory):
  folder = tmp_path_factory.mktemp("table")
  (folder / "text").mkdir()
  for i in range(40):
    words = _RNG.choice(["patch", "byte", "entropy", "model", "of", "a"], 60)
    (folder / "text" / f"{i}.txt").write_text(f"{i} " + " ".join(words) + "\n")
  for name, flags in (("plain", []), ("reset", ["--reset_at_newline"])):
    train_table.main([f"--input={folder}/text", f"--output={folder}/{name}", *flags])
  return folder


@pytest.mark.parametrize(
  ("flags", "rule"),
  [
    ([], {}),
    (["--monotonic"], {"monotonic": True}),
    (["--threshold_add=0.1"], {"threshold_add": 0.1}),
    (["--cumulative"], {"cumulative": True}),
  ],
)
def test_command_prints_the_curve_and_saves_the_rule(table, flags, rule, capsys, tmp_path):
  calibrate.main([f"--run={table}/plain", "--target_bytes_per_patch=3.5", *flags])
  lines = capsys.readouterr().out.splitlines()
  rows = np.array([[float(x.rstrip("%")) for x in line.split()] for line in lines[1:]])
  assert lines[0].split()[:3] == ["target", "threshold", "mean"]
  assert (
    3.5 in rows[:, 0] and (np.diff(rows[:, 1]) > 0).all() and (np.diff(rows[:, 2]) > 0).all()
  )
  found = json.loads((table / "plain" / "threshold.json").read_text())
  default = {name: getattr(PatchingConfig(), name) for name in patcher.RULE}
  threshold, largest = found.pop("threshold"), found.pop("largest_entropy")
  assert found.pop("target_bytes_per_patch") == 3.5
  assert found == {**default, **rule}
  assert rows[rows[:, 0] == 3.5, 1] == pytest.approx(threshold, abs=1e-6)
  scored = calibrate.read_scored(str(table / "plain"), False, None, 500_000)
  sizes = thresholds.patch_sizes(scored, PatchingConfig(**found), threshold)
  assert rows[rows[:, 0] == 3.5, 2] == pytest.approx(sizes.mean, abs=0.005)
  compared = [np.diff(h) if "monotonic" in rule else h[1:] for _, h in scored]
  assert largest == (None if "cumulative" in rule else np.concatenate(compared).max())


def test_kinds_of_entropies_must_agree(table):
  with pytest.raises(ValueError, match="--reset_at_newline is True, but .*plain.* with False"):
    calibrate.main([f"--run={table}/plain", "--reset_at_newline"])
  with pytest.raises(ValueError, match="--reset_at_newline is False, but .*reset.* with True"):
    calibrate.main([f"--run={table}/reset"])
  calibrate.main([f"--run={table}/reset", "--reset_at_newline", "--target_bytes_per_patch=3"])
  assert json.loads((table / "reset" / "threshold.json").read_text())["reset_at_newline"]


def test_samples_have_a_size(table):
  with pytest.raises(ValueError, match="--max_bytes must be 1 or more, got 0"):
    calibrate.main([f"--run={table}/plain", "--max_bytes=0"])


def test_samples_end_at_the_size_asked_for(table):
  model = TableModel(table / "plain")
  documents = grain.MapDataset.source([Document(b"entropy model of a patch " * 4)] * 10)
  scored = calibrate.sample({"text": (documents, 1.0)}, model, max_bytes=250)
  assert len(scored) == 3
  np.testing.assert_array_equal(scored[0][1], model(scored[0][0]))


def test_missing_models_and_rules_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no run"):
    calibrate.main([f"--run={tmp_path}"])
  with pytest.raises(SystemExit):
    calibrate.main([f"--run={tmp_path}", "--monotonic", "--threshold_add=1"])


def test_degenerate_patches_are_said(table, caplog):
  """Of repeated words all that is hard to predict is where a word begins."""
  calibrate.main([f"--run={table}/plain", "--target_bytes_per_patch=3.5", "--monotonic"])
  assert not [r for r in caplog.records if r.levelname == "WARNING"]
  calibrate.main([f"--run={table}/plain", "--target_bytes_per_patch=1.2"])
  assert "of the patches have one byte, more than half" in caplog.text
  calibrate.main([f"--run={table}/plain", "--target_bytes_per_patch=60"])
  assert "above 80 % of the largest entropy" in caplog.text


def test_a_table_has_no_steps(table):
  with pytest.raises(ValueError, match="--step goes with the run of an entropy model"):
    calibrate.main([f"--run={table}/plain", "--step=3"])


def test_figure_is_written(table, tmp_path):
  calibrate.main([f"--run={table}/plain", f"--png={tmp_path}/curve.png"])
  assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


# --- What training reads


def test_training_knows_what_its_threshold_was_for(tmp_path):
  measured = dict(target_bytes_per_patch=4.5, largest_entropy=3.9)
  patcher.save_threshold(tmp_path, PatchingConfig(threshold=1.5), **measured)

  def find(**rule):
    folders = [str(tmp_path / "nowhere"), str(tmp_path)]
    return patcher._find_calibration(PatchingConfig(**rule), folders)

  assert find(threshold=1.5) == measured
  assert find(threshold=1.6) == find(threshold=1.5, monotonic=True) == {}
  patcher.save_threshold(tmp_path, PatchingConfig(threshold=1.5))
  assert find(threshold=1.5) == {}
  (tmp_path / "threshold.json").write_text("{")
  assert find(threshold=1.5) == {}


def test_training_refuses_the_threshold_of_another_rule(tmp_path):
  patcher.save_threshold(tmp_path, PatchingConfig(threshold=1.5, threshold_add=0.0))

  def find(**rule):
    section = config.get_config().patching
    section.update(entropy_model=str(tmp_path), **rule)
    return resolve.resolve_patching(section)

  def load(**rule):
    patcher.check_threshold(str(tmp_path), find(**rule))

  assert find(threshold_add=0.0).threshold == 1.5
  with pytest.raises(
    ValueError, match=rf"threshold_add=None.*calibrate --run={tmp_path}` find"
  ):
    load()
  with pytest.raises(ValueError, match=r"--threshold_add=0.0 --reset_at_newline` find"):
    load(threshold_add=0.0, reset_at_newline=True)
  with pytest.raises(ValueError, match=r"No threshold for monotonic=True.* --monotonic` find"):
    load(monotonic=True)
  with pytest.raises(
    ValueError, match=r"No threshold for .*cumulative=True.* --cumulative` find"
  ):
    load(cumulative=True)
