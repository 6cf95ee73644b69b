"""How exact products are."""

import contextlib

import jax


def exact_products(dtype: str) -> contextlib.AbstractContextManager:
  """Makes products of float32 those of float32, where `dtype` is that.

  Many devices have faster ones of less precision. Which of these they take depends on
  shapes, so a text would not come out the same in chunks, or beside others.
  """
  if dtype == "float32":
    return jax.default_matmul_precision("float32")
  return contextlib.nullcontext()
