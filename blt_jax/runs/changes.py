"""What changed between the settings of a run's starts: said, or refused."""

import fnmatch
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax.storage import files, paths

# A run that goes on with others of these is another experiment.
_REFUSED = (
  "data.path",
  "data.mixture",
  "data.format",
  "data.template",
  "data.text_field",
  "data.heldout_*",
  "seed",
  "patching.*",
  "distillation.*",
)
_PATHS = ("data.path", "data.heldout_path", "patching.entropy_model", "distillation.teacher")
# A run has the tokenizer that it keeps a copy of, by its digest, wherever else that lies.
_UNCOMPARED = ("workdir", "allow_changes", "patching.tokenizer")
_RATE_TOLERANCE = 0.1  # of the former learning rate


class Change(NamedTuple):
  """A setting and its values, as JSON holds them."""

  name: str
  old: Any
  new: Any

  def __str__(self) -> str:
    return f"config.{self.name} was {self.old!r}, now {self.new!r}"


def find(old: ConfigDict, new: ConfigDict) -> list[Change]:
  """The settings that differ, by name; the same place by another path is no difference."""
  before, now = _flat(old.to_dict()), _flat(new.to_dict())
  return [
    Change(name, before.get(name), now.get(name))
    for name in sorted(before.keys() | now.keys())
    if name not in _UNCOMPARED
    and _comparable(name, before.get(name)) != _comparable(name, now.get(name))
  ]


def check(old: ConfigDict, new: ConfigDict, step: int | None) -> None:
  """Says what has changed; all settings are those of `resolve.resolve`.

  Args:
    old: with which the run was started before.
    new: with which it goes on.
    step: of its newest checkpoint; None if it has none, so nothing was learned.

  Raises:
    ValueError: text, seed, patching or learning rate changed, and `allow_changes` is not set.
  """
  found = find(old, new)
  if found:
    logging.warning(
      "Settings changed since the run in %s was started before: %s.",
      new.workdir,
      "; ".join(map(str, found)),
    )
  if step is None:
    return
  refused = [str(c) for c in found if any(fnmatch.fnmatchcase(c.name, p) for p in _REFUSED)]
  refused += _rate_change(old, new, step)
  if refused and not new.allow_changes:
    raise ValueError(
      f"The run in {new.workdir} is at step {step} and was another before: "
      f"{'; '.join(refused)}. Start it with what it had, choose another config.workdir, or "
      "go on so with --config.allow_changes=True."
    )
  for text in refused:
    logging.warning("The run goes on from step %d though %s.", step, text)


def _rate_change(old: ConfigDict, new: ConfigDict, step: int) -> list[str]:
  """A text if updates here have another learning rate than before."""
  # The schedule counts from 0, and says nothing of what lies beyond its last update.
  for done in range(max(step - 1, 0), min(step, old.num_steps - 1) + 1):
    before, now = (float(settings.make_optimizer(c)[1](done)) for c in (old, new))
    if abs(now - before) > _RATE_TOLERANCE * abs(before):
      return [
        f"the learning rate at step {done + 1} was {before:.3g}, now {now:.3g} "
        "(config.num_steps, config.schedule and config.optimizer.learning_rate make it)"
      ]
  return []


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Dotted name -> value; the mixture, whose names are free, is one value."""
  flat: dict[str, Any] = {}
  for name, value in section.items():
    if isinstance(value, dict) and prefix + name != "data.mixture":
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _comparable(name: str, value: Any) -> Any:
  if name in _PATHS:
    return _place(value)
  if name == "data.mixture":
    return {part: (_place(path), weight) for part, (path, weight) in (value or {}).items()}
  return list(value) if isinstance(value, tuple) else value


def _place(path: str | None) -> str | None:
  return paths.absolute(path) if path and path != files.STDLIB else path
