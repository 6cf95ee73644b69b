"""Bits per byte of text: per document, source and field; windows; files; mistakes."""

import dataclasses
import json
import math
import sys

import jax
import numpy as np
import pytest
from tiny_runs import tiny_config
from uncached import random_params

from blt_jax import evaluate, kinds
from blt_jax.data import windows
from blt_jax.data.pipeline import BatchShape
from blt_jax.data.reading.documents import SourceOptions
from blt_jax.data.transforms import PatchDocument
from blt_jax.evals import text_scores, text_sources
from blt_jax.evals.text_scores import Scores, TextScorer
from blt_jax.parallel import sharding
from blt_jax.patching import PatchingConfig
from blt_jax.runs import folder
from blt_jax.storage import unique_names

RNG = np.random.default_rng(0)
TEXTS = ["".join(map(chr, RNG.integers(97, 123, n))) for n in (63, 25, 33, 50, 9)]
ROWS = [
  {"text": text, "lang": "日本" if i % 2 else "de", "meta": {"part": i // 3}}
  for i, text in enumerate(TEXTS)
]
SIZES = np.array([0] * 4 + [1] * 256 + [2] * 40, np.int32)


def _entropies(ids):
  """A fake entropy model that sees all bytes before, however far."""
  return (np.cumsum(ids.astype(np.int64)) * 7919 % 97 / 97 * 4).astype(np.float32)


def _pieces(text):
  """Ids of two bytes each, and of one at the end."""
  pairs = [260 + text[i] % 40 for i in range(0, len(text) - 1, 2)]
  return np.array([1, *pairs, *(b + 4 for b in text[len(text) // 2 * 2 :]), 2], np.uint16)


def _scorer(kind):
  """A tiny model that sees its whole row, and what patches its text."""
  config = kinds.KINDS[kind].tiny()
  patch = PatchDocument(PatchingConfig(scheme="byte"))
  if kind == "byte_lm":
    stack = dataclasses.replace(config.transformer, window=None)
    config = dataclasses.replace(config, transformer=stack)
  if kind == "blt":
    patch = PatchDocument(PatchingConfig(threshold=2.5), _entropies)
  if kind == "bpe_lm":
    config = dataclasses.replace(config, vocab_size=len(SIZES))
    patch = PatchDocument(PatchingConfig(scheme="byte"), encode=_pieces, sizes=SIZES)
  model = kinds.build_model(config)
  # As windows of its documents have it: few programs are compiled.
  shape = BatchShape(8, 64, 64 if kind == "blt" else 65, row_multiple=model.row_multiple)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return patch, TextScorer.make(model, random_params(config), mesh, shape, lambda batch: batch)


@pytest.fixture(name="rows")
def _rows(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  return path


def _score(path, patch, scorer, *fields, **options):
  sources = text_sources.open_all([str(path)], SourceOptions(fields=fields), dict)
  (found,) = text_scores.score_all({"": (sources[0], patch)}, scorer, **options).values()
  return found


@pytest.mark.parametrize("kind", ["blt", "bpe_lm", "byte_lm"])
def test_a_prediction_sees_so_many_bytes_and_no_more(kind, tmp_path):
  """A changed byte, and who sees it; and a window as long as the document is a plain row."""
  patch, scorer = _scorer(kind)
  text, context = TEXTS[0].encode(), 12
  changed = text[:4] + bytes([text[4] ^ 1]) + text[5:]
  nats = []
  for one in (text, changed):
    batches = windows.window_batches(
      [{"tokens": patch.encode(one)}], patch, scorer.shape, context
    )
    nats.append(np.concatenate([found for _, found, _ in scorer(batches)]))
  different = np.flatnonzero(nats[0] != nats[1]) * (2 if kind == "bpe_lm" else 1)
  assert different.min() >= 4 and different.max() <= 4 + context
  (tmp_path / "text").write_bytes(text)
  plain, long = (_score(tmp_path / "text", patch, scorer, context=n) for n in (None, 63))
  assert plain.bytes == long.bytes == 63
  np.testing.assert_allclose(long.nats, plain.nats, rtol=1e-5)
  assert abs(sum(nats[0]) / plain.nats[0] - 1) > 1e-4


@pytest.fixture(scope="module", name="byte_lm")
def _byte_lm():
  return _scorer("byte_lm")


def test_each_document_has_its_own_bits(byte_lm, rows):
  """Against bare logits of each document alone, by NumPy."""
  patch, scorer = byte_lm
  found = _score(rows, patch, scorer, "lang", "meta.part", context=64)
  tokens = np.zeros((len(TEXTS), 65), np.int32)
  for row, text in zip(tokens, TEXTS, strict=True):
    row[: len(text) + 2] = [1, *(b + 4 for b in text.encode()), 2]
  forward = jax.jit(scorer.model.apply)
  logits = np.asarray(forward({"params": scorer.params}, tokens), np.float64)
  nats = (
    np.log(np.exp(logits).sum(-1))
    - np.take_along_axis(logits, np.roll(tokens, -1, 1)[..., None], -1)[..., 0]
  )
  wanted = [nats[i, : len(text) + 1].sum() for i, text in enumerate(TEXTS)]
  np.testing.assert_allclose(found.nats, wanted, rtol=1e-5)
  np.testing.assert_array_equal(found.bytes, list(map(len, TEXTS)))
  assert found.bits_per_byte == pytest.approx(
    sum(wanted) / math.log(2) / sum(map(len, TEXTS)), rel=1e-5
  )
  by = found.by("lang")
  assert list(by) == ["de", "日本"]
  np.testing.assert_allclose(by["日本"].nats, [wanted[1], wanted[3]], rtol=1e-5)
  np.testing.assert_allclose(found.by("meta.part")["1"].nats, wanted[3:], rtol=1e-5)
  first = _score(rows, patch, scorer, max_batches=1)
  assert first.bytes.sum() <= 8 * 64 and len(first.nats) == 5


def test_intervals_are_those_of_documents():
  rng = np.random.default_rng(0)
  sizes = rng.integers(50, 150, 30_000)
  bits = sizes * rng.normal(2, 0.5, len(sizes))
  for count in (300, len(sizes)):  # the second draws some documents together
    some = Scores({}, bits[:count] * math.log(2), sizes[:count], np.zeros(count))
    ratio = some.bits_per_byte
    error = np.std(bits[:count] - ratio * sizes[:count]) / sizes[:count].mean() / count**0.5
    low, high = some.interval()
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)
    assert low < ratio < high
  assert Scores({}, bits[:1], sizes[:1], np.zeros(1)).interval() is None


# --- The command


@pytest.fixture(name="run")
def _run(byte_lm, monkeypatch):
  """A run whose weights are those of the fake scorer."""
  config = tiny_config("byte_lm")
  config.data.update(seq_len=64, num_patches=65)
  _, scorer = byte_lm
  loaded = folder.Run(config, scorer.model, jax.device_get(scorer.params), 7)
  monkeypatch.setattr(folder, "load_run", lambda *_: loaded)
  monkeypatch.setattr(sharding, "make_mesh", lambda: scorer.mesh)
  return loaded


def test_several_data_sets_and_fields(run, rows, tmp_path, capsys, monkeypatch):
  other = tmp_path / "more" / "rows.jsonl"
  other.parent.mkdir()
  other.write_text(json.dumps({"body": "something else", "lang": "de"}) + "\n")
  flags = ["--run=RUN", f"--output={tmp_path / 'out'}", f"--png={tmp_path / 'bars.png'}"]
  renamed = rows.with_name("first.jsonl")
  renamed.write_text(rows.read_text().replace('"text"', '"body"') + '{"body": "no language"}\n')
  flags += [f"--data={renamed}", f"--data={other}", "--text_field=body", "--by=lang"]
  evaluate.main(flags)
  told = json.loads(capsys.readouterr().out)
  assert told == json.loads((tmp_path / "out" / "results.json").read_text())
  assert (told["step"], told["files"], told["documents"]) == (7, 2, 7)
  assert told["bytes"] == sum(map(len, TEXTS)) + len("no language" + "something else")
  each = told["sources"]
  assert list(each) == ["first.jsonl", "rows.jsonl"]
  assert [s["documents"] for s in each.values()] == [6, 1]
  for parts in (each, told["by"]["lang"]):
    bits = sum(part["bpb"] * part["bytes"] for part in parts.values())
    assert bits == pytest.approx(told["bpb"] * told["bytes"])
  assert {k: v["documents"] for k, v in told["by"]["lang"].items()} == {
    "(none)": 1, "de": 4, "日本": 2
  }  # fmt: skip
  low, high = each["first.jsonl"]["interval_95"]
  assert low < each["first.jsonl"]["bpb"] < high
  assert each["rows.jsonl"]["interval_95"] is None
  assert (tmp_path / "bars.png").read_bytes()[:4] == b"\x89PNG"
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
  evaluate.main(flags[:1] + flags[3:])
  table = capsys.readouterr().out
  assert table == (tmp_path / "out" / "table.txt").read_text()
  assert "by lang" in table and "日本" in table and "step 7" in table


def test_what_a_run_held_out_is_measured_source_by_source(run, rows, tmp_path, capsys):
  text = tmp_path / "text.txt"
  text.write_text("line of text\n" * 600)
  rows.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(99)))
  run.config.data.update(heldout_fraction=0.2)
  run.config.data.mixture = {"one": (str(text), 1.0), "two": (str(rows), 1.0)}
  evaluate.main(["--run=RUN", "--data=heldout", "--max_batches=2"])
  told = json.loads(capsys.readouterr().out)
  assert list(told["sources"]) == ["heldout/one", "heldout/two"]
  assert told["sources"]["heldout/two"]["documents"] < 50


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--by=langg"], "in the field 'langg' .* 5 that are read; .*line 1, has 'text', 'lang'"),
    (["--by=langg"], "Did you mean lang?"),
    (["--context=0"], "--context must be 1 or more, got 0"),
    (["--data=./{0}"], "given twice"),
    (["--data=one,two"], "No file or folder one,two; give --data once for each"),
    (["--data=missing"], "No file or folder missing"),
    (["--batch_size=4"], "--batch_size is of --tasks"),
    (["--tasks=piqa", "--by=lang"], "--by is of text"),
    (["--tasks=piqa", "--context=4"], "--context is of text"),
    (["--tasks=piqa", "--text_field=body"], "--text_field is of text"),
    (["--tasks=piqa", "--data=other"], "--tasks takes one folder"),
  ],
)
def test_mistakes(flags, message, run, rows, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  flags = [flag.format(rows.name) for flag in flags]
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    evaluate.main(["--run=RUN", f"--data={rows}", "--output=out", *flags])
  assert not list(tmp_path.glob("out/*"))


def test_fields_of_plain_text(run, rows, tmp_path, capsys):
  (tmp_path / "a.txt").write_text("text")
  flags = ["--run=RUN", f"--data={tmp_path / 'a.txt'}", "--by=lang"]
  with pytest.raises(ValueError, match="--by=lang goes with rows that have fields"):
    evaluate.main(flags)
  evaluate.main([*flags, f"--data={rows}"])  # which has some
  by_value = json.loads(capsys.readouterr().out)["by"]["lang"]
  assert by_value["(none)"]["documents"] == 1 and len(by_value) == 3


def test_text_of_nothing(byte_lm, tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 3)
  with pytest.raises(ValueError, match="All 3 documents of .* are empty"):
    _score(tmp_path / "a.jsonl", *byte_lm)


@pytest.mark.parametrize(
  ("row", "value"),
  [
    ({"a": "b"}, "b"), ({"a": None}, None), ({}, None), ({"a": 1}, "1"), ({"a": True}, "true"),
    ({"a": ["é"]}, '["é"]'), ({"a": unique_names.SEVERAL}, None),
  ],
)  # fmt: skip
def test_values_as_texts(row, value):
  assert text_sources.value_of(row, "a") == value


def test_rows_that_are_too_long_for_the_model(tmp_path):
  patch, scorer = _scorer("megabyte")
  (tmp_path / "a.txt").write_text("a" * 2000)
  with pytest.raises(ValueError, match="--context=1500 needs rows of 1536 ids.*MegaByte"):
    _score(tmp_path / "a.txt", patch, scorer, context=1500)


@pytest.mark.parametrize("names", ["", "lang,", "lang,lang"])
def test_names_of_fields(names, capsys):
  with pytest.raises(SystemExit):
    evaluate.main(["--run=RUN", "--data=a", f"--by={names}"])
  assert "must be names of fields" in capsys.readouterr().err
