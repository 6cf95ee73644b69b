"""Mixing sources: weights, epochs, hosts, worker processes, and exact resume."""

import collections
import json

import absl.flags
import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import SKIP, write, write_bytes

from blt_jax.data.mixture import EveryNth, mix
from blt_jax.data.reading import sources
from blt_jax.data.reading.documents import Document

READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def documents_of(name, count):
  return grain.MapDataset.source([Document(f"{name}{i}".encode()) for i in range(count)])


def stream_of(name, count):
  return documents_of(name, count).to_iter_dataset(READ)


def as_stream(dataset):
  return dataset.to_iter_dataset(READ) if isinstance(dataset, grain.MapDataset) else dataset


def take(dataset, count):
  iterator = iter(as_stream(dataset))
  return [next(iterator).text.decode() for _ in range(count)]


def texts(dataset):
  return [document.text.decode() for document in as_stream(dataset)]


MAKERS = {
  "random access": (documents_of, documents_of),
  "streams": (stream_of, stream_of),
  "both": (documents_of, stream_of),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)


def pair(kind, counts=(10, 6), weights=(3.0, 1.0)):
  makers = MAKERS[kind]
  return {
    name: (make(name, count), weight)
    for name, make, count, weight in zip("ab", makers, counts, weights, strict=True)
  }


@KINDS
def test_weights_and_kind(kind):
  mixture = mix(pair(kind), seed=1, shuffle_window=4)
  assert isinstance(mixture, grain.MapDataset) == (kind == "random access")
  first = collections.Counter(text[0] for text in take(mixture, 80))
  assert first == {"a": 60, "b": 20}


@KINDS
def test_an_epoch_of_a_source_is_each_document_once(kind):
  mixture = mix(pair(kind), seed=1, shuffle_window=5)  # windows of a stream end with epochs
  drawn = [text for text in take(mixture, 40) if text[0] == "a"]
  epochs = [drawn[:10], drawn[10:20], drawn[20:]]
  assert [sorted(epoch) for epoch in epochs] == [[f"a{i}" for i in range(10)]] * 3
  assert epochs[0] != epochs[1] != epochs[2]


@KINDS
def test_order_depends_on_the_seed_only(kind):
  first = take(mix(pair(kind), seed=1, shuffle_window=4), 50)
  assert first == take(mix(pair(kind), seed=1, shuffle_window=4), 50)
  assert first != take(mix(pair(kind), seed=2, shuffle_window=4), 50)
  one_more = pair(kind) | {"c": (documents_of("c", 5), 1.0)}
  kept = [text for text in take(mix(one_more, seed=1, shuffle_window=4), 60) if text[0] == "a"]
  assert kept[:30] == [text for text in first if text[0] == "a"][:30]


@KINDS
def test_one_epoch_without_a_seed_is_everything_in_order(kind):
  mixture = mix(pair(kind), seed=None, num_epochs=1)
  in_order = [f"a{i}" for i in range(10)] + [f"b{i}" for i in range(6)]
  assert texts(mixture) == in_order
  shuffled = texts(mix(pair(kind), seed=3, num_epochs=1))
  assert shuffled != in_order and sorted(shuffled) == sorted(in_order)
  assert collections.Counter(texts(mix(pair(kind), seed=3, num_epochs=2))) == {
    text: 2 for text in in_order
  }


@KINDS
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([None, 5]))
def test_hosts_share_everything(kind, hosts, count, seed):
  shares = [
    texts(mix(pair(kind, (count, 7)), seed, 3, num_epochs=1, host=(index, hosts)))
    for index in range(hosts)
  ]
  everything = [f"a{i}" for i in range(count)] + [f"b{i}" for i in range(7)]
  assert sorted(sum(shares, [])) == sorted(everything)


@KINDS
def test_hosts_keep_the_weights(kind):
  sources_of_host = pair(kind, (7, 3), (1.0, 1.0))
  for index in range(2):
    mixture = mix(sources_of_host, seed=1, shuffle_window=3, host=(index, 2))
    first = collections.Counter(text[0] for text in take(mixture, 40))
    assert first == {"a": 20, "b": 20}


@KINDS
@pytest.mark.parametrize("num_epochs", [None, 2])
def test_resumes_exactly(kind, num_epochs):
  def start():
    mixture = mix(pair(kind), 1, 4, num_epochs, host=(1, 2))
    return iter(as_stream(mixture))

  iterator, expected, states = start(), [], []
  for _ in range(12):
    states.append(json.dumps(iterator.get_state()))
    expected.append(next(iterator).text)
  for done, state in enumerate(states):
    resumed = start()
    resumed.set_state(json.loads(state))
    assert [next(resumed).text for _ in range(12 - done)] == expected[done:]


@KINDS
def test_any_seed_lasts(kind, monkeypatch):
  monkeypatch.setattr("zlib.crc32", lambda text: 2**32 - 1)
  assert len(take(mix(pair(kind), seed=2**32 - 1, shuffle_window=2), 60)) == 60


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"sources": {}}, "one source"),
    ({"sources": {"wiki": (documents_of("a", 0), 1.0)}}, "'wiki' holds no document"),
    ({"sources": {"wiki": (documents_of("a", 1), 0.0)}}, "weight of the source 'wiki'.*got 0"),
    ({"sources": {"wiki": (documents_of("a", 1), float("nan"))}}, "'wiki'.*got nan"),
    ({"seed": -1}, "seed.*got -1"),
    ({"shuffle_window": 0}, "shuffle_window.*got 0"),
    ({"num_epochs": 0}, "num_epochs.*got 0"),
    ({"host": (2, 2)}, r"host.*got \(2, 2\)"),
  ],
)
def test_mistakes_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    mix(**{"sources": pair("both"), "seed": 1, **arguments})


# --- Text that is there no more

_LEFT = {"a.jsonl.gz": "\n", "a.csv": "text,id\n", "a.jsonl": "\n" * 200}


@pytest.mark.parametrize("name", _LEFT)
@pytest.mark.parametrize("num_epochs", [None, 1])
def test_text_that_goes_is_an_error_and_not_read_for_ever(name, num_epochs, tmp_path):
  path = tmp_path / name
  texts_there = [f"text {i}" for i in range(4)]
  if name.endswith("csv"):
    path.write_text("text,id\n" + "".join(f"{text},1\n" for text in texts_there))
  else:
    write(path, texts_there)
  source = sources.open_source(str(path), SKIP)
  everything = mix({"web": (source, 1.0)}, seed=1, shuffle_window=2)
  assert sorted(set(take(everything, 8))) == texts_there
  write_bytes(path, _LEFT[name].encode())
  left = as_stream(mix({"web": (source, 1.0)}, seed=1, num_epochs=num_epochs))
  if num_epochs and isinstance(source, grain.MapDataset):
    assert list(left) == []  # whoever wants some says so
    return
  with pytest.raises(ValueError, match=f"(gave no|No) document .*{path}.*leave"):
    next(iter(left))


def test_the_rest_of_a_pass_may_be_empty(tmp_path):
  path = write(tmp_path / "a.jsonl.gz", ["one", "two"])
  start = lambda: iter(mix({"a": (sources.open_source(path), 1.0)}, seed=None))  # noqa: E731
  iterator = start()
  assert [next(iterator).text for _ in range(2)] == [b"one", b"two"]
  resumed = start()
  resumed.set_state(iterator.get_state())
  assert next(resumed).text == b"one"


# --- EveryNth


def test_every_nth_keeps_and_slices():
  numbers = grain.MapDataset.range(20).to_iter_dataset(READ)
  every = EveryNth(numbers, 1, 3)
  assert list(every) == [1, 4, 7, 10, 13, 16, 19]
  every.set_slice(slice(1, None, 2))
  assert list(every) == [4, 10, 16]
  with pytest.raises(ValueError, match="sequential_slice=False"):
    every.set_slice(slice(0, None, 2), sequential_slice=True)


def test_every_nth_resumes_exactly():
  every = EveryNth(grain.MapDataset.range(20).to_iter_dataset(READ), 2, 5)
  grain.experimental.assert_equal_output_after_checkpoint(every)


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  absl.flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for them


@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_processes_do_not_change_the_order(tmp_path, num_workers):
  stream = write(tmp_path / "a.jsonl.gz", [f"a{i}" for i in range(13)])
  lines = write(tmp_path / "b.jsonl", [f"b{i}" for i in range(7)])
  parts = {path: (sources.open_source(path), 1.0) for path in (stream, lines)}
  mixture = mix(parts, seed=1, shuffle_window=5)
  expected = take(mixture, 40)
  options = grain.multiprocessing.MultiprocessingOptions(num_workers=num_workers)
  workers = iter(mixture.mp_prefetch(options))
  assert [next(workers).text.decode() for _ in range(23)] == expected[:23]
  state = json.loads(json.dumps(workers.get_state()))
  assert [next(workers).text.decode() for _ in range(10)] == expected[23:33]
  workers.set_state(state)
  assert [next(workers).text.decode() for _ in range(17)] == expected[23:40]
  workers.close()
