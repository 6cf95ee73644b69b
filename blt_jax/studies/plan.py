"""The plan of a study: which models, with how many FLOPs, on which text."""

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from blt_jax.cli.parsing import nearest
from blt_jax.runs import bounds, settings_flags

Settings = Mapping[str, Any]  # dotted name, without "config." -> value
_TEXT = ("path", "heldout_path", "heldout_fraction", "max_document_bytes")


@dataclasses.dataclass(frozen=True)
class Entropies:
  """What says how hard each next byte is, made once for all arms that name it.

  Attributes:
    config: file of the settings of an entropy model, `config.num_steps` included; empty: a
      table of n-gram counts.
    settings: changes of these.
    stored: score the whole text once, so that arms only read; else they score as they go.
    text: learn from the first so many bytes, of a table; None for all.
  """

  config: str = ""
  settings: Settings = dataclasses.field(default_factory=dict)
  stored: bool = False
  text: int | None = None

  @property
  def is_table(self) -> bool:
    """Whether it is a table of counts."""
    return not self.config


@dataclasses.dataclass(frozen=True)
class Arm:
  """A model that is compared.

  Attributes:
    config: file of settings, or FILE:ARGUMENT; seen from the folder of the plan.
    settings: changes of these.
    entropies: name of one of `Plan.entropies`, for a model with the entropy scheme.
    bytes_per_patch: mean that its threshold is calibrated for.
    cumulative: its threshold is of the sum of entropies since the last patch began.
    ngrams: count frequent n-grams of the text and embed them.
    budgets: those of `Plan.budgets` that it is trained with; empty for all.
    rate_of: another arm, whose learning rate it takes without a sweep of its own.
  """

  config: str
  settings: Settings = dataclasses.field(default_factory=dict)
  entropies: str = ""
  bytes_per_patch: float | None = None
  cumulative: bool = False
  ngrams: bool = False
  budgets: tuple[float, ...] = ()
  rate_of: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
  """A comparison at equal training FLOPs.

  Attributes:
    arms: name -> model. The first one's text and rows are those of all.
    budgets: training FLOPs by the paper's count, three times the forward pass, without the
      entropy model -> number of paired seeds.
    rates: peak learning rates that every arm tries at its smallest budget, ascending.
    reference: the arm that others are compared with.
    entropies: name -> what arms may patch by.
    settings: changes of the settings of all arms.
    rate_exponent: a larger budget has the best rate of the smallest times the ratio of both
      to this power. That of arXiv 2401.02954 is -0.125.
    max_extensions: further rates that an arm tries whose best is the first or the last.
    warmup: share of the steps in which the learning rate rises.
    evaluations: of held-out text in a run, evenly spread.
    max_epochs: of the training text; a run that would read it more often is refused.
  """

  arms: Mapping[str, Arm]
  budgets: Mapping[float, int]
  rates: tuple[float, ...]
  reference: str
  entropies: Mapping[str, Entropies] = dataclasses.field(default_factory=dict)
  settings: Settings = dataclasses.field(default_factory=dict)
  rate_exponent: float = -0.125
  max_extensions: int = 2
  warmup: float = 0.05
  evaluations: int = 4
  max_epochs: float = 4.0

  def __post_init__(self):
    _require(bool(self.arms), "arms", self.arms, "name a model at least")
    _require(self.reference in self.arms, "reference", self.reference, _one_of(self.arms))
    whole = [isinstance(n, int) and n > 0 for n in self.budgets.values()]
    ascending = list(self.budgets) == sorted(self.budgets)
    is_right = bool(whole) and all(whole) and ascending and min(self.budgets) > 0
    _require(is_right, "budgets", self.budgets, "be ascending FLOPs -> numbers of seeds")
    is_right = bool(self.rates) and tuple(sorted(set(self.rates))) == self.rates
    _require(is_right and self.rates[0] > 0, "rates", self.rates, "be ascending")
    _require(0 <= self.warmup < 1, "warmup", self.warmup, "lie in [0, 1)")
    _require(self.evaluations >= 1, "evaluations", self.evaluations, "be 1 or more")
    for name, arm in self.arms.items():
      _check_arm(self, name, arm)

  def budgets_of(self, name: str) -> tuple[float, ...]:
    """Those of an arm, ascending."""
    return self.arms[name].budgets or tuple(self.budgets)

  def swept(self, name: str) -> str:
    """The arm whose sweep gives an arm its learning rate, itself or another."""
    return self.arms[name].rate_of or name


def _require(is_right: bool, name: str, value: Any, rule: str) -> None:
  if not is_right:
    raise ValueError(f"The plan's {name} is {value!r}; it must {rule}.")


def _one_of(names: Mapping[Any, Any]) -> str:
  return f"be one of {tuple(names)}"


def _check_arm(plan: Plan, name: str, arm: Arm) -> None:
  where = f"arms[{name!r}]"
  safe = name.replace("_", "").replace("-", "").replace(".", "").isalnum()
  _require(safe, "arms", name, "have names of letters, digits, '_', '-' and '.'")
  for budget in arm.budgets:
    _require(budget in plan.budgets, f"{where}.budgets", budget, _one_of(plan.budgets))
  if arm.entropies:
    _require(
      arm.entropies in plan.entropies, f"{where}.entropies", arm.entropies,
      _one_of(plan.entropies),
    )  # fmt: skip
    _require(
      bool(arm.bytes_per_patch), f"{where}.bytes_per_patch", arm.bytes_per_patch,
      "be the mean patch size to calibrate for",
    )  # fmt: skip
  elif arm.cumulative:
    _require(False, f"{where}.cumulative", True, "go with entropies")
  if arm.rate_of:
    others = {n: a for n, a in plan.arms.items() if not a.rate_of}
    _require(arm.rate_of in others, f"{where}.rate_of", arm.rate_of, _one_of(others))
    first = plan.budgets_of(arm.rate_of)[0]
    _require(
      arm.budgets == () or arm.budgets[0] >= first, f"{where}.budgets", arm.budgets,
      f"begin with {first:g} or more, where {arm.rate_of!r} has its rate from",
    )  # fmt: skip


# --- Files


def load(path: str, settings: Settings | None = None) -> Plan:
  """Reads a plan: a Python file whose `get_plan` gives one.

  Args:
    path: of the file.
    settings: changes of the settings of all arms, after those of the plan.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it gives no plan, or one that cannot be.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    hint = nearest(file.name, (other.name for other in file.parent.glob("study_*.py")))
    raise FileNotFoundError(f"There is no plan {path}.{hint}")
  spec = importlib.util.spec_from_file_location("study_plan", file)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path} is no file of Python; configs/study_tiny.py shows a plan.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    plan = module.get_plan()
  except Exception as error:  # whatever its code raises
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(f"{path} fails: {kind}{error}") from error
  if not isinstance(plan, Plan):
    raise ValueError(f"{path}: get_plan gives no Plan; configs/study_tiny.py does.")
  return _from_folder(plan, file.parent, settings or {})


def _from_folder(plan: Plan, folder: pathlib.Path, settings: Settings) -> Plan:
  """A plan whose files are seen from here, and not from its folder."""

  def seen(part: Any) -> Any:
    config = part.config and os.path.join(folder, part.config)
    return dataclasses.replace(part, config=config)

  return dataclasses.replace(
    plan,
    arms={name: seen(arm) for name, arm in plan.arms.items()},
    entropies={name: seen(source) for name, source in plan.entropies.items()},
    settings={**plan.settings, **settings},
  )


def flags(settings: Settings) -> list[str]:
  """Settings as a command line has them."""
  return [f"--config.{name}={value}" for name, value in settings.items()]


def load_arms(plan: Plan, names: Sequence[str] = ()) -> dict[str, ConfigDict]:
  """The settings of arms as the plan has them; nothing is made yet.

  Raises:
    ValueError: a setting is misspelt or out of bounds; or arms have other text than the first.
  """
  found: dict[str, ConfigDict] = {}
  for name in names or plan.arms:
    arm = plan.arms[name]
    try:
      config = settings_flags.load(arm.config, flags({**plan.settings, **arm.settings}))
      bounds.check(config)
    except (ValueError, FileNotFoundError) as error:
      raise type(error)(f"Arm {name!r}: {error}") from error
    found[name] = config
    _check_text(name, config, *next(iter(found.items())))
    if (config.patching.scheme == "entropy") != bool(arm.entropies):
      raise ValueError(
        f"Arm {name!r} has the patching scheme {config.patching.scheme!r} and entropies "
        f"{arm.entropies!r}; the entropy scheme needs some, and no other has any."
      )
    source = plan.entropies.get(arm.entropies)
    if source is not None and source.is_table and config.patching.entropies == "device":
      raise ValueError(
        f"Arm {name!r} has config.patching.entropies='device', and {arm.entropies!r} is a "
        "table; name an entropy model."
      )
  return found


def _check_text(name: str, config: ConfigDict, first: str, usual: ConfigDict) -> None:
  if config.data.mixture:
    raise ValueError(f"Arm {name!r} has a config.data.mixture; a study reads one data.path.")
  for field in _TEXT:
    own, common = config.data[field], usual.data[field]
    if own != common:
      raise ValueError(
        f"Arm {name!r} has config.data.{field}={own!r}, and {first!r} has {common!r}: all arms "
        "must read the same text. Set it in the plan's settings."
      )
