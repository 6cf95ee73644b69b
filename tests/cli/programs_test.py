"""Where compiled programs are kept, and how many."""

import os
import pathlib

import jax
import pytest

from blt_jax.cli import programs


@pytest.fixture(name="home")
def _home(tmp_path, monkeypatch):
  """A user's cache folder, of a process that keeps no programs yet."""
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  jax.config.update("jax_compilation_cache_dir", None)
  yield tmp_path / "blt_jax" / "programs"
  jax.config.update("jax_compilation_cache_dir", before)


def _files(home):
  return {path.name for path in home.rglob("*") if path.is_file()}


def test_programs_are_kept_for_processors_of_one_kind(home, monkeypatch):
  programs.keep_programs()
  folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
  assert folder.parent == home and folder.is_dir()
  monkeypatch.setattr(pathlib.Path, "read_text", lambda _: "flags : other\n")
  assert programs._processor() != folder.name


def test_the_oldest_go_when_there_are_too_many(home, monkeypatch):
  monkeypatch.setattr(programs, "_MOST_BYTES", 25)
  (home / "other").mkdir(parents=True)
  for age, name in enumerate(("new", "older", "oldest")):
    (home / "other" / name).write_bytes(b"0123456789")
    os.utime(home / "other" / name, (1e9 - age, 1e9 - age))
  programs.keep_programs()
  assert _files(home) == {"new", "older"}


def test_who_asks_for_another_folder_or_none_gets_it(home, tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
  programs.keep_programs()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_enable_compilation_cache", False)
  programs.keep_programs()
  jax.config.update("jax_enable_compilation_cache", True)
  assert jax.config.jax_compilation_cache_dir is None and not home.exists()


def test_a_home_that_cannot_be_written(home):
  home.parent.write_text("a file, where a folder should be")
  programs.keep_programs()
  assert jax.config.jax_compilation_cache_dir is None
