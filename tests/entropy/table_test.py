"""Entropies from tables of byte n-grams, and how they are learned."""

import collections
import json
import math
import pickle

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from blt_jax import calibrate, tokenizer, train_table
from blt_jax.entropy import contexts, kneser_ney, ngram_counts, table

TEXT = [b"the cat sat on the mat\n" * 3, b"a cat is a cat\nthe end", b"", b"x", b"the\0the\xff"]
ORDERS = (1, 2, 3, 5, 7)


def make_table(folder, documents=TEXT, orders=ORDERS, buckets=1 << 12, reset=False):
  tables, info = train_table.train(documents, [], orders, buckets, reset)
  table.save_table(folder, tables, info)
  return table.TableModel(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tables")
  return {r: make_table(folder / str(r), reset=r) for r in (False, True)}


# --- Contexts


def test_windows_end_at_their_byte():
  windows = contexts.context_windows(np.arange(5, 15, dtype=np.int32))
  assert [hex(w) for w in windows[[0, 1, 9]]] == ["0x1", "0x102", "0x30405060708090a"]


@pytest.mark.parametrize(
  ("reset", "expected"), [(False, [0, 1, 2, 3, 4, 0]), (True, [0, 1, 2, 1, 2, 0])]
)
def test_contexts_begin_after_special_ids_and_newlines(reset, expected):
  tokens = tokenizer.encode(b"a\nbc")
  np.testing.assert_array_equal(contexts.context_lengths(tokens, reset), expected)
  np.testing.assert_array_equal(
    jax.jit(contexts.context_lengths, static_argnums=1)(jnp.asarray(tokens), reset), expected
  )


@pytest.mark.parametrize("order", range(1, 8))
def test_hashes_depend_on_the_bytes_of_the_context_only(order):
  hash_contexts = contexts.ContextHash(order, 1 << 16)
  tokens = np.random.default_rng(order).integers(4, 259, 8).astype(np.int32)
  hashes = []
  for changed in range(8):  # counted from the newest byte
    other = tokens.copy()
    other[7 - changed] += 1
    windows = contexts.context_windows(np.concatenate([tokens, other]))[[7, 15]]
    index, check = hash_contexts(*contexts.split_windows(windows))
    hashes.append((index[0], check[0]) == (index[1], check[1]))
  assert hashes == [False] * order + [True] * (8 - order)


# --- Counts and estimates


def test_counts_of_longest_contexts_and_of_their_extensions():
  counter = ngram_counts.PairCounter((1, 2), reset_at_newline=False)
  counter.add([b"abab", b"cab"])
  counter.add([b"ab"])
  (zero, one, two), places = counter.finish()

  def named(pairs):
    return {
      k.to_bytes(3, "big").strip(b"\0"): c
      for k, c in zip(*map(np.ndarray.tolist, pairs), strict=True)
    }

  assert named(two) == {b"aba": 1, b"bab": 1, b"cab": 1}
  # "ab" begins two documents and follows "b" and "c"; "ba" follows "a".
  assert named(one) == {b"ab": 4, b"ba": 1, b"ca": 1}
  # First bytes of documents, and after how many different bytes each was seen.
  assert named(zero) == {b"a": 4, b"b": 1, b"c": 1}
  assert places[0] is None
  np.testing.assert_array_equal(one.keys[places[2]], two.keys & np.uint64(0xFFFF))


def brute_force(counter):
  """Probabilities of every byte in every context, by the formula of the module."""
  models = [{(): np.full(256, 1 / 256)}]
  for pairs in counter.finish()[0]:
    discounts = kneser_ney._discounts(pairs.counts)
    by_context = collections.defaultdict(list)
    for key, count, discount in zip(pairs.keys.tolist(), pairs.counts, discounts, strict=True):
      by_context[key >> 8].append((key & 255, count, discount))
    model = {}
    for context, seen in by_context.items():
      total = sum(c for _, c, _ in seen)
      size = counter.orders[len(models) - 1]
      shorter = counter.orders[len(models) - 2] if size else 0
      below = models[-1][context % 256**shorter if size else ()]
      model[context] = below * sum(d for *_, d in seen) / total
      for byte, count, discount in seen:
        model[context][byte] += (count - discount) / total
    models.append(model)
  return models[1:]


@pytest.mark.parametrize("reset", [False, True])
def test_estimates_are_those_of_the_formula(reset):
  counter = ngram_counts.PairCounter(ORDERS, reset)
  counter.add(TEXT)
  for order, model in zip(
    kneser_ney.estimate_orders(counter), brute_force(counter), strict=True
  ):
    assert order.contexts.tolist() == sorted(model)
    for context, entropy in zip(order.contexts.tolist(), order.entropies, strict=True):
      chances = model[context]
      assert math.isclose(chances.sum(), 1)
      assert math.isclose(entropy, -(chances * np.log(chances)).sum(), abs_tol=1e-9)


def test_predictions_of_all_bytes_sum_to_one():
  counter = ngram_counts.PairCounter(ORDERS, reset_at_newline=False)
  counter.add(TEXT)
  for prefix in (b"", b"t", b"the c", b"a cat is a", b"zzzz", b"zzzz the cat"):
    documents = [prefix + bytes([b]) for b in range(256)]
    windows, room = ngram_counts.predicted_bytes(documents, reset_at_newline=False)
    last = np.cumsum([len(d) for d in documents]) - 1
    chances = np.full(len(windows), 1 / 256)
    for order in kneser_ney.estimate_orders(counter):
      chances = kneser_ney.predict(order, windows, room, chances)
    assert math.isclose(chances[last].sum(), 1)


def test_memory_is_bounded_and_short_contexts_keep_what_they_need():
  documents = [np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes()]
  counter = ngram_counts.PairCounter((1, 2, 3), reset_at_newline=False, max_pairs=500)
  counter.add(documents)
  counter.add([b"abc" * 20])
  pairs, _ = counter.finish()
  assert sum(len(p.keys) for p in counter._pairs) <= 3 * 500 + 256
  assert int.from_bytes(b"abca", "big") in pairs[3].keys  # frequent, so it stayed
  assert len(pairs[0].keys) == 256


# --- The table


def test_entropies_are_those_of_the_longest_trusted_context(models):
  counter = ngram_counts.PairCounter(ORDERS, reset_at_newline=False)
  counter.add(TEXT)
  known = {
    order.size: {
      c: (n, h)
      for c, n, h in zip(order.contexts.tolist(), order.counts, order.entropies, strict=True)
    }
    for order in kneser_ney.estimate_orders(counter)
  }
  document = b"the cat sat\0the\xff is new"
  entropies, used = models[False].look_up(tokenizer.encode(document))
  for t in range(len(document) + 2):
    before = document[:t] if t <= len(document) else b""
    for size in (7, 5, 3, 2, 1, 0):
      count, entropy = known[size].get(int.from_bytes(before[-size:] if size else b""), (0, 0))
      if len(before) >= size and (count >= 2 or size == 0):
        break
    assert (used[t], round(entropies[t] - entropy, 3)) == (size, 0)


def test_deterministic_contexts_are_certain_and_unknown_ones_are_not(tmp_path):
  model = make_table(tmp_path / "t", [b"abcdefgh" * 50, bytes(range(256)) * 2])
  entropies = model(tokenizer.encode(b"abcdefghabcdefgh"))
  assert entropies[9:-2].max() < 0.3
  assert model(tokenizer.encode(b"\x05z"))[2] > 1


@hypothesis.given(st.binary(max_size=60), st.binary(max_size=20), st.booleans())
def test_entropies_depend_on_the_prefix_alone(models, document, other, reset):
  model = models[reset]
  whole = model(tokenizer.encode(document + other))
  part = model(tokenizer.encode(document, add_eos=False))
  assert whole.dtype == np.float32 and whole.shape == (len(document + other) + 2,)
  np.testing.assert_array_equal(whole[: len(part)], part)


@hypothesis.given(st.binary(max_size=40), st.binary(max_size=40))
def test_nothing_reaches_across_documents_or_newlines(models, first, second):
  alone = models[True](tokenizer.encode(second))
  after = models[True](tokenizer.encode(first + b"\n" + second))
  np.testing.assert_array_equal(after[len(first) + 2 :], alone[1:])
  both = np.concatenate([tokenizer.encode(first), tokenizer.encode(second)])
  np.testing.assert_array_equal(
    models[False](both)[len(first) + 2 :], models[False](tokenizer.encode(second))
  )


@pytest.mark.parametrize("reset", [False, True])
def test_jax_arrays_give_the_same(models, reset):
  document = b"the cat\nsat on a\0the\xff cat cat mat the end"
  tokens = np.stack([tokenizer.encode(document), np.roll(tokenizer.encode(document), 3)])
  score, tables = jax.jit(models[reset].score_jax), models[reset].jax_tables()
  entropies = np.stack([models[reset](row) for row in tokens])
  np.testing.assert_array_equal(score(tables, jnp.asarray(tokens)), entropies)
  for end in range(8, tokens.shape[1]):
    newest = score(tables, jnp.asarray(tokens[:, end - 8 : end]))[:, -1]
    np.testing.assert_array_equal(newest, entropies[:, end - 1])


def test_frequent_contexts_win_collisions():
  seen = np.arange(1000, dtype=np.uint64)
  counts = np.where(seen == 123, 9, 2)
  entropies = np.where(seen == 123, 3.0, 1.0)
  entries = table.make_entries(seen, 2, entropies, counts, 256)
  index, check = contexts.ContextHash(2, 256)(*contexts.split_windows(seen))
  assert entries[index[123]] == check[123] << 16 | 3 * 2**13


# --- Files


def test_pickles_are_small_and_give_the_same(models):
  data = pickle.dumps(models[False])
  assert len(data) < 500
  tokens = tokenizer.encode(b"the cat")
  np.testing.assert_array_equal(pickle.loads(data)(tokens), models[False](tokens))


def test_bad_folders_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="no table model.*train_table"):
    table.TableModel(tmp_path)
  make_table(tmp_path / "t")
  info = json.loads((tmp_path / "t" / table.INFO).read_text())
  for name, value in [("entropy", 1.0), ("reset_at_newline", True), ("buckets", [512] * 5)]:
    (tmp_path / "t" / table.INFO).write_text(json.dumps({**info, name: value}))
    with pytest.raises(ValueError, match=f"table.json has other .*{name}.*than were written"):
      table.TableModel(tmp_path / "t")
  del info["facts_digest"]  # as earlier versions wrote it
  (tmp_path / "t" / table.INFO).write_text(json.dumps({**info, "buckets": [512] * 5}))
  with pytest.raises(ValueError, match="uint32 .2560,.; train it anew"):
    table.TableModel(tmp_path / "t")
  (tmp_path / "t" / table.INFO).write_text(json.dumps({**info, "version": 0}))
  with pytest.raises(ValueError, match="has version 0, this code reads 1"):
    table.TableModel(tmp_path / "t")
  (tmp_path / "t" / table.INFO).write_text(json.dumps(info))
  entries = tmp_path / "t" / "entries.npy"
  entries.write_bytes(entries.read_bytes()[:-4])
  with pytest.raises(ValueError, match="cut short"):
    table.TableModel(tmp_path / "t")


def test_a_table_cut_short_never_looks_whole(tmp_path, monkeypatch):
  def fill_the_disk(path, array):
    path.write_bytes(b"half")
    raise OSError("No space left on device")

  with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
    patched.setattr(table.np, "save", fill_the_disk)
    make_table(tmp_path / "t")
  assert not list(tmp_path.iterdir())
  make_table(tmp_path / "t")  # what is left of the first attempt does not hurt
  assert [f.name for f in tmp_path.iterdir()] == ["t"]


# --- The command


def test_command_writes_a_table_and_says_how_good_it_is(tmp_path, caplog):
  (tmp_path / "text").mkdir()
  for i in range(80):
    (tmp_path / "text" / f"{i}.txt").write_bytes(b"document %d is about numbers\n" % i * 9)
  arguments = [f"--input={tmp_path}/text", f"--output={tmp_path}/t", "--orders=1,2,4"]
  train_table.main([*arguments, "--reset_at_newline", "--buckets=512"])
  model = table.TableModel(tmp_path / "t")
  assert model.info["orders"] == [1, 2, 4] and model.reset_at_newline
  assert max(model.info["buckets"]) == 512 and 0 < model.info["heldout_bpb"] < 1
  assert not (tmp_path / "t.partial").exists()
  with pytest.raises(ValueError, match="exists; remove it"):
    train_table.main(arguments)


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--orders=3,2", "ascending numbers from 1 to 7.*3,2"),
    ("--orders=1,8", "ascending numbers from 1 to 7"),
    ("--orders=1,b", "ascending numbers from 1 to 7"),
    ("--buckets=1000", "power of two.*1000"),
    ("--max_bytes=1", "1 bytes are no text"),
    ("--max_bytes=0", "--max_bytes must be 1 or more, got 0"),
  ],
)
def test_bad_flags_are_named(tmp_path, flag, message):
  (tmp_path / "text.txt").write_bytes(b"some text\n" * 10)
  with pytest.raises(ValueError, match=message):
    train_table.main([f"--input={tmp_path}/text.txt", f"--output={tmp_path}/t", flag])
  assert not (tmp_path / "t").exists()


def test_text_of_any_field(tmp_path):
  """In training, and when calibration reads it again."""
  lines = "".join(f'{{"body": "text {i} and more of it"}}\n5\n' for i in range(40))
  (tmp_path / "text.jsonl").write_text(lines)
  flags = [f"--input={tmp_path}/text.jsonl", f"--output={tmp_path}/t"]
  with pytest.raises(ValueError, match="no field 'text'"):
    train_table.main(flags)
  train_table.main([*flags, "--text_field=body", "--on_error=skip", "--max_bytes=500"])
  assert 400 < table.TableModel(tmp_path / "t").info["bytes"] <= 500
  run = f"--run={tmp_path}/t"
  calibrate.main([run, "--target_bytes_per_patch=3"])
  other = tmp_path / "other.jsonl"
  other.write_text(lines.replace("body", "content"))
  with pytest.raises(ValueError, match="no field 'body'"):
    calibrate.main([run, f"--data={other}"])
  calibrate.main([run, f"--data={other}", "--text_field=content"])
  with pytest.raises(ValueError, match="say how to read --data"):
    calibrate.main([run, "--text_field=content"])


def test_long_documents_are_counted_in_pieces():
  chunks = list(ngram_counts.chunks([b"x" * (40 << 20), b"y"]))
  assert [len(b"".join(c)) >> 20 for c in chunks] == [16, 16, 8]
  assert b"".join(map(b"".join, chunks)) == b"x" * (40 << 20) + b"y"


def test_what_lies_beside_the_output_stays(tmp_path):
  (tmp_path / "text.txt").write_text("some text to learn from\n" * 400)
  for name in ("t.partial", ".t.partial"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
  arguments = [f"--input={tmp_path}/text.txt", f"--output={tmp_path}/t", "--buckets=256"]
  train_table.main([*arguments, "--orders=1,2"])
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == [".t.partial", "t", "t.partial", "text.txt"]
  assert (tmp_path / "t.partial" / "mine").read_text() == "mine"


@pytest.mark.parametrize("change", [{"input": "-"}, {"options": 5}, {"options": {"odd": 1}}])
def test_tables_that_do_not_say_what_they_learned(tmp_path, change):
  make_table(tmp_path / "t")
  path = tmp_path / "t" / table.INFO
  fields = json.loads(path.read_text()) | {"input": "x"} | change
  path.write_text(json.dumps({k: v for k, v in fields.items() if v != "-"}))
  with pytest.raises(ValueError, match="t/table.json does not say what text it learned"):
    calibrate.main([f"--run={tmp_path / 't'}"])


def test_an_empty_text_is_not_what_was_learned(tmp_path, capsys):
  make_table(tmp_path / "t")
  with pytest.raises(SystemExit):
    calibrate.main([f"--run={tmp_path / 't'}", "--data="])
  assert "--data is empty" in capsys.readouterr().err
