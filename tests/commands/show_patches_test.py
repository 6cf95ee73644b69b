"""Patches of a text, in characters and as a figure."""

import matplotlib.figure
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


def test_characters_of_several_bytes_are_whole():
  """Patches may begin inside of them, and lines do not."""
  text = "é中".encode() + b"\xff"
  patched = patch_view.Patched(
    tokens=tokenizer.encode(text, add_eos=False),
    starts=np.array([True, True, False, True, True, False, False]),
    entropies=np.arange(7, dtype=np.float32) * np.log(256) / 10 + 0.01,
    threshold=None,
  )
  lines = patch_view.render(patched, use_colour=False).splitlines()
  assert lines[:2] == [r"|·|é‿|中|‿‿\xff", " 0 12 3  456"]
  lines = patch_view.render(patched, use_colour=False, width=6).splitlines()
  assert lines[:4:2] == ["|·|é‿", "|中|‿‿"] and lines[4] == r"\xff"


def test_labels_of_a_figure_stand_at_first_bytes(tmp_path, monkeypatch):
  figures = []
  real = matplotlib.figure.Figure.savefig
  monkeypatch.setattr(
    matplotlib.figure.Figure,
    "savefig",
    lambda self, *a, **k: figures.append(self) or real(self, *a, **k),
  )
  patched = show_patches.patch_text("é x".encode() + b"\xff" + b"y" * 120, _SPACE)
  patch_view.draw(patched, str(tmp_path / "patches.png"))
  rows = [[label.get_text() for label in axes.get_xticklabels()] for axes in figures[0].axes]
  assert rows[0][:7] == ["·", "é", "", "␣", "x", r"\xff", "y"]
  assert [len(row) for row in rows] == [100, 26]


def test_long_texts_are_not_drawn(tmp_path):
  patched = show_patches.patch_text("x" * 3000, _SPACE)
  with pytest.raises(ValueError, match="shows up to 2000 bytes, got 3001"):
    patch_view.draw(patched, str(tmp_path / "patches.png"))


def test_figure_is_written(tmp_path):
  patched = show_patches.patch_text("a few words", _SPACE)
  patch_view.draw(patched, str(tmp_path / "patches.png"))
  assert (tmp_path / "patches.png").read_bytes().startswith(b"\x89PNG")
