"""Plain text: which files it is in, and how long ones are cut."""

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import read

from blt_jax.data.reading import sources
from blt_jax.data.reading.documents import Skipped, SourceOptions
from blt_jax.storage import files


def test_folder_skips_what_is_no_text(tmp_path):
  (tmp_path / "b.txt").write_text("bé\n")
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "a.py").write_text("pass\n")
  (tmp_path / "c.png").write_bytes(b"\x89PNG\0\xff")
  (tmp_path / "d.rtf").write_text(r"{\rtf1 text}")  # which is UTF-8 all the same
  (tmp_path / "empty.txt").write_text(" \n")
  (tmp_path / ".git").mkdir()
  (tmp_path / ".git" / "config").write_text("hidden")
  skipped = Skipped()
  assert read(tmp_path / "c.png") == [b"\x89PNG\0\xff"]  # whoever names it means it
  assert read(tmp_path, skipped=skipped) == [b"pass\n", "bé\n".encode()]
  assert skipped.counts == {"not UTF-8 text": 1, "an RTF document": 1}
  assert sources.read_documents(str(tmp_path)) == [b"pass\n", "bé\n".encode()]


def test_long_files_are_cut_after_a_line(tmp_path):
  file = tmp_path / "long.txt"
  file.write_text("one\ntwo\nthree" + "e" * 20)
  pieces = read(file, SourceOptions(max_document_bytes=10))
  assert pieces == [b"one\ntwo\n", b"threeeeeee", b"eeeeeeeeee", b"eeeee"]
  file.write_text("x" * 10)
  assert read(file, SourceOptions(max_document_bytes=10)) == [b"x" * 10]


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="aé€🙂\n\r ", min_size=1, max_size=60), st.integers(4, 12))
def test_pieces_are_the_file_and_keep_characters_whole(tmp_path_factory, text, limit):
  file = tmp_path_factory.mktemp("text") / "a.txt"
  file.write_bytes(text.encode() + b".")
  pieces = read(file, SourceOptions(max_document_bytes=limit, invalid_utf8="drop"))
  assert b"".join(pieces) == text.encode() + b"."
  assert max(map(len, pieces)) <= limit


@pytest.mark.parametrize("end", ["gz", "zst", "xz", "bz2"])
def test_compressed_text_is_no_text(tmp_path, end):
  with fsspec.open(f"{tmp_path}/a.{end}", "wb", compression="infer") as file:
    file.write(b"text\n" * 9)
  with pytest.raises(ValueError, match="a.*: compressed text .unpack it"):
    read(f"{tmp_path}/a.{end}")


@pytest.mark.parametrize("content", [b"", b" \n "])
def test_bad_files_have_one_clear_error(tmp_path, content):
  file = tmp_path / "data.txt"
  file.write_bytes(content)
  with pytest.raises(ValueError, match="data.txt.*holds no text"):
    sources.open_source(str(file))


def test_missing_paths_are_named(tmp_path):
  for path in ("nowhere.txt", str(tmp_path / "*.txt"), "memory://nowhere"):
    with pytest.raises(FileNotFoundError, match=r"nowhere|\*\.txt.*config.data.path"):
      sources.open_source(path)
  with pytest.raises(ValueError, match="holds no text"):
    sources.open_source(str(tmp_path))


def test_standard_library_is_real_text():
  documents = sources.read_documents(files.STDLIB)
  assert sum(map(len, documents)) > 5_000_000
