"""What each setting of a run may be: one table, checked before anything is built."""

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Any, get_args

from ml_collections import ConfigDict

from blt_jax import kinds, patching, tokenizer
from blt_jax.data.reading.documents import SourceOptions
from blt_jax.models.config import DepthInit, Remat
from blt_jax.models.end_to_end import Head


@dataclasses.dataclass(frozen=True)
class Interval:
  """Numbers from `low` to `high`; an open end is not among them."""

  low: float
  high: float
  open_low: bool = False
  open_high: bool = False

  def holds(self, value: Any) -> bool:
    """Whether a number, or each of several, lies inside; NaN, truth and text never do."""
    if isinstance(value, tuple | list):
      return all(self.holds(item) for item in value)
    if not patching.is_number(value):
      return False
    above = self.low < value if self.open_low else self.low <= value
    return above and (value < self.high if self.open_high else value <= self.high)

  def __str__(self) -> str:
    left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
    return f"lie in {left}{self.low:g}, {self.high:g}{right}"


@dataclasses.dataclass(frozen=True)
class OneOf:
  """Some names."""

  names: tuple[str | int, ...]

  def holds(self, value: Any) -> bool:
    """Whether it is one of them."""
    return value in self.names

  def __str__(self) -> str:
    return f"be one of {self.names}"


def _count(low: int = 1, high: float = 2**31 - 1) -> Interval:
  return Interval(low, high)


_SHARE = Interval(0, 1)
_DECAY = Interval(0, 1, open_high=True)
_POSITIVE = Interval(0, 1e6, open_low=True)
_LIMIT = Interval(0, float("inf"), open_low=True)  # infinite: none
_ROWS, _SLOTS = 2**20, 2**24  # a host could not hold more rows, or a row more bytes
_FRACTIONS = ("patching.coarser", "model.patch_sizes")  # lists of other than whole numbers
_DTYPE = OneOf(("float32", "bfloat16"))

# Dotted names, the first that matches counts; None: any value of its type.
BOUNDS: dict[str, Interval | OneOf | None] = {
  "workdir": None,
  "seed": Interval(0, 2**32 - 1),
  "num_steps": _count(high=1e9),
  "allow_changes": None,
  "init_*": None,
  "data.heldout_fraction": _DECAY,
  "data.format": OneOf(("text", "answers", "pictures")),
  "data.picture_size": _count(high=2**16),
  "data.on_error": OneOf(("raise", "skip")),
  "data.invalid_utf8": OneOf(("keep", "drop")),
  "data.max_document_bytes": _count(4),
  "data.shuffle_window": _count(high=1e9),
  "data.num_workers": _count(0, 1024),
  "data.pool_size": _count(high=_ROWS),
  "data.pool_bytes": _count(),
  "data.num_streams": _count(high=_ROWS),
  "data.batch_size": _count(high=_ROWS),
  "data.seq_len": _count(2, _SLOTS),
  "data.num_patches": _count(3, _SLOTS + 1),
  "data.*": None,
  "patching.scheme": OneOf(patching.SCHEMES),
  "patching.entropies": OneOf(("model", "table", "stored", "device", "head", "own")),
  "patching.threshold*": Interval(-1e6, 1e6),
  "patching.patch_size": Interval(1, _SLOTS),
  "patching.max_patch_length": _count(high=_SLOTS),
  "patching.coarser": Interval(-1e6, _SLOTS),
  "patching.*": None,
  "model.*window": _count(high=_SLOTS),
  "model.*init_std": Interval(0, 100),
  "model.*norm_epsilon": Interval(0, 1),
  "model.*rope_theta": Interval(1, 1e12),
  "model.*rope_scaling.*factor": Interval(0, 1e6, open_low=True),
  "model.*rope_scaling.old_context": _count(),
  "model.*mlp_multiplier": Interval(0, 1024, open_low=True),
  "model.*mlp_multiple_of": _count(high=2**20),
  "model.*mlp_dim": _count(0, 2**24),  # 0: as the width says
  "model.*head_dim": _count(0, 2**16),
  "model.*num_kv_heads": _count(0, 2**16),
  "model.*num_heads": _count(high=2**16),
  "model.*num_layers": _count(0, 4096),
  "model.dim": _count(high=2**20),
  "model.*.dim": _count(high=2**20),
  "model.*remat": OneOf(get_args(Remat)),
  "model.*depth_init": OneOf(get_args(DepthInit)),
  "model.dtype": OneOf(("float32", "bfloat16", "float16")),
  "model.patch_size": Interval(1, 2**16, open_low=True),
  "model.max_patches": _count(high=_SLOTS),
  "model.num_patches": _count(high=_SLOTS),
  "model.patch_sizes": Interval(1, _SLOTS),
  "model.head": OneOf(get_args(Head)),
  "model.backward_bytes": _count(2, 2**16),
  "model.head_weight": Interval(0, 1e6),
  "model.threshold": Interval(-1e6, 1e6),
  "model.threshold_rate": Interval(0, 1e6),
  "model.vectors_per_patch": _count(high=1024),
  "model.hash_sizes": _count(high=1024),
  "model.picture_size": _count(high=2**16),
  "model.pixel_ngrams": None,
  "model.hash_vocab_size": _count(high=2**31 - 1),
  "model.hash_functions": _count(high=10),
  "model.hash_rows_multiple_of": _count(high=2**31 - 1),
  "model.ngram_vocab_sizes": _count(high=2**31 - 1),
  "model.entropy_state_dim": _count(0, 2**20),
  "model.boundary_weight": Interval(0, 1e6),
  "model.vocab_size": _count(tokenizer.VOCAB_SIZE, 2**24),  # less has no ids for all bytes
  "model.eos_id": OneOf((tokenizer.EOS_ID,)),  # which ends the documents of all batches
  "model.*": None,
  "optimizer.groups.*": None,  # see training.groups
  "optimizer.learning_rate": Interval(0, 3e38),
  "optimizer.beta?": _DECAY,
  "optimizer.epsilon": Interval(0, 1, open_low=True),
  "optimizer.weight_decay": Interval(0, 1000),
  "optimizer.clip_norm": _LIMIT,
  "optimizer.*_dtype": _DTYPE,
  "optimizer.accumulate": _count(high=_ROWS),
  "schedule.name": OneOf(("constant", "linear", "inv_sqrt", "cosine", "wsd")),
  "schedule.warmup_steps": _count(0, 1e9),
  "schedule.min_ratio": _SHARE,
  "schedule.cycle_length": Interval(0, 1e6, open_low=True),
  "schedule.decay_fraction": _SHARE,
  "schedule.cosine_theta": _POSITIVE,
  "schedule.exponent": _POSITIVE,
  "distillation.layers": _count(high=4096),
  "distillation.*_weight": Interval(0, 1e6),
  "distillation.temperature": Interval(1, 1e6),
  "distillation.*": None,
  "mesh.data": Interval(-1, _ROWS),
  "mesh.*": _count(high=_ROWS),
  "checkpoint.every_steps": _count(),
  "checkpoint.keep": _count(high=1e6),  # 0 would delete what was just saved
  "checkpoint.keep_every": _count(),
  "checkpoint.best": _count(0, 1e6),
  "logging.every_steps": _count(),
  "logging.max_loss_jump": _LIMIT,
  "logging.tensorboard": None,
  "profile.start": _count(0),
  "profile.steps": _count(),
  "eval.every_steps": _count(),
  "eval.max_batches": _count(),
  "eval.task_limit": _count(),
  "eval.task*": None,
}


def check(config: ConfigDict) -> None:
  """Checks all settings of a run that is to be trained.

  Raises:
    ValueError: one is outside its bounds, or would do nothing.
  """
  for name, value in settings_of(config):
    bound = bound_of(name)
    if value is None or bound is None or bound.holds(value):
      continue
    hint = " (more than config.num_steps: only at the end)" if "every_steps" in name else ""
    raise ValueError(f"config.{name} is {value!r}; it must {bound}{hint}.")
  _check_inert(config)


def settings_of(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Dotted name and value of each setting."""
  for name in config:
    value = config[name]
    if isinstance(value, ConfigDict):
      yield from settings_of(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def bound_of(name: str) -> Interval | OneOf | None:
  """What a setting may be.

  Raises:
    KeyError: the table lacks it.
  """
  for pattern, bound in BOUNDS.items():
    if fnmatch.fnmatchcase(name, pattern):
      return bound
  raise KeyError(f"config.{name} has no row in runs.bounds.BOUNDS.")


def holds_numbers(name: str, values: Any) -> bool:
  """Whether a list has the numbers that its setting takes: whole ones, or of a few any."""
  if name in _FRACTIONS:
    return all(map(patching.is_number, values))
  return all(type(item) is int for item in values)


def _check_inert(config: ConfigDict) -> None:
  """Raises where a setting would be read by nobody."""
  if not config.patching.split_first:
    raise ValueError(
      "config.patching.split_first=False gives rows that no model reads; leave it True."
    )
  _check_pieces(config)
  _check_head(config)
  if config.patching.coarser or config.patching.entropies == "device":
    check_resolutions(config)
  has_answers = config.data.format == "answers"
  if config.data.template and not has_answers:
    raise ValueError(
      "config.data.template says how prompts and answers become text; set "
      "config.data.format=answers, or leave it out."
    )
  if config.data.format != "text" and config.data.text_field != SourceOptions.text_field:
    what = "records have 'prompt' and 'completion', or 'messages'"
    raise ValueError(
      f"config.data.text_field={config.data.text_field!r} would do nothing with config.data."
      f"format={config.data.format}: {what if has_answers else 'pictures have no fields'}."
    )
  _check_pictures(config)
  if config.patching.scheme == "lookup":
    raise ValueError(
      "The lookup scheme is one of patching.patch_lengths alone, which takes its table; choose "
      "another config.patching.scheme."
    )


def check_resolutions(config: ConfigDict) -> None:
  """Raises ValueError where patches have other resolutions than the model."""
  section, sizes = config.patching, config.model.get("patch_sizes")
  if sizes is None:
    if section.coarser:
      raise ValueError(
        f"config.patching.coarser={section.coarser} is of models that read several "
        f"resolutions, and a {config.model.kind} reads one: choose the kind mixture, or leave "
        "it empty."
      )
    return
  if section.entropies == "device":
    raise ValueError(
      "config.patching.entropies='device' makes patches of one resolution, and a mixture reads "
      "several: take 'model', 'table' or 'stored' ones."
    )
  if section.cumulative or section.scheme not in ("entropy", "static"):
    name = "cumulative" if section.cumulative else "scheme"
    raise ValueError(
      f"config.patching.{name}={section[name]!r} makes patches of one resolution, and a "
      "mixture reads several: take the entropy scheme without cumulative, or the static one."
    )
  if len(section.coarser) + 1 != len(sizes):
    flag, run = ",".join(f"{size:g}" for size in sizes), section.entropy_model or "RUN"
    raise ValueError(
      f"config.patching.coarser is {section.coarser}, and config.model.patch_sizes={sizes} "
      f"wants {len(sizes) - 1}, one for each but the finest: set it, or train an entropy model "
      f"and let `python -m blt_jax.calibrate --run={run} --target_bytes_per_patch={flag}` find "
      "thresholds."
    )


def _check_pictures(config: ConfigDict) -> None:
  """Raises where settings of pictures would be read by nobody, or pictures as text."""
  data, model = config.data, config.model
  if data.format != "pictures" and (data.picture_size or model.get("pixel_ngrams")):
    name = "data.picture_size" if data.picture_size else "model.pixel_ngrams"
    raise ValueError(
      f"config.{name} is of pictures: set config.data.format=pictures, or leave it out."
    )
  if data.format == "pictures" and config.patching.tokenizer:
    raise ValueError(
      "config.patching.tokenizer makes pieces of text, and config.data.format=pictures reads "
      "none; choose a model over bytes and another config.patching.scheme."
    )


def _check_head(config: ConfigDict) -> None:
  """Raises where a boundary head has nothing to learn from, or is not there yet."""
  section, weight = config.patching, config.model.get("boundary_weight")
  if (given := section.entropies) in ("head", "own"):
    raise ValueError(
      f"config.patching.entropies={given!r} is for reading a run, by --entropy_model={given}; "
      "while it trains, it learns from 'stored' ones."
    )
  if weight and (section.scheme, section.entropies) != ("entropy", "stored"):
    raise ValueError(
      f"config.model.boundary_weight={weight} has a head learn the boundaries of stored "
      "entropies: set config.patching.scheme='entropy' and entropies='stored', and "
      "config.data.path to what score_entropies wrote; or leave it 0."
    )


def _check_pieces(config: ConfigDict) -> None:
  """Raises where a tokenizer, or a patching of its pieces, would be read by nobody."""
  reads_pieces = kinds.find_kind(config.model.kind).reads_pieces
  scheme, file = config.patching.scheme, config.patching.tokenizer
  if reads_pieces and scheme != "byte":
    raise ValueError(
      f"config.patching.scheme is {scheme!r}, and a {config.model.kind} reads pieces one by "
      "one: leave it 'byte'."
    )
  if file and not reads_pieces and scheme != "bpe":
    raise ValueError(
      f"config.patching.tokenizer is {file}, and neither the {config.model.kind} nor the "
      f"patching scheme {scheme!r} has pieces; leave it out, or choose the scheme 'bpe'."
    )
