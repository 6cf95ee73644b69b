"""Runs that train in seconds: settings, text, losses."""

import contextlib
import itertools
import json
import os
import pathlib
import resource
from collections.abc import Iterator

import pytest
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax.parallel import sharding


def tiny_config(kind: str, **settings_of_run) -> ConfigDict:
  """A run of tiny models in float32, which logs every step."""
  config = settings.get_config(kind)
  tiny = dict(dim=16, num_layers=1, num_heads=2, window=8, mlp_multiple_of=8)
  if kind in ("blt", "end_to_end", "mixture"):
    for stack in (config.model.encoder, config.model.latent, config.model.decoder):
      stack.update(tiny)
    config.model.latent.update(dim=32, window=None)
    config.model.encoder_cross.num_heads = config.model.decoder_cross.num_heads = 2
    config.model.update(hash_vocab_size=64, hash_sizes=(3, 4))
    if kind == "end_to_end":
      config.model.predictor.update(tiny | dict(dim=8, mlp_dim=8))
      config.model.num_patches = 12
      for name in ("predictor", "encoder", "latent", "decoder"):
        config.model[name].unroll = True  # compiles faster
  elif kind in ("byte_lm", "bpe_lm"):
    config.model.transformer.update(tiny)
  elif kind == "megabyte":
    config.model.global_model.update(tiny | dict(dim=32, window=None))
    config.model.local_model.update(tiny | dict(window=None))
    config.model.patch_size = 4
  elif kind == "spacebyte":
    config.model.local_model.update(tiny | dict(num_layers=2))
    config.model.global_model.update(tiny | dict(dim=32, window=None))
    config.model.num_patches = 8
  else:
    raise ValueError(f"Tiny sizes of a {kind} are still to be given.")
  config.model.dtype = "float32"
  config.data.update(batch_size=8, seq_len=32, num_patches=33, pool_size=32)
  config.logging.update(every_steps=1, tensorboard=False)
  config.update(settings_of_run)
  return config


def write_text(folder: pathlib.Path, num_files: int = 20) -> pathlib.Path:
  """Some files of Python; held-out text is whole files."""
  folder.mkdir()
  for i in range(num_files):
    lines = [f"def function_{i}_{n}(x): return x + {n}\n" for n in range(20)]
    (folder / f"file_{i}.py").write_text("".join(lines))
  return folder


@contextlib.contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
  """Lets no file grow beyond a number of bytes, as a full disk does."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def count_lines(workdir: pathlib.Path) -> int:
  """Lines that a run has logged so far."""
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def logged_losses(workdir: os.PathLike) -> Iterator[tuple[int, float]]:
  """Step and loss of each line logged so far; a step that ran again has several."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  for line in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(json.JSONDecodeError):  # a line cut short by a kill
      numbers = json.loads(line)
      if numbers["kind"] == "train":
        yield numbers["step"], numbers["loss"]


def losses(workdir: os.PathLike) -> dict[int, float]:
  """Loss by step; a step that ran again must have given the same."""
  by_step: dict[int, float] = {}
  for step, loss in logged_losses(workdir):
    assert by_step.setdefault(step, loss) == loss
  return by_step


@contextlib.contextmanager
def stopped_at_batch(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
  """Ends training, in the block, where this batch would go to the devices."""

  class Stopped(Exception):
    pass

  real, calls = sharding.put_batch, itertools.count(1)

  def stop(*args, **kwargs):
    if next(calls) == number:
      raise Stopped
    return real(*args, **kwargs)

  with monkeypatch.context() as patched, pytest.raises(Stopped):
    patched.setattr(sharding, "put_batch", stop)
    yield
