"""Folders of weights as they lie on disks: read right, or refused by name."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from blt_jax.convert import stored

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)


def _write(folder, **arrays):
  for file, named in arrays.items():
    save_file(named, folder / f"{file}.safetensors")
  return folder


def _index(folder, weight_map, name="model.safetensors.index.json"):
  (folder / name).write_text(json.dumps({"weight_map": weight_map}))


def _read(folder):
  found = stored.tidied(stored.read_arrays(folder))
  return {name: np.asarray(array) for name, array in found.items()}


def test_the_index_says_which_files_count(tmp_path):
  """A stale single file beside the shards has the same names and other numbers."""
  _write(tmp_path, one={"a": A}, two={"b": B}, model={"a": A + 1, "b": B + 1})
  _index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
  found = _read(tmp_path)
  np.testing.assert_array_equal(found["a"], A)
  np.testing.assert_array_equal(found["b"], B)


def test_shards_without_an_index_are_read_together(tmp_path):
  _write(tmp_path, one={"a": A}, two={"b": B})
  (tmp_path / "._one.safetensors").write_bytes(b"of another system")
  assert _read(tmp_path).keys() == {"a", "b"}


def test_names_found_twice_are_refused(tmp_path):
  _write(tmp_path, one={"a": A}, model={"a": A + 1, "b": B})
  with pytest.raises(ValueError, match=r"a is found twice, in .*/model.* and in .*/one"):
    _read(tmp_path)


@pytest.mark.parametrize(
  "weight_map, error, message",
  [
    (
      {"a": "one.safetensors", "b": "gone.safetensors"},
      FileNotFoundError,
      "gone.safetensors is",
    ),
    ({"a": "one.safetensors", "c": "one.safetensors"}, ValueError, "c is not in .*/one.safet"),
    ({"b": "one.safetensors"}, ValueError, "one.safetensors holds a, which the index"),
    ({}, ValueError, "index.json has no weight_map"),
  ],
)
def test_indices_that_do_not_fit(tmp_path, weight_map, error, message):
  _write(tmp_path, one={"a": A})
  _index(tmp_path, weight_map)
  with pytest.raises(error, match=message):
    _read(tmp_path)


def test_several_indices_are_refused(tmp_path):
  _index(_write(tmp_path, one={"a": A}), {"a": "one.safetensors"})
  _index(tmp_path, {"a": "one.safetensors"}, "model.fp16.safetensors.index.json")
  with pytest.raises(ValueError, match="several indices, model.fp16.*, model.safe"):
    _read(tmp_path)


def test_pointers_are_refused(tmp_path):
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
  (tmp_path / "model.safetensors").write_text(pointer)
  with pytest.raises(ValueError, match=r"model.safetensors is a pointer .*git lfs pull"):
    _read(tmp_path)


def test_damaged_files_are_refused(tmp_path):
  whole = (_write(tmp_path, model={"a": A}) / "model.safetensors").read_bytes()
  for damaged in (whole[:-4], b"<html>", b""):
    (tmp_path / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
      _read(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_numbers_that_are_none_are_refused(tmp_path, bad, dtype):
  _write(tmp_path, model={"a": np.array([1, bad], dtype)})
  with pytest.raises(ValueError, match=r"a in .*/model.safetensors holds NaN or inf"):
    _read(tmp_path)


def test_numbers_beyond_float32_are_refused(tmp_path):
  _write(tmp_path, model={"a": np.array([1, 1e300])})
  with pytest.raises(ValueError, match="or such that float32 does not hold"):
    _read(tmp_path)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_dtypes_stay(tmp_path, dtype):
  _write(tmp_path, model={"a": A.astype(dtype)})
  found = stored.read_arrays(tmp_path)["a"]
  assert found.dtype == np.asarray(found).dtype == np.dtype(dtype) and found.shape == (2, 3)
  np.testing.assert_array_equal(np.asarray(found, np.float32), A)


def test_quantised_weights_are_refused(tmp_path):
  _write(tmp_path, model={"a": A.astype(np.int8)})
  with pytest.raises(ValueError, match="a in .*/model.safetensors is of type I8"):
    _read(tmp_path)


def test_wrappers_and_rotary_buffers_go(tmp_path):
  names = ["module._orig_mod.layers.0.w", "layers.1._checkpoint_wrapped_module.w"]
  ends = "rotary_emb.inv_freq", "rope_embeddings.freqs_cis", "rope.freqs", "x.cos_cached"
  buffers = dict.fromkeys(ends, B)
  _write(tmp_path, model=dict.fromkeys(names, A) | buffers)
  assert _read(tmp_path).keys() == {"layers.0.w", "layers.1.w"}


def test_names_that_become_one_are_refused(tmp_path):
  _write(tmp_path, model={"w": A, "_orig_mod.w": A})
  with pytest.raises(ValueError, match="w is found twice"):
    _read(tmp_path)


def test_pickles_that_run_code_are_refused(tmp_path):
  torch = pytest.importorskip("torch", reason="reading pickles needs torch")
  state = {"a": torch.tensor(A), "b": torch.tensor(B).bfloat16()}
  torch.save(state, tmp_path / "pytorch_model.bin")
  found = _read(tmp_path)
  np.testing.assert_array_equal(found["a"], A)
  assert found["b"].dtype == jnp.bfloat16

  class Evil:
    def __reduce__(self):
      return (tmp_path / "ran").write_text, ("code",)

  for bad in (pickle.dumps(Evil()), b"nothing of the kind"):
    (tmp_path / "pytorch_model.bin").write_bytes(bad)
    with pytest.raises(ValueError, match=r"pytorch_model.bin is refused: torch.load\(weights"):
      _read(tmp_path)
  assert not (tmp_path / "ran").exists()
  torch.save({"a": 3}, tmp_path / "pytorch_model.bin")
  with pytest.raises(ValueError, match="no plain dictionary of tensors"):
    _read(tmp_path)
