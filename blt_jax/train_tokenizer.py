"""Trains the BPE tokenizer of a run on its training text, held-out text left out.

  python -m blt_jax.train_tokenizer --config=configs/quickstart.py:bpe
  python -m blt_jax.train --config=configs/quickstart.py:bpe

Writes config.patching.tokenizer, with config.model.vocab_size ids, from config.data: a model of
SentencePiece, BPE with byte fallback, which keeps text as it is. Prints one JSON object:
`vocab_size`, and of the text that it learned from `bytes`, `pieces` and `bytes_per_piece`.
"""

import argparse
import io
import json
from collections.abc import Iterator
from typing import Any

from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from blt_jax import kinds, tokenizer
from blt_jax.cli import logs
from blt_jax.cli.parsing import Parser
from blt_jax.data.piece_vocabulary import PieceVocabulary
from blt_jax.runs import bounds, corpus, settings_flags
from blt_jax.storage import paths
from blt_jax.storage.atomic import explaining, new_file
from blt_jax.storage.folders import Folder

_OPTIONS: dict[str, Any] = dict(
  model_type="bpe",
  byte_fallback=True,
  # Text stays as it is.
  normalization_rule_name="identity",
  remove_extra_whitespaces=False,
  add_dummy_prefix=False,
  allow_whitespace_only_pieces=True,  # indentation
  # The ids are those of `blt_jax.tokenizer`, bytes included.
  pad_id=tokenizer.BOE_ID,
  bos_id=tokenizer.BOS_ID,
  eos_id=tokenizer.EOS_ID,
  unk_id=tokenizer.BPE_ID,
  max_sentence_length=2**30,  # longer lines would be left out
  minloglevel=2,
)
_MAX_CHARACTERS = 1 << 15  # of a line; SentencePiece counts those of a word in 16 bits


def main(argv: list[str] | None = None) -> None:
  """Trains, writes the model and says what its pieces are like."""
  parser = Parser("train_tokenizer", __doc__)
  parser.add_argument(
    "--max_bytes", type=int, default=100_000_000, metavar="N",
    help="learn from so many bytes of training text at most, drawn at random",
  )  # fmt: skip
  args, config = settings_flags.parse(parser, argv)
  logs.show_progress()
  _check(args, config)
  path = config.patching.tokenizer
  with explaining(path):
    Folder(path.rpartition("/")[0] or ".").make()
  texts = list(read_texts(config, args.max_bytes))
  with explaining(path), new_file(path) as file:
    file.write_bytes(train(texts, config.model.vocab_size))
  print(json.dumps(measure(PieceVocabulary(path), texts)))


def _check(args: argparse.Namespace, config: ConfigDict) -> None:
  bounds.check(config)
  if args.max_bytes < 1:
    raise ValueError(f"--max_bytes must be 1 or more, got {args.max_bytes}.")
  if not kinds.find_kind(config.model.kind).reads_pieces:
    raise ValueError(
      f"A {config.model.kind} has no pieces as ids; give the config of a bpe_lm, such as "
      "configs/quickstart.py:bpe."
    )
  path = config.patching.tokenizer
  if not path:
    raise ValueError("config.patching.tokenizer is empty; name the file to write.")
  if paths.exists(path):
    raise ValueError(f"{path} exists; remove it, or choose another config.patching.tokenizer.")


def read_texts(config: ConfigDict, max_bytes: int) -> Iterator[bytes]:
  """Documents of a run's training text, each once, shuffled by its seed.

  Args:
    config: the whole settings.
    max_bytes: of all, shared by the sources as they are weighed; the last one of each is cut.
  """
  with tqdm(desc="Reading", unit="B", unit_scale=True) as bar:
    for source, share in corpus.open_corpus(config.data).once(config.seed):
      room = round(max_bytes * share)
      for document in source:
        if room < 1:
          break
        if document is not None:
          text = document.text[:room]
          room -= len(text)
          bar.update(len(text))
          yield text


def train(texts: list[bytes], vocab_size: int) -> bytes:
  """The file of a SentencePiece model.

  Args:
    texts: to learn from; what is not UTF-8 is left out.
    vocab_size: V, of which `tokenizer.VOCAB_SIZE` are specials and bytes.

  Raises:
    ImportError: sentencepiece is missing.
    ValueError: the text is too little for so many pieces, or they are too few for it.
  """
  try:
    import sentencepiece
  except ImportError as error:
    raise ImportError(
      "Training a tokenizer needs sentencepiece: pip install 'blt_jax[bpe]'"
    ) from error
  model = io.BytesIO()
  logging.info("Learning %d pieces.", vocab_size)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_lines(texts), model_writer=model, vocab_size=vocab_size, **_OPTIONS
    )
  except RuntimeError as error:
    raise ValueError(
      f"config.model.vocab_size {vocab_size} does not go with {sum(map(len, texts))} bytes of "
      f"text: {str(error).strip()}"
    ) from error
  return model.getvalue()


def _lines(texts: list[bytes]) -> Iterator[str]:
  """Lines of texts; long ones in parts, since one word too long ends the whole process."""
  for text in texts:
    for line in text.decode(errors="ignore").split("\n"):
      for begin in range(0, len(line), _MAX_CHARACTERS):
        yield line[begin : begin + _MAX_CHARACTERS]


def measure(pieces: PieceVocabulary, texts: list[bytes]) -> dict[str, Any]:
  """Counts the pieces of texts: see `main`."""
  num_pieces = sum(len(pieces.encode(text)) for text in tqdm(texts, desc="Counting pieces"))
  num_bytes = sum(map(len, texts))
  return {
    "vocab_size": pieces.size,
    "bytes": num_bytes,
    "pieces": num_pieces,
    "bytes_per_piece": num_bytes / max(num_pieces, 1),
  }


if __name__ == "__main__":
  logs.run(main)
