"""Stored results of the reference implementations, and the tolerances of all tests."""

import json
import pathlib
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"

FLOAT32 = dict(rtol=1e-4, atol=1e-4)  # the reference in float32
GRADIENT = dict(rtol=1e-3, atol=1e-5)  # its gradients
SAME = dict(rtol=1e-5, atol=1e-5)  # two ways to compute one thing in float32
BFLOAT16 = dict(rtol=5e-2, atol=5e-2)


def load(name: str) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
  """Reads `golden/<name>.npz` as (case, its arrays); integers become int32."""
  with np.load(GOLDEN / f"{name}.npz") as arrays:
    cases = json.loads(str(arrays["index"]))
    return [(c, {f: _narrow(arrays[f"{c['id']}/{f}"]) for f in c["fields"]}) for c in cases]


def load_run(name: str) -> dict[str, np.ndarray]:
  """Reads `golden/<name>/io.npz`; integers become int32."""
  with np.load(GOLDEN / name / "io.npz") as arrays:
    return {k: _narrow(arrays[k]) for k in arrays.files}


def load_json(name: str) -> Any:
  """Reads `golden/<name>`."""
  return json.loads((GOLDEN / name).read_text())


def trim(lengths: Any) -> np.ndarray:
  """Drops the columns on the right that are zero in all rows."""
  lengths = np.asarray(lengths)
  return lengths[:, : int((lengths > 0).sum(axis=1).max())]


def _narrow(array: np.ndarray) -> np.ndarray:
  fits = array.dtype == np.int64 and array.size and abs(array).max() < 2**31
  return array.astype(np.int32) if fits else array
