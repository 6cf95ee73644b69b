"""NaN, truth values and text are refused where thresholds, tables and entropies enter."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blt_jax import config, patching
from blt_jax.decode.generation import Generation
from blt_jax.decode.sampling import Sampling
from blt_jax.entropy import table
from blt_jax.patching import PatchingConfig, thresholds
from blt_jax.runs import bounds, patcher, resolve
from blt_jax.storage import files

NO_NUMBERS = [float("nan"), True, "abc", [1.0]]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
  "name", ["threshold", "threshold_add", "patch_size", "max_patch_length"]
)
def test_rules_have_numbers(name, value):
  with pytest.raises(ValueError, match=f"{name} is .*; it must be a number"):
    PatchingConfig(**{name: value})


@pytest.mark.parametrize("value", [float("nan"), True, "abc", ["abc"]])
def test_settings_have_numbers(value):
  bound = bounds.bound_of("patching.threshold")
  assert bound.holds(1.5) and bound.holds(np.float32(1)) and not bound.holds(value)
  settings = config.get_config("blt")
  with settings.ignore_type():
    settings.patching.threshold_add = value
  if value is not True:  # which its type makes 1.0
    with pytest.raises(ValueError, match="config.patching.threshold_add is"):
      bounds.check(settings)


@pytest.mark.parametrize("value", [*NO_NUMBERS, None, float("inf")])
def test_thresholds_of_calibration_are_numbers(tmp_path, value):
  section = config.get_config("blt").patching
  rule = PatchingConfig(threshold=2.0, coarser=(3.0,))
  patcher.save_threshold(tmp_path, rule, largest_entropy=None)
  want = {"threshold": 2.0, "coarser": (3.0,)}
  assert resolve._find_thresholds(str(tmp_path), section, 2) == want
  path = tmp_path / patcher.THRESHOLD_FILE
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(fields | {"threshold": value}))
  with pytest.raises(ValueError, match=f"{path} is damaged"):
    resolve._find_thresholds(str(tmp_path), section, 2)
  path.write_text(json.dumps(fields | {"coarser": [value]}))
  with pytest.raises(ValueError, match=f"{path} is damaged"):
    resolve._find_thresholds(str(tmp_path), section, 2)
  path.write_text(json.dumps({k: v for k, v in fields.items() if k != "threshold"}))
  with pytest.raises(ValueError, match=f"{path} is damaged: its threshold is None"):
    resolve._find_thresholds(str(tmp_path), section, 2)


@pytest.mark.parametrize("make", [np.array, jnp.array])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_entropies_that_are_nan(make, dtype):
  tokens = make([[1, 80, 81, 82]])
  good = make([[1.0, 2.0, -0.5, np.inf]]).astype(dtype)
  bad = make([[1.0, 2.0, np.nan, 0.5]]).astype(dtype)
  rules = PatchingConfig(), PatchingConfig(monotonic=True), PatchingConfig(cumulative=True)
  for rule in (*rules, PatchingConfig(threshold=None, patch_size=2)):
    patching.patch_lengths(tokens, rule, good)
    with pytest.raises(ValueError, match="Entropies hold NaN"):
      patching.patch_lengths(tokens, rule, bad)
  jax.jit(lambda t, h: patching.patch_lengths(t, PatchingConfig(), h))(jnp.asarray(tokens), bad)


def test_entropies_that_are_nan_elsewhere():
  tokens, bad = np.array([1, 80, 81]), np.array([1, np.nan, 2], np.float32)
  with pytest.raises(ValueError, match="Entropies hold NaN"):
    thresholds.find_threshold([(tokens, bad)], PatchingConfig(), 2.0)
  with pytest.raises(ValueError, match="Entropies hold NaN"):
    Generation(tokens, tokens[:0], bad[:0], "end", entropies=bad)


# --- Tables


def save(folder, **changes):
  entries = table.make_entries(np.array([7], np.uint64), 1, np.array([1.5]), np.array([9]), 256)
  info = {"orders": [1], "entropy": 2.5, "reset_at_newline": False, "input": "x"}
  table.save_table(folder, [entries], info)
  path = folder / table.INFO
  path.write_text(
    json.dumps(
      {k: v for k, v in {**json.loads(path.read_text()), **changes}.items() if v != "-"}
    )
  )


@pytest.mark.parametrize(
  "changes",
  [
    *({"entropy": value} for value in (*NO_NUMBERS, -1.0, 1e9, None, "-")),
    *({"orders": value} for value in (5, [], ["1"], [True], [0], [8], [2, 1], "-")),
    *({"buckets": value} for value in (256, [], [255], ["256"], [256, 256], [None], "-")),
    *({"reset_at_newline": value} for value in (0, "abc", None, "-")),
    {"version": 2}, {"version": "-"}, {"orders": [1, 2]},
  ],
)  # fmt: skip
def test_tables_are_checked(tmp_path, changes):
  save(tmp_path, **changes)
  with pytest.raises(ValueError, match=r"table.json (is damaged|has version)|entries.npy has"):
    table.TableModel(tmp_path)


def test_entries_have_a_digest(tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr("absl.logging.warning", lambda text, *args: warnings.append(text % args))
  save(tmp_path)
  table.TableModel(tmp_path)
  assert not warnings
  entries = np.load(tmp_path / "entries.npy")
  entries[3] ^= 1
  np.save(tmp_path / "entries.npy", entries)
  with pytest.raises(ValueError, match="entries.npy is not what was written, by the digest"):
    table.TableModel(tmp_path)
  path = tmp_path / table.INFO
  fields = json.loads(path.read_text())
  path.write_text(json.dumps({k: v for k, v in fields.items() if k != "digest"}))
  table.TableModel(tmp_path)
  assert "has no digest, since an earlier version made it" in warnings[0]


def test_entries_of_another_kind(tmp_path):
  save(tmp_path)
  for write in (
    lambda file: np.savez(file, a=np.zeros(3)),
    lambda file: np.save(file, np.uint32(3)),
    lambda file: np.save(file, np.zeros(256, ">u4")),
    lambda file: np.save(file, np.array([{}], object), allow_pickle=True),
  ):
    with (tmp_path / "entries.npy").open("wb") as file:
      write(file)
    with pytest.raises(ValueError, match=r"entries.npy (is missing or cut short|has)"):
      table.TableModel(tmp_path)


def test_json_of_ours_holds_no_nan(tmp_path):
  (tmp_path / "a.json").write_text('{"a": NaN}')
  with pytest.raises(ValueError, match="a.json is damaged.*NaN"):
    files.read_json(tmp_path / "a.json")
  (tmp_path / "a.json").write_text('{"a": -Infinity}')
  assert files.read_json(tmp_path / "a.json") == {"a": -np.inf}


@pytest.mark.parametrize("temperature", [1e-30, 1e-31, 1e-45, 5e-324])
def test_the_coldest_temperatures_take_the_likeliest_byte(temperature):
  is_greedy = temperature < 1e-30
  assert (Sampling(temperature=temperature).temperature == 0) == is_greedy
  assert ("temperature" in Sampling(temperature=temperature).parts) == (not is_greedy)
