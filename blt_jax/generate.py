"""Continues texts with a trained model.

  python -m blt_jax.generate --run=runs/quickstart/blt --prompt="def main("
  python -m blt_jax.generate --run=runs/quickstart/blt --file=story.txt --temperature=0.8
  python -m blt_jax.generate --run=runs/quickstart/blt --input=in.jsonl --output=out.jsonl
  python -m blt_jax.generate --run=runs/quickstart/answers --chat
  python -m blt_jax.generate --run=runs/pictures/digits --picture=digits --png=completed.png

A line of the input, blank ones aside, is an object with `prompt`, any of the options from
--max_bytes to --ignore_eos for this line alone, and other fields, such as an id, which its
lines of the output have too. Those are one for each sample, in order, with `prompt`, `text`,
`finish` ("end", "stop", "length", "patches" or "error"), `bytes`, `log_prob` in nats; `seed`
where there are several samples; `bytes_hex` where the bytes are not UTF-8, so that `text` does
not say all; with --show_patches `patch_starts` and `entropies`; or `error` instead.

With --chat, a run that was trained on answers gives some: to the lines that come in, one after
another in a dialogue; to the --prompt or the --file; or to each line of the input, which may
have `messages` instead of a `prompt`. Its own template says what stands around them.

With --picture, a run that learned pictures continues the upper half of the first one of a path.
The PNG file has that picture on the left and beside it each completed one.

The same command goes on with what was stopped: results wait in OUTPUT.unfinished until all
are there.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from absl import logging
from tqdm import tqdm

from blt_jax.cli import chat, logs, patch_view, pictures, plots, prompt_lines, run_flags
from blt_jax.cli.chat import Asker
from blt_jax.cli.parsing import Parser
from blt_jax.cli.prompt_lines import PromptLine
from blt_jax.decode.drafting import Drafting
from blt_jax.decode.generation import Generation
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.runs import checkpoint, corpus, folder, loading
from blt_jax.storage import atomic, files, paths
from blt_jax.storage.journal import Journal

# What nobody would read with --picture.
_OF_TEXT = (
  "chat", "ignore_eos", "max_bytes", "max_length", "no_stream", "show_patches", "stop",
  "truncate", "valid_utf8",
)  # fmt: skip
_OPTIONS = [field for field in dataclasses.fields(Sampling) if field.type in (int, float)]


def main(argv: list[str] | None = None) -> str | int:
  """Continues one prompt as a stream, or a file of prompts.

  Mistakes are found before the model is loaded.

  Returns:
    The exit status, or the error that stands for it.
  """
  args = _parser().parse_args(argv)
  logs.show_progress()
  asker = _asker(args)
  ends = [] if asker is None else [asker.end]
  options = Sampling(
    stop=[*map(os.fsencode, args.stop), *ends],
    valid_utf8=args.valid_utf8,
    ignore_eos=args.ignore_eos,
    **{field.name: getattr(args, field.name) for field in _OPTIONS},
  )
  if bool(args.input) != bool(args.output):
    raise ValueError(
      "--input=FILE has prompts, one a line, and --output=FILE is where results go: give both."
    )
  if bool(args.picture) != bool(args.png):
    raise ValueError(
      "--picture=PATH completes a picture of a path, and --png=FILE is where it is written: "
      "give both."
    )
  if args.picture:
    return _complete(args, prompt_lines.samples(options, args.num_samples))
  own, way_out = folder.find_config(args.run), "complete one with --picture=PATH --png=FILE"
  folder.check_reads_text(own, args.run, way_out)
  if not args.input:
    samples = prompt_lines.samples(options, args.num_samples)
    if asker is not None and args.prompt is None and args.file is None:
      return _converse(asker, samples, args)
    prompt = _prompt(args)
    asked = prompt if asker is None else asker([("user", prompt)])
    return _run_one(_generator(args), asked, samples, args)
  _check_apart(args.input, args.output)
  lines = files.read_bytes(args.input).splitlines()
  with atomic.writing(args.output) as file, _journal(args, lines) as journal:
    return _run_lines(_generator(args), lines, options, args, file, journal, asker)


def _asker(args: argparse.Namespace) -> Asker | None:
  """What makes prompts of dialogues, by the template of the run; None for other prompts."""
  if not args.chat:
    if args.system is not None:
      raise ValueError("--system begins a dialogue: give --chat with it.")
    return None
  template = corpus.source_options(folder.load_config(args.run).data).template
  if template is None:
    raise ValueError(
      f"{args.run} was not trained on answers, so it has no template for --chat; fine-tune it "
      "with config.data.format=answers first."
    )
  return Asker(template, args.system)


def _converse(asker: Asker, samples: list[Sampling], args: argparse.Namespace) -> str | int:
  """A dialogue with who writes the lines that come in."""
  for name in ("show_patches", "no_stream"):
    if getattr(args, name):
      raise ValueError(f"--{name} is for single prompts; leave it out of a dialogue.")
  if len(samples) > 1:
    raise ValueError("--num_samples is for single prompts; a dialogue has one answer a turn.")
  return chat.converse(_generator(args), asker, samples[0])


def _complete(args: argparse.Namespace, samples: list[Sampling]) -> str | int:
  """Continues the upper half of a picture, and writes all of it as PNG."""
  usual = _parser().get_default
  if given := [name for name in _OF_TEXT if getattr(args, name) != usual(name)]:
    raise ValueError(f"--{given[0]} is of text; leave it out with --picture.")
  if not args.png.lower().endswith(".png"):
    raise ValueError(f"--png={args.png} must end in .png: completed pictures have exact bytes.")
  options = corpus.source_options(folder.load_config(args.run).data)
  picture = pictures.first(args.picture, options, args.run)
  half, missing = pictures.split(picture)
  args.max_length = picture.size + 1
  samples = [
    dataclasses.replace(sample, max_bytes=missing, ignore_eos=True) for sample in samples
  ]
  shown = [picture]
  for result in _generator(args).generate([half] * len(samples), samples):
    if result.error or len(result.bytes) < missing:
      found = f"the model has no patches left after {len(result.bytes)} of {missing} bytes."
      return f"error: {result.error or found}"
    whole = np.frombuffer(half + result.bytes, np.uint8)
    shown.append(whole.reshape(picture.shape))
  pictures.write(args.png, shown)
  logging.info("Wrote %s: the picture, and %d completed.", args.png, len(shown) - 1)
  return 0


def _check_apart(source: str, target: str) -> None:
  """Raises ValueError if results would take the place of the prompts."""
  same = paths.absolute(source) == paths.absolute(target)
  if os.path.isfile(source) and os.path.isfile(target):
    same = os.path.samefile(source, target)
  if same:
    raise ValueError(f"--output {target} is the file of --input; the results need another.")


@contextlib.contextmanager
def _journal(args: argparse.Namespace, lines: list[bytes]) -> Iterator[Journal | None]:
  """Where results are noted as they come; nowhere if the output is no file, as a pipe is."""
  if os.path.exists(args.output) and not os.path.isfile(args.output):
    yield None
    return
  given = {k: v for k, v in vars(args).items() if k not in ("input", "output", "batch_size")}
  with contextlib.suppress(FileNotFoundError, ValueError):  # loading the run will say it
    given["step"] = checkpoint.find_step(args.run, args.step)
  given["lines"] = hashlib.sha256(b"\n".join(lines)).hexdigest()
  journal, is_whole = Journal(args.output, given), False
  try:
    yield journal
    is_whole = True
  finally:
    journal.close(is_whole)


def _generator(args: argparse.Namespace) -> Generator:
  drafting = _drafting(args)
  return Generator(
    loading.load_language_model(
      args.run, args.entropy_model, args.threshold, args.step, args.cumulative
    ),
    batch_size=args.batch_size,
    max_length=args.max_length,
    truncate=args.truncate,
    drafting=drafting,
  )


def _parser() -> Parser:
  parser = Parser("generate", __doc__)
  run_flags.add(parser)
  text = parser.add_mutually_exclusive_group()
  text.add_argument("--prompt", metavar="TEXT", help="to continue; by default what comes in")
  text.add_argument("--file", help="continue this file; - for what comes in")
  parser.add_argument("--chat", action="store_true", help="answer, in a dialogue")
  parser.add_argument("--system", metavar="TEXT", help="what the system says first in it")
  text.add_argument("--picture", metavar="PATH", help="complete the first picture of this path")
  plots.add_flag(parser, "PNG file for the pictures of --picture")
  text.add_argument("--input", metavar="FILE", help="continue every line of this JSONL file")
  parser.add_argument("--output", metavar="FILE", help="JSONL file for the results of --input")
  _add_sampling(parser)
  parser.add_argument("--no_stream", action="store_true", help="print when all is done")
  parser.add_argument("--show_patches", action="store_true", help="patches and entropies too")
  parser.add_argument(
    "--max_length", type=int, default=8192, metavar="N", help="bytes of prompt and continuation"
  )
  parser.add_argument("--truncate", action="store_true", help="drop the start of long prompts")
  parser.add_argument(
    "--batch_size", type=int, default=8, metavar="N", help="prompts at a time"
  )
  _add_models(parser)
  return parser


def _add_sampling(parser: Parser) -> None:
  for field in _OPTIONS:
    kind, what = type(field.default), field.metadata["meaning"]
    parser.add_argument(
      f"--{field.name}", type=kind, default=field.default, metavar="N", help=what
    )
  parser.add_argument(
    "--num_samples", type=int, default=1, metavar="N",
    help="continuations of each prompt, with seeds one after another",
  )  # fmt: skip
  parser.add_argument(
    "--stop",
    action="append",
    default=[],
    metavar="TEXT",
    help="end before this text; may be repeated",
  )
  parser.add_argument("--valid_utf8", action="store_true", help="write well-formed UTF-8 only")
  parser.add_argument(
    "--ignore_eos", action="store_true", help="do not end before --max_bytes are written"
  )


def _add_models(parser: Parser) -> None:
  parser.add_argument(
    "--draft", choices=("none", "entropy", "decoder"), default="none",
    help="who drafts bytes that the model verifies",
  )  # fmt: skip
  parser.add_argument(
    "--draft_length", type=int, default=Drafting.length, metavar="N",
    help="bytes of a draft at most",
  )  # fmt: skip
  parser.add_argument(
    "--draft_entropy", type=float, default=Drafting.max_entropy, metavar="NATS",
    help="entropy at which a draft ends",
  )  # fmt: skip
  run_flags.add_entropies(parser)


def _drafting(args: argparse.Namespace) -> Drafting | None:
  if args.draft == "none":
    if (args.draft_length, args.draft_entropy) != (Drafting.length, Drafting.max_entropy):
      raise ValueError("--draft_length and --draft_entropy say how to --draft.")
    return None
  return Drafting(args.draft, args.draft_length, args.draft_entropy)


def _prompt(args: argparse.Namespace) -> bytes:
  """The prompt's bytes; whether they are UTF-8 does not matter."""
  if args.prompt is not None:
    return os.fsencode(args.prompt)
  if args.file not in (None, "-"):
    return files.read_bytes(args.file)
  if sys.stdin is None or (args.file is None and sys.stdin.isatty()):
    return b""
  return sys.stdin.buffer.read()


def _run_one(
  generator: Generator, prompt: bytes, samples: list[Sampling], args: argparse.Namespace
) -> str | int:
  """Writes continuations as they come, the prompt before those that are no answers.

  Returns:
    The exit status, or the error that stands for it.
  """
  stride = 2**30 if args.no_stream else 16
  for options in samples:
    if len(samples) > 1:
      print(f"--- seed {options.seed}", flush=True)
    ahead = b"" if args.chat else prompt
    for piece in generator.stream([prompt], options, stride):
      if piece.result is not None and piece.result.error:
        return f"error: {piece.result.error}"
      sys.stdout.buffer.write(ahead + piece.bytes)
      sys.stdout.buffer.flush()
      ahead = b""
      if piece.result is not None:
        print(flush=True)
        if args.show_patches:
          print(_patches(piece.result, args.threshold))
  return 0


def _patches(result: Generation, threshold: float | None) -> str:
  if result.starts is None:
    return "This model has no patches."
  patched = patch_view.Patched(
    np.concatenate([result.prompt, result.ids]), result.starts, result.entropies, threshold
  )
  return patch_view.render(patched, use_colour=sys.stdout.isatty())


def _run_lines(
  generator: Generator,
  lines: list[bytes],
  options: Sampling,
  args: argparse.Namespace,
  file: TextIO,
  journal: Journal | None,
  asker: Asker | None,
) -> str | int:
  """Continues the prompts of a file; lines that are wrong fail alone."""
  requests: list[tuple[int, PromptLine, int]] = []  # number, line, sample
  records: dict[tuple[int, int], dict[str, Any]] = {}  # (number, sample) -> what to write
  for number, raw in enumerate(lines):
    fields: dict[str, Any] = {}
    try:
      if raw.strip():
        fields = prompt_lines.parse_fields(raw)
        line = prompt_lines.read(fields, options, args.num_samples, asker)
        requests += [(number, line, i) for i in range(len(line.samples))]
    except ValueError as error:
      message = {"error": f"line {number + 1}: {error}"}
      records[number, 0] = prompt_lines.other_fields(fields) | message
  # --- Generate what is not done, in any order
  done = {} if journal is None else journal.done
  keys = {(number, i) for number, _, i in requests}
  records |= {key: fields for key, fields in done.items() if key in keys}
  requests = [r for r in requests if (r[0], r[2]) not in done]
  prompts = [line.prompt for _, line, _ in requests]
  samplings = [line.samples[i] for _, line, i in requests]
  total = len(done) + len(requests)
  with tqdm(desc="Generating", total=total, initial=len(done), unit="text") as bar:
    for piece in generator.stream(prompts, samplings, stride=2**30):
      if piece.result is not None:
        number, line, i = requests[piece.index]
        fields = prompt_lines.record(line, i, piece.result, args.show_patches)
        records[number, i] = fields
        if journal is not None:
          journal.add((number, i), fields)
        bar.update()
  # --- Write, in the order of the lines
  for key in sorted(records):
    file.write(json.dumps(records[key], ensure_ascii=False) + "\n")
  failed = sum("error" in fields for fields in records.values())
  return f"error: {failed} of {len(records)} lines failed; see {args.output}." if failed else 0


if __name__ == "__main__":
  logs.run(main)
