"""Records of prompts and answers, as documents that know which of their bytes are answers."""

from collections.abc import Callable, Mapping
from typing import Any

from blt_jax.data.reading.documents import BadInputError, Document
from blt_jax.data.template import ROLES, Template, Turn
from blt_jax.storage import unique_names

PAIR, MESSAGES = ("prompt", "completion"), "messages"
FIELDS = (*PAIR, MESSAGES)
_NEEDED = f"a record has {PAIR[0]!r} and {PAIR[1]!r}, or {MESSAGES!r}"
_MESSAGE = {"role", "content"}


def to_document(
  record: Mapping[str, Any],
  template: Template,
  encode: Callable[[str], bytes] = str.encode,
) -> Document:
  """Writes a record as the template says.

  Args:
    record: its fields; one that is None counts as missing.
    template: how.
    encode: what makes bytes of its texts.

  Raises:
    BadInputError: it is neither form or both, or there is no answer in it.
  """
  turns = read_turns(record, encode)
  answers = [content for role, content in turns if role == "assistant"]
  if not answers:
    raise BadInputError("no answer", "no message has the role 'assistant'")
  for answer in answers:
    if not answer:
      raise BadInputError("an empty answer", "there is nothing to learn")
    if (answer + template.end).find(template.end) < len(answer):
      details = f"the template ends answers with {template.assistant[1]!r}; choose another"
      raise BadInputError("an answer that has the end of answers in it", details)
  text, spans = template.render(turns)
  return Document(text, answers=spans)


def read_turns(
  record: Mapping[str, Any], encode: Callable[[str], bytes] = str.encode
) -> list[Turn]:
  """The turns of a record, whether there is an answer among them or not.

  Raises:
    BadInputError: the record is neither form or both, or they are not as they should be.
  """
  given = [name for name in FIELDS if record.get(name) is not None]
  if MESSAGES in given and len(given) > 1:
    raise BadInputError(f"both {given[0]!r} and {MESSAGES!r}", _NEEDED)
  if MESSAGES in given:
    return _read_messages(record[MESSAGES], encode)
  if len(given) < 2:
    names = ", ".join(map(repr, list(record)[:10])) or "none"
    missing = next((name for name in PAIR if given and name not in given), "")
    what = f"no {missing!r}" if missing else f"no {PAIR[0]!r} and no {MESSAGES!r}"
    raise BadInputError(what, f"{_NEEDED}; its fields: {names}")
  roles = zip(("user", "assistant"), PAIR, strict=True)
  return [(role, _read_text(record[name], f"{name!r}", encode)) for role, name in roles]


def _read_messages(messages: Any, encode: Callable[[str], bytes]) -> list[Turn]:
  if messages is unique_names.SEVERAL:
    raise BadInputError(f"several fields {MESSAGES!r}", "which one is meant?")
  if not isinstance(messages, list) or not messages:
    raise BadInputError(f"no list of messages in {MESSAGES!r}", _describe(messages))
  turns = []
  for number, message in enumerate(messages, start=1):
    if not isinstance(message, Mapping):
      raise BadInputError("a message that is no object", f"number {number}")
    names = {name for name, value in message.items() if value is not None}
    if names != _MESSAGE:
      others = ", ".join(map(repr, sorted(names))) or "none"
      details = f"number {number} has {others}; a message has 'role' and 'content' alone"
      raise BadInputError("a message with other fields", details)
    if message["role"] not in ROLES:
      details = f"{message['role']!r} in number {number}; there are {', '.join(ROLES)}"
      raise BadInputError("an unknown role", details)
    what = f"the content of message {number}"
    turns.append((message["role"], _read_text(message["content"], what, encode)))
  return turns


def _read_text(value: Any, what: str, encode: Callable[[str], bytes]) -> bytes:
  if value is unique_names.SEVERAL:
    raise BadInputError(f"several fields {what}", "which one is meant?")
  if isinstance(value, bytes):  # a column of Arrow may hold them
    return value
  if not isinstance(value, str):
    raise BadInputError("no string where a text should be", f"{what}: {_describe(value)}")
  return encode(value)


def _describe(value: Any) -> str:
  return "an empty list" if value == [] else f"but {type(value).__name__}"
