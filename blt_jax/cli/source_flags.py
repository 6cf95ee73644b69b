"""Flags of the programs that read text."""

import argparse
import dataclasses

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


def parse(args: argparse.Namespace, options: SourceOptions | None = None) -> SourceOptions:
  """Options as the flags say, and `options` where they say nothing."""
  given = {name: value for name in _FLAGS if (value := getattr(args, name)) is not None}
  return dataclasses.replace(options or SourceOptions(), **given)
