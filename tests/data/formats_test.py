"""Files that are what they seem: JSON, CSV, Arrow, wide encodings, nested fields."""

import csv
import gzip
import io
import json
import pickle

import grain
import pyarrow as pa
import pytest
from pyarrow import parquet
from source_files import SKIP, read, write_bytes

from blt_jax.data.reading import fields, records, sources
from blt_jax.data.reading.documents import Skipped, SourceOptions

TEXTS = ["one\n", "", "zwei ü", "a\r\nb", "🙂" * 40, 'q"uo,te\t']
BYTES = [text.encode() for text in TEXTS]
RECORDS = [{"id": i, "text": t, "meta": {"body": f"{t}!"}} for i, t in enumerate(TEXTS)]


def rows_of(texts, delimiter=","):
  file = io.StringIO()
  writer = csv.writer(file, delimiter=delimiter)
  writer.writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
  return file.getvalue()


LINES = "\n".join(map(json.dumps, RECORDS))
CONTENTS = {
  "lines.json": LINES,
  "lines.ndjson": LINES,
  "array.json": json.dumps(RECORDS),
  "pretty.json": json.dumps(RECORDS, indent=2, ensure_ascii=False),
  "rows.csv": rows_of(TEXTS),
  "rows.tsv": rows_of(TEXTS, "\t"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".xz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_documents_by_field_or_column(tmp_path, name, packed, mark):
  path = write_bytes(tmp_path / (name + packed), (mark + CONTENTS[name]).encode())
  assert read(path) == BYTES


@pytest.mark.parametrize("name", CONTENTS)
def test_streams_resume_exactly_and_travel(tmp_path, name):
  for part in "ab":
    (tmp_path / f"{part}-{name}").write_text(CONTENTS[name])
  stream = sources.open_source(str(tmp_path / f"*-{name}"))
  if isinstance(stream, grain.MapDataset):
    stream = stream.to_iter_dataset()
  for done in range(len(TEXTS) * 2 + 1):
    iterator = iter(stream)
    for _ in range(done):
      next(iterator)
    resumed = iter(pickle.loads(pickle.dumps(stream)))
    resumed.set_state(json.loads(json.dumps(iterator.get_state())))
    assert [document.text for document in resumed] == (BYTES * 2)[done:]


@pytest.mark.parametrize("name", CONTENTS)
def test_sizes_are_estimated(tmp_path, name):
  (tmp_path / name).write_text(CONTENTS[name])
  stream = sources.open_source(str(tmp_path / name))
  if not isinstance(stream, grain.MapDataset):
    assert stream.size == pytest.approx(sum(map(len, BYTES)), rel=0.3)


def test_arrays_are_read_piece_by_piece():
  size = 40 << 20
  content = io.BytesIO(b"[" + b'{"text": "0123456789"},\n' * (size // 24) + b'{"text": "x"}]')
  file = records.BoundedFile(content, size)
  elements = records.FORMATS["json"].split(file, 0)
  assert next(elements)[0] == b'{"text": "0123456789"}' and file.offset < 4 << 20


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.json", json.dumps(RECORDS[0], indent=1), "one JSON object over several lines"),
    ("a.json", '["a"]', "record 1: not a JSON object .it is of type str"),
    ("a.json", '[{"text": "a"}, {"text": ', "after record 1: not a JSON array"),
    ("a.json", '[{"text": "a"} {"text": "b"}]', "not a JSON array .'{' at byte 15"),
    ("a.json", '[{"text": "a"}]\n[]', "not a JSON array .'\\[' after its end"),
    ("a.json", '[{"text": "a", "text2": tru}]', "not a JSON array .Expecting value"),
    ("a.json", "[" * 100_000, "not a JSON array"),
    ("a.json", '{"name": "package"}', "no field 'text' .its fields: 'name'"),
    ("a.json", "[]", "holds no text"),
    ("a.csv", "id,body\n1,x\n", "row 1: no column 'text' .its columns: 'id', 'body'"),
    ("a.csv", "id;text\n1;x\n", "no column 'text' .its columns: 'id;text'"),
    ("a.csv", "text,text\n1,2\n", "2 columns 'text'"),
    ("a.csv", 'text,id\n"abc,1\nx,2\n', "row 1: not a row of CSV .unexpected end"),
    ("a.csv", "text,id\na,1\nb\n", "row 2: another number of columns .1 instead of the 2"),
    ("a.csv", "text\ra\r", "not CSV"),
    ("a.csv", "text,id\na,1\ntext,id\nb,2\n", "row 2: the header once more"),
    ("a.jsonl", '{"text": "a", "text": "b"}', "line 1: several fields 'text'"),
    ("a.jsonl", '{"text": "a", "t\\u0065xt": "b"}', "line 1: several fields 'text'"),
    ("a.json", '[{"text": "a", "text": "b"}]', "record 1: several fields 'text'"),
    ("a.jsonl", json.dumps({"x" * 9999: 1}), "no field 'text' .its fields: 'x{380,}[.]{3}[)]"),
    ("a.csv", "text\n", "holds no text"),
    ("a.tsv", "id,text\n1,x\n", "no column 'text'"),
  ],
)
def test_mistakes_name_the_format(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=f"{name}.*{message}"):
    read(tmp_path / name)


def test_names_that_objects_have_several_times(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"id": 1, "id": 2, "a": {"b": "c", "x": 1, "x": 2}}')
  assert read(path, SourceOptions("a.b")) == [b"c"]  # what is not read does no harm
  for line in ['{"a": {"b": "c", "b": "d"}}', '{"a": {"b": "c"}, "a": {"b": "d"}}']:
    path.write_text(line)
    with pytest.raises(ValueError, match="line 1: several fields 'a.b'"):
      read(path, SourceOptions("a.b"))


def test_bad_elements_and_rows_may_be_left_out(tmp_path):
  (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": 5}, 7, {"text": "b"}]')
  (tmp_path / "a.csv").write_text('text,id\na,1\nx\n"y"y,1\nb,2\n')
  for path in tmp_path.iterdir():
    skipped = Skipped()
    assert read(path, SKIP, skipped) == [b"a", b"b"]
    assert skipped.counts.total() == 2


def test_bytes_that_are_no_utf8_stay(tmp_path):
  (tmp_path / "a.json").write_bytes(b'[{"text": "caf\xe9"}, {"text": "\\ud83d"}]')
  assert read(tmp_path / "a.json") == [b"caf\xe9", b"\xed\xa0\xbd"]
  (tmp_path / "a.csv").write_bytes(b"text\ncaf\xe9\n")
  assert read(tmp_path / "a.csv") == [b"caf\xe9"]
  with pytest.raises(ValueError, match="holds no text"):
    read(tmp_path / "a.csv", SourceOptions(invalid_utf8="drop"))


# --- Bounds


@pytest.mark.parametrize("line", [b"0", b'{"text": "%b"}\n' % (b"a" * 1000)])
def test_what_unpacks_for_ever_is_stopped(tmp_path, line, monkeypatch):
  monkeypatch.setattr(records, "_FREE", 1 << 20)
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(gzip.compress(line * (20_000_000 // len(line))))
  with pytest.raises(ValueError, match="a.jsonl.gz.*unpacks to more than 200 times its size"):
    read(path)
  assert len(read(path, SKIP) if len(line) > 1 else [1] * 999) > 900


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_records_without_an_end_are_stopped(tmp_path, name, monkeypatch):
  for module in ("records", "readers"):
    monkeypatch.setattr(f"blt_jax.data.reading.{module}.LONGEST", 1000)
  monkeypatch.setattr(records, "_BLOCK", 1000)
  start = "[" if name.endswith(".json") else ""
  write_bytes(tmp_path / name, (start + '{"text": "' + "ab\\n" * 9999 + '"}').encode())
  with pytest.raises(ValueError, match=f"{name}.*of more than 256 MB"):
    read(tmp_path / name)


# --- Encodings


@pytest.mark.parametrize("name", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"])
def test_marked_text_becomes_utf8(tmp_path, name):
  text = "Hallo Wörld 🙂 Ċ਀\r\n" * 9
  mark = "" if name in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
  (tmp_path / "a.txt").write_bytes((mark + text).encode(name))
  assert read(tmp_path / "a.txt") == [text.encode()]
  (tmp_path / "b.txt").write_text("b")
  assert read(tmp_path) == [text.encode(), b"b"]
  for limit in range(6, 30):
    options = SourceOptions(max_document_bytes=limit, invalid_utf8="drop")
    pieces = read(tmp_path / "a.txt", options)
    assert b"".join(pieces) == text.encode() and max(map(len, pieces)) <= limit


def test_broken_wide_text(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes("a🙂b".encode("utf-16")[:-4])  # half a pair
  assert read(path) == [b"a\xed\xa0\xbd"] or read(path, SKIP) == []
  path.write_bytes(
    "\ufeffa".encode("utf-16-le") + "\ud83db".encode("utf-16-le", "surrogatepass")
  )
  assert read(path) == [b"a\xed\xa0\xbdb"]
  with pytest.raises(ValueError, match="holds no text"):
    read(path, SourceOptions(invalid_utf8="drop"))
  path.write_bytes("abc".encode("utf-16") + b"x")
  with pytest.raises(ValueError, match="a.txt, piece 1: not UTF-16-LE"):
    read(path)


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_without_a_mark_is_named(tmp_path, name):
  (tmp_path / "a.txt").write_bytes("Hallo Wörld 🙂\n".encode(name))
  with pytest.raises(ValueError, match=f"{name[:6].upper()} without a byte order mark"):
    read(tmp_path / "a.txt")


@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "json", "csv", "tsv"])
def test_other_formats_are_utf8(tmp_path, end):
  write_bytes(tmp_path / f"a.{end}", LINES.encode("utf-16"))
  with pytest.raises(ValueError, match=r"a\..*text in UTF-16-LE .convert it: iconv -f UTF-16"):
    read(tmp_path / f"a.{end}")


@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "json", "csv", "tsv"])
def test_formats_by_another_name_are_named(tmp_path, end):
  write_bytes(tmp_path / f"a.{end}", gzip.compress(LINES.encode()))
  with pytest.raises(ValueError, match=r"a\..*: compressed text"):
    read(tmp_path / f"a.{end}")


def test_nuls_at_the_end_of_a_log(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(LINES.encode() + b"\n" + bytes(9999))
  assert read(tmp_path / "a.jsonl", SKIP) == BYTES


@pytest.mark.parametrize(
  ("start", "message"),
  [
    (b"PAR1abc", "a Parquet file .name it .parquet"),
    (b"ARROW1\0\0abc", "an Arrow file .name it .arrow"),
    (b"%PDF-1.7\n", "a PDF document"),
    (b"PK\3\4abc", "compressed text, or a document in a ZIP"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"ORC\3\xff", "an ORC file"),
    (pickle.dumps("text", 5), "a pickle"),
    (b'\4"M\x18abc', "compressed text"),
    (b"\x93NUMPY\1\0", "a NumPy array"),
    (b"a" * 257 + b"ustar\0", "a tar archive"),
    (bytes(100), "nothing but NUL bytes"),
  ],
)
def test_what_holds_text_and_is_none_is_named(tmp_path, start, message):
  (tmp_path / "a").write_bytes(start)
  with pytest.raises(ValueError, match=f"a: {message}"):
    read(tmp_path / "a")


def test_text_may_begin_like_another_format(tmp_path):
  (tmp_path / "a").write_text("ORCHIDS")
  assert read(tmp_path / "a") == [b"ORCHIDS"]


def test_lines_by_another_name_are_said(tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr("absl.logging.warning", lambda *args: warnings.append(args))
  (tmp_path / "a.txt").write_text(LINES)
  read(tmp_path / "a.txt")
  assert "seems to be JSONL" in warnings[0][0]


# --- Nested fields


def test_fields_of_objects(tmp_path):
  want, options = [b + b"!" for b in BYTES], SourceOptions(text_field="meta.body")
  for name in ("lines.json", "lines.ndjson", "array.json"):
    (tmp_path / name).write_text(CONTENTS[name])
    assert read(tmp_path / name, options) == want
  parquet.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
  assert read(tmp_path / "a.parquet", options) == want
  write_arrow(tmp_path / "a.arrow", RECORDS)
  assert read(tmp_path / "a.arrow", options) == want
  (tmp_path / "c.jsonl").write_text('{"text": "a \\"text\\"", "meta": {"text": "text"}}')
  assert read(tmp_path / "c.jsonl") == [b'a "text"']
  (tmp_path / "b.jsonl").write_text('{"meta.body": "whole name", "meta": {"body": "x"}}')
  assert read(tmp_path / "b.jsonl", options) == [b"whole name"]


def test_fields_beside_the_text(tmp_path):
  """What every format with rows keeps of them, and where they are."""
  rows = [{"lang": "de", "text": f"{i}", "meta": {"n": i}} for i in range(3)]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "a.jsonl").write_text(lines)
  write_bytes(tmp_path / "a.jsonl.gz", lines.encode())
  (tmp_path / "a.json").write_text(json.dumps(rows))
  (tmp_path / "a.csv").write_text("lang,text\nde,0\nde,1\nde,2\n")
  parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
  write_arrow(tmp_path / "a.arrow", rows)
  options = SourceOptions(fields=("lang", "meta.n", "gone"))
  for path in sorted(tmp_path.iterdir()):
    found = list(sources.each_document(sources.open_source(str(path), options)))
    assert [d.text for d in found] == [b"0", b"1", b"2"]
    for number, document in enumerate(found):
      assert document.row["lang"] == "de" and "text" in document.row, path
      if path.suffix != ".csv":
        assert fields.look_up(document.row, "meta.n") == number
      assert "gone" not in document.row
      assert document.place.startswith(f"{path}, ") and document.place.endswith(str(number + 1))
  (tmp_path / "a.txt").write_text("text")
  (document,) = sources.each_document(sources.open_source(str(tmp_path / "a.txt"), options))
  assert document.row is None


@pytest.mark.parametrize("end", ["jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("field", ["meta.x", "meta.body.x", "meta", "x.body", "list", "meta."])
def test_fields_that_are_no_text(tmp_path, end, field):
  rows = [{"meta": {"body": "x"}, "list": ["a", "b"]}]
  path = tmp_path / f"a.{end}"
  if end == "jsonl":
    path.write_text(json.dumps(rows[0]))
  elif end == "parquet":
    parquet.write_table(pa.Table.from_pylist(rows), path)
  else:
    write_arrow(path, rows)
  with pytest.raises(ValueError, match=f"no (field|column|string in|text in).*'{field}'"):
    read(path, SourceOptions(text_field=field))


def test_nested_values_that_are_null(tmp_path):
  rows = [
    {"meta": {"body": "x"}},
    {"meta": {"body": None}},
    {"meta": None},
    {"meta": {"body": "y"}},
  ]
  parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
  write_arrow(tmp_path / "a.arrow", rows)
  options = SourceOptions(text_field="meta.body", on_error="skip")
  assert (
    read(tmp_path / "a.parquet", options) == read(tmp_path / "a.arrow", options) == [b"x", b"y"]
  )


@pytest.mark.parametrize("end", ["parquet", "arrow"])
def test_columns_of_one_name(tmp_path, end):
  table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
  if end == "parquet":
    parquet.write_table(table, tmp_path / "a.parquet")
  else:
    write_arrow(tmp_path / "a.arrow", table)
  with pytest.raises(
    ValueError, match=f"a.{end}: 2 columns 'text' .its columns: 'text', 'text'"
  ):
    read(tmp_path / f"a.{end}")


# --- Arrow


def write_arrow(path, rows, is_stream=True, compression=None):
  table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
  new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
  options = pa.ipc.IpcWriteOptions(compression=compression)
  with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=options) as writer:
    writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_arrow_files(tmp_path, is_stream, compression):
  write_arrow(tmp_path / "a.arrow", RECORDS, is_stream, compression)
  write_arrow(tmp_path / "b.arrow", pa.table({"text": pa.array([], pa.string())}), is_stream)
  write_arrow(tmp_path / "c.arrow", RECORDS[:3], is_stream)
  dataset = sources.open_source(str(tmp_path))
  assert isinstance(dataset, grain.MapDataset) and len(dataset) == 9
  assert [d.text for d in dataset] == BYTES + BYTES[:3]
  copy = pickle.loads(pickle.dumps(dataset))
  assert [copy[i].text for i in (8, 0, 5)] == [BYTES[2], BYTES[0], BYTES[5]]


def test_arrow_values_and_damage(tmp_path):
  path = tmp_path / "a.arrow"
  words = pa.array(["x", None, "y", "x"])
  for column in (words, words.cast(pa.large_string()), words.dictionary_encode()):
    for is_stream in (True, False):
      write_arrow(path, pa.table({"text": column}), is_stream)
      with pytest.raises(ValueError, match="a.arrow, row 2: no text"):
        read(path)
      assert read(path, SKIP) == [b"x", b"y", b"x"]
  for size in (path.stat().st_size // 2, 7, 0):
    with path.open("r+b") as file:
      file.truncate(size)
    with pytest.raises(ValueError, match="a.arrow: cannot be read"):
      read(path)


def test_compressed_streams_have_a_bound(tmp_path, monkeypatch):
  monkeypatch.setattr("blt_jax.data.reading.arrow._FREE", 1000)
  write_arrow(tmp_path / "a.arrow", [{"text": "a" * 10_000}] * 100, compression="zstd")
  with pytest.raises(ValueError, match="a large compressed stream of Arrow"):
    read(tmp_path / "a.arrow")


def test_remote_arrow_files_are_copied(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  write_arrow(tmp_path / "a.arrow", RECORDS)
  write_bytes("memory://arrow/a.arrow", (tmp_path / "a.arrow").read_bytes())
  assert read("memory://arrow") == BYTES
