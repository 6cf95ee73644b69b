"""Batches come from many documents, whatever the scheme, the format, the entropies."""

import gzip
import itertools

import grain
import jax
import numpy as np
import pytest
from source_files import lines_of, write

from blt_jax import patching, tokenizer, train_table
from blt_jax.data import mixture, pipeline
from blt_jax.data.pieces import PieceEncoder
from blt_jax.data.reading import sources
from blt_jax.data.reading.documents import Document
from blt_jax.data.transforms import PatchDocument
from blt_jax.entropy import table
from blt_jax.entropy.neural import EntropyScorer
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig, TransformerConfig

_SIZE, _SEQ_LEN, _ROWS, _STEPS = 1024, 64, 8, 30  # 16 rows a document, as 64 kB at 4,096
_OPEN = 48
_FIRST_LETTER = 0x100  # two bytes of UTF-8 each


def _make_text(index):
  """A document of one letter in words of random lengths."""
  rng = np.random.default_rng(index)
  words = [chr(_FIRST_LETTER + index) * n for n in rng.integers(1, 5, _SIZE // 6)]
  return " ".join(words)


_TEXTS = [_make_text(i) for i in range(100)]


def _letters(batch):
  """The documents of a batch, by the letters in it."""
  tokens = batch["tokens"]
  pairs = np.stack([tokens[:, :-1], tokens[:, 1:]], axis=-1)[batch["loss_mask"][:, :-1]]
  pairs = pairs - tokenizer.OFFSET
  is_letter = (pairs[:, 0] >= 0xC4) & (pairs[:, 1] >= 0x80) & (pairs[:, 1] < 0xC0)
  return set(map(tuple, pairs[is_letter]))


def _mean_patch(documents, patch):
  sizes = [patch(d)["patch_lengths"] for d in documents]
  return np.concatenate(sizes).mean()


def _check(dataset, patch, sample):
  documents = mixture.mix({"text": (dataset, 1.0)}, seed=1, shuffle_window=100)
  num_patches = max(round(_SEQ_LEN / _mean_patch(sample, patch)), 4)
  size = len(patch(sample[0])["tokens"])
  shape = pipeline.BatchShape(
    _ROWS, _SEQ_LEN, num_patches + (num_patches == _SEQ_LEN), pool_bytes=_OPEN * size
  )
  batches = iter(pipeline.training_batches(documents, patch, shape))
  found, names = [], []
  for batch in itertools.islice(batches, _STEPS):
    found.append(_letters(batch))
    names.append(set(batch["documents"].ravel().tolist()) - {0})
  for some in (found, names):
    assert np.mean([len(f) for f in some]) >= 7.5
    repeated = [len(a & b) / len(b) for a, b in itertools.pairwise(some)]
    assert np.mean(repeated) <= 1 / 8
  assert np.mean([len(f) for f in names]) == pytest.approx(
    np.mean([len(f) for f in found]),
    rel=0.2,  # pieces of a few ids may hold no letter
  )


def _live():
  stack = TransformerConfig(dim=16, num_layers=1, num_heads=2, window=16, mlp_multiple_of=8)
  model = ByteLM(ByteLMConfig(stack))
  params = model.init(jax.random.key(0), np.zeros((1, 8), np.int32))["params"]
  return EntropyScorer(model.config, jax.tree.map(np.asarray, params))


def _from_table(folder):
  texts = [text.encode() for text in _TEXTS]
  table.save_table(folder, *train_table.train(texts, [], (1, 2), 1 << 12, False))
  return table.TableModel(folder)


def _pieces(folder):
  sentencepiece = pytest.importorskip("sentencepiece", reason="the bpe scheme is an extra")
  (folder / "text").write_text("\n".join(_TEXTS))
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / "text"), model_prefix=str(folder / "model"), model_type="bpe",
    vocab_size=400, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    normalization_rule_name="identity", remove_extra_whitespaces=False,
  )  # fmt: skip
  return PieceEncoder(str(folder / "model.model"))


@pytest.mark.parametrize(
  "scheme", ["space", "static", "byte", "bpe", "live entropies", "stored entropies", "table"]
)
def test_every_scheme_mixes(scheme, tmp_path):
  documents = [Document(text.encode()) for text in _TEXTS]
  if scheme in ("space", "static", "byte"):
    patch = PatchDocument(patching.PatchingConfig(scheme=scheme, patch_size=4))
  elif scheme == "bpe":
    patch = PatchDocument(patching.PatchingConfig(scheme="bpe"), encode=_pieces(tmp_path))
  else:
    score = _from_table(tmp_path / "table") if scheme == "table" else _live()
    entropies = [score(tokenizer.encode(d.text)) for d in documents[::10]]
    threshold = float(np.quantile(np.concatenate(entropies), 0.75))
    patch = PatchDocument(patching.PatchingConfig(threshold=threshold), score)
    if scheme == "stored entropies":
      documents = [Document(d.text, score(tokenizer.encode(d.text))) for d in documents]
      patch = PatchDocument(patching.PatchingConfig(threshold=threshold))
  _check(grain.MapDataset.source(documents), patch, documents[::10])


@pytest.mark.parametrize(
  "name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.array_record", "folder"]
)
def test_every_source_mixes(name, tmp_path):
  path = tmp_path / name
  if name == "folder":
    path.mkdir()
    for i, text in enumerate(_TEXTS):
      (path / f"{i}.txt").write_text(text)
  elif name.endswith("gz"):
    path.write_bytes(gzip.compress(lines_of(_TEXTS)))
  else:
    write(path, _TEXTS)
  patch = PatchDocument(patching.PatchingConfig(scheme="space"))
  sample = [Document(text.encode()) for text in _TEXTS[::10]]
  _check(sources.open_source(str(path)), patch, sample)
