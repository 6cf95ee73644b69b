"""Counts the most frequent byte n-grams of a text, for n-gram embeddings.

  python -m blt_jax.count_ngrams --input=PATH --output=runs/ngrams
  python -m blt_jax.train --config=configs/quickstart.py --config.data.ngram_tables=runs/ngrams

One pass in bounded memory. A run that trains with the tables keeps a copy in its folder.
"""

import argparse

from absl import logging
from tqdm import tqdm

from blt_jax.cli import logs, source_flags
from blt_jax.cli.parsing import Parser, parse_ascending
from blt_jax.data.reading import sources
from blt_jax.entropy import frequent_ngrams, ngram_counts
from blt_jax.storage.folders import Folder


def main(argv: list[str] | None = None) -> None:
  """Counts, writes the tables and says what they cover."""
  args = _parse(argv)
  logs.show_progress()
  sizes = parse_ascending("--sizes", args.sizes, frequent_ngrams.MAX_LENGTH)
  for name in ("rows", "max_ngrams", "max_bytes"):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise ValueError(f"--{name} must be 1 or more, got {value}.")
  if Folder(args.output).sizes():
    raise ValueError(f"{args.output} is not empty; remove it, or choose another --output.")
  documents = sources.stream_documents(args.input, source_flags.parse(args), args.max_bytes)
  counter, num_bytes = frequent_ngrams.NgramCounter(sizes, args.max_ngrams), 0
  with tqdm(desc="Counting", unit="B", unit_scale=True) as bar:
    for chunk in ngram_counts.chunks(documents):
      counter.add(chunk)
      size = sum(map(len, chunk))
      num_bytes += size
      bar.update(size)
  tables = counter.most_frequent(args.rows)
  if not all(len(table.counts) for table in tables.values()):
    raise ValueError(f"{args.input} has no document of {sizes[-1]} bytes; give more text.")
  frequent_ngrams.save(args.output, tables)
  for n, table in tables.items():
    _report(n, table, counter.missed[n], num_bytes)
  logging.info("Wrote %s.", args.output)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser("count_ngrams", __doc__)
  add = parser.add_argument
  add("--input", required=True, metavar="PATH", help="text, as in config.data.path")
  add("--output", required=True, metavar="FOLDER", help="to make for the tables")
  add("--sizes", default="3,4,5,6,7,8", metavar="N,...", help="bytes of an n-gram, 8 at most")
  add("--rows", type=int, default=50_000, metavar="N", help="most n-grams of a table")
  add(
    "--max_ngrams", type=int, default=1 << 24, metavar="N",
    help="to remember of each size while counting, 16 bytes each",
  )  # fmt: skip
  add("--max_bytes", type=int, metavar="N", help="read the first so many; by default all")
  source_flags.add(parser)
  return parser.parse_args(argv)


def _report(n: int, table: frequent_ngrams.Frequent, missed: int, num_bytes: int) -> None:
  logging.info(
    "n = %d: %d n-grams, which end at %.1f%% of the bytes; the last is there %d times.",
    n, len(table.counts), 100 * table.counts.sum() / num_bytes, table.counts[-1],
  )  # fmt: skip
  if missed:
    logging.warning(
      "n = %d: counts may be low by up to %d; raise --max_ngrams to count more exactly.",
      n,
      missed,
    )


if __name__ == "__main__":
  logs.run(main)
