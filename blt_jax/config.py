"""Every setting, with its default and reason. Files in `configs/` override them.

A setting is read only if it is declared here, so a misspelt one is an error.
"""

import dataclasses
import json
import typing
from typing import Any

import jax
import optax
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from blt_jax import kinds, patching
from blt_jax.data.pipeline import BatchShape
from blt_jax.models.config import Derived, TransformerConfig
from blt_jax.training import distillation, groups, optim

# Of config.patching, and not in `patching.PatchingConfig`.
_READ_ELSEWHERE = (
  "entropies",
  "entropy_model",
  "entropy_digest",
  "tokenizer",
  "tokenizer_digest",
)
_STACK = (  # what blocks are made of, given with their parameters
  "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "window",
  "norm_epsilon", "rope_theta",
)  # fmt: skip


def get_config(kind: str = "blt") -> ConfigDict:
  """The default settings of a run.

  Args:
    kind: of `kinds.KINDS`: "blt", "byte_lm", the entropy model and the flat baselines, or
      "bpe_lm", Llama over the pieces of a tokenizer.

  Raises:
    ValueError: an unknown kind.
  """
  config = ConfigDict()
  config.workdir = "runs/default"  # everything that the run writes
  config.seed = 42  # of parameters and of the order of the data
  config.num_steps = 10_000  # optimizer updates in the whole run
  # Go on with a run though its text, seed, patching or learning rate changed.
  config.allow_changes = False
  # Folder of a run whose parameters are the start, such as `convert` makes; empty: fresh ones.
  config.init_from = ""
  # What to take of it: part of this model = part of that one, such as latent = "transformer";
  # empty: everything.
  config.init_parts = ConfigDict()
  config.init_fitting = False  # take of these only the arrays that fit; others are fresh

  config.data = data = ConfigDict()
  data.path = "stdlib"  # file, folder or glob, local or gs://; see data.sources.open_source
  data.mixture = ConfigDict()  # instead of a path: name = (path, weight), ...
  data.heldout_path = ""  # held-out text; empty: split some off every source
  data.heldout_fraction = 0.02  # of the documents, where they are split off
  # Hashed with a document's text to choose those; None: as the run began, else the usual one.
  data.heldout_salt = placeholder(str)
  # "text"; "answers": records of prompt and completion, or of messages, answers are learned; or
  # "pictures": files of them, or a path "digits" or "mnist", see docs/pictures.md.
  data.format = "text"
  # File of how these become text, or what it holds; empty: the template of docs/answers.md.
  data.template = ""
  # Height, width and channels of all pictures; empty: those of the first one.
  data.picture_size = ()
  data.text_field = "text"  # of JSON; the column of CSV, Parquet, Arrow; "meta.body" nested
  data.on_error = "raise"  # or "skip": leave bad input out, count it and go on
  data.invalid_utf8 = "keep"  # documents as the bytes they are; or "drop"
  data.max_document_bytes = 65_536  # longer text files become several documents
  data.shuffle_window = 10_000  # documents; for what cannot be shuffled globally
  data.num_workers = 0  # processes that patch each stream; 0: a thread of this one
  # Rows are filled from so many open documents of each stream; None: 2,048, or 256 where an
  # entropy model scores them meanwhile, or 32 for each row.
  data.pool_size = placeholder(int)
  # Bytes of text in them; None: 16 MiB, or 2 MiB there, or 256 KiB for each row.
  data.pool_bytes = placeholder(int)
  # Rows come from so many independent streams of documents, which the processes share: batches
  # depend on it and not on the number of processes. None: as the run began, first one each.
  data.num_streams = placeholder(int)
  data.ngram_tables = ""  # folder of count_ngrams: the model embeds these n-grams, too
  data.batch_size = 8  # rows in a batch, over all devices
  data.seq_len = 4096  # S, byte slots in a row
  data.num_patches = placeholder(int)  # P, patch slots in a row; by default S / 4, or S + 1

  config.patching = _declare(patching.PatchingConfig)
  # "entropy", "space", "static" (patch_size bytes each), "byte" or "bpe" (a tokenizer's pieces)
  config.patching.scheme = "entropy" if kinds.find_kind(kind).patched else "byte"
  config.patching.threshold = placeholder(float)  # nats; None: what calibrate found
  # Where the entropies of the entropy scheme come from: "model", a small entropy model on
  # the CPU while training; "table", a table model likewise; "stored", by score_entropies;
  # "device", the entropy model inside the training step, see docs/models.md. A run is read
  # with "head", its boundary head in their place, or "own", its own entropies, by
  # --entropy_model=head or own.
  config.patching.entropies = "model"
  config.patching.entropy_model = ""  # folder of the entropy model's run, or of the table
  config.patching.entropy_digest = placeholder(str)  # of its parameters; set when a run begins
  # File of a SentencePiece model: of the bpe scheme, or of a bpe_lm, whose ids are its pieces.
  config.patching.tokenizer = ""
  config.patching.tokenizer_digest = placeholder(str)  # of that file; set when the run begins

  config.model = _section_of(kinds.find_kind(kind).default())
  # One of kinds.KINDS, chosen by get_config(KIND); its other settings follow from it.
  config.model.kind = kind

  config.optimizer = _declare(optim.OptimizerConfig)
  config.optimizer.accumulate = 1  # parts of a batch whose gradients are summed one by one
  # Pattern of parameters' paths = what they do otherwise, the first that matches: a dict of
  # learning_rate_scale, weight_decay_scale, freeze, thaw (a step); see training.groups.
  config.optimizer.groups = ConfigDict()
  config.schedule = _declare(optim.ScheduleConfig)

  config.distillation = _declare(distillation.DistillationConfig)
  # Folder of a bpe_lm's run whose blocks are the latent transformer of a blt: the local models
  # learn to speak to it as its pieces do, see docs/weights.md; empty: ordinary training.
  config.distillation.teacher = ""
  config.distillation.teacher_digest = placeholder(str)  # of its parameters; set at the start

  config.mesh = mesh = ConfigDict()
  mesh.data = -1  # devices that share the batch and keep whole parameters; -1: the rest
  mesh.fsdp = 1  # devices that share the batch and the parameters
  mesh.tensor = 1  # devices that share heads and hidden units
  mesh.slices = 1  # pod slices, which share the batch over the network between them

  config.checkpoint = checkpoint = ConfigDict()
  checkpoint.every_steps = 1000  # steps from one checkpoint to the next; one more at the end
  checkpoint.keep = 2  # newest checkpoints to keep
  checkpoint.keep_every = placeholder(int)  # steps; also keep those at multiples of it
  checkpoint.best = 1  # also keep so many of the lowest held-out bits per byte

  config.logging = logging = ConfigDict()
  logging.every_steps = 10  # steps from one line of metrics to the next
  logging.tensorboard = True  # write events for TensorBoard beside metrics.jsonl
  logging.max_loss_jump = 5.0  # nats per target; a run stops when a step is so much worse

  config.profile = profile = ConfigDict()
  profile.start = 0  # first step of a trace for xprof, in workdir/profile; 0: none
  profile.steps = 3  # in the trace

  config.eval = evaluation = ConfigDict()
  evaluation.every_steps = 1000  # held-out bits per byte; it also runs at the end
  evaluation.max_batches = placeholder(int)  # per evaluation while training; None: all
  evaluation.tasks = ""  # multiple choice to be asked as well, such as "hellaswag,blimp"
  evaluation.task_data = "sample"  # folder of their files; "sample": 20 rows of the package
  evaluation.task_limit = 200  # only the first rows of each
  return config


def _declare(cls: type) -> ConfigDict:
  """A section with the fields of a dataclass, at their defaults."""
  return _section_of(cls())


def _section_of(values: Any) -> ConfigDict:
  """A section with the fields of a dataclass, nested ones included; None has a type."""
  section = ConfigDict()
  for field in dataclasses.fields(values):
    value = getattr(values, field.name)
    if dataclasses.is_dataclass(value):
      value = _section_of(value)
    elif value is None or isinstance(value, Derived):
      value = placeholder(_plain_type(type(values), field.name))
    section[field.name] = value
  return section


def _plain_type(cls: type, name: str) -> type:
  """Type of a field that may be None."""
  options = typing.get_args(typing.get_type_hints(cls)[name])
  return next((t for t in options if t in (int, float, str)), int)


def set_blt_size(
  model: ConfigDict,
  local: tuple[int, int],
  latent: tuple[int, int, int],
  decoder_layers: int,
  cross_heads: int,
  vectors_per_patch: int,
) -> None:
  """Sets the sizes of a BLT as the paper's table of models gives them.

  Args:
    model: `config.model`.
    local: width and heads of the local models.
    latent: width, heads and layers of the latent transformer.
    decoder_layers: layers of the local decoder; the encoder has one.
    cross_heads: heads of both cross-attentions.
    vectors_per_patch: K.
  """
  for stack in (model.encoder, model.decoder):
    stack.dim, stack.num_heads = local
  model.latent.dim, model.latent.num_heads, model.latent.num_layers = latent
  model.decoder.num_layers = decoder_layers
  model.encoder_cross.num_heads = model.decoder_cross.num_heads = cross_heads
  model.vectors_per_patch = vectors_per_patch


def set_stack(section: ConfigDict, stack: TransformerConfig) -> None:
  """Makes a section of `config.model` that of other blocks, but for how they are computed."""
  for name in _STACK:
    section[name] = getattr(stack, name)
  section.rope_scaling = _section_of(stack.rope_scaling)


def set_model(config: ConfigDict, model: Any) -> None:
  """Makes `config.model` that of a model's dataclass, whose kind the config has."""
  section = _section_of(model)
  section.kind = config.model.kind
  config.model = section


def make_model_config(section: ConfigDict) -> Any:
  """Builds the model's dataclass from `config.model`.

  Raises:
    ValueError: an unknown kind or field, or sizes that do not go together.
  """
  fields = section.to_dict()
  return _build(kinds.find_kind(fields.pop("kind", None)).config, fields)


def make_patching_config(
  section: ConfigDict, threshold: float | None = None
) -> patching.PatchingConfig:
  """Builds the patching from `config.patching`; `threshold` stands in for a missing one."""
  fields = section.to_dict()
  for name in _READ_ELSEWHERE:
    fields.pop(name, None)
  if fields["threshold"] is None:
    fields["threshold"] = threshold
  return _build(patching.PatchingConfig, fields)


def stated_patch_size(section: ConfigDict) -> float | None:
  """Bytes of a patch as `config.patching` says; None where it does not."""
  size = section.patch_size
  return size if size is None else min(size, section.max_patch_length or size)


def resolutions(model: ConfigDict) -> int:
  """R of a mixture, from `config.model`; 0 for models whose patches have no such axis."""
  return len(model.get("patch_sizes", ()))


def kept_checkpoints(config: ConfigDict) -> dict[str, Any]:
  """Which checkpoints `config.checkpoint` keeps."""
  return {name: config.checkpoint[name] for name in ("keep", "keep_every", "best")}


def make_batch_shape(config: ConfigDict) -> BatchShape:
  """Builds the static sizes of a batch from `config.data`, as the model wants them.

  Raises:
    ValueError: rows have no whole number of the patches that the model makes.
  """
  data, model = config.data, kinds.build_model(make_model_config(config.model))
  if data.seq_len % model.row_multiple:
    raise ValueError(
      f"config.data.seq_len {data.seq_len} must be a multiple of {model.row_multiple}, the "
      f"patch_size of config.model ({config.model.kind})."
    )
  per_byte = config.patching.scheme == "byte"
  default = data.seq_len + 1 if per_byte else data.seq_len // 4
  return BatchShape(
    batch_size=data.batch_size,
    seq_len=data.seq_len,
    num_patches=data.num_patches or default,
    pool_size=data.pool_size,
    pool_bytes=data.get("pool_bytes"),  # runs of before have none
    row_multiple=model.row_multiple,
    keep_whole=data.get("format") in ("answers", "pictures"),  # runs of before have none
    is_nested=resolutions(config.model) > 1,
  )


def make_optimizer(
  config: ConfigDict, peak: jax.Array | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimizer of a run and its learning rate.

  Args:
    config: the whole settings.
    peak: float32 [], in place of `config.optimizer.learning_rate`.
  """
  fields = config.optimizer.to_dict()
  for name in ("accumulate", "groups"):
    fields.pop(name, None)
  optimizer = _build(optim.OptimizerConfig, fields)
  schedule = _build(optim.ScheduleConfig, config.schedule.to_dict())
  if peak is not None:
    optimizer = dataclasses.replace(optimizer, learning_rate=peak)
  rate = optim.learning_rate(optimizer, schedule, config.num_steps)
  return optim.adamw(optimizer, rate, make_groups(config)), rate


def make_distillation(config: ConfigDict) -> distillation.DistillationConfig:
  """The losses of a distillation, from the whole config."""
  fields = config.distillation.to_dict()
  for name in ("teacher", "teacher_digest"):
    fields.pop(name, None)
  return _build(distillation.DistillationConfig, fields)


def make_groups(config: ConfigDict) -> list[groups.Group]:
  """The parameters that learn otherwise, from the whole config."""
  # All but JSON sorts the names of a ConfigDict, and the first pattern that matches counts.
  chosen = json.loads(config.optimizer.get("groups", ConfigDict()).to_json())
  for pattern, group in chosen.items():
    if not isinstance(group, dict):
      raise ValueError(f"config.optimizer.groups[{pattern!r}] is {group!r}; it must be a dict.")
  places = {p: group.pop("order", place) for place, (p, group) in enumerate(chosen.items())}
  patterns = sorted(chosen, key=places.__getitem__)
  return [_build(groups.Group, {"pattern": p, **chosen[p]}) for p in patterns]


def freeze(config: ConfigDict) -> FrozenConfigDict:
  """A copy that nobody can write to; groups of the optimizer keep their order, as `order`."""
  is_frozen = isinstance(config, FrozenConfigDict)
  copy = ConfigDict(config) if is_frozen else config.copy_and_resolve_references()
  for place, group in enumerate(make_groups(config)):
    with copy.optimizer.groups[group.pattern].unlocked() as section:
      section.order = place
  return FrozenConfigDict(copy)


def _build(cls: type, fields: dict[str, Any]) -> Any:
  """A dataclass of plain values, nested ones included."""
  hints = typing.get_type_hints(cls)
  unknown = sorted(set(fields) - set(hints))
  if unknown:
    raise ValueError(
      f"{cls.__name__} has no {unknown}; it has {sorted(hints)}. A kind of model is chosen in "
      "the config file, by get_config(KIND)."
    )
  return cls(**{name: _plain(hints[name], value) for name, value in fields.items()})


def _plain(hint: Any, value: Any) -> Any:
  """A value as its dataclass wants it."""
  if isinstance(value, dict):
    options = typing.get_args(hint) or (hint,)
    return _build(next(t for t in options if t is not type(None)), value)
  return tuple(value) if isinstance(value, list) else value
