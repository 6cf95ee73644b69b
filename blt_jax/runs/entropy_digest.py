"""Which entropy model a run began with: its settings keep a digest, and all who patch look."""

import hashlib
import json

from ml_collections import ConfigDict

from blt_jax.entropy import table
from blt_jax.runs import stored_params
from blt_jax.storage import paths
from blt_jax.storage.folders import Folder


def find(folder: str, step: int | None = None) -> str | None:
  """A digest of the parameters or the table in a folder; None where nothing tells.

  That of parameters is made of those that their checkpoint keeps, so it is cheap; it is the
  newest one unless a `step` is given.
  """
  if table.is_table(folder):
    return Folder(folder).read_json(table.INFO).get("digest")
  try:
    digests = stored_params.digests_of(folder, step)
  except FileNotFoundError:
    return None  # whoever needs it says so
  if not digests:
    return None
  return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def resolve(section: ConfigDict, began_with: ConfigDict, allow_changes: bool) -> str | None:
  """The digest of the entropy model that a run is to have.

  Args:
    section: `config.patching`, with its entropy model.
    began_with: all settings that the run began with; empty if it is new.
    allow_changes: whether it may be another one than the run began with.
  """
  folder, before = section.entropy_model, began_with.get("patching", ConfigDict())
  if section.scheme != "entropy" or not folder:
    return None
  if section.entropy_digest is not None:
    return section.entropy_digest
  had = before.get("entropy_model")
  if had and paths.absolute(had) == paths.absolute(folder) and not allow_changes:
    return before.get("entropy_digest")  # runs of before have none
  return find(folder)


def check(section: ConfigDict) -> None:
  """Checks that the entropy model of `config.patching` is the one that a run began with.

  Raises:
    ValueError: it is another.
  """
  expected = section.get("entropy_digest")
  if expected is None or (found := find(section.entropy_model)) in (None, expected):
    return
  raise ValueError(
    f"The entropy model in {section.entropy_model} is not the one that the run began with: "
    f"the digest of its parameters was {expected}, now {found}. Has it been trained on? Put "
    "the former one there, its folder with the checkpoint of then; to train on with other "
    "patches, add --config.allow_changes=True."
  )
