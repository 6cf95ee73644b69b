"""A model that answers by a fixed function of the bytes, for tests of tasks."""

import hashlib
import math

from blt_jax.evals import suite
from blt_jax.evals.task import Choice, Continue, Request


def answer(request: Request, name: str = ""):
  """What the model of this name says to a request."""
  if isinstance(request, Choice):
    pairs = [(f"{request.context}|{c}", len(c.encode())) for c in request.continuations]
    return [(-size * (0.5 + _share(name + text)), False) for text, size in pairs]
  if isinstance(request, Continue):
    words = request.prompt.split()
    return " " + " ".join(words[:: 2 + int(3 * _share(name + request.prompt))])
  return -len(request.text.encode()) * math.log(2) * (1 + _share(name + request.text))


def report(names, data: str, name: str = "", **options) -> suite.Report:
  """What the model of this name does at tasks."""
  return answer_all(suite.prepare(names, data, **options), name)


def answer_all(prepared, name: str) -> suite.Report:
  """What the model of this name does at what `suite.prepare` read."""
  return {
    p.task.name: suite.summarise(*p, [[answer(r, name) for r in some] for some in p.asked])
    for p in prepared
  }


def _share(text: str) -> float:
  """In [0, 1)."""
  return hashlib.sha256(text.encode()).digest()[0] / 256
