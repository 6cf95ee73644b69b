"""Reading text and holding some of it out."""

import pytest

from blt_jax.data import sources


def test_folder_skips_what_is_no_text(tmp_path):
  (tmp_path / "b.txt").write_text("bé\n")
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "a.py").write_text("pass\n")
  (tmp_path / "c.png").write_bytes(b"\x89PNG\0\xff")
  (tmp_path / "empty.txt").write_text(" \n")
  assert sources.read_documents(str(tmp_path)) == [b"pass\n", "bé\n".encode()]


def test_long_files_are_cut_after_a_line(tmp_path):
  file = tmp_path / "long.txt"
  file.write_text("one\ntwo\nthree" + "e" * 20)
  pieces = sources.read_documents(str(file), max_bytes=10)
  assert pieces[0] == b"one\ntwo\n" and all(len(p) <= 10 for p in pieces)
  assert b"".join(pieces) == file.read_bytes()


@pytest.mark.parametrize(
  ("content", "message"),
  [(b"\xff\xfe\0binary", "not UTF-8 text"), (b"", "holds no text"), (b" \n ", "holds no text")],
)
def test_bad_files_have_one_clear_error(tmp_path, content, message):
  file = tmp_path / "data.txt"
  file.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    sources.read_documents(str(file))


def test_missing_path_is_named():
  with pytest.raises(FileNotFoundError, match="nowhere.txt.*config.data.path"):
    sources.read_documents("nowhere.txt")


def test_split_is_by_content_and_never_empty():
  documents = [bytes([65 + i]) * 9 for i in range(26)]
  train, heldout = sources.split_documents(documents, 0.2)
  assert sorted(train + heldout) == documents and 0 < len(heldout) < 15
  assert sources.split_documents(documents[::-1], 0.2)[1] == heldout[::-1]
  for fraction in (0.0, 1.0):
    parts = sources.split_documents(documents[:2], fraction)
    assert [len(p) for p in parts] == [1, 1]
  with pytest.raises(ValueError, match="heldout_path"):
    sources.split_documents(documents[:1] * 2, 0.5)


def test_single_file_is_held_out_in_pieces(tmp_path):
  file = tmp_path / "book.txt"
  file.write_text("".join(f"line {i}\n" for i in range(4000)))
  train, heldout = sources.read_split(str(file), "", 0.2)
  assert sum(map(len, train + heldout)) == file.stat().st_size
  assert heldout and not set(train) & set(heldout)


def test_standard_library_is_real_text():
  documents = sources.read_documents(sources.STDLIB)
  assert sum(map(len, documents)) > 5_000_000
