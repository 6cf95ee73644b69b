"""Seconds that each task of the suite takes with a BLT of random weights of a given size.

  python benchmarks/tasks.py --size=1b --data=FOLDER [--tasks=hellaswag,cute] [--run_code]

The entropy model runs, but patches have 4 and 5 bytes in turn, as in benchmarks/generate.py.
Random weights write no EOS, and stop strings by chance alone: `written` is what tasks allow.
Compiling is in the seconds. By default all tasks are asked whose file is in the folder.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import generate
import jax

from blt_jax.cli.task_bar import TaskBar
from blt_jax.decode.language_model import LanguageModel
from blt_jax.evals import asking, samples, suite
from blt_jax.evals.task import Continue


def main() -> None:
  """Measures and prints a table, a row when it is known."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", default="1b", help="of configs/blt_SIZE.py (1b)")
  parser.add_argument("--data", default="sample", help="folder of tasks' files (sample)")
  parser.add_argument("--tasks", help="names with commas between")
  parser.add_argument("--limit", type=int, help="the first so many rows of each")
  parser.add_argument("--batch_size", type=int, default=64, help="texts at a time (64)")
  parser.add_argument("--run_code", action="store_true", help="ask for programs and run them")
  parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
  args = parser.parse_args()
  names = args.tasks.split(",") if args.tasks else _found(args.data, args.run_code)
  model = generate.random_model(args.size)
  print(f"{jax.devices()[0].device_kind}, batches of {args.batch_size}")
  print(f"{'task':24} {'rows':>6} {'read kB':>9} {'written kB':>11} {'seconds':>8}")
  rows = []
  for name in names:
    (prepared,) = suite.prepare([name], args.data, args.limit, run_code=args.run_code)
    rows.append(row := measure(model, prepared, args.batch_size))
    print("{task:24} {rows:6} {read_kB:9.0f} {written_kB:11.0f} {seconds:8.1f}".format(**row))
    if args.json:
      args.json.write_text(json.dumps(rows, indent=2))


def _found(data: str, run_code: bool) -> list[str]:
  """Tasks whose file is there, without their noises."""
  home = pathlib.Path(samples.locate(data))
  return [
    name
    for name, task in suite.TASKS.items()
    if (home / f"{task.file}.jsonl").exists()
    and not name.endswith("_noise")
    and (run_code or not hasattr(task, "run_code"))
  ]


def measure(model: LanguageModel, prepared: suite.Prepared, batch_size: int) -> dict[str, Any]:
  """Asks one task; bytes are those of its requests, shared contexts counted once."""
  written = sum(r.max_bytes for own in prepared.asked for r in own if isinstance(r, Continue))
  with TaskBar() as bar:
    begin = time.perf_counter()
    suite.ask(model, [prepared], batch_size, bar)
    seconds = time.perf_counter() - begin
  return {
    "task": prepared.task.name,
    "rows": len(prepared.items),
    "read_kB": (sum(map(asking.size, prepared.asked)) - written) / 1e3,
    "written_kB": written / 1e3,
    "seconds": seconds,
  }


if __name__ == "__main__":
  main()
