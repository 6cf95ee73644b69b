r"""Shows how a text falls into patches: in the terminal, or as a figure.

  python -m blt_jax.show_patches --run=runs/quickstart/blt --text="A fantasy epic."
  python -m blt_jax.show_patches --run=runs/quickstart/blt --file=FILE --png=patches.png
  python -m blt_jax.show_patches --run=runs/pictures/digits --picture=digits --png=patches.png

Characters stand under their first byte; bytes that are no character are written as "\xff". The
figure of a picture has a line in front of each byte that starts a patch.
"""

import functools
import os
import sys

import jax
import numpy as np

from blt_jax import kinds, tokenizer
from blt_jax.cli import logs, patch_view, pictures, plots, run_flags
from blt_jax.cli.parsing import Parser
from blt_jax.cli.patch_view import Patched
from blt_jax.parallel import sharding
from blt_jax.runs import completion, corpus, device_entropies, folder, loading, ngrams
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
  text.add_argument("--picture", metavar="PATH", help="show the first picture of this path")
  plots.add_flag(parser, "draw the entropies, or the picture and its patches, to this file too")
  args = parser.parse_args(argv)
  logs.show_progress()
  settings, picture = folder.load_config(args.run), None
  if args.picture:
    options = corpus.source_options(settings.data)
    picture = pictures.first(args.picture, options, args.run)
    shown = picture.tobytes()
  else:
    folder.check_reads_text(settings, args.run, "show one with --picture=PATH")
    shown = files.read_bytes(args.file) if args.file else os.fsencode(args.text)
  if args.png and picture is None:
    patch_view.check_length(len(shown))
  if kinds.find_kind(settings.model.kind).measures_entropies:
    for name in ("entropy_model", "cumulative"):
      if getattr(args, name):
        raise ValueError(f"{args.run} measures entropies inside; leave --{name} out.")
    patched = patch_inside(shown, folder.load_run(args.run), args.threshold)
  else:
    patcher = loading.load_patcher(
      settings.patching, args.run, args.entropy_model, args.threshold, None, args.cumulative
    )
    by_itself = patcher.patched_by != "source"
    patched = (
      patch_by_itself(shown, args.run, patcher) if by_itself else patch_text(shown, patcher)
    )
  if picture is None:
    print(patch_view.render(patched, use_colour=sys.stdout.isatty()))
  else:
    print(pictures.legend(patched))
  if args.png and picture is None:
    patch_view.draw(patched, args.png)
  elif args.png and picture is not None:
    pictures.draw(patched, picture, args.png)


def patch_text(text: str | bytes, patcher: patchers.Patcher) -> Patched:
  """Patches one text; of a model over pieces, these are its patches."""
  patch = patcher.documents()
  raw = text.encode() if isinstance(text, str) else text
  tokens = patch.encode(raw)[:-1]
  if patch.sizes is not None:
    lengths = np.maximum(patch.sizes[tokens], 1)  # BOS stands alone
    return Patched(tokenizer.encode(raw, add_eos=False), _starts(lengths), None, None)
  entropies = patch.entropies(tokens)
  found = patch.patch(tokens, entropies)
  starts, levels = _starts(found["patch_lengths"]), None
  if "patch_levels" in found:  # of several resolutions
    levels = np.zeros(len(tokens), int)
    levels[starts] = found["patch_levels"]
  return Patched(tokens, starts, entropies, patcher.config.threshold, levels)


def patch_by_itself(
  text: str | bytes, workdir: str | os.PathLike, patcher: patchers.Patcher
) -> Patched:
  """Patches one text as a run does by its boundary head, or by its own entropies."""
  run, tokens = folder.load_run(workdir), tokenizer.encode(text, add_eos=False)
  tables = ngrams.load(workdir, run.config.model)
  mesh = sharding.make_mesh()
  model, named = device_entropies.attach_loaded(run.model, patcher, mesh, tables)
  is_own = patcher.patched_by == "own"
  if not is_own:
    named = completion.make(tables, run.config.model)({"tokens": tokens[None]})
    named = {"ngram_ids": named.get("ngram_ids")}
  measure = jax.jit(functools.partial(model.apply, method="patch"), static_argnums=2)
  patches, measured = measure({"params": run.params}, tokens[None], len(tokens) + 1, **named)
  starts = np.asarray(patches.starts)[0, :-1]
  if not is_own:  # the head measures no entropies
    return Patched(tokens, starts, None, None)
  return Patched(tokens, starts, np.asarray(measured)[0], patcher.config.threshold)


def patch_inside(text: str | bytes, run: folder.Run, threshold: float | None = None) -> Patched:
  """Patches one text as a model does that measures entropies inside.

  Args:
    text: bytes, or what they are in UTF-8.
    run: of an end_to_end.
    threshold: nats, instead of the one that its training came to.
  """
  tokens = tokenizer.encode(text, add_eos=False)
  threshold = run.model.config.threshold if threshold is None else threshold
  starts, deciding = measure_inside(tokens[None], run, threshold)
  return Patched(tokens, starts[0, :-1], deciding[0], threshold)


def measure_inside(
  tokens: np.ndarray, run: folder.Run, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
  """Which bytes start patches, and the entropies that decide about them.

  Args:
    tokens: int [B, S].
    run: of an end_to_end.
    threshold: nats.

  Returns:
    bool [B, S + 1], the next byte included; float32 [B, S] nats, at each byte about the next.
  """
  config = kinds.kind_of(run.model.config).unlimited(run.model.config)
  measure = functools.partial(kinds.build_model(config).apply, method="patch")
  found = jax.jit(measure)({"params": run.params}, tokens, threshold)
  patches, entropies = jax.device_get(found)
  if config.is_late:  # at each byte about that byte
    entropies = np.pad(entropies[:, 1:], ((0, 0), (0, 1)))
  return patches.starts, entropies


def _starts(lengths: np.ndarray) -> np.ndarray:
  """Which bytes start patches of these lengths."""
  starts = np.zeros(lengths.sum(), bool)
  starts[np.cumsum(lengths) - lengths] = True
  return starts


if __name__ == "__main__":
  logs.run(main)
