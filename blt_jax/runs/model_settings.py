"""The settings that decide what a model computes: kept in its checkpoints, checked there."""

import dataclasses
import json
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from blt_jax.patching import PatchingConfig
from blt_jax.runs import changes, stored_settings
from blt_jax.runs.stored_state import OtherModelError

ENTRY = "settings"  # of what is saved beside the arrays of a checkpoint
_HOW = ("remat", "unroll")  # say only how it is computed
_DIGESTS = ("entropy_digest", "tokenizer_digest")
_PATCHES = (*(field.name for field in dataclasses.fields(PatchingConfig)), *_DIGESTS)

Json = dict[str, Any]


def of(settings: ConfigDict) -> Json:
  """What is saved beside the arrays: the section of the model, and the rule of its patches."""
  plain = json.loads(settings.to_json_best_effort())
  return {"model": plain["model"], "patching": _rule(plain["patching"])}


def differences(old: Json, new: Json) -> list[changes.Change]:
  """Those between two sections of a model that make it another one."""
  return changes.find(*(ConfigDict({"model": _function(part)}) for part in (old, new)))


def check(name: str, extra: Json, settings: ConfigDict) -> None:
  """Checks that a checkpoint is read with the settings that made it.

  What those do not know, of an earlier version, is as it was then. Other patches pass with a
  warning where `allow_changes` is set.

  Args:
    name: of the checkpoint, for messages.
    extra: what was saved beside its arrays; that of earlier versions has no settings.
    settings: with which it is read.

  Raises:
    OtherModelError: the settings are others.
  """
  if ENTRY not in extra:
    return
  saved, now = stored_settings.complete(extra[ENTRY], name), of(settings)
  found = differences(saved["model"], now["model"])
  patches = changes.find(
    *(ConfigDict({"patching": _rule(part["patching"])}) for part in (saved, now))
  )
  if patches and not found and settings.allow_changes:
    logging.warning("%s was trained with other patches: %s.", name, _list(patches))
  elif found or patches:
    raise OtherModelError(
      f"{name} was trained with other settings: {_list(found + patches)}. Its parameters go "
      "with the settings that they were trained with: put those back, in config.json and in "
      "what train is given. (With config.allow_changes=True patching may differ.)"
    )


def _rule(patching: Json) -> Json:
  return {name: patching.get(name) for name in _PATCHES}


def _function(model: Json) -> Json:
  """Without what says only how it is computed; what is not given is None, and was 0 before."""
  kept = {k: v for k, v in model.items() if k not in _HOW}
  return {k: _function(v) if isinstance(v, dict) else v or None for k, v in kept.items()}


def _list(found: list[changes.Change]) -> str:
  return "; ".join(map(str, found))
