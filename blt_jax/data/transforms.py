"""Documents to ids and patches."""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from blt_jax import patching, tokenizer
from blt_jax.data.reading.documents import Document
from blt_jax.hashing import NgramTable

Scorer = Callable[[np.ndarray], np.ndarray]  # ids [n] -> entropies [n]
Encoder = Callable[[bytes], np.ndarray]  # text -> ids [n], BOS and EOS included

_encode = functools.partial(tokenizer.encode, dtype=np.uint16)


class DocumentPatcher(Protocol):
  """What the pipeline asks of a `PatchDocument`; attributes as there."""

  sizes: np.ndarray | None
  is_slow: bool

  def __call__(self, document: Document) -> dict[str, np.ndarray]:
    """Gives `tokens` and `patch_lengths` of a document, and maybe its `loss_mask`."""


class PatchDocument:
  """Turns a document into `tokens` uint16 [n], BOS and EOS included, and `patch_lengths`.

  Of several resolutions these are the finest, and `patch_levels` tell the others; see
  `patching.levels_of`. Where not all of it is to be learned, `loss_mask` bool [n] says which
  ids are. Many documents wait to be packed, so their ids take no more memory than they must.

  Attributes: as the arguments of its constructor.
  """

  def __init__(
    self,
    config: patching.PatchingConfig,
    scorer: Scorer | None = None,
    encode: Encoder = _encode,
    sizes: np.ndarray | None = None,
    is_slow: bool = False,
  ):
    """Takes the patching and what it needs.

    Args:
      config: how to patch.
      scorer: for the entropy scheme, what scores documents that bring no entropies.
      encode: turns text into ids; for the bpe scheme, with delimiters.
      sizes: int [V], bytes of each id, where ids are pieces; None where they are bytes.
      is_slow: whether the scorer is a neural network.
    """
    self.encode, self.is_slow = encode, is_slow
    self.sizes = sizes
    self.config = config
    self._scorer = scorer

  def __call__(self, document: Document) -> dict[str, np.ndarray]:
    """Patches one document; the result depends on its bytes only."""
    ids = self.ids(document)
    return ids | self.patch(ids["tokens"], document.entropies)

  def ids(self, document: Document) -> dict[str, np.ndarray]:
    """The `tokens` of a document and, where it has answers, their `loss_mask`."""
    tokens = self.encode(document.text)
    if document.answers is None:
      return {"tokens": tokens}
    return {"tokens": tokens, "loss_mask": mask_answers(tokens, document.answers, self.sizes)}

  def patch(
    self, tokens: np.ndarray, entropies: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """Patches ids [n]; entropies [n] are those that a source stored, if it did."""
    if entropies is None or self.config.scheme != "entropy":
      entropies = self.entropies(tokens)
    given = None if entropies is None else entropies[None]
    starts = patching.patch_starts(tokens[None], self.config, given, include_next=False)
    found = {"tokens": tokens, "patch_lengths": patching.lengths_from_starts(starts[0])[0]}
    if self.config.coarser:
      found["patch_levels"] = patching.levels_of(starts)
    return found

  def entropies(self, tokens: np.ndarray) -> np.ndarray | None:
    """Entropies [n] of ids [n]; None where the scheme has none."""
    return None if self._scorer is None else self._scorer(tokens)


class PatchPieces(PatchDocument):
  """Bytes without delimiters, whose patches are the pieces of a tokenizer; BOS, EOS alone."""

  def __init__(self, config: patching.PatchingConfig, sizes_of: Encoder):
    """Takes the patching, and what gives the bytes of each piece of a text, int [m]."""
    super().__init__(config)
    self._sizes_of = sizes_of

  def patch(
    self, tokens: np.ndarray, entropies: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """Patches ids [n], which begin with BOS and may end with EOS; see `PatchDocument`."""
    del entropies
    is_byte = tokens >= tokenizer.OFFSET
    text = (tokens[is_byte] - tokenizer.OFFSET).astype(np.uint8).tobytes()
    specials = np.ones(len(tokens) - len(text), np.int32)
    lengths = np.concatenate([specials[:1], self._sizes_of(text), specials[1:]])
    if self.config.max_patch_length is not None:
      lengths = patching.split_long(lengths[None], self.config.max_patch_length)[0]
    return {"tokens": tokens, "patch_lengths": lengths}


def mask_answers(
  tokens: np.ndarray, answers: np.ndarray, sizes: np.ndarray | None = None
) -> np.ndarray:
  """Which ids of a document are to be learned.

  An id is if all of its bytes are in an answer. One without bytes is if the byte that it
  stands before is, as a delimiter of pieces does, and the EOS if it ends an answer.

  Args:
    tokens: int [n], BOS and EOS included.
    answers: int [m, 2], the bytes from which to which answers go.
    sizes: int [V], bytes of each id, where ids are pieces; None where they are bytes.

  Returns:
    bool [n]; False of the BOS, which nothing predicts.
  """
  widths = np.asarray(tokens >= tokenizer.OFFSET if sizes is None else sizes[tokens], np.int64)
  starts = widths.cumsum() - widths
  is_answer = np.zeros(starts[-1] + 1, np.int64)  # of each byte, and of the end
  for start, stop in answers:
    is_answer[start:stop] = 1
  is_answer[-1] = is_answer[-2:-1].sum()  # as the last byte
  before = np.concatenate([[0], is_answer.cumsum()])
  widths = np.maximum(widths, 1)
  mask = before[starts + widths] - before[starts] == widths
  mask[0] = False
  return mask


class NestPatches:
  """Makes the `patch_lengths` [B, P] of batches, and their levels, int32 [R, B, P]."""

  def __init__(self, resolutions: int):
    """Takes R."""
    self._resolutions = resolutions

  def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch, with the patches of each resolution, from fine to coarse."""
    kept, lengths = dict(batch), batch["patch_lengths"]
    levels = kept.pop("patch_levels", None)
    if levels is None and self._resolutions > 1:
      raise ValueError(
        f"Patches have one resolution, and the model reads {self._resolutions}: set "
        "config.patching.coarser."
      )
    levels = np.zeros_like(lengths) if levels is None else levels
    return kept | {"patch_lengths": patching.nest(lengths, levels, self._resolutions)}


class LookUpNgrams:
  """Adds `ngram_ids` int32 [T, B, S] to batches, of T frequency n-gram tables."""

  def __init__(self, tables: Sequence[NgramTable], document_masks: bool):
    """Takes the tables, and whether n-grams stay inside documents."""
    self._tables, self._document_masks = tables, document_masks

  def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch, with the ids of the n-grams that end at its `tokens`."""
    tokens, documents = batch["tokens"], None
    if self._document_masks:  # one ends with its EOS
      ends = (tokens == tokenizer.EOS_ID).astype(np.int32)
      documents = ends.cumsum(axis=1) - ends
    return batch | {"ngram_ids": np.stack([t.ids(tokens, documents) for t in self._tables])}
