"""Lowers functions with their kernels for a GPU that need not be there."""

import jax

from blt_jax.ops import device


def lowered(function, monkeypatch, *arguments):
  """The text of a function that finds kernels on a mesh of GPUs."""
  monkeypatch.setattr(device, "kernels", lambda: "triton")
  gpu = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()
