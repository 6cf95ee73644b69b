"""Reading documents of every format, and what becomes of bad input."""

import concurrent.futures
import gzip
import json
import os
import pickle

import chex
import fsspec
import grain
import numpy as np
import pytest
from array_record.python import array_record_module
from source_files import SKIP, lines_of, read, write, write_bytes

from blt_jax.data.reading import sources
from blt_jax.data.reading.documents import BadInputError, Policy, Skipped, SourceOptions
from blt_jax.data.reading.json_lines import parse_line
from blt_jax.data.reading.readers import TextReader

DOCUMENTS = ["one\n", "", "zwei ü", "\0nul", "a\r\nb", "🙂" * 40]
RECORDS = [
  ".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".json.gz", ".parquet", ".array_record",
  ".arrayrecord",
]  # fmt: skip
PACK = {".gz": gzip.compress}
COMPRESSED = [".jsonl.gz", ".jsonl.zst", ".jsonl.xz"]


@pytest.mark.parametrize("end", RECORDS)
def test_every_format_gives_the_same_documents(tmp_path, end):
  path = write(tmp_path / f"a{end}", DOCUMENTS)
  assert read(path) == [text.encode() for text in DOCUMENTS]
  has_random_access = end in (".jsonl", ".array_record", ".arrayrecord")
  assert isinstance(sources.open_source(path), grain.MapDataset) == has_random_access


@pytest.mark.parametrize("end", RECORDS)
def test_folder_of_shards_is_read_at_any_depth(tmp_path, end):
  (tmp_path / "deep").mkdir()
  write(tmp_path / f"a{end}", ["1", "2"])
  write(tmp_path / "deep" / f"b{end}", ["3"])
  write(tmp_path / f".hidden{end}", ["4"])
  (tmp_path / "manifest.json").write_text("{}")
  assert read(tmp_path) == [b"1", b"2", b"3"]
  assert read(tmp_path / "**" / f"*{end}") == [b"1", b"2", b"3"]
  assert read(tmp_path / f"[ab]{end}") == [b"1", b"2"]


def test_plain_and_compressed_lines_are_one_stream(tmp_path):
  write(tmp_path / "a.jsonl", ["1"])
  write(tmp_path / "b.jsonl.gz", ["2"])
  assert read(tmp_path) == [b"1", b"2"]


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz", ".txt", ".parquet"])
def test_remote_files(end):
  root = f"memory://remote{end}"
  fsspec.filesystem("memory").mkdirs("/remote" + end, exist_ok=True)
  local = [b"one\ntwo"] if end == ".txt" else [b"1", "ü".encode()]
  if end == ".parquet":
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with fsspec.open(f"{root}/deep/a{end}", "wb") as file:
      pq.write_table(pa.table({"text": ["1", "ü"]}), file)
  else:
    content = b"one\ntwo" if end == ".txt" else lines_of(["1", "ü"])
    write_bytes(f"{root}/deep/a{end}", content)
  assert read(root) == read(f"{root}/deep/a{end}") == read(f"{root}/**/*{end}") == local


def test_remote_array_records_are_copied_once_unless_they_change(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  remote = "memory://records/deep/a.array_record"
  for texts in (["1", "ü"], ["2"]):
    with open(write(tmp_path / "a.array_record", texts), "rb") as file:
      write_bytes(remote, file.read())
    expected = [text.encode() for text in texts]
    assert read("memory://records") == read(remote) == expected
    assert pickle.loads(pickle.dumps(sources.open_source(remote)))[0].text == expected[0]
  assert len(list((tmp_path / "cache" / "blt_jax").iterdir())) == 2
  write_bytes(remote, b"")
  with pytest.raises(ValueError, match="deep/a.array_record: cannot be read"):
    sources.open_source(remote)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
  path = tmp_path / "a.parquet"
  path.write_bytes(b"")
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install blt_jax\[parquet\]"):
    sources.open_source(str(path))


@pytest.mark.parametrize("name", ["a::b.jsonl.gz", "a[1]*?{b}.jsonl", "a%20b#c\n~.json"])
def test_names_are_no_patterns_or_urls(tmp_path, name):
  (tmp_path / name).write_bytes(PACK.get(name[-3:], bytes)(b'{"text": "a"}'))
  assert read(tmp_path / name) == [b"a"]


def test_mixed_formats_ask_for_a_glob(tmp_path):
  write(tmp_path / "a.jsonl", ["1"])
  write(tmp_path / "b.array_record", ["2"])
  with pytest.raises(ValueError, match=r"several formats: array_record, jsonl.*a glob"):
    sources.open_source(str(tmp_path))


# --- Encodings


def test_byte_order_marks_are_no_text(tmp_path):
  mark = b"\xef\xbb\xbf"
  text = write_bytes(tmp_path / "a.txt", mark + b"text")
  plain = write_bytes(tmp_path / "a.jsonl", mark + lines_of(["1"]))
  packed = write_bytes(tmp_path / "b.jsonl.gz", mark + lines_of(["1"]))
  assert (read(text), read(plain), read(packed)) == ([b"text"], [b"1"], [b"1"])


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz"])
def test_ends_of_lines_and_blank_lines(tmp_path, end):
  content = b'{"text": "a"}\r\n\r\n{"text": "b"}\n \t\n\n{"text": "c"}'
  assert read(write_bytes(tmp_path / f"a{end}", content)) == [b"a", b"b", b"c"]
  assert read(write_bytes(tmp_path / f"a{end}", content + b"\n\n\n")) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("end", [".txt", ".jsonl", ".jsonl.gz", ".array_record"])
def test_invalid_utf8_is_kept_as_bytes_or_dropped(tmp_path, end):
  path = tmp_path / f"b{end}"
  if end == ".array_record":
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for text in (b"good", b"caf\xe9"):
      writer.write(text)
    writer.close()
  elif end == ".txt":
    (tmp_path / "a.txt").write_bytes(b"good")
    path.write_bytes(b"caf\xe9")
  else:
    write_bytes(path, b'{"text": "good"}\n{"text": "caf\xe9"}')
  assert read(tmp_path) == [b"good", b"caf\xe9"]
  skipped = Skipped("latin")
  assert read(tmp_path, SourceOptions(invalid_utf8="drop"), skipped) == [b"good"]
  assert skipped.counts == {"invalid UTF-8": 1}


@pytest.mark.parametrize(
  ("line", "text"),
  [
    (rb'{"text": "\ud83d\ude42"}', "🙂".encode()),
    (rb'{"text": "a\ud83d"}', b"a\xed\xa0\xbd"),
    (rb'{"text": "\udc80"}', b"\xed\xb2\x80"),
    (b'{"text": "\xff\xc3\xa9"}', b"\xff\xc3\xa9"),
    (b'{"text": "\xed\xa0\xbd"}', b"\xed\xa0\xbd"),
    (b'{"text": "a\\u0000b"}\r\n', b"a\0b"),
    (b" \r\n", None),
  ],
)
def test_text_of_a_line(line, text):
  document = parse_line(line, SourceOptions())
  assert (document and document.text) == text


# --- Bad input

BAD_LINES = [
  (b'{"text": "a"', "not a line of JSON"),
  (b"[" * 100_000, "not a line of JSON"),
  (b'["text"]', "not a JSON object .it is of type list"),
  (b'{"content": "a", "id": 1}', "no field 'text' .its fields: 'content', 'id'; text_field"),
  (b'{"text": null}', "no string in field 'text' .but NoneType"),
  (b'{"text": ["a"]}', "no string in field 'text' .but list"),
  (b'{"text": "\xff\\ud83d"}', "invalid UTF-8 and half a surrogate pair"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_lines(line, message):
  with pytest.raises(BadInputError, match=message.partition(" .")[0]):
    parse_line(line, SourceOptions())


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.xz"])
@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_lines_are_named_or_skipped(tmp_path, end, line, message):
  good = b'{"text": "good"}\n'
  path = write_bytes(tmp_path / f"a{end}", good + b"\n" + line + b"\n" + good)
  with pytest.raises(ValueError, match=f"wiki: .*a{end}, line 3: {message}.*on_error=skip"):
    read(path, skipped=Skipped("wiki"))
  skipped = Skipped("wiki")
  assert read(path, SKIP, skipped) == [b"good", b"good"]
  assert skipped.counts.total() == 1


def test_other_text_fields(tmp_path):
  path = write_bytes(tmp_path / "a.jsonl", b'{"content": "a"}')
  assert read(path, SourceOptions(text_field="content")) == [b"a"]


@pytest.mark.parametrize("end", [".jsonl.gz", ".jsonl.zst", ".jsonl.xz"])
def test_truncated_streams_give_what_is_whole(tmp_path, end):
  texts = [f"{i} {os.urandom(20).hex()}" for i in range(20_000)]
  path = write(tmp_path / f"a{end}", texts)
  write(tmp_path / f"b{end}", ["after"])
  os.truncate(path, os.path.getsize(path) * 2 // 3)
  with pytest.raises(ValueError, match=rf"a{end}, after line \d\d+: cannot be read .*ended"):
    read(tmp_path)
  skipped = Skipped()
  documents = read(tmp_path, SKIP, skipped)
  assert documents.pop() == b"after" and 1000 < len(documents) < 20_000
  assert documents == [text.encode() for text in texts[: len(documents)]]
  assert skipped.counts == {"cannot be read": 1}


@pytest.mark.parametrize("end", [".parquet", ".array_record"])
def test_truncated_files_are_named_or_skipped(tmp_path, end):
  path = write(tmp_path / f"a{end}", [os.urandom(99).hex() for _ in range(2000)])
  write(tmp_path / f"b{end}", ["whole"])
  for size in (os.path.getsize(path) // 2, 0):
    os.truncate(path, size)
    with pytest.raises(ValueError, match=f"a{end}: cannot be read .*on_error=skip"):
      read(tmp_path)
    skipped = Skipped()
    assert read(tmp_path, SKIP, skipped) == [b"whole"]
    assert skipped.counts == {"cannot be read": 1}


def test_damaged_records_are_named_or_skipped(tmp_path):
  path = tmp_path / "a.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
  for text in (b"first", b"second", b"third"):
    writer.write(text)
  writer.close()
  path.write_bytes(path.read_bytes().replace(b"second", b"sEcond"))
  with pytest.raises(ValueError, match=r"a.array_record, record 2: cannot be read"):
    read(path)
  skipped = Skipped()
  assert read(path, SKIP, skipped) == [b"first", b"third"]
  assert skipped.counts == {"cannot be read": 1}


def test_parquet_columns_are_checked(tmp_path):
  pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  path = str(tmp_path / "a.parquet")
  pq.write_table(pa.table({"content": ["a"], "id": [1]}), path)
  with pytest.raises(
    ValueError, match="no column 'text' .its columns: 'content', 'id'; text_f"
  ):
    read(path)
  with pytest.raises(ValueError, match="no text in column 'id' .but int64"):
    read(path, SourceOptions(text_field="id"))
  pq.write_table(pa.table({"text": pa.array(["a", None, b"\xff"], pa.binary())}), path)
  with pytest.raises(ValueError, match="a.parquet, row 2: no text .the value is null"):
    read(path)
  assert read(path, SKIP) == [b"a", b"\xff"]
  words = pa.array(["x", "y", "x"])
  for same in (words.dictionary_encode(), words.cast(pa.string_view())):
    pq.write_table(pa.table({"text": same}), path)
    assert read(path) == [b"x", b"y", b"x"]


@pytest.mark.parametrize("end", [".txt", ".jsonl", ".jsonl.gz"])
def test_unreadable_files_are_named_or_skipped(tmp_path, end):
  (tmp_path / f"a{end}").symlink_to(tmp_path / "nowhere")
  write(tmp_path / f"b{end}", ["whole"])
  with pytest.raises(ValueError, match=rf"a{end}.*: cannot be read .*No such file"):
    read(tmp_path)
  skipped = Skipped()
  assert len(read(tmp_path, SKIP, skipped)) == 1
  assert skipped.counts == {"cannot be read": 1}


def test_fingerprints_tell_files_apart(tmp_path):
  (tmp_path / "a.txt").write_text("one")
  (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
  before = sources.fingerprint(str(tmp_path))
  assert (
    before.startswith("2 files of 3 bytes") and sources.fingerprint(str(tmp_path)) == before
  )
  for change in ("longer", "one"):
    (tmp_path / "a.txt").write_text(change)
    assert (sources.fingerprint(str(tmp_path)) == before) == (change == "one")
  (tmp_path / "b.txt").rename(tmp_path / "c.txt")
  assert sources.fingerprint(str(tmp_path)) != before
  with fsspec.open("memory://text/a.txt", "wb") as file:
    file.write(b"12")
  assert sources.fingerprint("memory://text").startswith("1 files of 2 bytes")


def test_unreadable_folders_are_named_or_skipped(tmp_path, monkeypatch):
  for name in ("a", "b"):
    (tmp_path / "deep" / name).mkdir(parents=True)
    (tmp_path / "deep" / name / "file.txt").write_text(name)
  scandir = os.scandir

  def fail(path):
    if str(path).endswith("deep/a"):
      raise PermissionError(13, "Permission denied", path)
    return scandir(path)

  monkeypatch.setattr(os, "scandir", fail)
  with pytest.raises(ValueError, match="deep/a: cannot be read .*Permission denied"):
    read(tmp_path)
  skipped = Skipped()
  assert read(tmp_path, SKIP, skipped) == [b"b"]
  assert skipped.counts == {"cannot be read": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("text")
  path.chmod(0)
  with pytest.raises(ValueError, match="a.txt: cannot be read .*Permission denied"):
    read(path)


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz"])
def test_nothing_but_bad_input_is_an_error_even_if_skipped(tmp_path, end):
  path = write_bytes(tmp_path / f"a{end}", b'{"content": "a"}\n' * 3)
  with pytest.raises(ValueError, match="holds no text .left out: 3 no field 'text'"):
    sources.open_source(path, SKIP)


def test_a_file_that_changed_is_noticed(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("0123456789")
  dataset = sources.open_source(str(path))
  os.truncate(path, 5)
  with pytest.raises(ValueError, match="a.txt, piece 1: cannot be read .*did it change"):
    dataset[0]


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz"])
def test_one_very_long_line(tmp_path, end):
  long = "0123456789" * 2_000_000
  path = write(tmp_path / f"a{end}", ["a", long, "b"])
  assert read(path) == [b"a", long.encode(), b"b"]


def test_warnings_get_rare(monkeypatch):
  warnings = []
  monkeypatch.setattr("absl.logging.warning", lambda *args: warnings.append(args[-1]))
  skipped = Skipped("wiki")
  for _ in range(1000):
    skipped.add("not a line of JSON", "a.jsonl")
  assert warnings == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


@pytest.mark.parametrize(
  ("field", "value"),
  [("on_error", "ignore"), ("invalid_utf8", "replace"), ("max_document_bytes", 3)],
)
def test_options_are_checked(field, value):
  with pytest.raises(ValueError, match=f"{field}.*{value}"):
    SourceOptions(**{field: value})


# --- Streams


@pytest.mark.parametrize("end", [*COMPRESSED, ".parquet"])
def test_streams_resume_exactly(tmp_path, end):
  for name in "abc":
    write(tmp_path / f"{name}{end}", [f"{name}{i}" for i in range(5)])
  write(tmp_path / f"b0{end}", [])
  stream = sources.open_source(str(tmp_path))
  expected = [document.text for document in stream]
  assert len(expected) == 15
  for done in range(16):
    iterator = iter(stream)
    for _ in range(done):
      next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    resumed = iter(stream)
    resumed.set_state(state)
    assert [document.text for document in resumed] == expected[done:]


def test_readers_can_be_sent_to_processes(tmp_path):
  for end in (".txt", ".jsonl", ".jsonl.gz", ".parquet", ".array_record"):
    folder = tmp_path / end[1:]
    folder.mkdir()
    write(folder / f"a{end}", ["1", "2"])
    dataset = sources.open_source(str(folder), skipped=Skipped("wiki"))
    expected = [document.text for document in dataset]
    copy = pickle.loads(pickle.dumps(dataset))
    assert [document.text for document in copy] == expected


def test_threads_may_share_a_reader(tmp_path):
  for i in range(100):  # more than are kept open
    (tmp_path / f"{i:03}.txt").write_text(f"{i}\n" * 100)
  dataset = sources.open_source(str(tmp_path))
  expected = [f"{i}\n".encode() * 100 for i in range(100)]
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    documents = threads.map(dataset.__getitem__, list(range(100)) * 20)
  assert [document.text for document in documents] == expected * 20


def test_file_ids_follow_the_documents(tmp_path):
  names = []
  for name, text in (("a", "1\n2\n3\n"), ("b", " "), ("c", "4")):
    (tmp_path / name).write_text(text)
    names.append(str(tmp_path / name))
  reader = TextReader(names, Policy(SourceOptions(max_document_bytes=4), Skipped()))
  chex.assert_trees_all_equal(reader.file_ids, np.array([0, 0, 2]))
