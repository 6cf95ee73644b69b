"""Flags of the programs that read text."""

import argparse
import dataclasses

from blt_jax.data import template
from blt_jax.data.reading.documents import SourceOptions

# Name -> what it says, and its choices.
_FLAGS: dict[str, tuple[str, tuple[str, ...] | None]] = {
  "text_field": ("field of JSON, or column of CSV, Parquet or Arrow, with the text", None),
  "on_error": ("whether bad input ends the program or is left out", ("raise", "skip")),
  "invalid_utf8": ("what becomes of documents that are not UTF-8", ("keep", "drop")),
}


def add(parser: argparse.ArgumentParser, default: str = "") -> None:
  """Adds the flags; `default` says what goes without them, if not the usual."""
  for name, (what, choices) in _FLAGS.items():
    value = default or f"by default {getattr(SourceOptions, name)}"
    parser.add_argument(f"--{name}", choices=choices, help=f"{what}; {value}")
  usual = default or "by default text"
  parser.add_argument(
    "--format", choices=("text", "answers", "pictures"),
    help=f"whether records have text, or prompts and answers, or files are pictures; {usual}",
  )  # fmt: skip
  parser.add_argument(
    "--template", metavar="FILE", help="how answers become text; see docs/answers.md"
  )


def parse(args: argparse.Namespace, options: SourceOptions | None = None) -> SourceOptions:
  """Options as the flags say, and `options` where they say nothing."""
  given = {name: value for name in _FLAGS if (value := getattr(args, name)) is not None}
  options = dataclasses.replace(options or SourceOptions(), **given)
  if args.format == "pictures":
    options = dataclasses.replace(options, template=None, pictures=options.pictures or ())
  elif args.format is not None:
    options = dataclasses.replace(options, pictures=None)
  if args.format == "text":
    options = dataclasses.replace(options, template=None)
  elif args.template is not None or (args.format == "answers" and options.template is None):
    options = dataclasses.replace(options, template=template.load(args.template or ""))
  if args.template is not None and args.format != "answers":
    raise ValueError("--template says how --format=answers becomes text; give both.")
  return options
