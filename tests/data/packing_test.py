"""Rows hold every byte once as a target, and resume where they stopped."""

import json

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blt_jax import patching, tokenizer
from blt_jax.data.packing import rows as packing
from blt_jax.data.packing.rows import PackRows

_HERE = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # no threads


def _pack(documents, seq_len, num_patches, config, pool_size=256):
  patched = []
  for document in documents:
    tokens = tokenizer.encode(document)
    (lengths,) = patching.patch_lengths(tokens[None], config, include_next=False)
    patched.append({"tokens": tokens, "patch_lengths": lengths})
  return _pack_patched(patched, seq_len, num_patches, pool_size)


def _pack_patched(
  documents, seq_len, num_patches, pool_size=256, batch_size=None, pool_bytes=None, **options
):
  source = grain.MapDataset.source(documents).to_iter_dataset(_HERE)
  return PackRows(source, seq_len, num_patches, pool_size, batch_size, pool_bytes, **options)


@st.composite
def _patched_documents(draw, max_size=60):
  """Documents in any patches, no id of which occurs twice, so that targets have a name."""
  documents, first_id = [], 10
  for lengths in draw(
    st.lists(st.lists(st.integers(1, 9), min_size=1), min_size=1, max_size=9)
  ):
    lengths = np.array(lengths if sum(lengths) > 1 else [1, 1], np.int32)
    tokens = np.arange(first_id, first_id + lengths.sum(), dtype=np.int32)
    documents.append({"tokens": tokens, "patch_lengths": lengths})
    first_id += len(tokens) + 1  # what follows a document's last id is not an id
  return documents


_shapes = st.tuples(st.integers(2, 40), st.integers(3, 20), st.sampled_from([1, 2, 3, 256]))


def test_two_documents_in_a_row_and_a_third_cut():
  documents = [b"ab", b"c", b"defgh"]
  static = patching.PatchingConfig(scheme="static", patch_size=2)
  first, second = list(_pack(documents, 10, 9, static))
  ids = [list(tokenizer.encode(d)) for d in documents]
  np.testing.assert_array_equal(first["tokens"], ids[0] + ids[1] + ids[2][:3])
  np.testing.assert_array_equal(
    first["targets"], [*ids[0][1:], 0, *ids[1][1:], 0, *ids[2][1:4]]
  )
  np.testing.assert_array_equal(first["loss_mask"], [1, 1, 1, 0, 1, 1, 0, 1, 1, 1])
  # BOS | a | b EOS  BOS | c | EOS  BOS | d | e (f)
  np.testing.assert_array_equal(first["patch_lengths"], [1, 1, 2, 1, 1, 1, 1, 1, 2])
  # The next row starts from the last target, f.
  np.testing.assert_array_equal(second["tokens"], [*ids[2][3:], 0, 0, 0, 0, 0, 0][:10])
  np.testing.assert_array_equal(second["loss_mask"], [1, 1, 1] + [0] * 7)
  assert second["patch_lengths"][0] == 1 and second["patch_lengths"].sum() == 11


def test_opposite_documents_share_rows_that_are_full():
  fine = {"tokens": np.arange(100, 200), "patch_lengths": np.ones(100, np.int32)}
  coarse = {"tokens": np.arange(300, 400), "patch_lengths": np.array([1] + [9] * 11)}
  first, second, *_ = list(_pack_patched([fine, coarse], 33, 10))
  # 100 | ... | 104 | EOS instead of 105  300 | 301 ... 309 | ... | 319 ... 326 (327)
  np.testing.assert_array_equal(first["tokens"], [*range(100, 105), 2, *range(300, 327)])
  np.testing.assert_array_equal(first["targets"], [*range(101, 106), 0, *range(301, 328)])
  np.testing.assert_array_equal(first["loss_mask"], [1] * 5 + [0] + [1] * 27)
  np.testing.assert_array_equal(first["patch_lengths"], [1] * 6 + [1, 9, 9, 9])
  # Each goes on from its last target.
  assert second["tokens"][0] == 105 and second["targets"][0] == 106
  assert 327 in second["tokens"] and 328 in second["targets"]


@given(_patched_documents(), _shapes)
def test_every_id_but_the_first_is_a_target_once(documents, shape):
  seq_len, num_patches, _ = shape
  targets = []
  for row in _pack_patched(documents, *shape):
    assert row["patch_lengths"].shape == (num_patches,)
    patching.check_lengths(row["patch_lengths"][None], seq_len)
    mask = row["loss_mask"]
    assert mask.any()
    np.testing.assert_array_equal(row["targets"][~mask], 0)
    # Ids of a document are consecutive: each target follows its input.
    np.testing.assert_array_equal(row["targets"][mask], row["tokens"][mask] + 1)
    targets.extend(row["targets"][mask])
  expected = np.concatenate([d["tokens"][1:] for d in documents])
  np.testing.assert_array_equal(np.sort(targets), expected)


@given(_patched_documents(), _shapes)
def test_patches_are_those_of_the_document_but_for_the_start_of_a_piece(documents, shape):
  starts = set()
  for document in documents:
    ends = np.cumsum(document["patch_lengths"])
    starts |= set(document["tokens"][np.append(0, ends[:-1])])
  for row in _pack_patched(documents, *shape):
    bounds = set(np.append(0, np.cumsum(row["patch_lengths"])))
    for t in np.flatnonzero(row["loss_mask"]):
      if t == 0 or not row["loss_mask"][t - 1]:  # a piece starts here
        assert {t, t + 1} <= bounds
        assert t == 0 or row["tokens"][t - 1] == tokenizer.EOS_ID
      else:
        assert (t + 1 in bounds) == (row["targets"][t] in starts)


@given(_patched_documents(), st.integers(2, 40), st.integers(3, 20))
def test_a_pool_of_one_keeps_the_order(documents, seq_len, num_patches):
  rows = list(_pack_patched(documents, seq_len, num_patches, pool_size=1))
  targets = np.concatenate([r["targets"][r["loss_mask"]] for r in rows])
  assert (np.diff(targets) > 0).all()


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), _shapes)
@pytest.mark.parametrize("scheme", ["space", "byte", "static"])
def test_every_byte_is_a_target_once(scheme, documents, shape):
  config = patching.PatchingConfig(scheme=scheme, patch_size=3)
  rows = list(_pack(documents, *shape[:2], config, shape[2]))
  targets = np.concatenate([r["targets"][r["loss_mask"]] for r in rows])
  expected = np.concatenate([tokenizer.encode(d, add_bos=False) for d in documents])
  np.testing.assert_array_equal(np.sort(targets), np.sort(expected))


@given(_patched_documents(), _shapes, st.data())
def test_resume_gives_the_very_next_row(documents, shape, data):
  whole = iter(_pack_patched(documents, *shape))
  rows, states = [], [json.dumps(whole.get_state())]
  for row in whole:
    rows.append(row)
    states.append(json.dumps(whole.get_state()))
  at = data.draw(st.integers(0, len(rows)))
  resumed = iter(_pack_patched(documents, *shape))
  next(resumed)  # what was open before does not matter
  resumed.set_state(json.loads(states[at]))
  assert json.dumps(resumed.get_state()) == states[at]
  np.testing.assert_equal(list(resumed), rows[at:])
  with pytest.raises(StopIteration):
    next(resumed)


@given(_patched_documents(), _shapes, st.data())
def test_documents_that_have_room_in_a_row_are_kept_whole(documents, shape, data):
  whole = iter(_pack_patched(documents, *shape, keep_whole=True))
  rows, states = [], [json.dumps(whole.get_state())]
  for row in whole:
    rows.append(row)
    states.append(json.dumps(whole.get_state()))
  places = {}  # target -> row
  for number, row in enumerate(rows):
    targets = row["targets"][row["loss_mask"]].tolist()
    assert not places.keys() & targets
    places |= dict.fromkeys(targets, number)
  for document in documents:
    tokens, ends = document["tokens"], np.cumsum(document["patch_lengths"])
    used = {places.pop(token) for token in tokens[1:].tolist()}
    num_patches = len({0, 1} | set(ends[:-1].tolist()))
    assert len(used) == 1 or len(tokens) > shape[0] + 1 or num_patches > shape[1]
  assert not places
  at = data.draw(st.integers(0, len(rows)))
  resumed = iter(_pack_patched(documents, *shape, keep_whole=True))
  resumed.set_state(json.loads(states[at]))
  np.testing.assert_equal(list(resumed), rows[at:])


def test_whole_documents_fill_rows_and_none_waits_for_ever():
  rng = np.random.default_rng(0)
  documents = _documents_of(rng.integers(30, 900, 3000).tolist())
  batches = iter(_pack_patched(documents, 1024, 520, 256, batch_size=4, keep_whole=True))
  use, ages = [], []
  for _ in range(300):
    use.append(packing.slot_use(next(batches))["byte_slots"])
    state = batches.get_state()
    ages.append(state["read"] - state["documents"]["next_index"])
  assert np.mean(use) > 0.97 and max(ages) < 5 * 256


def test_a_state_of_other_documents_is_an_error():
  def rows(sizes):
    documents = [{"tokens": np.arange(n), "patch_lengths": np.ones(n, np.int32)} for n in sizes]
    return iter(_pack_patched(documents, 8, 9))

  saved = rows([30, 30])
  next(saved)
  with pytest.raises(ValueError, match="there are only 1: it belongs to other documents"):
    rows([30]).set_state(saved.get_state())
  with pytest.raises(ValueError, match="Document 0 has 5 ids and cannot go on from 8"):
    rows([5, 30]).set_state(saved.get_state())


def test_a_state_of_another_making_is_an_error():
  document = {"tokens": np.arange(9), "patch_lengths": np.ones(9, np.int32)}
  it = iter(_pack_patched([document], 8, 9))
  with pytest.raises(ValueError, match=r"lacks \['open', 'read'\].*another config.workdir"):
    it.set_state({"documents": {"next_index": 0}, "done": 0})


def test_state_passes_the_check_of_grain():
  rng = np.random.default_rng(0)
  documents = [bytes(rng.choice(list(b"abc  "), rng.integers(0, 60))) for _ in range(8)]
  rows = _pack(documents, 32, 12, patching.PatchingConfig(scheme="space"), pool_size=3)
  grain.experimental.assert_equal_output_after_checkpoint(rows)
  batches = grain.experimental.ThreadPrefetchIterDataset(rows.batch(3), prefetch_buffer_size=2)
  grain.experimental.assert_equal_output_after_checkpoint(batches)


def _documents_of(sizes):
  """Documents in patches of two, with ids that no other has."""
  starts = np.cumsum([10, *sizes])[:-1] + np.arange(len(sizes))
  return [
    {
      "tokens": np.arange(start, start + n),
      "patch_lengths": np.diff(np.append(range(0, n, 2), n)),
    }
    for start, n in zip(starts.tolist(), sizes, strict=True)
  ]


def test_a_long_document_takes_turns_with_short_ones():
  documents = _documents_of([4000 if i % 100 == 50 else 30 for i in range(2000)])
  long = np.concatenate([d["tokens"] for d in documents if len(d["tokens"]) == 4000])
  batches = list(_pack_patched(documents, 64, 33, 256, batch_size=8, pool_bytes=8192))
  shares = [np.isin(b["targets"], long).sum() / b["loss_mask"].sum() for b in batches[20:80]]
  assert min(shares) > 0 and max(shares) < 7 / 8  # of no batch are they all or nothing
  assert np.mean(shares) == pytest.approx(0.57, abs=0.03)  # as of the text


def test_open_text_is_bounded_in_bytes():
  documents = _documents_of([500] * 100)
  batches = iter(_pack_patched(documents, 64, 33, 256, batch_size=2, pool_bytes=10_000))
  for _ in range(150):
    next(batches)
    state = batches.get_state()
    assert len(state["open"].split()) <= 20
    assert 500 * (state["read"] - state["documents"]["next_index"]) <= 2 * 10_000


@pytest.mark.parametrize("is_slow, first, later", [(False, 2048, 2048), (True, 133, 256)])
def test_fewer_documents_are_open_where_patching_is_slow(is_slow, first, later):
  documents = grain.MapDataset.source(_documents_of([3943] * 3000)).to_iter_dataset()
  batches = iter(PackRows(documents, 4096, 2048, batch_size=2, is_slow=is_slow))
  counts = [next(batches)["open_documents"].item(0) for _ in range(40)]
  assert (counts[0], max(counts)) == (first, later)


def test_only_open_documents_are_patched_again():
  documents, patched = _documents_of([20, 300] * 50), []

  def patch(i):
    patched.append(int(i))
    return documents[i]

  def start():
    indices = grain.MapDataset.range(100).to_iter_dataset(_HERE)
    return iter(PackRows(indices, 32, 17, pool_size=10, patch=patch))

  rows = start()
  for _ in range(150):
    next(rows)
  state, resumed = rows.get_state(), start()
  patched.clear()
  resumed.set_state(state)
  assert patched == [int(mark.partition(":")[0]) for mark in state["open"].split()]
  assert len(patched) < state["read"] - patched[0]
  np.testing.assert_equal(list(resumed), list(rows))


def test_a_state_of_an_earlier_version_goes_on_with_what_is_left_and_says_so(caplog):
  documents = _documents_of([20 + 13 * i % 50 for i in range(12)])
  # What the version that filled rows from the oldest document saved after 5 rows of these.
  saved = {
    "documents": {"next_index": 3},
    "read": 7,
    "open": "3:53 4:0 5:0 6:0",
  }
  rows = iter(_pack_patched(documents, 32, 17, pool_size=4))
  rows.set_state(saved)
  assert "goes on with all that it has not learned from, in another order" in caplog.text
  targets = np.concatenate([row["targets"][row["loss_mask"]] for row in rows])
  left = [documents[3]["tokens"][54:], *(d["tokens"][1:] for d in documents[4:])]
  np.testing.assert_array_equal(np.sort(targets), np.concatenate(left))


def test_rows_name_the_documents_of_their_pieces():
  documents = _documents_of([20, 100, 30, 20])
  documents[3] = documents[0]  # the same text again
  names, counts = {}, []
  for row in _pack_patched(documents, 32, 17, pool_size=1):
    owners = [
      i for i, d in enumerate(documents[:3]) if np.isin(d["tokens"], row["tokens"]).any()
    ]
    named = row["documents"][row["documents"] > 0]
    counts.append(row["open_documents"].item())
    assert len(owners) == len(set(named))
    for owner, name in zip(owners, named, strict=False):
      names.setdefault(owner, name)
  assert len(set(names.values())) == 3 and set(counts) == {1}


def test_a_long_document_is_left_open_for_a_bounded_time():
  # Nothing makes up for a document in patches of one byte, but others are milder.
  long = {"tokens": np.arange(1000, 9000), "patch_lengths": np.ones(8000, np.int32)}
  short = {"tokens": np.arange(60), "patch_lengths": np.full(20, 3)}
  rows = iter(_pack_patched([long] + [short] * 100_000, 64, 20, pool_size=4))
  while (state := rows.get_state())["open"].startswith("0:") or state["read"] == 0:
    next(rows)
  assert 60 * state["read"] < 8 * 64 / 20 * (4 * 64 + 2 * 8000)


def test_a_document_of_many_rows_and_the_empty_one():
  documents = [b"", b"word " * 20_000, b"x", b""]
  rows = list(_pack(documents, 512, 120, patching.PatchingConfig(scheme="space")))
  assert sum(r["loss_mask"].sum() for r in rows) == 1 + 100_001 + 2 + 1
  assert len(rows) == 196  # of 195.3


def test_slot_use_of_a_row():
  row = {
    "loss_mask": np.array([1, 1, 0, 1, 0, 0, 0, 0], bool),
    "patch_lengths": np.array([1, 2, 1, 5, 0]),  # the fourth starts behind the last target
  }
  assert packing.slot_use(row) == {"byte_slots": 3 / 8, "patch_slots": 3 / 5}
  empty = {"loss_mask": np.zeros(8, bool), "patch_lengths": np.array([1, 8, 0, 0, 0])}
  batch = {k: np.stack([row[k], empty[k]]) for k in row}
  assert packing.slot_use(batch) == {"byte_slots": 3 / 16, "patch_slots": 3 / 10}


def test_documents_of_all_kinds_fill_both_budgets():
  rng = np.random.default_rng(0)
  documents = []
  for _ in range(400):
    size = int(rng.lognormal(6, 1))
    is_start = rng.random(size + 1) < 1 / rng.uniform(2, 7)
    lengths = np.diff(np.flatnonzero(np.append(True, is_start)), append=size + 2)
    documents.append({"tokens": np.full(size + 2, 80), "patch_lengths": lengths})
  mean = sum(len(d["tokens"]) for d in documents) / sum(
    len(d["patch_lengths"]) for d in documents
  )
  rows = list(_pack_patched(documents, 1024, round(1024 / mean)))
  full = {k: np.stack([r[k] for r in rows[:-20]]) for k in rows[0]}
  use = packing.slot_use(full)
  assert use["byte_slots"] > 0.98 and use["patch_slots"] > 0.98


def test_sizes_too_small_are_errors():
  byte = patching.PatchingConfig(scheme="byte")
  with pytest.raises(ValueError, match="num_patches >= 3"):
    _pack([b"a"], 8, 2, byte)
  with pytest.raises(ValueError, match="pool_size is 0"):
    _pack([b"a"], 8, 3, byte, pool_size=0)
  with pytest.raises(ValueError, match="batch_size is 0"):
    PackRows(grain.MapDataset.range(1).to_iter_dataset(), 8, 3, batch_size=0)


@given(_patched_documents(), _shapes, st.integers(1, 4))
def test_batches_hold_the_rows_and_empty_ones_at_the_end(documents, shape, batch_size):
  rows = list(_pack_patched(documents, *shape))
  batches = list(_pack_patched(documents, *shape, batch_size))
  assert len(batches) == -(-len(rows) // batch_size)
  for key in rows[0]:
    together = np.concatenate([batch[key] for batch in batches])
    np.testing.assert_array_equal(together[: len(rows)], [row[key] for row in rows])
    empty = [1, shape[0], *[0] * (shape[1] - 2)] if key == "patch_lengths" else 0
    assert (together[len(rows) :] == empty).all()


@pytest.mark.parametrize(
  "size, lengths, message",
  [
    (4, [1, 2], "document 0 sum to 3 and the least is 1; .* number of ids, 4"),
    (4, [1, 0, 3], "sum to 4 and the least is 0"),
    (4, [], "sum to 0"),
    (1, [1], "Document 0 has 1 ids"),
  ],
)
def test_documents_that_contradict_themselves_are_errors(size, lengths, message):
  document = {"tokens": np.arange(size), "patch_lengths": np.array(lengths, np.int32)}
  with pytest.raises(ValueError, match=message):
    next(iter(_pack_patched([document], 8, 4)))


@given(_patched_documents(), st.integers(2, 6), st.integers(1, 9), st.sampled_from([1, 3, 256]))
def test_pieces_start_at_multiples(documents, multiple, size, pool_size):
  """As of a MegaByte: nothing is lost, and what stands before a piece is padding."""
  source = grain.MapDataset.source(documents).to_iter_dataset(_HERE)
  seq_len = multiple * size
  made = list(PackRows(source, seq_len, seq_len + 1, pool_size, row_multiple=multiple))
  targets = [int(t) for row in made for t in row["targets"][row["loss_mask"]]]
  assert sorted(targets) == sorted(int(t) for d in documents for t in d["tokens"][1:])
  for row in made:
    assert row["patch_lengths"].sum() == seq_len + 1 and row["patch_lengths"][0] == 1
    after_loss = np.concatenate([[False], row["loss_mask"][:-1]])
    (starts,) = np.nonzero(row["loss_mask"] & ~after_loss)
    assert (starts % multiple == 0).all()
    (ends,) = np.nonzero(~row["loss_mask"] & after_loss)
    assert (row["tokens"][ends] == tokenizer.EOS_ID)[ends > 0].all()


def test_rows_are_a_multiple():
  source = grain.MapDataset.source([]).to_iter_dataset(_HERE)
  with pytest.raises(ValueError, match="seq_len 10 must be a multiple of row_multiple 4"):
    PackRows(source, 10, 11, row_multiple=4)
