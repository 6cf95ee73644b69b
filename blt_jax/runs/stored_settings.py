"""Settings as `config.json` keeps them, and back: whole, checked, with paths that hold."""

from typing import Any

from absl import logging
from ml_collections import ConfigDict

from blt_jax import config
from blt_jax.data.reading import heldout
from blt_jax.runs import bounds
from blt_jax.storage import paths

# Settings that came later, as all runs had them before: one whose config.json lacks a setting
# keeps to that.
FORMER_WAYS = {"hash_document_masks": False, "cross_document_masks": False}  # of a BLT
_FORMER = {f"model.{k}": v for k, v in FORMER_WAYS.items()} | {
  "data.heldout_salt": heldout.NO_SALT
}
_BESIDE = ("entropy_model", "tokenizer")  # of config.patching: paths of what belongs to a run
_FOLDER = "folder"  # where the settings were written, not one of them

Json = dict[str, Any]


def to_stored(plain: Json, workdir: paths.Path) -> Json:
  """What `config.json` holds: paths of what belongs to the run are relative to its folder."""
  patching = dict(plain["patching"])
  for name in _BESIDE:
    if patching.get(name):
      patching[name] = paths.relative(patching[name], workdir)
  return {_FOLDER: paths.absolute(workdir), **plain, "patching": patching}


def from_stored(stored: Json, workdir: paths.Path, path: str) -> ConfigDict:
  """The settings that `config.json` holds.

  What an earlier version did not know is as it was then, or else at its default. Paths are
  whole: as seen from the run's folder, or from where that was before.

  Args:
    stored: the fields of the file.
    workdir: the run's folder.
    path: of the file, for messages.

  Raises:
    ValueError: it is no file of settings, or one is of another type or out of its bounds.
  """
  plain = {name: value for name, value in stored.items() if name != _FOLDER}
  for section in ("data", "patching", "model"):
    if not isinstance(plain.get(section), dict):
      raise ValueError(f"{path} holds no settings of a run: config.{section} is no section.")
  kind = plain["model"].get("kind")
  try:
    declared = config.get_config(kind if isinstance(kind, str) else repr(kind))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  lacking: list[str] = []
  whole = _complete(plain, declared, "", path, lacking)
  if lacking:
    logging.info("%s lacks settings, which are at their defaults: %s", path, ", ".join(lacking))
  for name in _BESIDE:
    whole["patching"][name] = _find(whole, stored.get(_FOLDER), workdir, name)
  return ConfigDict(whole)


def complete(sections: Json, path: str) -> Json:
  """Sections of settings, that of the model among them, with what they lack.

  Args:
    sections: by name.
    path: where they were read, for messages.

  Raises:
    ValueError: one holds what is no setting, or out of its bounds.
  """
  declared = config.get_config(sections["model"]["kind"])
  return {
    name: _complete(section, declared[name], f"{name}.", path, [])
    for name, section in sections.items()
  }


def _complete(
  found: Json, declared: ConfigDict, prefix: str, path: str, lacking: list[str]
) -> Json:
  """The fields of a section, checked, with those of `declared` that it lacks."""
  unknown = sorted(found.keys() - set(declared))
  if unknown and prefix.startswith(("model.", "patching.")):
    raise ValueError(f"{path}: config.{prefix}{unknown[0]} is no setting of this version.")
  whole = dict(found)
  for name in declared:
    default, full = declared[name], prefix + name
    if name not in found:
      whole[name] = _FORMER.get(full, _plain(default))
      if full not in _FORMER and full != "allow_changes":
        lacking.append(f"config.{full}={whole[name]!r}")
    elif full == "data.mixture":
      _check_mixture(found[name], path)
    elif isinstance(default, ConfigDict) and (found[name] is not None or not prefix):
      if not isinstance(found[name], dict):
        raise ValueError(f"{path}: config.{full} is {found[name]!r}; it must be a section.")
      whole[name] = _complete(found[name], default, f"{full}.", path, lacking)
    else:
      _check_value(full, found[name], declared.get_type(name), default, path)
  return whole


def _plain(default: Any) -> Any:
  return default.to_dict() if isinstance(default, ConfigDict) else default


def _check_value(name: str, value: Any, kind: type, default: Any, path: str) -> None:
  """Raises ValueError at a value of another type than the setting's, or out of its bounds."""
  is_optional = default is None or isinstance(default, ConfigDict) or name.startswith("model.")
  if is_optional and value is None:
    return
  kinds: tuple[type, ...] = (kind,)
  kinds = {float: (int, float), tuple: (list, tuple)}.get(kind, kinds)
  is_kind = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
  if not is_kind:
    raise ValueError(f"{path}: config.{name} is {value!r}; it must be of type {kind.__name__}.")
  bound = bounds.bound_of(name)
  if isinstance(value, list | tuple) and not bounds.holds_numbers(name, value):
    raise ValueError(f"{path}: config.{name} is {value!r}; it must hold whole numbers.")
  if bound is not None and not bound.holds(value):
    raise ValueError(f"{path}: config.{name} is {value!r}; it must {bound}.")


def _check_mixture(mixture: Any, path: str) -> None:
  parts: list[Any] = list(mixture.values()) if isinstance(mixture, dict) else [None]
  for part in parts:
    is_pair = isinstance(part, list | tuple) and len(part) == 2 and isinstance(part[0], str)
    if not (is_pair and isinstance(part[1], int | float)):
      raise ValueError(
        f"{path}: config.data.mixture is {mixture!r}; it must be name: (path, weight), ..."
      )


def _find(whole: Json, folder: str | None, workdir: paths.Path, name: str) -> str:
  """Where something that belongs to a run is: the first place at which anything is."""
  path = whole["patching"][name]
  if not path:
    return path
  if folder is not None:
    places = [paths.join(workdir, path), paths.join(folder, path)]
  else:  # of an earlier version, as the user wrote it
    places = [path, paths.join(workdir, paths.relative(path, whole["workdir"]))]
  return next((place for place in places if paths.exists(place)), places[0])
