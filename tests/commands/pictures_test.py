"""Pictures from files to a trained run, its figures, and completed pictures."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from forward import logits_of
from PIL import Image
from tiny_runs import losses, tiny_config

from blt_jax import evaluate, generate, patching, show_patches, tokenizer, train
from blt_jax.config import make_model_config
from blt_jax.data.pipeline import BatchShape, evaluation_batches
from blt_jax.data.reading import sources
from blt_jax.data.reading.documents import SourceOptions
from blt_jax.data.transforms import PatchDocument
from blt_jax.models import init
from blt_jax.models.blt import BLT
from blt_jax.runs import folder as runs

HEIGHT, WIDTH, CHANNELS = SIZE = 4, 3, 2
BYTES = HEIGHT * WIDTH * CHANNELS
PATCH = 2 * CHANNELS  # bytes


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory):
  """Pictures and a run that learned them."""
  home = tmp_path_factory.mktemp("pictures")
  rng = np.random.default_rng(0)
  np.save(home / "all.npy", rng.integers(0, 256, (40, *SIZE)).astype(np.uint8))
  train.train(configure(home))
  return home


def configure(home, **data):
  config = tiny_config("blt", workdir=str(home / "run"), num_steps=2)
  config.model.update(hash_sizes=(), pixel_ngrams=True)
  config.patching.update(scheme="static", patch_size=100, max_patch_length=PATCH)
  config.data.update(path=str(home / "all.npy"), format="pictures", heldout_fraction=0.2)
  config.data.update(data)
  return config


def test_a_run_knows_the_size_of_its_pictures(home):
  run = runs.load_run(home / "run")
  assert tuple(run.config.data.picture_size) == run.model.config.picture_size == SIZE
  assert run.model.config.num_hash_tables == 2 and len(losses(home / "run")) == 2


def test_patches_are_whole_pixels_and_rows_whole_pictures(home):
  documents = sources.open_source(str(home / "all.npy"), SourceOptions(pictures=()))
  patch = PatchDocument(
    patching.PatchingConfig("static", patch_size=100, max_patch_length=PATCH)
  )
  shape = BatchShape(4, 2 * (BYTES + 2) + 9, 64, keep_whole=True)  # room for two and a third
  for batch in evaluation_batches(documents, patch, shape):
    for tokens, lengths in zip(batch["tokens"], batch["patch_lengths"], strict=True):
      starts = np.cumsum(lengths) - lengths
      for place in np.flatnonzero(tokens == tokenizer.BOS_ID):
        end = place + 1 + BYTES
        inside = starts[(starts > place) & (starts < end)]
        np.testing.assert_array_equal(inside, np.arange(place + 1, end, PATCH))
        assert tokens[end] == tokenizer.EOS_ID
      assert (tokens == tokenizer.BOS_ID).sum() <= 2


def test_bits_per_dimension_leave_the_end_out(home, capsys):
  path = home / "one.npy"
  picture = np.load(home / "all.npy")[:1]
  np.save(path, picture)
  evaluate.main([f"--run={home / 'run'}", f"--data={path}"])
  numbers = json.loads(capsys.readouterr().out)
  run = runs.load_run(home / "run")
  ids = tokenizer.encode(picture.tobytes())[None]
  rule = patching.PatchingConfig("static", patch_size=100, max_patch_length=PATCH)
  logits = logits_of(run.model.config, run.params, ids, patching.patch_lengths(ids, rule))
  bits = -np.asarray(jax.nn.log_softmax(logits[0, :-1])) / np.log(2)
  bits = bits[np.arange(BYTES + 1), ids[0, 1:]]
  np.testing.assert_allclose(numbers["bpb"], bits.sum() / BYTES, rtol=1e-5)
  np.testing.assert_allclose(numbers["bits_per_dimension"], bits[:-1].mean(), rtol=1e-5)
  for wrong in (["--context=8"], ["--format=text"]):
    with pytest.raises(ValueError, match="n-grams of pixels, which whole pictures have"):
      evaluate.main([f"--run={home / 'run'}", f"--data={path}", *wrong])


def test_the_upper_half_is_continued(home, tmp_path, capsys):
  path, out = home / "all.npy", tmp_path / "completed.png"
  command = [f"--run={home / 'run'}", f"--picture={path}"]
  assert not generate.main([*command, f"--png={out}", "--temperature=1", "--num_samples=2"])
  shown = np.asarray(Image.open(out)).reshape(HEIGHT, 3, WIDTH, CHANNELS).swapaxes(0, 1)
  picture = np.load(path)[0]
  np.testing.assert_array_equal(shown[0], picture)
  for completed in shown[1:]:
    np.testing.assert_array_equal(completed[: HEIGHT // 2], picture[: HEIGHT // 2])
  assert (shown[1] != shown[2]).any()
  for flags, words in (
    ([], "give both"),
    ([f"--png={out}", "--max_bytes=5"], "--max_bytes is of text"),
    ([f"--png={tmp_path / 'a.pdf'}"], "must end in .png"),
  ):
    with pytest.raises(ValueError, match=words):
      generate.main([*command, *flags])


@pytest.mark.parametrize(
  ("command", "flags"),
  [
    (generate, ["--prompt=text"]),
    (show_patches, ["--text=text"]),
    (evaluate, ["--tasks=bpb", "--data=sample"]),
  ],
)
def test_text_is_refused(home, command, flags):
  with pytest.raises(ValueError, match="learned pictures, not text"):
    command.main([f"--run={home / 'run'}", *flags])


def test_patches_are_drawn_on_a_picture(home, tmp_path, capsys, monkeypatch):
  from matplotlib import axes

  lines, real = [], axes.Axes.vlines
  monkeypatch.setattr(
    axes.Axes, "vlines", lambda self, *a, **k: lines.append(a) or real(self, *a, **k)
  )
  out = tmp_path / "patches.png"
  path = home / "all.npy"
  show_patches.main([f"--run={home / 'run'}", f"--picture={path}", f"--png={out}"])
  assert capsys.readouterr().out == "24 bytes in 6 patches, 4.00 bytes each\n"
  assert Image.open(out).format == "PNG"
  x, top, bottom = lines[0]  # of patches of two pixels, in rows of three
  np.testing.assert_array_equal(x, np.array([0, 2, 1, 0, 2, 1]) - 0.5)
  np.testing.assert_array_equal(
    [top, bottom], np.array([[0, 0, 1, 2, 2, 3]] * 2) + [[-0.5], [0.5]]
  )


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(seq_len=BYTES), "config.data.seq_len is 24, and a picture of .* needs 25"),
    (dict(num_patches=7), "config.data.num_patches is 7, and a picture of .* needs 8"),
    (dict(picture_size=(2, 2, 1)), r"all\.npy: .* another size \(4 x 3 x 2, .* are 2 x 2 x 1 "),
    (dict(format="text", picture_size=SIZE), "config.data.picture_size is of pictures"),
    (dict(format="text"), "config.model.pixel_ngrams is of pictures"),
    (dict(text_field="body"), "pictures have no fields"),
  ],
)
def test_bad_settings(home, changes, words):
  config = configure(home, **changes)
  config.workdir = str(home / "other")
  with pytest.raises(ValueError, match=words):
    train.train(config)


def test_stored_entropies_do_not_tell_the_size(home, tmp_path):
  (tmp_path / "entropies.json").write_text("{}")
  config = configure(home, path=str(tmp_path))
  config.workdir = str(home / "other")
  with pytest.raises(ValueError, match="do not tell height and width: give config.data.pict"):
    train.train(config)


def test_ngrams_of_pixels_and_their_size_go_together(home):
  config = make_model_config(configure(home).model)
  with pytest.raises(ValueError, match="pixel_ngrams need picture_size, height, width"):
    init.abstract_params(BLT(config))
  with pytest.raises(ValueError, match="picture_size is of pixel_ngrams"):
    dataclasses.replace(config, pixel_ngrams=False, picture_size=SIZE)
