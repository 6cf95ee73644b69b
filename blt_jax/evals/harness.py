"""A run as a model of lm-evaluation-harness: `--model=blt_jax --model_args=run=FOLDER`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from blt_jax import patching
from blt_jax.decode import Sampling
from blt_jax.decode.language_model import LanguageModel
from blt_jax.evals import asking
from blt_jax.evals.task import Choice, Request, Text
from blt_jax.runs import checkpoint, loading

_TOKENS = 256  # that the harness lets a model write where a task does not say how many
_KWARGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


def _count(name: str, value: Any) -> int:
  """A number of texts, which the harness gives as it was written."""
  if not str(value).isdecimal() or int(value) < 1:
    raise ValueError(f"{name} is {value!r}; it must be 1 or more.")
  return int(value)


@register_model("blt_jax")
class HarnessModel(LM):
  """Answers the harness's requests; all of them in bytes, without a tokenizer."""

  def __init__(
    self,
    run: str | LanguageModel = "",
    step: checkpoint.Step = None,
    entropy_model: str | None = None,
    threshold: float | None = None,
    bytes_per_token: float = 4,
    batch_size: int | str | None = None,
    max_batch_size: int | None = None,
    device: str | None = None,
  ):
    """Loads a run.

    Args:
      run: its folder, or a model as `decode.language_model` makes them.
      step: of its checkpoint, or "best"; by default the newest.
      entropy_model: as of `loading.load_language_model`.
      threshold: likewise.
      bytes_per_token: what a token of the harness's limits stands for.
      batch_size: texts at a time, 8 by default, which is also what "auto" means.
      max_batch_size: at most so many.
      device: not heeded, since the harness gives one unasked; JAX_PLATFORMS chooses.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: an argument is not as it should be.
    """
    super().__init__()
    if not run:
      raise ValueError("--model_args needs run=FOLDER, the folder of a run.")
    if device:
      logging.info("jax runs on %s, whatever --device says.", jax.default_backend())
    if not (patching.is_number(bytes_per_token) and 0 < bytes_per_token < math.inf):
      raise ValueError(f"bytes_per_token is {bytes_per_token!r}; it must be a number above 0.")
    if not (threshold is None or patching.is_number(threshold)):
      raise ValueError(f"threshold is {threshold!r}; it must be a number.")
    is_auto = batch_size is None or str(batch_size).startswith("auto")
    self.batch_size = 8 if is_auto else _count("batch_size", batch_size)
    if max_batch_size is not None:
      self.batch_size = min(self.batch_size, _count("max_batch_size", max_batch_size))
    self._bytes_per_token = bytes_per_token
    self._model = (
      run
      if isinstance(run, LanguageModel)
      else loading.load_language_model(run, entropy_model, threshold, step)
    )

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Nats of each continuation after its context, and whether greedy decoding writes it."""
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
      if request.args[1]:
        groups.setdefault(request.args[0], []).append(number)
    numbers = list(groups.values())
    asked = [
      [Choice(context, tuple(requests[n].args[1] for n in own))]
      for context, own in groups.items()
    ]
    told = [(0.0, True)] * len(requests)  # nothing is certain to be written
    for place, (answers,) in self._ask(asked, "loglikelihood"):
      for number, answer in zip(numbers[place], answers, strict=True):
        told[number] = answer
        self.cache_hook.add_partial("loglikelihood", requests[number].args, answer)
    return told

  def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
    """Nats of whole texts, each read in one pass."""
    told = [0.0] * len(requests)
    asked: list[list[Request]] = [[Text(request.args[0])] for request in requests]
    for place, (answer,) in self._ask(asked, "loglikelihood_rolling"):
      told[place] = answer
      self.cache_hook.add_partial("loglikelihood_rolling", requests[place].args, answer)
    return told

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """What the model writes after each context, cut at its stops in their order."""
    told = [""] * len(requests)
    prompts = [request.args[0] for request in requests]
    options = [self._sampling(request.args[1]) for request in requests]
    written = asking.write(self._model, prompts, options, self.batch_size)
    for place, generation in tqdm(written, "generate_until", len(requests)):
      text = generation.text
      for stop in options[place].stop:
        text = text.partition(stop)[0]
      told[place] = text
      self.cache_hook.add_partial("generate_until", requests[place].args, text)
    return told

  def _ask(
    self, asked: Sequence[Sequence[Request]], what: str
  ) -> Iterator[tuple[int, list[Any]]]:
    if num_cut := sum(asking.is_cut(self._model, r) for (r,) in asked):
      logging.warning("%d of %d texts are cut: the model has no room.", num_cut, len(asked))
    sizes = [asking.size(own) for own in asked]
    with tqdm(desc=what, total=sum(sizes), unit="B", unit_scale=True) as bar:
      for place, answers in asking.ask(self._model, asked, self.batch_size):
        yield place, answers
        bar.update(sizes[place])

  def _sampling(self, kwargs: Mapping[str, Any]) -> Sampling:
    """The harness's words for `Sampling`.

    Raises:
      ValueError: there is one that would be ignored.
    """
    if unknown := kwargs.keys() - _KWARGS:
      raise ValueError(f"blt_jax has no {sorted(unknown)[0]!r} of generation; leave it out.")
    until = kwargs.get("until") or []
    limit = round(kwargs.get("max_gen_toks", _TOKENS) * self._bytes_per_token)
    options: dict[str, Any] = {"max_bytes": limit, "temperature": 0.0}
    if kwargs.get("do_sample", kwargs.get("temperature", 0) > 0):
      options["temperature"] = float(kwargs.get("temperature", 1))
      options |= {key: kwargs[key] for key in ("top_k", "top_p") if key in kwargs}
    stops = [until] if isinstance(until, str) else until
    return Sampling(stop=tuple(stop for stop in stops if stop), **options)
