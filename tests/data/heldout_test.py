"""Holding documents out by their content."""

import hashlib

import grain
import pytest
from source_files import write

from blt_jax import config
from blt_jax.data.reading import heldout, sources
from blt_jax.data.reading.documents import Document, SourceOptions
from blt_jax.runs import corpus, folder, resolve


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


def plain_rank(text):
  return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz"])
def test_text_that_was_chosen_by_its_hash_is_divided_as_wanted(tmp_path, end, caplog):
  """The 1,000 of 10,000 documents with the lowest SHA-256, in any order."""
  lowest = sorted((b"%d" % i for i in range(10_000)), key=plain_rank)[:1000]
  path = write(tmp_path / f"a{end}", [text.decode() for text in sorted(lowest)])
  caplog.set_level("INFO")
  _, held = map(texts, sources.open_split(path, 0.05))
  assert 35 < len(held) < 70
  start, message = ("Start of " if end.endswith("gz") else ""), caplog.messages[-1]
  assert message.startswith(f"{start}{path}: held out are {len(held)} of 1,000 documents (")
  assert caplog.records[-1].levelname == "INFO"
  _, held = map(texts, sources.open_split(path, 0.05, salt=heldout.NO_SALT))
  assert set(held) == {text for text in lowest if plain_rank(text) <= 0.05 * 2**64}
  record, message = caplog.records[-1], caplog.messages[-1]
  assert record.levelname == "WARNING" and "of 1,000 documents (5" in message
  assert "heldout_fraction is 5.0%, more than a factor of two off" in message


def test_shares_of_bytes_are_judged_too(caplog):
  caplog.set_level("INFO")
  documents = [b"%d" % i for i in range(100)]
  held = texts(heldout.hold_out(dataset_of(documents), 0.2)[1])
  assert caplog.records[-1].levelname == "INFO"
  longer = dataset_of([held[0] * 5000, *documents])
  salt = next(  # one that holds the long document out
    s for s in map(str, range(99)) if heldout.rank(held[0] * 5000, s) < 0.1 * 2**64
  )
  heldout.hold_out(longer, 0.2, salt=salt)
  assert caplog.records[-1].levelname == "WARNING" and "bytes (9" in caplog.messages[-1]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_endless_streams_of_one_text_are_refused(fraction):
  same = grain.MapDataset.source([Document(b"same")]).to_iter_dataset()
  endless = grain.experimental.RepeatIterDataset(same)
  with pytest.raises(ValueError, match=f"heldout_fraction {fraction:.3g}.*heldout_path"):
    heldout.hold_out_of_stream(endless, fraction)


def test_runs_keep_the_split_they_began_with(tmp_path):
  path = write(tmp_path / "a.jsonl", [str(i) for i in range(200)])

  def resume(began_with, **data):
    """The held-out text of a run that goes on, and that of whoever reads its settings."""
    settings = config.get_config()
    settings.workdir = str(tmp_path / "run")
    settings.data.update(path=path, heldout_fraction=0.3, **data)
    if began_with is not None:
      old = settings.copy_and_resolve_references()
      old.data.heldout_salt = began_with
      if not began_with:
        del old.data.heldout_salt
      folder.save_config(tmp_path / "run", old)
    settings = resolve.resolve(settings)
    folder.save_config(tmp_path / "run", settings)
    loaded = folder.load_config(tmp_path / "run").data
    parts = [corpus.open_parts(data)[1]["text"][0] for data in (settings.data, loaded)]
    assert texts(parts[0]) == texts(parts[1])
    return texts(parts[0])

  documents = [str(i).encode() for i in range(200)]
  limit = 0.3 * 2**64
  assert resume(None) == [d for d in documents if heldout.rank(d) <= limit]
  assert resume("mine") == [d for d in documents if heldout.rank(d, "mine") <= limit]
  plain = [d for d in documents if plain_rank(d) <= limit]
  assert resume("") == plain
  assert resume("", heldout_salt="") == plain
  with pytest.raises(ValueError, match="heldout_salt is 'other', and .* began with ''"):
    resume("", heldout_salt="other")


def test_heldout_path_is_read_beside(tmp_path):
  data = config.get_config().data
  data.path, data.heldout_path = (
    write(tmp_path / name, [name]) for name in ("a.jsonl", "b.jsonl.gz")
  )
  (train, _), (held, _) = (next(iter(side.values())) for side in corpus.open_parts(data))
  assert (texts(train), texts(held)) == ([b"a.jsonl"], [b"b.jsonl.gz"])
