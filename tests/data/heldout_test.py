"""Holding documents out by their content."""

import grain
import pytest
from source_files import write

from blt_jax import config
from blt_jax.data.reading import heldout, sources
from blt_jax.data.reading.documents import Document, SourceOptions
from blt_jax.runs import corpus


def texts(dataset):
  return [document.text for document in dataset]


def dataset_of(documents):
  return grain.MapDataset.source([None if d is None else Document(d) for d in documents])


def test_split_is_by_content_and_never_empty():
  documents = [bytes([65 + i]) * 9 for i in range(26)]
  train, held = map(texts, heldout.hold_out(dataset_of([None, *documents]), 0.2))
  assert sorted(train + held) == documents and 0 < len(held) < 15
  assert texts(heldout.hold_out(dataset_of(documents[::-1]), 0.2)[1]) == held[::-1]
  for fraction in (0.0, 1.0):
    parts = heldout.hold_out(dataset_of(documents[:2]), fraction)
    assert [len(p) for p in parts] == [1, 1]
  with pytest.raises(ValueError, match="heldout_path"):
    heldout.hold_out(dataset_of(documents[:1] * 2), 0.5)


def test_equal_documents_stay_together():
  documents = [bytes([65 + i % 13]) * 9 for i in range(130)]
  train, held = map(texts, heldout.hold_out(dataset_of(documents), 0.3))
  assert len(train) + len(held) == 130 and held and not set(train) & set(held)


def test_single_file_is_held_out_in_pieces(tmp_path):
  file = tmp_path / "book.txt"
  file.write_text("".join(f"line {i}\n" for i in range(4000)))
  train, held = map(texts, sources.open_split(str(file), 0.2))
  assert sum(map(len, train + held)) == file.stat().st_size
  assert held and not set(train) & set(held)


def test_whole_files_are_held_out(tmp_path):
  for i in range(40):
    (tmp_path / f"{i}.txt").write_text(f"{i}\n" * 10)
  options = SourceOptions(max_document_bytes=8)
  train, held = sources.open_split(str(tmp_path), 0.3, options)
  assert isinstance(train, grain.MapDataset)
  sides = [{text.split(b"\n")[0] for text in texts(side)} for side in (train, held)]
  assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40 and sides[1]


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz", ".parquet", ".array_record"])
def test_every_format_holds_the_same_out(tmp_path, end):
  documents = [f"{i}" * 5 for i in range(60)]
  path = write(tmp_path / f"a{end}", documents)
  train, held = map(texts, sources.open_split(path, 0.2))
  limit = int(0.2 * 2**64)
  assert held == [d.encode() for d in documents if heldout.rank(d.encode()) <= limit]
  assert train == [d.encode() for d in documents if heldout.rank(d.encode()) > limit]


def test_streams_with_too_little_have_a_clear_error(tmp_path):
  path = write(tmp_path / "a.jsonl.gz", ["1", "2"])
  with pytest.raises(ValueError, match="heldout_path"):
    sources.open_split(path, 0.0)


def test_heldout_path_is_read_beside(tmp_path):
  data = config.get_config().data
  data.path, data.heldout_path = (
    write(tmp_path / name, [name]) for name in ("a.jsonl", "b.jsonl.gz")
  )
  (train, _), (held, _) = (next(iter(side.values())) for side in corpus.open_parts(data))
  assert (texts(train), texts(held)) == ([b"a.jsonl"], [b"b.jsonl.gz"])
