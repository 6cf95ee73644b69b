"""Writes a safetensors file array by array, so that a model is never in memory whole."""

import json
from collections.abc import Iterable
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from blt_jax.convert.names import Entry

_CODES = {np.dtype(d): c for d, c in (("float32", "F32"), ("float16", "F16"))}
_CODES[np.dtype(jnp.bfloat16)] = "BF16"


def write(file: BinaryIO, params: Iterable[tuple[Entry, Any]]) -> None:
  """Writes the foreign arrays of our parameters.

  Args:
    file: to write.
    params: each with what it is made of there; it has a shape and a dtype, and
      `numpy.asarray` reads it.
  """
  # Wide numbers first, as the format's own library has it, so that all are aligned.
  pairs = sorted(params, key=lambda pair: -pair[1].dtype.itemsize)
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for entry, array in pairs:
    shape, dtype = entry.foreign_shape(tuple(array.shape)), np.dtype(array.dtype)
    for name in entry.names:
      begin, end = end, end + int(np.prod(shape)) * dtype.itemsize
      header[name] = dict(dtype=_CODES[dtype], shape=shape, data_offsets=(begin, end))
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  file.write(len(text).to_bytes(8, "little") + text)
  for entry, array in pairs:
    for _, piece in entry.split(np.asarray(array)):
      file.write(piece.reshape(-1).view(np.uint8).data)
