"""Writes prompts and answers: functions of Python's standard library, from docstring to body.

  python docs/stdlib_answers.py runs/stdlib_answers

A prompt is a function's head and docstring, its completion the code after it. Functions of
less than 2 lines of code, or of more than 900 bytes in all, are left out. Those of one file in
20 are in FOLDER/heldout.jsonl, the others in FOLDER/train.jsonl.
"""

import ast
import json
import pathlib
import sys
import sysconfig
import zlib
from collections.abc import Iterator

_MOST_BYTES, _LEAST_LINES = 900, 2
_LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "lib2to3"}


def main(folder: str) -> None:
  """Writes a line of JSON for each function."""
  library, output = pathlib.Path(sysconfig.get_path("stdlib")), pathlib.Path(folder)
  lines: dict[str, list[str]] = {"train": [], "heldout": []}
  for path in sorted(library.rglob("*.py")):
    name = path.relative_to(library)
    if not _LEFT_OUT & set(name.parts):
      side = "train" if zlib.crc32(name.as_posix().encode()) % 20 else "heldout"
      lines[side] += [json.dumps(record) + "\n" for record in read(path.read_bytes())]
  output.mkdir(parents=True, exist_ok=True)
  for side, found in lines.items():
    (output / f"{side}.jsonl").write_text("".join(found))
    print(f"{output}/{side}.jsonl: {len(found):,} functions")


def read(source: bytes) -> Iterator[dict[str, str]]:
  """The functions with a docstring in a file."""
  try:
    tree, lines = ast.parse(source), source.decode().splitlines(keepends=True)
  except (SyntaxError, ValueError):  # not every file there is today's Python, in UTF-8
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
      middle = node.body[0].end_lineno
      head, body = lines[node.lineno - 1 : middle], lines[middle : node.end_lineno]
      record = {"prompt": "".join(head), "completion": "".join(body)}
      size = len("".join(head + body).encode())
      if size <= _MOST_BYTES and len(body) >= _LEAST_LINES and record["completion"].strip():
        yield record


if __name__ == "__main__":
  main(*sys.argv[1:])
