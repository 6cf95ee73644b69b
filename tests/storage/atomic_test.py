"""Files are whole or not there."""

import json
import os
import stat
import subprocess
import sys
import threading

import fsspec
import pytest
from tiny_runs import small_files

from blt_jax.storage import atomic, files, leftovers, paths
from blt_jax.storage.folders import Folder


def write(path, text):
  with atomic.writing(path) as file:
    file.write(text + "\n")


def names(folder):
  return sorted(os.listdir(folder))


@pytest.mark.parametrize("root", ["{tmp}", "file://{tmp}", "memory://atomic"])
def test_what_is_written_is_read(root, tmp_path):
  path = root.format(tmp=tmp_path) + "/a.json"
  for fields in ({"a": "é"}, {"a": 2}):
    atomic.write_json(path, fields)
    assert files.read_json(path) == fields
  assert files.read_bytes(path) == b'{\n  "a": 2\n}\n'
  with atomic.new_file(path) as here:
    assert here.name == "a.json"  # writers judge by the end of the name
    here.write_bytes(b"\xff")
  assert files.read_bytes(path) == b"\xff"
  assert names(tmp_path) == ([] if "memory" in root else ["a.json"])


@pytest.mark.parametrize("root", ["{tmp}", "memory://broken"])
def test_what_fails_leaves_what_was_before(root, tmp_path):
  path = root.format(tmp=tmp_path) + "/a"
  write(path, "before")
  with pytest.raises(KeyboardInterrupt), atomic.writing(path) as file:
    file.write("half")
    raise KeyboardInterrupt
  assert files.read_bytes(path) == b"before\n"
  assert len(Folder(root.format(tmp=tmp_path)).sizes()) == 1


def test_folders_have_their_name_once_they_are_whole(tmp_path):
  whole = tmp_path / "new" / "run"
  with pytest.raises(KeyboardInterrupt), atomic.new_folder(whole) as folder:
    write(f"{folder}/a", "half")
    raise KeyboardInterrupt
  assert names(whole.parent) == []
  with atomic.new_folder(whole) as folder:
    assert not whole.exists() and folder.endswith("/run")
    write(f"{folder}/a", "text")
  assert names(whole.parent) == ["run"] and names(whole) == ["a"]
  with pytest.raises(OSError, match="not empty"), atomic.new_folder(whole) as folder:
    write(f"{folder}/b", "other")
  assert names(whole.parent) == ["run"] and names(whole) == ["a"]


def test_bytes_are_on_the_disk_before_they_have_a_name(tmp_path, monkeypatch):
  synced, fsync = [], os.fsync

  def watch(file):
    synced.append((os.fstat(file).st_ino, names(tmp_path)))
    fsync(file)

  monkeypatch.setattr(os, "fsync", watch)
  write(tmp_path / "a", "text")
  ((inode, before),) = synced
  assert inode == (tmp_path / "a").stat().st_ino and "a" not in before


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
  message = f"{tmp_path}/a cannot be written: .* Check free space.$"
  with pytest.raises(OSError, match=message), small_files(1000):
    atomic.write_json(tmp_path / "a", {"a": "x" * 100_000})
  assert not names(tmp_path)


def test_several_write_the_same_file_at_once(tmp_path):
  with atomic.writing(tmp_path / "a") as one, atomic.writing(tmp_path / "a") as two:
    one.write("1")
    two.write("2")
  assert (tmp_path / "a").read_text() == "1" and names(tmp_path) == ["a"]


def test_links_are_followed_and_pipes_are_written_to(tmp_path):
  (tmp_path / "link").symlink_to(tmp_path / "a")
  write(tmp_path / "link", "text")
  assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "text\n"
  os.mkfifo(tmp_path / "pipe")
  read = []
  thread = threading.Thread(target=lambda: read.append(files.read_bytes(tmp_path / "pipe")))
  thread.start()
  write(tmp_path / "pipe", "text")
  thread.join()
  assert read == [b"text\n"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_mistakes_are_named(tmp_path):
  fsspec.filesystem("memory").pipe_file("/mistakes/a", b"")
  for folder in (tmp_path, "memory://mistakes"):
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
      write(folder, "")
  with pytest.raises(OSError, match=f"no folder {tmp_path}/no; make it first. Check the path"):
    atomic.write_json(tmp_path / "no" / "a", {})
  with pytest.raises(ValueError, match="nosuch"):
    write("nosuch://a/b", "")
  for path in (f"{tmp_path}/none", "memory://none"):
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{path}'"):
      files.read_bytes(path)
  for text in ("{", "[]"):
    (tmp_path / "a").write_text(text)
    with pytest.raises(ValueError, match="a is damaged, it"):
      files.read_json(tmp_path / "a")
  with pytest.raises(NotADirectoryError, match="a is a file; give the name of a folder"):
    Folder(tmp_path / "a").make()


@pytest.mark.parametrize("root", ["{tmp}", "memory://moved"])
def test_folders_are_moved_whole(root, tmp_path):
  home = Folder(root.format(tmp=tmp_path))
  for name in ("2", "2/deep", "damaged"):
    Folder(home.path_of(name)).make()
  for name in ("2/a.json", "2/deep/b.json"):
    home.write_json(name, {"name": name})
  paths.move(home.path_of("2"), home.path_of("damaged/2-1"))
  assert home.read_json("damaged/2-1/deep/b.json")["name"] == "2/deep/b.json"
  assert list(home.sizes()) == ["damaged"]
  assert list(Folder(home.path_of("damaged/2-1")).sizes()) == ["a.json", "deep"]


def test_a_home_is_no_folder_of_that_name(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  Folder("~/run").make()
  write("~/run/a", "text")
  assert names(tmp_path) == ["home"] and files.read_bytes("~/run/a") == b"text\n"
  assert json.loads(json.dumps(Folder("~/run").sizes())) == {"a": 5}


_KILLED = """
import os, signal, sys
from blt_jax.storage import atomic
with atomic.writing(sys.argv[1]) as file:
  file.write("half")
  file.flush()
  if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
  print("writing", flush=True)
  sys.stdin.read()
"""


def test_what_a_kill_left_is_removed_by_the_next_run_and_nothing_else(tmp_path):
  whole, others = tmp_path / "out", [".out.mine.partial", "out.partial", ".out.partial"]
  for name in [*others, f".out.{leftovers._host()}-no.partial", ".out.there-01234567.partial"]:
    (tmp_path / name).mkdir()
  before = names(tmp_path)
  command = [sys.executable, "-c", _KILLED, str(whole)]
  subprocess.run([*command, "kill"], check=False)
  assert len(names(tmp_path)) == len(before) + 1
  with subprocess.Popen([*command, "wait"], stdin=-1, stdout=-1) as alive:
    assert alive.stdout.readline() == b"writing\n"
    write(whole, "text")
    assert whole.read_text() == "text\n"
    assert len(names(tmp_path)) == len(before) + 2  # the file, and what the other one writes
    alive.communicate()
  assert whole.read_text() == "half" and names(tmp_path) == sorted([*before, "out"])
