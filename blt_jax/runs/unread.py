"""Settings that are changed and do nothing in a run."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from blt_jax import config as declared
from blt_jax import kinds

# Scheme -> what it reads of `config.patching`; what is not here needs no entropies.
_RULES = (
  "threshold",
  "coarser",
  "threshold_add",
  "monotonic",
  "cumulative",
  "reset_at_newline",
)
_READ = {
  "entropy": (
    *_RULES,
    "entropies",
    "entropy_model",
    "entropy_digest",
    "patch_size",
    "max_patch_length",
  ),
  "space": ("max_patch_length",),
  "static": ("patch_size", "max_patch_length", "coarser"),
  "bpe": ("tokenizer", "tokenizer_digest", "max_patch_length", "delimiters"),
}


def find(config: ConfigDict) -> Iterator[str]:
  """A sentence for each."""
  yield from _patching(config)
  yield from _tasks(config)
  yield from _distillation(config)
  steps = config.num_steps
  if config.schedule.warmup_steps >= steps:
    yield (
      f"config.schedule.warmup_steps is {config.schedule.warmup_steps}, not below "
      f"config.num_steps, {steps}: the learning rate never gets to its peak."
    )
  for group in declared.make_groups(config):
    if group.first_step >= steps:
      yield (
        f"config.optimizer.groups[{group.pattern!r}] thaws at step {group.first_step}, not "
        f"below config.num_steps, {steps}: these parameters never learn."
      )
  if config.profile.start > steps:
    yield (
      f"config.profile.start is {config.profile.start}, above config.num_steps, {steps}: no "
      "step is traced."
    )


def _patching(config: ConfigDict) -> Iterator[str]:
  """Settings of patches that the scheme, or a model without patches, does not read."""
  kind, scheme = kinds.find_kind(config.model.kind), config.patching.scheme
  read: tuple[str, ...] = (*_READ.get(scheme, ()), "scheme")
  who = f"the patching scheme {scheme!r}"
  if not kind.patched:
    read = ("tokenizer", "tokenizer_digest") if kind.reads_pieces else ()
    who = f"a {config.model.kind}, which reads no patches"
  default = declared.get_config(config.model.kind).patching
  changed = [n for n in config.patching if n not in read and config.patching[n] != default[n]]
  if changed:
    names = ", ".join(f"config.patching.{name}" for name in changed)
    yield f"Without effect on {who}: {names}."


def _tasks(config: ConfigDict) -> Iterator[str]:
  """Settings of tasks where none is asked."""
  default = declared.get_config(config.model.kind).eval
  names = ("task_data", "task_limit")
  changed = [f"config.eval.{n}" for n in names if config.eval[n] != default[n]]
  if changed and not config.eval.tasks:
    yield f"Without effect while config.eval.tasks names none: {', '.join(changed)}."


def _distillation(config: ConfigDict) -> Iterator[str]:
  """Weights of a distillation where there is no teacher."""
  section, default = config.distillation, declared.get_config(config.model.kind).distillation
  changed = [f"config.distillation.{n}" for n in section if section[n] != default[n]]
  if changed and not section.teacher:
    yield f"Without effect while config.distillation.teacher is empty: {', '.join(changed)}."
