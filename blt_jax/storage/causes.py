"""What an error of storage means: no space, no permission, or a moment that passes."""

import errno
import re
from collections.abc import Collection, Iterator

_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPACE_TEXTS = ("no space left", "disk quota exceeded", "file too large")
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_DENIED_TEXTS = ("permission denied", "permission_denied", "read-only file system", "forbidden")
_PASSING = {
  *(errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.EMFILE),
  *(errno.ENFILE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENETDOWN),
  *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPIPE, errno.ENOTCONN),
}
# As TensorStore, gRPC and the clients of buckets say it.
_PASSING_TEXTS = (
  *("unavailable", "deadline", "timed out", "timeout", "aborted", "too many requests"),
  *("resource_exhausted", "connection", "temporar", "try again", "too many open files"),
  *("input/output error", "stale file handle", "service unavailable", "internal error"),
)
_PASSING_CODES = re.compile(r"\b(429|50[0234])\b")  # of HTTP
_PAGES = re.compile(r"\n| See full TensorStore details| \[tensorstore_spec=")
_BRIEF = 400  # characters
_PATHS = re.compile(r"\S*/\S*")  # whose names say nothing of the cause


def is_passing(error: BaseException) -> bool:
  """Whether the same may go well a little later: it says nothing about what is stored."""
  return _speaks_of(error, _PASSING, _PASSING_TEXTS) or any(
    isinstance(e, TimeoutError | ConnectionError) or _PASSING_CODES.search(_text(e))
    for e in _chain(error)
  )


def advice(error: BaseException) -> str:
  """What to do where something could not be written, without a full stop."""
  if _speaks_of(error, _SPACE, _SPACE_TEXTS):
    return "Check free space"
  if _speaks_of(error, _DENIED, _DENIED_TEXTS):
    return "Check permissions"
  if is_passing(error):
    return "Storage did not answer; try again"
  return "Check the path and what it is on"


def brief(error: BaseException) -> str:
  """What an error says, without the pages that TensorStore adds, and without a full stop."""
  text = _PAGES.split(str(error), 1)[0].rstrip(". ")
  text = f"{text[:_BRIEF]}..." if len(text) > _BRIEF else text
  return f"it lacks {text}" if isinstance(error, KeyError) else text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """The error and what it came from."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
  return _PATHS.sub("", str(error)).casefold()


def _speaks_of(error: BaseException, numbers: Collection[int], texts: Collection[str]) -> bool:
  """Whether an error of the chain has one of these numbers, or says one of these texts."""
  for one in _chain(error):
    text = _text(one)
    if getattr(one, "errno", None) in numbers or any(part in text for part in texts):
      return True
  return False
