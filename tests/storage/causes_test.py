"""What errors of storage mean, by their numbers and by what libraries say."""

import errno

import pytest

from blt_jax.storage import atomic, causes


@pytest.mark.parametrize(
  ("error", "passing", "advice"),
  [
    (OSError(errno.ENOSPC, "No space left on device"), False, "Check free space"),
    (ValueError("RESOURCE: write: Disk quota exceeded"), False, "Check free space"),
    (PermissionError(errno.EACCES, "Permission denied"), False, "Check permissions"),
    (OSError(errno.EROFS, "Read-only file system"), False, "Check permissions"),
    (TimeoutError(), True, "Storage did not answer; try again"),
    (ConnectionResetError("by peer"), True, "Storage did not answer; try again"),
    (OSError(errno.ESTALE, "Stale file handle"), True, "Storage did not answer; try again"),
    (ValueError("UNAVAILABLE: HTTP response code: 503"), True, "Storage did not answer"),
    (RuntimeError("HttpError 429, slow down"), True, "Storage did not answer"),
    (ValueError("DATA_LOSS: Error decoding /runs/503/timeout/d/ab"), False, "Check the path"),
    (FileNotFoundError("no folder /a"), False, "Check the path"),
  ],
)
def test_errors_are_told_apart(error, passing, advice):
  assert causes.is_passing(error) == passing
  assert causes.advice(error).startswith(advice)


@pytest.mark.parametrize(
  ("error", "brief"),
  [
    (
      ValueError("Cannot read x. See full TensorStore details: Spec({\n'a': 1})."),
      "Cannot read x",
    ),
    (ValueError("CRC of /a/b is wrong. [tensorstore_spec='{}']"), "CRC of /a/b is wrong"),
    (ValueError("first\nsecond"), "first"),
    (ValueError("x" * 9999), "x" * 400 + "..."),
    (KeyError("key"), "it lacks 'key'"),
  ],
)
def test_pages_of_libraries_become_a_line(error, brief):
  assert causes.brief(error) == brief


def test_what_an_error_came_from_counts():
  try:
    try:
      raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
      raise RuntimeError("could not save") from error
  except RuntimeError as error:
    assert causes.advice(error) == "Check free space"


@pytest.mark.parametrize(
  ("error", "ending"),
  [
    (OSError(errno.ENOSPC, "No space left on device"), "Check free space; go on."),
    (OSError(errno.EACCES, "Permission denied"), "Check permissions; go on."),
  ],
)
def test_advice_follows_from_the_cause(error, ending):
  with pytest.raises(OSError, match=ending), atomic.explaining("a", after="; go on"):  # noqa: PT012
    raise error
