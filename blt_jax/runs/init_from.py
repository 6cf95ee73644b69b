"""Where a training starts: its own checkpoint, the parameters of another run, or fresh ones."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
from absl import logging
from ml_collections import ConfigDict

from blt_jax.runs import checkpoint
from blt_jax.runs.parameters import Parameters, find
from blt_jax.runs.program import Program
from blt_jax.training.state import TrainState

_SHOWN = 8  # names in one message
_HEADS = ("num_heads", "num_kv_heads", "head_dim")  # of which shapes may tell nothing
_COMPUTED = (  # or shapes, or fresh parameters: no change of what given ones mean
  "remat", "unroll", "dtype", "init_std", "depth_init", "mlp_multiplier", "mlp_multiple_of",
  "num_layers", "dim", "mlp_dim", "hash_rows_multiple_of",
)  # fmt: skip

Arrays = Mapping[str, Any]  # by path, such as "latent/transformer/layers/mlp/up/kernel"


@dataclasses.dataclass(frozen=True)
class Start:
  """The parameters that others give to a training.

  Attributes:
    source: of these; None where all parameters are fresh.
    taken: path of each parameter that is taken -> its path there.
    fresh: paths of the others.
    left: paths there that nothing takes.
  """

  source: Parameters | None = None
  taken: Mapping[str, str] = dataclasses.field(default_factory=dict)
  fresh: tuple[str, ...] = ()
  left: tuple[str, ...] = ()

  def create_state(self, program: Program) -> TrainState:
    """A start at step 0, each array directly where it belongs.

    Raises:
      ValueError: the checkpoint of the other run is damaged.
    """
    state = program.create_state()
    if self.source is None:
      logging.info("All parameters are fresh.")
      return state
    abstract = _flatten(program.abstract_state.params)
    wanted = {there: abstract[ours] for ours, there in self.taken.items()}
    found = self.source.load(wanted)
    params = _flatten(state.params) | {o: found[there] for o, there in self.taken.items()}
    self._report(self.source.where)
    return dataclasses.replace(state, params=_unflatten(params))

  def _report(self, where: str) -> None:
    logging.info(
      "Parameters of %s: %d arrays taken, %d fresh, %d left there.",
      where, len(self.taken), len(self.fresh), len(self.left),
    )  # fmt: skip
    for what, names in (("Taken", self.taken), ("Fresh", self.fresh), ("Left", self.left)):
      for name in names:
        logging.info("%s: %s", what, name)


def plan(config: ConfigDict, program: Program) -> Start:
  """What `config.init_from`, `init_parts` and `init_fitting` say.

  Raises:
    FileNotFoundError: as `parameters.find`.
    ValueError: as there, its parameters do not fit, or a setting would do nothing.
  """
  parts = dict(config.init_parts)
  if not config.init_from:
    if parts or config.init_fitting:
      raise ValueError(
        "config.init_parts and config.init_fitting say what to take of config.init_from, "
        "which is empty; give the folder of a run there, or leave them out."
      )
    return Start()
  source = find(config.init_from)
  ours = {k: tuple(x.shape) for k, x in _flatten(program.abstract_state.params).items()}
  theirs, workdir = source.shapes, config.init_from
  pairs: dict[str, str] = {}
  for part, other in (parts or {"": ""}).items():
    pairs |= _pairs_of(part, other, ours, theirs, workdir)
    _check_meaning(program.model.config, source.model, part, other, workdir)
  taken = {o: t for o, t in sorted(pairs.items()) if o in ours and ours[o] == theirs.get(t)}
  if not config.init_fitting:
    _check_fit(pairs, ours, theirs, workdir)
  if len(set(taken.values())) < len(taken):
    raise ValueError("config.init_parts takes a part of the other model twice; name each once.")
  if not taken:
    raise ValueError(f"Nothing of {workdir} fits this model; leave config.init_from empty.")
  fresh = tuple(sorted(ours.keys() - taken.keys()))
  left = tuple(sorted(theirs.keys() - set(taken.values())))
  return Start(source, taken, fresh, left)


def _pairs_of(
  part: str, source: str, ours: Arrays, theirs: Arrays, workdir: str
) -> dict[str, str]:
  """Our paths of a part -> paths there; a `latent` holds its blocks in a `transformer`."""
  if not part:
    return {path: path for path in ours.keys() | theirs.keys()}
  for mine, other in (
    (part, source), (f"{part}/transformer", source), (part, f"{source}/transformer")
  ):  # fmt: skip
    a, b = f"{mine}/", f"{other}/"
    rest = [path.removeprefix(b) for path in theirs if path.startswith(b)]
    if any(a + path in ours for path in rest):
      return {a + path: b + path for path in rest}
  raise ValueError(
    f"config.init_parts has {part}={source!r}, and nothing in {source!r} of {workdir} has "
    f"the name of anything in {part!r}; the parts are {_parts(ours)} here and "
    f"{_parts(theirs)} there."
  )


def _parts(arrays: Arrays) -> list[str]:
  return sorted({path.partition("/")[0] for path in arrays})


def _check_fit(pairs: Mapping[str, str], ours: Arrays, theirs: Arrays, workdir: str) -> None:
  """Raises ValueError where an array is missing on a side, or has another shape."""
  wrong = [
    f"{o} is {ours.get(o, 'missing')} here and {theirs.get(t, 'missing')} there"
    for o, t in sorted(pairs.items())
    if ours.get(o) != theirs.get(t)
  ]
  if wrong:
    more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    raise ValueError(
      f"The parameters of {workdir} do not fit (config.init_from). Choose the sizes of "
      "config.model that they have, take some parts with config.init_parts, or only what fits "
      "with config.init_fitting=True:\n  " + "\n  ".join(wrong[:_SHOWN]) + more
    )


def _check_meaning(here: Any, there: Any, part: str, source: str, workdir: str) -> None:
  """Raises ValueError where the same arrays would be other heads; says what else differs."""
  if part:
    here = getattr(here, part.partition("/")[0], None)
    there = getattr(there, source.partition("/")[0], None)
  for name, mine, other in _differences(here, there, f"{part}." if part else ""):
    text = f"config.model.{name} is {mine}, and {other} in {workdir}"
    if name.rpartition(".")[2] in _HEADS:
      raise ValueError(f"{text}; the same arrays would mean other heads: set it to {other}.")
    logging.warning("%s: its parameters were trained with that.", text)


def _differences(here: Any, there: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
  """Dotted name and both values of the fields that change what parameters mean.

  Of models of two kinds, only the parts that both have are compared.
  """
  if not dataclasses.is_dataclass(here) or not dataclasses.is_dataclass(there):
    return
  is_same = type(here) is type(there)
  for field in dataclasses.fields(here):
    mine, other = getattr(here, field.name), getattr(there, field.name, None)
    if dataclasses.is_dataclass(mine) and type(mine) is type(other):
      yield from _differences(mine, other, f"{prefix}{field.name}.")
    elif is_same and mine != other and field.name not in _COMPUTED:
      yield prefix + field.name, mine, other


def find_state(
  start: Start, program: Program, checkpoints: checkpoint.Checkpoints
) -> checkpoint.Checkpoint:
  """The run's newest checkpoint that can be read, or else its start.

  Raises:
    ValueError: as `Checkpoints.restore` and `Start.create_state`.
    OSError: as `Checkpoints.restore`.
  """
  restored = checkpoints.restore(program.abstract_state)
  if restored is None:
    return checkpoint.Checkpoint(0, start.create_state(program), {})
  if start.source is not None:
    logging.info(
      "The run goes on from its own step %d; config.init_from was for its start.", restored.step
    )
  return restored


def _flatten(tree: Any) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(tree, sep="/")


def _unflatten(flat: Arrays) -> Any:
  return flax.traverse_util.unflatten_dict(dict(flat), sep="/")
