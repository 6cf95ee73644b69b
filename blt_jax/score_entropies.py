r"""Scores documents with a trained entropy model, or a BLT, and stores their entropies.

  python -m blt_jax.score_entropies --model=runs/entropy --input=data.jsonl --output=scored
  python -m blt_jax.calibrate --run=scored --target_bytes_per_patch=4.5
  python -m blt_jax.train --config=... --config.data.path=scored \
    --config.patching.entropies=stored

The run of a BLT gives entropies of its own next bytes, under its patches (docs/models.md):

  python -m blt_jax.score_entropies --model=runs/blt --input=scored --output=own_scored

The same command goes on with what was stopped. Several processes may share the work: start
the command once for each with --num_processes and its own --process.
"""

import argparse
import collections
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from blt_jax import kinds, tokenizer
from blt_jax.cli import logs, run_flags, source_flags
from blt_jax.cli.parsing import Parser
from blt_jax.data.mixture import EveryNth
from blt_jax.data.reading import scored, shards, sources, streams
from blt_jax.data.reading.documents import Dataset, Document, Skipped, SourceOptions
from blt_jax.entropy.neural import BatchScorer, window_of
from blt_jax.entropy.table import is_table
from blt_jax.evals.text_entropies import BLTScorer
from blt_jax.runs import checkpoint, entropy_digest, folder, loading, patcher

# Rows side by side, and bytes of a chunk. On the 132 cores of an H100 or H200, 11 rows of
# 6,144 give almost every core the same work in each kernel.
_LANES = {"cpu": (4, 512), "gpu": (11, 6144), "tpu": (16, 4096)}

Report = Callable[[int], None]
Scorer = Callable[[Sequence[Document], Report], list[np.ndarray]]
Made = dict[str, Any]  # what a manifest says of the model


def main(argv: list[str] | None = None) -> None:
  """Scores what is not scored yet."""
  args = _parse(argv)
  logs.show_progress()
  _check(args)
  skipped = Skipped()
  options = source_flags.parse(args)
  documents = sources.open_source(args.input, options, skipped)
  step = checkpoint.find_step(args.model, args.step)
  checkpoint.warn_if_old(args.model, step)
  kind = kinds.find_kind(folder.load_config(args.model).model.kind)
  made, scorer = (_of_blt if kind.patched else _of_entropy_model)(args, step)
  scored.begin(args.output, _make_manifest(args, options, step, made))
  score(args, documents, scorer, skipped)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser("score_entropies", __doc__)
  run_flags.add(parser, "folder of the run of the entropy model, or of a BLT", "--model")
  add = parser.add_argument
  add("--input", required=True, metavar="PATH", help="text, as in config.data.path")
  add("--output", required=True, metavar="FOLDER", help="for the shards, local or gs://")
  source_flags.add(parser)
  add("--reset_at_newline", action="store_true", help="begin contexts anew after newlines")
  add("--dtype", default="float16", choices=("float16", "float32"), help="of the entropies")
  add(
    "--compute_dtype", choices=("bfloat16", "float32"),
    help="of activations; by default what the model was trained with",
  )  # fmt: skip
  add("--shard_megabytes", type=float, default=64, metavar="MB", help="text in a shard")
  add("--num_lanes", type=int, metavar="N", help="rows scored side by side; by default as suits"
      " the device")  # fmt: skip
  add("--chunk_length", type=int, metavar="N", help="bytes of a row scored at once; likewise")
  run_flags.add_entropies(parser)
  add(
    "--context", type=int, metavar="N", help="bytes that a prediction of a BLT sees at most; "
    "by default as many as fit the run's rows",
  )  # fmt: skip
  add("--process", type=int, default=0, metavar="N", help="number of this process, from 0")
  add("--num_processes", type=int, default=1, metavar="N", help="how many share the work")
  return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
  if is_table(args.model):
    raise ValueError(
      f"{args.model} is a table, of which nothing is stored: training measures with it, by "
      "config.patching.entropies='table' and config.patching.entropy_model."
    )
  if not 0 <= args.process < args.num_processes:
    raise ValueError(
      f"--process must be in [0, --num_processes), got {args.process} of {args.num_processes}."
    )
  if not 0 < args.shard_megabytes < math.inf:
    raise ValueError(f"--shard_megabytes must be above 0, got {args.shard_megabytes}.")
  for name in ("num_lanes", "chunk_length"):
    if (size := getattr(args, name)) is not None and size < 1:
      raise ValueError(f"--{name} must be 1 or more, got {size}.")


def _of_entropy_model(args: argparse.Namespace, step: int) -> tuple[Made, Scorer]:
  _check_unused(args, "a BLT", ("entropy_model", "threshold", "cumulative", "context"))
  model = folder.load_entropy_model(args.model, step)
  model = model._replace(
    config=dataclasses.replace(model.config, dtype=args.compute_dtype or model.config.dtype)
  )
  digest, window = patcher.params_digest(model.params), window_of(model.config)
  scorer = _make_scorer(args, model)

  def score_texts(documents: Sequence[Document], report: Report) -> list[np.ndarray]:
    return scorer([tokenizer.encode(d.text) for d in documents], report)

  return {"digest": digest, "window": window, "compute_dtype": model.config.dtype}, score_texts


def _of_blt(args: argparse.Namespace, step: int) -> tuple[Made, Scorer]:
  _check_unused(args, "an entropy model", ("chunk_length", "compute_dtype", "reset_at_newline"))
  run = folder.load_run(args.model, step)
  given = args.entropy_model, args.threshold, args.input, args.cumulative
  own = loading.load_patcher(run.config.patching, args.model, *given)
  scorer = BLTScorer(run, own, args.context, args.num_lanes)
  patching = dataclasses.asdict(own.config) | {
    "patched_by": own.patched_by,
    "entropy_model": args.entropy_model or run.config.patching.entropy_model,
  }
  return {
    "digest": entropy_digest.find(args.model, step) or "",
    "window": scorer.context,
    "compute_dtype": run.model.config.dtype,
    "patching": json.dumps(patching),
  }, scorer


def _check_unused(args: argparse.Namespace, owner: str, names: Sequence[str]) -> None:
  """Raises ValueError where a flag is given that goes with another kind of model."""
  values = {name: getattr(args, name) for name in names}  # 0 is a value that was given
  given = [name for name, value in values.items() if value is not None and value is not False]
  if given:
    raise ValueError(f"--{given[0]} is of {owner}, and {args.model} is none; leave it out.")


def _make_scorer(args: argparse.Namespace, model: folder.EntropyModel) -> BatchScorer:
  lanes, length = _LANES.get(jax.default_backend(), _LANES["gpu"])
  lanes = (args.num_lanes or lanes) * (1 if args.num_lanes else jax.local_device_count())
  length = args.chunk_length or length
  return BatchScorer(*model, args.reset_at_newline, lanes, length)


def _make_manifest(
  args: argparse.Namespace, options: SourceOptions, step: int, made: Made
) -> scored.Manifest:
  return scored.Manifest(
    model=args.model,
    step=step,
    entropy_dtype=args.dtype,
    reset_at_newline=args.reset_at_newline,
    input=args.input,
    num_processes=args.num_processes,
    input_files=sources.fingerprint(args.input, options),
    text_field=options.text_field,
    invalid_utf8=options.invalid_utf8,
    template="" if options.template is None else options.template.to_json(),
    **made,
  )


def score(
  args: argparse.Namespace, documents: Dataset, scorer: Scorer, skipped: Skipped
) -> None:
  """Scores and stores a process's share of the documents, shard by shard.

  Reading the next shard and writing the last one go on beside scoring.
  """
  if shards.is_done(args.output, args.process):
    logging.info("%s is scored already.", args.output)
    return
  progress = shards.go_on(args.output, args.process)
  if isinstance(documents, grain.MapDataset):  # a stream is read from its start once more
    skipped.counts |= collections.Counter(progress.skipped)
  numbered = _own_documents(documents, args, progress.next_document)
  with futures.ThreadPoolExecutor(2) as pool, _bar(progress) as bar:
    reading = pool.submit(_read_shard, numbered, args.shard_megabytes, skipped)
    writing: futures.Future[Any] | None = None
    while found := (shard := reading.result()).documents:
      reading = pool.submit(_read_shard, numbered, args.shard_megabytes, skipped)
      progress = _advance(progress, shard)
      bar.total = _estimate_total(documents, args.num_processes, progress)
      entropies = scorer(found, bar.update)
      pairs = zip(found, entropies, strict=True)
      results = [dataclasses.replace(d, entropies=h) for d, h in pairs]
      if writing:
        writing.result()
      writing = pool.submit(
        shards.write_shard, args.output, args.process, results, args.dtype, progress
      )
    if writing:
      writing.result()
  facts = dataclasses.asdict(progress) | {"skipped": dict(skipped.counts)}
  shards.mark_done(args.output, args.process, facts)
  logging.info("Scored %s documents, %s bytes; left out: %s.", f"{progress.documents:,}",
    f"{progress.text_bytes:,}", dict(skipped.counts) or "none")  # fmt: skip


def _bar(progress: shards.Progress) -> tqdm:
  return tqdm(
    desc="Scoring", unit="B", unit_scale=True, initial=progress.text_bytes, mininterval=1.0
  )


def _own_documents(
  documents: Dataset, args: argparse.Namespace, start: int
) -> Iterator[tuple[int, Document]]:
  """This process's documents from its `start`-th on, numbered."""
  if isinstance(documents, grain.MapDataset):
    own = documents[args.process :: args.num_processes]
    numbered = ((i, own[i]) for i in range(start, len(own)))
    return ((i, document) for i, document in numbered if document is not None)
  stream = enumerate(EveryNth(documents, args.process, args.num_processes))
  return ((i, document) for i, document in stream if i >= start)


class _Shard(NamedTuple):
  """Documents, the number of the one after them, and what was left out up to there."""

  documents: list[Document]
  end: int
  skipped: dict[str, int]


def _read_shard(
  numbered: Iterator[tuple[int, Document]], megabytes: float, skipped: Skipped
) -> _Shard:
  """Reads about so many megabytes."""
  documents, size, end = [], 0, 0
  while size < megabytes * 1e6 and (entry := next(numbered, None)):
    documents.append(entry[1])
    size, end = size + len(entry[1].text), entry[0] + 1
  return _Shard(documents, end, dict(skipped.counts))


def _advance(progress: shards.Progress, shard: _Shard) -> shards.Progress:
  return shards.Progress(
    num_shards=progress.num_shards + 1,
    next_document=shard.end,
    documents=progress.documents + len(shard.documents),
    text_bytes=progress.text_bytes + sum(len(d.text) for d in shard.documents),
    skipped=shard.skipped,
  )


def _estimate_total(
  documents: Dataset, num_processes: int, progress: shards.Progress
) -> int | None:
  """About how many bytes this process's share has, from the text so far; None: unknown."""
  if isinstance(documents, streams.RecordStream):
    return documents.size and documents.size // num_processes
  rows = documents if isinstance(documents, grain.MapDataset) else documents.parents[0]
  return int(progress.text_bytes / progress.next_document * len(rows) / num_processes)


if __name__ == "__main__":
  logs.run(main)
