r"""Shows how a text falls into patches: in the terminal, or as a figure.

  python -m blt_jax.show_patches --run=runs/quickstart/blt --text="A fantasy epic."
  python -m blt_jax.show_patches --run=runs/quickstart/blt --file=FILE --png=patches.png

Characters stand under their first byte; bytes that are no character are written as "\xff".
"""

import os
import sys

import numpy as np

from blt_jax import tokenizer
from blt_jax.cli import logs, patch_view, plots, run_flags
from blt_jax.cli.parsing import Parser
from blt_jax.cli.patch_view import Patched
from blt_jax.runs import folder, loading
from blt_jax.runs import patcher as patchers
from blt_jax.storage import files

_TEXT = "Byte Latent Transformers group bytes."


def main(argv: list[str] | None = None) -> None:
  """Prints the patches; draws them on request."""
  parser = Parser("show_patches", __doc__)
  parser.add_argument("--run", required=True, metavar="FOLDER", help="folder of a BLT's run")
  run_flags.add_entropies(parser)
  text = parser.add_mutually_exclusive_group()
  text.add_argument("--text", default=_TEXT, help="what to show")
  text.add_argument("--file", help="show this file instead")
  plots.add_flag(parser, "draw the entropies of the bytes to this file as well")
  args = parser.parse_args(argv)
  logs.show_progress()
  shown = files.read_bytes(args.file) if args.file else os.fsencode(args.text)
  if args.png:
    patch_view.check_length(len(shown))
  section = folder.load_config(args.run).patching
  patcher = loading.load_patcher(section, args.run, args.entropy_model, args.threshold)
  patched = patch_text(shown, patcher)
  print(patch_view.render(patched, use_colour=sys.stdout.isatty()))
  if args.png:
    patch_view.draw(patched, args.png)


def patch_text(text: str | bytes, patcher: patchers.Patcher) -> Patched:
  """Patches one text; of a model over pieces, these are its patches."""
  patch = patcher.documents()
  raw = text.encode() if isinstance(text, str) else text
  tokens = patch.encode(raw)[:-1]
  if patch.sizes is not None:
    lengths = np.maximum(patch.sizes[tokens], 1)  # BOS stands alone
    return Patched(tokenizer.encode(raw, add_eos=False), _starts(lengths), None, None)
  entropies = patch.entropies(tokens)
  lengths = patch.patch(tokens, entropies)["patch_lengths"]
  return Patched(tokens, _starts(lengths), entropies, patcher.config.threshold)


def _starts(lengths: np.ndarray) -> np.ndarray:
  """Which bytes start patches of these lengths."""
  starts = np.zeros(lengths.sum(), bool)
  starts[np.cumsum(lengths) - lengths] = True
  return starts


if __name__ == "__main__":
  logs.run(main)
