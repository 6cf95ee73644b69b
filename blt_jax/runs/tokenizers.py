"""The tokenizer of a run: checked when it begins, kept in its folder, found there again."""

import hashlib
import os

from ml_collections import ConfigDict

from blt_jax import kinds
from blt_jax.data.piece_vocabulary import PieceVocabulary
from blt_jax.parallel import distributed
from blt_jax.runs.folder import TOKENIZER
from blt_jax.storage import atomic, files, paths
from blt_jax.storage.folders import Folder


def needs_tokenizer(config: ConfigDict) -> bool:
  """Whether a run has pieces, as ids or as patches."""
  return config.patching.scheme == "bpe" or kinds.find_kind(config.model.kind).reads_pieces


def resolve(config: ConfigDict, began_with: ConfigDict) -> tuple[str, str]:
  """The path and the digest of the tokenizer that a run is to have.

  A run that began keeps its own, wherever that came from.

  Args:
    config: the whole settings.
    began_with: those that the run began with; empty if it is new.

  Raises:
    FileNotFoundError: there is none.
    ValueError: none is named, the run began with another, or the model has another vocabulary.
  """
  before = began_with.get("patching", ConfigDict())
  named = [path for path in (config.patching.tokenizer, before.get("tokenizer")) if path]
  path = next(filter(paths.exists, named), None)
  if path is None:
    error = FileNotFoundError if named else ValueError
    raise error(
      f"BPE pieces need config.patching.tokenizer, the file of a SentencePiece model, and "
      f"{f'there is no {named[0]}' if named else 'it is empty'}; `python -m "
      "blt_jax.train_tokenizer` with the same --config makes one."
    )
  found = digest(path)
  if before.get("tokenizer_digest") not in (None, found):
    raise ValueError(
      f"config.patching.tokenizer is {path}, and the run in {config.workdir} began with "
      "another tokenizer: its ids would mean other pieces. Leave it out to go on with that of "
      "the run, or choose another config.workdir."
    )
  given = config.patching.tokenizer_digest
  if given not in (None, found):
    raise ValueError(
      f"config.patching.tokenizer_digest is {given}, and that of {path} is {found}; leave it "
      "out, or give the tokenizer that it is of."
    )
  _check_vocabulary(config, path)
  return path, found


def _check_vocabulary(config: ConfigDict, path: str) -> None:
  if not kinds.find_kind(config.model.kind).reads_pieces:
    return
  size, wanted = PieceVocabulary(path).size, config.model.vocab_size
  if size != wanted:
    raise ValueError(
      f"config.model.vocab_size is {wanted}, and the tokenizer {path} has {size} ids: set "
      f"config.model.vocab_size={size}, or train a tokenizer of the size that you want."
    )


def digest(path: str) -> str:
  """A fingerprint of the file of a tokenizer.

  Raises:
    FileNotFoundError: there is none.
  """
  return hashlib.sha256(files.read_bytes(path)).hexdigest()[:16]


def keep(config: ConfigDict) -> None:
  """Has process 0 copy the tokenizer of a run into its folder; all processes call it.

  Args:
    config: the whole settings, as `resolve.resolve` gives them.
  """
  if not needs_tokenizer(config):
    return
  with distributed.failing_together():
    if distributed.is_lead() and not Folder(config.workdir).exists(TOKENIZER):
      copy_to(config.workdir, config.patching.tokenizer)


def copy_to(workdir: str | os.PathLike, path: str) -> None:
  """Copies the file of a tokenizer into the folder of a run.

  Raises:
    OSError: it cannot be written.
  """
  home = Folder(workdir)
  with atomic.explaining(home.path_of(TOKENIZER)), home.new_file(TOKENIZER) as copy:
    copy.write_bytes(files.read_bytes(path))


def check_digest(section: ConfigDict) -> None:
  """Checks that the tokenizer of `config.patching` is the one that a run was trained with.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is another.
  """
  expected = section.get("tokenizer_digest")  # runs of before have none
  if expected is None:
    return
  if not section.tokenizer:
    raise ValueError(
      f"config.patching.tokenizer_digest is {expected}, and no tokenizer is named; leave it "
      "out."
    )
  if not paths.exists(section.tokenizer):
    raise FileNotFoundError(
      f"No file {section.tokenizer}, and no {TOKENIZER} in the folder of the run, where the "
      "tokenizer of the run belongs; put it there."
    )
  if digest(section.tokenizer) != expected:
    raise ValueError(
      f"{section.tokenizer} is not the tokenizer that the run was trained with: put that one "
      f"there (its sha256 begins with {expected})."
    )
