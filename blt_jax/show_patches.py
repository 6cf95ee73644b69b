"""Shows how a text falls into patches: in the terminal, or as a figure.

python -m blt_jax.show_patches --run=runs/quickstart/blt --text="A fantasy epic."
python -m blt_jax.show_patches --run=runs/quickstart/blt --text=... --png=patches.png
"""

import argparse
import pathlib
import sys

import numpy as np

from blt_jax import patching
from blt_jax.cli import logs
from blt_jax.cli.patch_view import Patched, draw, render
from blt_jax.runs import folder
from blt_jax.runs import patcher as patchers


def main(argv: list[str] | None = None) -> None:
  """Prints the patches; draws them on request."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--run", required=True, help="folder of a BLT's run")
  parser.add_argument("--text", default="Byte Latent Transformers group bytes.")
  parser.add_argument("--file", help="show this file instead of --text")
  parser.add_argument("--png", help="draw the entropies to this file as well")
  args = parser.parse_args(argv)
  logs.show_progress()
  text = pathlib.Path(args.file).read_bytes() if args.file else args.text
  patched = patch_text(text, patchers.load_patcher(folder.load_config(args.run).patching))
  print(render(patched, use_colour=sys.stdout.isatty()))
  if args.png:
    draw(patched, args.png)


def patch_text(text: str | bytes, patcher: patchers.Patcher) -> Patched:
  """Patches one text."""
  patch = patcher.documents()
  tokens = patch.encode(text.encode() if isinstance(text, str) else text)[:-1]
  entropies = patch.entropies(tokens)
  lengths = patching.patch_lengths(
    tokens[None],
    patcher.config,
    None if entropies is None else entropies[None],
    include_next=False,
  )[0]
  starts = np.zeros(len(tokens), bool)
  starts[np.cumsum(lengths) - lengths] = True
  return Patched(tokens, starts, entropies, patcher.config.threshold)


if __name__ == "__main__":
  logs.run(main)
