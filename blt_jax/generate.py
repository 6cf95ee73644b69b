"""Continues texts with a trained model.

  python -m blt_jax.generate --run=runs/quickstart/blt --prompt="def main("
  python -m blt_jax.generate --run=runs/quickstart/blt --file=story.txt --temperature=0.8
  python -m blt_jax.generate --run=runs/quickstart/blt --input=in.jsonl --output=out.jsonl

A line of the input, blank ones aside, is an object with `prompt`, and any of the sampling
options for this line alone. Its line of the output has `prompt`, `text`, `finish` ("end",
"stop", "length", "patches" or "error"), `bytes`, `log_prob` in nats and, with
--show_patches, `patch_starts` and `entropies`; or `error`.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from blt_jax import tokenizer
from blt_jax.cli import logs, patch_view
from blt_jax.decode.drafting import Drafting
from blt_jax.decode.generation import Generation
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.runs import loading
from blt_jax.storage import atomic

_OPTIONS = dict(
    max_bytes=(int, "bytes to add at most"),
    temperature=(float, "0: the likeliest byte; 1: the model's distribution"),
    top_k=(int, "draw among so many likeliest bytes; 0: all"),
    top_p=(float, "draw among the likeliest bytes of this total probability"),
    min_p=(float, "draw among bytes at least so likely, relative to the likeliest"),
    repetition_penalty=(float, "makes bytes that occurred less likely; 1: no"),
    seed=(int, "of the draws"),
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  """Continues one prompt as a stream, or a file of prompts."""
  args = _parser().parse_args(argv)
  logs.show_progress()
  logs.run(lambda: _run(args))


def _run(args) -> str | int:
  """Does what was asked for, mistakes found before the model is loaded; an exit status."""
  options = Sampling(
    stop=[os.fsencode(text) for text in args.stop],
    valid_utf8=args.valid_utf8,
    **{name: getattr(args, name) for name in _OPTIONS},
  )
  if bool(args.input) != bool(args.output):
    raise ValueError("--input needs --output, the file for the results, and it --input.")
  if not args.input:
    prompt = _prompt(args)
    return _run_one(_generator(args), prompt, options, args)
  lines = pathlib.Path(args.input).read_bytes().splitlines()
  with atomic.writing(args.output) as file:
    return _run_lines(_generator(args), lines, options, args, file)


def _generator(args) -> Generator:
  drafting = _drafting(args)
  return Generator(
    loading.load_language_model(args.run, args.entropy_model, args.threshold),
    batch_size=args.batch_size,
    max_length=args.max_length,
    truncate=args.truncate,
    drafting=drafting,
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--run", required=True, help="folder of the run")
  text = parser.add_mutually_exclusive_group()
  text.add_argument("--prompt", help="text to continue; default: what comes in, if anything")
  text.add_argument("--file", help="continue this file; - for what comes in")
  text.add_argument("--input", help="continue every line of this JSONL file")
  parser.add_argument("--output", help="JSONL file for the results of --input")
  for name, (kind, what) in _OPTIONS.items():
    default = getattr(Sampling, name)
    parser.add_argument(f"--{name}", type=kind, default=default, help=f"{what} ({default})")
  parser.add_argument("--stop", action="append", default=[], help="text to end before; repeat")
  parser.add_argument("--valid_utf8", action="store_true", help="write well-formed UTF-8 only")
  parser.add_argument("--no_stream", action="store_true", help="print when all is done")
  parser.add_argument("--show_patches", action="store_true", help="patches and entropies too")
  parser.add_argument("--max_length", type=int, default=8192, help="prompt and bytes added")
  parser.add_argument("--truncate", action="store_true", help="drop the start of long prompts")
  parser.add_argument("--batch_size", type=int, default=8, help="lines at a time")
  parser.add_argument("--draft", choices=("none", "entropy", "decoder"), default="none",
                      help="who drafts bytes that the model verifies (none)")  # fmt: skip
  parser.add_argument("--draft_length", type=int, default=Drafting.length,
                      help="bytes of a draft at most")  # fmt: skip
  parser.add_argument("--draft_entropy", type=float, default=Drafting.max_entropy,
                      help="nats of entropy at which a draft ends")  # fmt: skip
  parser.add_argument("--entropy_model", help="folder of its run, if not that of the training")
  parser.add_argument("--threshold", type=float, help="nats, likewise")
  return parser


def _drafting(args) -> Drafting | None:
  if args.draft == "none":
    if (args.draft_length, args.draft_entropy) != (Drafting.length, Drafting.max_entropy):
      raise ValueError("--draft_length and --draft_entropy say how to --draft.")
    return None
  return Drafting(args.draft, args.draft_length, args.draft_entropy)


def _prompt(args) -> bytes:
  """The prompt's bytes; whether they are UTF-8 does not matter."""
  if args.prompt is not None:
    return os.fsencode(args.prompt)
  if args.file not in (None, "-"):
    return pathlib.Path(args.file).read_bytes()
  if sys.stdin is None or (args.file is None and sys.stdin.isatty()):
    return b""
  return sys.stdin.buffer.read()


def _run_one(generator: Generator, prompt: bytes, options: Sampling, args) -> str | int:
  """Writes the prompt and, as it comes, its continuation; returns an exit status."""
  pieces = generator.stream([prompt], options, 2**30 if args.no_stream else 16)
  ahead = prompt
  for piece in pieces:
    if piece.result is not None and piece.result.error:
      return f"error: {piece.result.error}"
    sys.stdout.buffer.write(ahead + tokenizer.decode_bytes(piece.ids))
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
  generator: Generator, lines: list[bytes], options: Sampling, args, file: TextIO
) -> str | int:
  """Continues the prompts of a file; lines that are wrong fail alone."""
  requests, results = [], {}
  numbered = [(i, line) for i, line in enumerate(lines) if line.strip()]
  for number, line in numbered:
    try:
      requests.append((number, *_request(line, options)))
    except ValueError as error:
      results[number] = {"error": f"line {number + 1}: {error}"}
  texts, samplings = [r[1] for r in requests], [r[2] for r in requests]
  with tqdm(desc="Generating", total=len(requests), unit="line") as bar:
    for piece in generator.stream(texts, samplings, stride=2**30):
      if piece.result is not None:
        number, text, _ = requests[piece.index]
        results[number] = _record(text, piece.result, args.show_patches)
        bar.update()
  for number, _ in numbered:
    file.write(json.dumps(results[number], ensure_ascii=False) + "\n")
  failed = sum("error" in r for r in results.values())
  return f"error: {failed} of {len(results)} lines failed; see {args.output}." if failed else 0


def _request(line: bytes, options: Sampling) -> tuple[str, Sampling]:
  """Prompt and options of a line."""
  try:
    fields = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"it is no JSON ({error}).") from None
  if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
    raise ValueError('it must be an object with a string "prompt".')
  prompt = fields.pop("prompt")
  if not tokenizer.is_text(prompt):
    raise ValueError("the prompt has a lone surrogate.")
  known = {f.name for f in dataclasses.fields(Sampling)}
  if unknown := sorted(fields.keys() - known):
    raise ValueError(f"unknown {unknown}; options are {sorted(known)}.")
  return prompt, dataclasses.replace(options, **fields)


def _record(prompt: str, result: Generation, show_patches: bool) -> dict[str, Any]:
  if result.error:
    return {"prompt": prompt, "finish": result.finish, "error": result.error}
  record = {
    "prompt": prompt,
    "text": result.text,
    "finish": result.finish,
    "bytes": len(result.bytes),
    "log_prob": float(result.log_probs.sum(dtype=np.float64)),
  }
  if show_patches and result.starts is not None:
    record["patch_starts"] = np.flatnonzero(result.starts).tolist()
  if show_patches and result.entropies is not None:
    record["entropies"] = [round(float(h), 4) for h in result.entropies]
  return record


if __name__ == "__main__":
  main()
