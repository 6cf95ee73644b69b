"""How far an evaluation is, and the time that is left."""

from tqdm import tqdm


class TaskBar:
  """A bar for each task in turn, in bytes of its requests."""

  def __init__(self):
    """Draws nothing until a task begins."""
    self._bar: tqdm | None = None
    self._task = ""

  def __enter__(self) -> "TaskBar":
    return self

  def __exit__(self, *_) -> None:
    if self._bar is not None:
      self._bar.close()

  def __call__(self, task: str, done: int, total: int | None) -> None:
    """Takes a task's name, the bytes done and all of them; those done at first were known.

    Where nobody knows how many there are, `total` is None.
    """
    if self._bar is None or task != self._task:
      self.__exit__()
      self._task = task
      self._bar = tqdm(desc=task, total=total, initial=done, unit="B", unit_scale=True)
    self._bar.update(done - self._bar.n)
