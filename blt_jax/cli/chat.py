"""A dialogue with a model: what it is asked, and turns on a terminal."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from blt_jax.data.reading import answers
from blt_jax.data.reading.documents import BadInputError
from blt_jax.data.template import Template, Turn
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling


class Asker:
  """Makes the texts that a model continues with its answers."""

  def __init__(self, template: Template, system: str | None = None):
    """Takes the template, and what the system says where no message does."""
    self.end = template.end
    self._template = template
    self._system: list[Turn] = [] if system is None else [("system", os.fsencode(system))]

  def __call__(self, turns: Sequence[Turn]) -> bytes:
    """What comes before the answer to some turns."""
    has_system = any(role == "system" for role, _ in turns)
    return self._template.ask([*([] if has_system else self._system), *turns])

  def read(self, fields: dict[str, Any]) -> bytes:
    """What comes before the answer to the fields of a line: a `prompt`, or `messages`.

    Raises:
      ValueError: there is neither, or both, or no answer is missing.
    """
    if ("prompt" in fields) == (answers.MESSAGES in fields):
      raise ValueError('it must be an object with a string "prompt", or with "messages".')
    message = {"role": "user", "content": fields.get("prompt")}
    try:
      turns = answers.read_turns({answers.MESSAGES: fields.get(answers.MESSAGES, [message])})
    except BadInputError as error:
      raise ValueError(f"{error.reason} ({error.details}).") from None
    except UnicodeEncodeError:
      raise ValueError("the prompt has a lone surrogate.") from None
    if turns[-1][0] == "assistant":
      raise ValueError("the last message is an answer already.")
    return self(turns)


def converse(generator: Generator, asker: Asker, options: Sampling) -> str | int:
  """Answers the lines that come in, each a turn of one dialogue; blank ones aside.

  Returns:
    The exit status, or the error that stands for it.
  """
  turns: list[Turn] = []
  for line in _lines():
    turns.append(("user", line))
    answer = b""
    for piece in generator.reply(asker(turns), options):
      if piece.result is not None and piece.result.error:
        return f"error: {piece.result.error}"
      answer += piece.bytes
      sys.stdout.buffer.write(piece.bytes)
      sys.stdout.buffer.flush()
      if piece.result is not None and piece.result.finish not in ("stop", "end"):
        logging.warning(
          "The answer did not end by itself (%s); --max_bytes lets it be longer.",
          piece.result.finish,
        )
    print(flush=True)
    turns.append(("assistant", answer))
  return 0


def _lines() -> Iterator[bytes]:
  """Lines that are not blank, without their ends; a terminal is asked for them."""
  while True:
    if sys.stdin.isatty():
      print("> ", end="", flush=True)
    line = sys.stdin.buffer.readline()
    if not line:
      return
    if line.strip():
      yield line.rstrip(b"\r\n")
