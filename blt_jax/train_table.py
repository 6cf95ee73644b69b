"""Trains a table model: entropies of the next byte from counts of byte n-grams.

  python -m blt_jax.train_table --input=PATH --output=runs/table
  python -m blt_jax.calibrate --run=runs/table --target_bytes_per_patch=4.5

Neither training nor patching with a table needs an accelerator. It sees at most seven
bytes before the next one; contexts that it saw less than twice give way to shorter ones.
"""

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from blt_jax import tokenizer
from blt_jax.cli import logs, source_flags
from blt_jax.cli.parsing import Parser, parse_ascending
from blt_jax.data.reading import sources
from blt_jax.entropy import kneser_ney, ngram_counts, table
from blt_jax.entropy.contexts import MAX_ORDER

_MIN_COUNT = 2  # contexts seen less often are not trusted


def main(argv: list[str] | None = None) -> None:
  """Trains, writes the table and says how good it is."""
  args = _parse(argv)
  logs.show_progress()
  if not table.is_free(args.output):
    raise ValueError(f"{args.output} exists; remove it, or choose another --output.")
  orders = parse_ascending("--orders", args.orders, MAX_ORDER)
  if args.buckets not in (1 << n for n in range(8, 32)):
    raise ValueError(f"--buckets must be a power of two, 2**8 to 2**31, got {args.buckets}.")
  if args.max_bytes is not None and args.max_bytes < 1:
    raise ValueError(f"--max_bytes must be 1 or more, got {args.max_bytes}.")
  options = source_flags.parse(args)
  documents = sources.read_documents(args.input, options, args.max_bytes)
  training, heldout = split_heldout(documents)
  tables, info = train(training, heldout, orders, args.buckets, args.reset_at_newline)
  made_from = {"input": args.input, "options": dataclasses.asdict(options)}
  table.save_table(args.output, tables, made_from | info)
  logging.info("Wrote %s, %.1f MB.", args.output, sum(t.nbytes for t in tables) / 1e6)
  _report(table.TableModel(args.output), heldout)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser("train_table", __doc__)
  parser.add_argument(
    "--input", required=True, metavar="PATH", help="text, as in config.data.path"
  )
  parser.add_argument("--output", required=True, metavar="FOLDER", help="to make for the table")
  parser.add_argument(
    "--orders", default="1,2,3,4,5,6,7", help="bytes of context to distinguish, at most 7"
  )
  parser.add_argument(
    "--buckets", type=int, default=1 << 22, metavar="N",
    help="most entries of an order, 4 bytes each; a power of two",
  )  # fmt: skip
  parser.add_argument(
    "--max_bytes",
    type=int,
    metavar="N",
    help="learn from the first so many; by default from all",
  )
  source_flags.add(parser)
  parser.add_argument(
    "--reset_at_newline", action="store_true", help="begin contexts anew after each newline"
  )
  return parser.parse_args(argv)


def split_heldout(documents: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
  """Holds out one document in 32, or about half a megabyte, by their content."""
  one_in = max(32, sum(map(len, documents)) >> 19)
  hashes = (hashlib.sha256(d).digest()[:8] for d in documents)
  is_heldout = [int.from_bytes(h, "big") % one_in == 0 for h in hashes]
  return (
    [d for d, is_out in zip(documents, is_heldout, strict=True) if not is_out],
    [d for d, is_out in zip(documents, is_heldout, strict=True) if is_out],
  )


def train(
  documents: Sequence[bytes],
  heldout: Sequence[bytes],
  orders: Sequence[int],
  buckets: int,
  reset_at_newline: bool,
) -> tuple[list[np.ndarray], dict[str, Any]]:
  """Learns the tables.

  Args:
    documents: text to learn from.
    heldout: text to measure bits per byte on.
    orders: bytes of context to distinguish, ascending, at most 7.
    buckets: most entries of an order, a power of two.
    reset_at_newline: begin contexts anew after each newline.

  Returns:
    The entries of each order, and what else `table.save_table` takes.

  Raises:
    ValueError: there is too little text.
  """
  num_bytes = sum(map(len, documents))
  counter = ngram_counts.PairCounter(orders, reset_at_newline)
  with tqdm(desc="Counting", total=num_bytes, unit="B", unit_scale=True) as bar:
    for chunk in ngram_counts.chunks(documents):
      counter.add(chunk)
      bar.update(sum(map(len, chunk)))
  logging.info("Estimating.")
  windows, room = ngram_counts.predicted_bytes(heldout, reset_at_newline)
  chances = np.full(len(windows), 1 / 256)
  tables: dict[int, np.ndarray] = {}
  for order in kneser_ney.estimate_orders(counter):
    chances = kneser_ney.predict(order, windows, room, chances)
    if order.size == 0:
      entropy = float(order.entropies[0])
    else:
      tables[order.size] = _make_entries(order, buckets)
  if not tables:
    raise ValueError(f"{num_bytes} bytes are no text to learn from; give more in --input.")
  info = {
    "orders": list(tables),
    "entropy": entropy,
    "reset_at_newline": reset_at_newline,
    "bytes": num_bytes,
    "heldout_bpb": float(-np.log2(chances).mean()) if heldout else None,
  }
  return list(tables.values()), info


def _make_entries(order: kneser_ney.Order, buckets: int) -> np.ndarray:
  trusted = order.counts >= _MIN_COUNT
  wanted = 1 << (2 * int(trusted.sum())).bit_length()  # two to four entries per context
  return table.make_entries(
    order.contexts[trusted],
    order.size,
    order.entropies[trusted],
    order.counts[trusted],
    min(max(wanted, 256), buckets),
  )


def _report(model: table.TableModel, heldout: Sequence[bytes]) -> None:
  """Says how well the model predicts, and how well the table knows how well."""
  if not heldout:
    logging.info("Too few documents to hold one out and measure on it.")
    return
  looked_up = [model.look_up(tokenizer.encode(d, add_eos=False)[:-1]) for d in heldout]
  entropies, used = (np.concatenate(arrays) for arrays in zip(*looked_up, strict=True))
  logging.info(
    "Held-out text, %.2f MB: %.3f bits per byte; mean entropy in the table %.3f bits.",
    sum(map(len, heldout)) / 1e6, model.info["heldout_bpb"], entropies.mean() / np.log(2),
  )  # fmt: skip
  shares = np.bincount(used, minlength=MAX_ORDER + 1) / len(used)
  logging.info(
    "Bytes of context used: %s.",
    ", ".join(f"{order} for {share:.1%}" for order, share in enumerate(shares) if share),
  )


if __name__ == "__main__":
  logs.run(main)
