"""Which files of a path are read: links, pipes, saved datasets, mixtures, what is said."""

import json
import os

import pyarrow as pa
import pytest
from source_files import SKIP, read, write

from blt_jax.data.reading import sources
from blt_jax.data.reading.documents import Skipped
from blt_jax.storage import files, paths


@pytest.fixture(name="said")
def _said(monkeypatch):
  lines = []
  for name in ("info", "warning"):
    monkeypatch.setattr(f"absl.logging.{name}", lambda text, *a: lines.append(text % a))
  return lines


# --- Paths


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_no_folder(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.txt").write_text("a")
  with pytest.raises(ValueError, match="is empty; write . for the current folder"):
    sources.open_source(path)
  with pytest.raises(ValueError, match="is empty"):
    paths.find_filesystem(path)
  assert read(".") == [b"a"]


def test_what_never_ends_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path in (tmp_path / "pipe", "/dev/zero", "/dev/fd/0"):
    if os.path.exists(path) and not os.path.isfile(path):
      with pytest.raises(ValueError, match="cannot be read .it is (a pipe|a device|a socket)"):
        read(path)
  home = tmp_path / "home"
  home.mkdir()
  (home / "a.txt").write_text("a")
  os.mkfifo(home / "b.txt")
  (home / "c.txt").symlink_to("/dev/zero")
  with pytest.raises(ValueError, match="home/b.txt: cannot be read .it is a pipe"):
    read(home)
  skipped = Skipped()
  assert read(home, SKIP, skipped) == read(home / "*.txt", SKIP) == [b"a"]
  assert skipped.counts == {"cannot be read": 2}


def test_links_to_folders_are_followed_once_each(tmp_path):
  home, other = tmp_path / "home", tmp_path / "other"
  for folder in (home / "deep", other / "deeper"):
    folder.mkdir(parents=True)
  for path in (
    home / "a.txt",
    home / "deep" / "b.txt",
    other / "c.txt",
    other / "deeper/d.txt",
  ):
    path.write_text(path.stem)
  (home / "link").symlink_to(other)
  (home / "link2").symlink_to(other / "deeper")  # a part of what the link has
  (home / "deep" / "link").symlink_to(home / "deep")
  (home / "loop").symlink_to(tmp_path)
  (other / "back").symlink_to(home)
  notes = []
  found = files.list_files(str(home), note=lambda *note: notes.append(note))
  names = [os.path.relpath(path, home) for path in found]
  assert names == ["a.txt", "deep/b.txt", "link/c.txt", "link/deeper/d.txt"]
  assert sorted(notes) == [
    ("a link to a folder above", f"{home}/link/back"),
    ("a link to a folder above", f"{home}/loop"),
    ("a link to a folder that is read already", f"{home}/deep/link"),
    ("a link to a folder that is read already", f"{home}/link2"),
  ]
  skipped = Skipped()
  assert read(home, skipped=skipped) == read(home / "**" / "*.txt") == [b"a", b"b", b"c", b"d"]
  assert skipped.counts.total() == 4
  assert read(home / "*" / "*.txt") == [b"b", b"c", b"d"]
  assert read(home / "link" / "*.txt") == [b"c"]


@pytest.mark.parametrize("pattern", ["*.txt", "?.txt", "[ab].txt", "**/*.txt", "d*/*.txt"])
def test_globs_are_those_of_fsspec(tmp_path, pattern):
  for name in ("a.txt", "b.txt", "deep/c.txt", "deep/deeper/d.txt", ".e.txt", ".f/g.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  filesystem, root = paths.find_filesystem(f"{tmp_path}/{pattern}")
  expected = [p for p in filesystem.glob(root) if "/." not in p]
  assert files.list_files(root) == expected and expected
  assert files.list_files(f"{tmp_path}/.f/*") == [f"{tmp_path}/.f/g.txt"]


# --- What is read, and what is left out


def test_what_is_read_is_said(tmp_path, said):
  write(tmp_path / "train-0.jsonl", ["1"])
  write(tmp_path / "test-0.jsonl", ["2"])
  (tmp_path / "README.md").write_text("about")
  (tmp_path / "state.json").write_text("{}")
  assert read(tmp_path) == [b"2", b"1"]
  size = os.path.getsize(tmp_path / "train-0.jsonl") + os.path.getsize(
    tmp_path / "test-0.jsonl"
  )
  what, warning = said
  assert what == (
    f"{tmp_path}: 2 files of jsonl, {size} bytes: .jsonl 2; left out are 2 others: "
    ".md 1, .json 1."
  )
  assert (
    "1 of the files that are read seem to be of a test split, such as test-0.jsonl" in warning
  )


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.tsv"])
def test_tables_among_text_ask_for_a_glob(tmp_path, name):
  content = '{"text": "1"}' if name == "a.json" else "text\n1\n"
  (tmp_path / name).write_text(content)
  assert read(tmp_path) == [b"1"]
  (tmp_path / "b.py").write_text("pass")
  with pytest.raises(
    ValueError, match=f"several formats: (text, )?{name[2:]}.*{name[1:]} 1.* a glob"
  ):
    read(tmp_path)
  assert read(tmp_path / "*.py") == [b"pass"] and read(tmp_path / f"*.{name[2:]}") == [b"1"]


@pytest.mark.parametrize("end", [".jsonl", ".csv", ".parquet", ".json.gz"])
def test_metadata_beside_shards_is_no_text(tmp_path, end):
  if end == ".csv":
    (tmp_path / "a.csv").write_text("text\n1\n")
  else:
    write(tmp_path / f"a{end}", ["1"])
  for name in ("dataset_info.json", "dataset_infos.json", "manifest.json"):
    (tmp_path / name).write_text('{"text": "metadata"}')
  assert read(tmp_path) == [b"1"]


# --- Saved datasets


def save(folder, texts, names=("data-00000-of-00001.arrow",), is_stream=True):
  """As `Dataset.save_to_disk` does."""
  folder.mkdir(parents=True)
  for i, name in enumerate(names):
    table = pa.table({"text": texts[i :: len(names)]})
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with pa.OSFile(str(folder / name), "wb") as file, new(file, table.schema) as writer:
      writer.write_table(table)
  state = {"_data_files": [{"filename": name} for name in names], "_split": None}
  (folder / "state.json").write_text(json.dumps(state))
  (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {}}}))


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_saved_dataset_is_read(tmp_path, is_stream):
  names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
  save(tmp_path / "ds", ["1", "2", "3"], names, is_stream)
  (tmp_path / "ds" / "cache-12.arrow").write_bytes((tmp_path / "ds" / names[0]).read_bytes())
  skipped = Skipped()
  assert read(tmp_path / "ds", skipped=skipped) == [b"1", b"3", b"2"]
  assert skipped.counts == {"no data file of this dataset, as its state.json says": 1}
  assert read(tmp_path / "ds" / names[1]) == [b"2"]
  (tmp_path / "ds" / names[1]).unlink()
  with pytest.raises(ValueError, match=f"ds: a file is missing .*{names[1]}"):
    read(tmp_path / "ds")


def test_splits_are_chosen_by_name(tmp_path):
  for name in ("train", "test"):
    save(tmp_path / "ds" / name, [name])
  (tmp_path / "ds" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  skipped = Skipped()
  assert read(tmp_path / "ds", skipped=skipped) == [b"train"]
  assert skipped.counts == {"not the split 'train' of this dataset": 1}
  assert read(tmp_path / "ds" / "test") == [b"test"]
  (tmp_path / "ds" / "dataset_dict.json").write_text('{"splits": ["test", "validation"]}')
  with pytest.raises(ValueError, match="several splits .*ds/test, .*ds/validation"):
    read(tmp_path / "ds")
  for damaged in ("{", "[]", "{}", '{"splits": 5}', '{"splits": [5]}'):
    (tmp_path / "ds" / "dataset_dict.json").write_text(damaged)
    with pytest.raises(ValueError, match="damaged .*dataset_dict.json"):
      read(tmp_path / "ds")
  (tmp_path / "ds" / "dataset_dict.json").write_text('{"splits": ["test"]}')
  for damaged in ("{", "[]", '{"_data_files": 5}', '{"_data_files": [{}]}'):
    (tmp_path / "ds" / "test" / "state.json").write_text(damaged)
    with pytest.raises(ValueError, match="damaged .*state.json"):
      read(tmp_path / "ds")


def test_metadata_alone_is_no_text(tmp_path):
  save(tmp_path / "ds", ["1"])
  (tmp_path / "ds" / "data-00000-of-00001.arrow").unlink()
  with pytest.raises(ValueError, match="a file is missing"):
    read(tmp_path / "ds")
  (tmp_path / "ds" / "state.json").unlink()
  with pytest.raises(ValueError, match="holds no text"):
    read(tmp_path / "ds")
