"""The reference's packing, equal to stored batches of the reference."""

import golden_cases
import numpy as np
import pytest
import reference_packing

_CASES = golden_cases.load("packing_cases")


def _batches(case, arrays):
  tokens = [arrays[f"seq{i}_tokens"] for i in range(case["n_seqs"])]
  if case["mode"] == "bytes":
    return reference_packing.pack_by_bytes(tokens, case["batch_size"], case["seq_len"])
  lengths = [arrays[f"seq{i}_patch_lengths"] for i in range(case["n_seqs"])]
  sequences = zip(tokens, lengths, strict=True)
  return reference_packing.pack_by_patches(sequences, case["batch_size"], case["max_length"])


@pytest.mark.parametrize("case, arrays", _CASES, ids=[c["id"] + c["name"] for c, _ in _CASES])
def test_batches_equal_the_reference(case, arrays):
  batches = list(_batches(case, arrays))
  assert len(batches) == case["n_batches"]
  for j, batch in enumerate(batches):
    names = {f.split("_", 1)[1] for f in case["fields"] if f.startswith(f"batch{j}_")}
    assert set(batch) == names
    for name, array in batch.items():
      np.testing.assert_array_equal(array, arrays[f"batch{j}_{name}"])


def test_first_patch_is_split_and_the_last_one_dropped():
  tokens = np.arange(10, 19)
  (batch,) = reference_packing.pack_by_patches([(tokens, np.array([3, 2, 4]))], 1, 8)
  np.testing.assert_array_equal(batch["x"], [[10, 11, 12, 13, 0, 0, 0, 0]])
  np.testing.assert_array_equal(batch["y"], [[11, 12, 13, 14, 0, 0, 0, 0]])
  np.testing.assert_array_equal(batch["mask"], [[1, 1, 1, 1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(batch["patch_lengths"], [[1, 2, 6]])


@pytest.mark.parametrize(
  "lengths, cut", [([1, 4, 4], [1, 4, 2]), ([1, 6, 2], [1, 6, 0]), ([1, 7, 1], [1, 6, 0])]
)
def test_long_rows_are_cut(lengths, cut):
  sequence = (np.arange(4, 13), np.array(lengths))
  (batch,) = reference_packing.pack_by_patches([sequence], 1, 6)
  np.testing.assert_array_equal(batch["patch_lengths"], [cut])
  assert batch["mask"].all()


def test_a_stream_is_packed_lazily():
  def endless():
    while True:
      yield np.array([1, 80, 81])

  batches = reference_packing.pack_by_bytes(endless(), 2, 3)
  np.testing.assert_array_equal(next(batches)["y"], [[80, 81, 0]] * 2)


@pytest.mark.parametrize(
  "sequences, message",
  [
    ([(np.arange(3), np.array([1, 1]))], "3 ids has 2 patches that sum to 2"),
    ([(np.arange(3), np.array([3]))], "two patches or more"),
    (
      [(np.arange(3), np.array([1, 2])), (np.arange(3), np.array([1, 1, 1]))],
      "3 patches; all need as many as the first, 2",
    ),
  ],
)
def test_unfit_sequences_are_refused(sequences, message):
  with pytest.raises(ValueError, match=message):
    list(reference_packing.pack_by_patches(sequences, 1, 8))


def test_byte_sequences_must_fill_a_row():
  with pytest.raises(ValueError, match="2 ids; all need seq_len = 3"):
    list(reference_packing.pack_by_bytes([np.arange(2)], 1, 3))
