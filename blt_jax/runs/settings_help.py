"""What every setting says about itself, read from where it is declared."""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from blt_jax import config, kinds, patching
from blt_jax.training import distillation, optim

_WIDTH, _INDENT = 96, " " * 8
_HEAD = """# Settings

Every setting of a run, as `blt_jax/config.py` and the dataclasses that it names declare them.
A config file in `configs/` or `--config.NAME=VALUE` changes them. `None` means what the last
column says, or that it is left open. What each may be stands in `blt_jax/runs/bounds.py`.
This page is made by `PYTHONPATH=. python tests/manual/settings_page.py`."""


class Setting(NamedTuple):
  """A setting of a run.

  Attributes:
    name: dotted, without `config.`, such as "data.seq_len".
    default: its value unless a config says otherwise; an empty section is one.
    comment: what it means, with its unit.
  """

  name: str
  default: Any
  comment: str


def settings(kind: str = "blt") -> list[Setting]:
  """Every setting of a run, in the order of `config.get_config`.

  Comments are those of `get_config` where it has one, else what the docstring of the
  section's dataclass says of the field.

  Args:
    kind: of model, in `kinds.KINDS`.
  """
  comments = _comments_of_fields("patching.", patching.PatchingConfig)
  comments |= _comments_of_fields("model.", kinds.find_kind(kind).config)
  comments |= _comments_of_fields("optimizer.", optim.OptimizerConfig)
  comments |= _comments_of_fields("schedule.", optim.ScheduleConfig)
  comments |= _comments_of_fields("distillation.", distillation.DistillationConfig)
  of_source = _comments_of_source(inspect.getsource(config.get_config))
  comments |= {name: text for name, text in of_source.items() if text or name not in comments}
  sections = list(dict.fromkeys(name.partition(".")[0] for name in of_source))
  order = list(comments)  # a ConfigDict sorts its names

  def place(setting: Setting) -> tuple[int, int]:
    return sections.index(setting.name.partition(".")[0]), order.index(setting.name)

  defaults = flatten(config.get_config(kind).to_dict())
  return sorted((Setting(n, value, comments[n]) for n, value in defaults), key=place)


def to_text(kind: str = "blt") -> str:
  """The settings for a terminal: `--config.name=default`, and the comment below it.

  What was said of one stack of layers is not said again of the next.

  Args:
    kind: of model, in `kinds.KINDS`.
  """
  lines: list[str] = []
  said: dict[tuple[str, str], str] = {}
  for name, default, comment in settings(kind):
    first = said.setdefault((name.rpartition(".")[2], comment), name)
    text = comment if first == name else f"as {first}"
    lines.append(f"  --config.{name}={default!r}")
    lines += textwrap.wrap(
      text, width=_WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT
    )
  return "\n".join(lines)


def to_markdown() -> str:
  """A page with a table of each section's settings, for all kinds of models."""
  page = [_HEAD]
  for kind in kinds.KINDS:
    rows = settings(kind)
    if kind != "blt":  # the other sections are alike
      rows = [row for row in rows if row.name.startswith("model.")]
    section = None
    for name, default, comment in rows:
      if section != (section := name.partition(".")[0] if "." in name else "the run"):
        of_kind = f" (`{kind}`)" if section == "model" else ""
        page += ["", f"## {section}{of_kind}", "", "| setting | default | |", "|---|---|---|"]
      page.append(f"| `{name}` | `{default!r}` | {comment.replace('|', 'or')} |")
  return "\n".join(page) + "\n"


def flatten(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Dotted name and value of each setting of a config, and of each empty section."""
  for name, value in section.items():
    if isinstance(value, dict) and value:
      yield from flatten(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def _comments_of_fields(prefix: str, cls: type) -> dict[str, str]:
  """Dotted name -> what docstrings, of bases too, say of a field; nested ones included."""
  said: dict[str, str] = {}
  for declared in reversed(cls.__mro__):
    said |= _attributes(inspect.cleandoc(declared.__doc__ or ""))
  comments = {prefix + name: text for name, text in said.items()}
  for name, hint in typing.get_type_hints(cls).items():
    for option in (hint, *typing.get_args(hint)):
      if dataclasses.is_dataclass(option) and isinstance(option, type):
        comments |= _comments_of_fields(f"{prefix}{name}.", option)
  return comments


def _attributes(docstring: str) -> dict[str, str]:
  """The fields under "Attributes:" in a docstring of Google's style."""
  section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
  entries = re.split(r"^  (\w+): ", section, flags=re.MULTILINE)
  return {
    name: " ".join(text.split())
    for name, text in zip(entries[1::2], entries[2::2], strict=True)
  }


def _comments_of_source(source: str) -> dict[str, str]:
  """Dotted name -> the comment beside an assignment to `config`, or the lines above it."""
  lines = source.splitlines()
  comments = {
    token.start[0]: token.string.removeprefix("#").strip()
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }
  alone = {n for n in comments if lines[n - 1].lstrip().startswith("#")}
  names = {"config": ""}  # variable -> the section that it stands for, with its dot
  found = {}
  for statement in ast.walk(ast.parse(textwrap.dedent(source))):
    if not isinstance(statement, ast.Assign):
      continue
    dotted = _dotted(statement.targets[0], names)
    if dotted is None:
      continue
    for target in statement.targets[1:]:
      if isinstance(target, ast.Name):  # config.data = data = ...
        names[target.id] = f"{dotted}."
    above = statement.lineno
    while above - 1 in alone:
      above -= 1
    numbers = [*range(above, statement.lineno), statement.end_lineno or statement.lineno]
    found[dotted] = " ".join(comments[n] for n in numbers if n in comments)
  return found


def _dotted(target: ast.expr, names: dict[str, str]) -> str | None:
  """The setting that `config.data.path` or `data.path` stands for; None if it is none."""
  if isinstance(target, ast.Attribute):
    if isinstance(target.value, ast.Name):
      section = names.get(target.value.id)
    else:
      outer = _dotted(target.value, names)
      section = None if outer is None else f"{outer}."
    return None if section is None else section + target.attr
  return None
