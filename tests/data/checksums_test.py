"""Stored entropies are what was written: checksums, numbers, manifests."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from source_files import SKIP

from blt_jax.data.reading import scored, shards, sources
from blt_jax.data.reading.documents import Document, Skipped

MANIFEST = scored.Manifest(
  model="m", step=1, digest="d", window=8, compute_dtype="float32", entropy_dtype="float16",
  reset_at_newline=False, input="i", num_processes=1,
)  # fmt: skip
TEXTS = [b"document %d" % i for i in range(6)]


def documents(texts=TEXTS):
  return [Document(t, np.linspace(0.1, 3, len(t) + 2, dtype=np.float16)) for t in texts]


@pytest.fixture(name="folder")
def _folder(tmp_path):
  """Two shards of three documents."""
  scored.begin(tmp_path / "s", MANIFEST)
  for i in range(2):
    progress = shards.Progress(i + 1, 3 * i + 3, 3 * i + 3, 33 * i + 33)
    shards.write_shard(tmp_path / "s", 0, documents()[3 * i : 3 * i + 3], "float16", progress)
  shards.mark_done(tmp_path / "s", 0, dataclasses.asdict(progress))
  return pathlib.Path(tmp_path / "s")


def rewrite(folder, change, seed=None):
  """Writes the second shard anew, another record of the same size at its start."""
  shard = folder / "00-00001.array_record"
  changed = [change(d) for d in documents()[3:4]] + documents()[4:]
  size = shard.stat().st_size
  shards._write_records(shard, (shards.encode(d, "float16", seed) for d in changed))
  facts = json.loads(shard.with_suffix(".json").read_text())
  if seed is None and shard.stat().st_size != size:  # as somebody would who adapts all
    shard.with_suffix(".json").write_text(
      json.dumps(facts | {"file_bytes": shard.stat().st_size})
    )


def test_what_was_written_is_read(folder, monkeypatch):
  warnings = []
  monkeypatch.setattr("absl.logging.warning", lambda *args: warnings.append(args))
  for got, want in zip(sources.open_source(str(folder)), documents(), strict=True):
    assert got.text == want.text
    np.testing.assert_array_equal(got.entropies, want.entropies)
  assert not warnings


@pytest.mark.parametrize("seed", [None, 0, 12345])
@pytest.mark.parametrize(
  "change",
  [
    lambda d: dataclasses.replace(d, entropies=np.zeros_like(d.entropies)),
    lambda d: dataclasses.replace(d, entropies=d.entropies[::-1]),
    lambda d: dataclasses.replace(d, text=d.text.upper()),
  ],
)
def test_what_was_replaced_is_noticed(folder, change, seed):
  rewrite(folder, change, seed)
  with pytest.raises(
    ValueError, match=r"s, record 3: cannot be read .a record is not what was"
  ):
    [d.text for d in sources.open_source(str(folder))]
  skipped = Skipped()
  texts = [d.text for d in sources.open_source(str(folder), SKIP, skipped)]
  assert texts == TEXTS[:3] and skipped.counts == {"cannot be read": 3}


def test_shards_do_not_pass_for_each_other(folder):
  (folder / "00-00001.array_record").write_bytes(
    (folder / "00-00000.array_record").read_bytes()
  )
  with pytest.raises(ValueError, match="record 3: cannot be read"):
    [d.text for d in sources.open_source(str(folder))]


def test_earlier_shards_pass_with_a_note_but_numbers_are_checked(folder, monkeypatch):
  warnings = []
  monkeypatch.setattr("absl.logging.warning", lambda text, *args: warnings.append(text % args))
  for sidecar in folder.glob("00-0*.json"):
    facts = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({k: v for k, v in facts.items() if k != "seed"}))
  for change, error in [
    (lambda d: d, None),
    (lambda d: dataclasses.replace(d, entropies=np.zeros_like(d.entropies)), "but zeros"),
  ]:
    for i in range(2):
      shard = folder / f"00-0000{i}.array_record"
      changed = [change(d) for d in documents()[3 * i : 3 * i + 3]]
      shards._write_records(shard, (shards.encode(d, "float16") for d in changed))
      sidecar = shard.with_suffix(".json")
      facts = json.loads(sidecar.read_text()) | {"file_bytes": shard.stat().st_size}
      sidecar.write_text(json.dumps(facts))
    reader = sources.open_source(str(folder)) if error is None else None
    if reader is not None:
      assert [d.text for d in reader] == TEXTS
      assert "2 of 2 shards have no checksums, since an earlier version" in warnings[0]
    else:
      with pytest.raises(ValueError, match="but zeros"):
        sources.open_source(str(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_entropies_are_numbers_where_they_enter(value, dtype):
  (document,) = documents([b"abcdefghij"])
  entropies = document.entropies.astype(dtype)
  record = bytearray(shards.encode(Document(document.text, entropies), dtype))
  assert shards.decode(bytes(record), dtype).text == document.text
  negative = shards.encode(Document(document.text, -entropies), dtype)
  np.testing.assert_array_equal(shards.decode(negative, dtype).entropies, -entropies)
  entropies[4] = value
  with pytest.raises(
    ValueError, match=r"Entropies of the text b'abcdefghij'... are NaN or inf"
  ):
    shards.encode(Document(document.text, entropies), dtype)
  record[18:] = entropies.tobytes()
  with pytest.raises(ValueError, match="entropies that are no numbers"):
    shards.decode(bytes(record), dtype)


@pytest.mark.parametrize(
  "change",
  [
    {"num_processes": "abc"}, {"num_processes": True}, {"num_processes": 0},
    {"num_processes": 10**9}, {"entropy_dtype": "int8"}, {"step": None}, {"model": 5},
    {"reset_at_newline": 1}, {"window": float("nan")}, {"unknown": 5}, {"format": 7},
    {"format": None},
  ],
)  # fmt: skip
def test_manifests_are_checked(folder, change):
  (folder / "entropies.json").write_text(json.dumps(dataclasses.asdict(MANIFEST) | change))
  with pytest.raises(ValueError, match=r"entropies.json is damaged|entropies of format"):
    sources.open_source(str(folder))


@pytest.mark.parametrize("field", ["model", "digest", "num_processes", "format"])
def test_manifests_that_lack_something(folder, field):
  fields = dataclasses.asdict(MANIFEST)
  del fields[field]
  (folder / "entropies.json").write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=r"entropies.json is damaged|entropies of format"):
    sources.open_source(str(folder))


@pytest.mark.parametrize(
  "change", [{"seed": "abc"}, {"records": True}, {"records": 2}, {"next_document": -1}]
)
def test_what_stands_beside_a_shard_is_checked(folder, change):
  sidecar = folder / "00-00001.json"
  sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | change))
  with pytest.raises(ValueError, match="00-00001.array_record is (missing or )?damaged"):
    sources.open_source(str(folder))
