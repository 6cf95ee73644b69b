"""Patches of a text, in characters and as a figure."""

import numpy as np
import pytest

from blt_jax import patching, show_patches, tokenizer
from blt_jax.cli import patch_view
from blt_jax.runs import patcher

_SPACE = patcher.Patcher(patching.PatchingConfig(scheme="space"))


def test_bars_stand_before_patches():
  patched = show_patches.patch_text("ab cd\n", _SPACE)
  lines = patch_view.render(patched, use_colour=False).splitlines()
  assert lines == ["|·|ab |cd↵", "7 bytes in 3 patches, 2.33 bytes each"]


def test_entropies_stand_under_their_bytes():
  patched = patch_view.Patched(
    tokens=tokenizer.encode("ab", add_eos=False),
    starts=np.array([True, True, False]),
    entropies=np.array([0.0, np.log(256) / 2 + 0.01, 5.6], np.float32),
    threshold=1.0,
  )
  lines = patch_view.render(patched, use_colour=False).splitlines()
  assert lines[:2] == ["|·|ab", " 0 59"]
  coloured = patch_view.render(patched, use_colour=True).splitlines()
  assert coloured[1] == "059" and coloured[0].endswith("b\x1b[0m")


def test_long_texts_wrap():
  patched = show_patches.patch_text("x" * 100, _SPACE)
  lines = patch_view.render(patched, use_colour=False, width=60).splitlines()
  assert len(lines) == 3 and lines[0].count("x") == 59


def test_figure_is_written(tmp_path):
  pytest.importorskip("matplotlib", reason="draws with matplotlib")
  patched = show_patches.patch_text("a few words", _SPACE)
  patch_view.draw(patched, str(tmp_path / "patches.png"))
  assert (tmp_path / "patches.png").read_bytes().startswith(b"\x89PNG")
