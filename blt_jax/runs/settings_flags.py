"""Settings from the command line: `--config=FILE`, and `--config.NAME=VALUE` for some."""

import difflib
import pathlib
import re
import sys
from argparse import Namespace
from collections.abc import Collection, Sequence
from importlib import util

from absl import flags
from ml_collections import ConfigDict, config_flags

from blt_jax import config as declared
from blt_jax.cli.parsing import Parser, nearest
from blt_jax.runs import bounds, settings_help

_TYPES = {
  int: "a whole number",
  float: "a number",
  bool: "true or false",
}
_DICTS = {  # an example of each
  "data.mixture": "{'web': ('PATH', 1.0)}",
  "init_parts": "{'latent': 'transformer'}",
  "optimizer.groups": "{'latent/*': {'freeze': True}}",
}
_OVERRIDE = re.compile(r"--?(?:no)?(config\.[^=]+)")
_FREE = (  # whose names are free
  "config.data.mixture.", "config.init_parts.", "config.optimizer.groups."
)  # fmt: skip


def parse(parser: Parser, argv: Sequence[str] | None) -> tuple[Namespace, ConfigDict]:
  """Reads the command line of a program that takes settings.

  Args:
    parser: of its other options; gets `--config`, and the settings at the end of its help.
    argv: the command line; None for that of the process.

  Returns:
    The other options, and the settings.

  Raises: as `load`; and SystemExit, with one line, where other options are wrong.
  """
  parser.add_argument(
    "--config",
    metavar="FILE",
    help="the settings, such as configs/quickstart.py, or FILE:ARGUMENT where its get_config "
    "takes one; --config.NAME=VALUE changes one of those below",
  )
  arguments = sys.argv[1:] if argv is None else argv
  kind = _asked_kind(arguments)
  parser.epilog = f"settings, with the defaults of a {kind}:\n{settings_help.to_text(kind)}"
  parser.check_names(a for a in arguments if not _OVERRIDE.match(a))
  args, overrides = parser.parse_known_args(arguments)
  if args.config is None:
    parser.error("give the settings, such as --config=configs/quickstart.py; --help lists all.")
  return args, load(args.config, overrides)


def _asked_kind(arguments: Sequence[str]) -> str:
  """The kind of model whose settings --help tells: that of the file beside it, or a BLT."""
  files = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
  if files and not {"-h", "--help"}.isdisjoint(arguments):
    return _call(files[-1]).get("model", {}).get("kind") or "blt"
  return "blt"


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Reads a file of settings and changes some.

  Args:
    config: path of a Python file whose `get_config` gives them; `FILE:ARGUMENT` calls it
      with an argument.
    overrides: "--config.NAME=VALUE" each, or its two parts; for a bool also "--config.NAME"
      and "--noconfig.NAME".

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file fails, a setting is misspelt, or a value is of another type.
  """
  settings = _call(config)
  known = set(_names(declared.get_config(settings.get("model", {}).get("kind"))))
  own = set(_names(settings))
  for name in own - known:
    if not name.startswith(_FREE) and name not in _sections(known):
      raise ValueError(f"{config}: {_unknown(name, known)}")
  for name in (match[1] for match in map(_OVERRIDE.match, overrides) if match):
    if name not in known | own:
      raise ValueError(_unknown(name, known))
  _override(settings, overrides)
  _check_tuples(settings)
  # Grain's worker processes want absl's flags parsed, though there are none.
  flags.FLAGS.mark_as_parsed()
  return settings


def _call(config: str) -> ConfigDict:
  """What the file's `get_config` gives."""
  name, colon, argument = config.partition(":")
  path = pathlib.Path(name)
  if not path.is_file():
    others = (other.name for other in path.parent.glob("*.py"))
    raise FileNotFoundError(f"There is no file of settings {path}.{nearest(path.name, others)}")
  spec = util.spec_from_file_location("config_file", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path} is no file of Python; configs/quickstart.py shows one.")
  module = util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    settings = module.get_config(argument) if colon else module.get_config()
  except Exception as error:  # whatever its code raises
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(f"{config} fails: {kind}{error}") from error
  if not isinstance(settings, ConfigDict):
    raise ValueError(f"{config}: get_config gives no ConfigDict; configs/quickstart.py does.")
  return settings


def _names(settings: ConfigDict) -> list[str]:
  return [f"config.{name}" for name, _ in settings_help.flatten(settings.to_dict())]


def _sections(names: Collection[str]) -> set[str]:
  """All that a dot follows in a name; one may be None as a whole, such as `encoder_cross`."""
  return {name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)}


def _unknown(name: str, known: Collection[str]) -> str:
  """What to say of a name that no setting has."""
  if name in _sections(known):
    parts = ", ".join(sorted(n for n in known if n.startswith(f"{name}."))[:3])
    return f"{name} is a section; set what is in it, such as {parts}."
  hint = nearest(name, known)
  if not hint:  # perhaps the section is what is wrong
    by_end = {full.rpartition(".")[2]: full for full in known}
    ends = difflib.get_close_matches(name.rpartition(".")[2], by_end, n=1)
    hint = "".join(f" Did you mean {by_end[end]}?" for end in ends)
  return f"{name} is no setting.{hint} `python -m blt_jax.train --help` lists all."


def _override(settings: ConfigDict, overrides: Sequence[str]) -> None:
  """Changes settings as `ml_collections.config_flags` does."""
  values, arguments = flags.FlagValues(), ["", *overrides]
  try:
    config_flags.DEFINE_config_dict("config", settings, flag_values=values, sys_argv=arguments)
    rest = values(arguments)[1:]
  except flags.IllegalFlagValueError as error:
    given = str(error).removeprefix("flag --").partition(": ")[0]
    name = given.partition("=")[0]
    whole = [x.lstrip("-") for x in overrides if x.lstrip("-").startswith(f"{name}=")]
    rule = _type_of(settings, name.removeprefix("config."))
    raise ValueError(f"{(whole or [given])[-1]}: it must be {rule}.") from error
  except flags.Error as error:
    raise ValueError(f"{error}") from error
  if rest:
    raise ValueError(f"{rest[0]!r} is no setting; write --config.NAME=VALUE.")


def _type_of(settings: ConfigDict, name: str) -> str:
  """The type of a setting, in words."""
  if name in _DICTS:
    return f'a dict, such as "{_DICTS[name]}"'
  *sections, last = name.split(".")
  for section in sections:
    settings = settings[section]
  kind = settings.get_type(last)
  return _TYPES.get(kind, f"a {kind.__name__}")


def _check_tuples(settings: ConfigDict) -> None:
  """Raises ValueError where types are not checked: tuples of numbers, names of a mixture."""
  for name in settings.get("data", {}).get("mixture", {}):
    if not isinstance(name, str) or not name:
      raise ValueError(f"config.data.mixture names a source {name!r}; give it a word.")
  for name, value in settings_help.flatten(settings.to_dict()):
    is_free = f"config.{name}".startswith(_FREE)
    if isinstance(value, tuple) and not is_free and not bounds.holds_numbers(name, value):
      raise ValueError(f"config.{name} is {value}; it must hold whole numbers, such as (3,4).")
