"""The teacher of a run: found, checked against its settings, its parameters on its mesh."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax.data import piece_lookup
from blt_jax.data.pipeline import Batch
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BPELMConfig
from blt_jax.runs import entropy_digest, folder, parameters, tokenizers
from blt_jax.storage import paths
from blt_jax.training import distillation, steps
from blt_jax.training import state as train_state
from blt_jax.training.groups import Group, label_of, labels

BLOCKS = "latent/transformer"  # of a BLT
_PARTS = {"latent": "transformer"}  # which are those of a language model
_RULE = {"scheme": "bpe", "delimiters": False, "max_patch_length": None}


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A language model over pieces, from whose blocks a run's latent transformer is.

  Attributes:
    path: folder of its run.
    model: its config.
    tokenizer: file of its SentencePiece model.
    own_ids: whether its ids are those of that model, as in the run of a converted Llama.
  """

  path: str
  model: BPELMConfig
  tokenizer: str
  own_ids: bool

  def abstract_head(self, mesh: Mesh, dtype: str) -> Any:
    """Shapes and places of what it has beside blocks: embeddings, norm and output."""
    everything = train_state.abstract_state(
      ByteLM(self.model), optax.identity(), mesh, dtype
    ).params
    return {name: part for name, part in everything.items() if name != "transformer"}

  def load(self, head: Any) -> Any:
    """Reads what `abstract_head` gave, each array directly where it belongs."""
    wanted = flax.traverse_util.flatten_dict(head, sep="/")
    found = parameters.find(self.path).load(wanted)
    return flax.traverse_util.unflatten_dict(found, sep="/")

  def piece_ids(self) -> dict[bytes, int]:
    """The id of each piece; see `piece_lookup.find_ids`.

    Raises:
      ValueError: the model has another number of ids.
    """
    ids, count = piece_lookup.find_ids(self.tokenizer, self.own_ids)
    fits = count <= self.model.vocab_size if self.own_ids else count == self.model.vocab_size
    if not fits:  # a Llama may have more, for the sake of its devices
      raise ValueError(
        f"The tokenizer {self.tokenizer} has {count} ids, and its model in {self.path} "
        f"{self.model.vocab_size}; put the tokenizer there that the model was trained with."
      )
    return ids


def find(config: ConfigDict) -> Teacher | None:
  """The teacher that `config.distillation` names, if it does.

  Raises:
    FileNotFoundError: there is no such run, or no tokenizer in it.
    ValueError: it is no language model over pieces.
  """
  path = config.distillation.teacher
  if not path:
    return None
  run = folder.load_config(path)
  if run.model.kind != "bpe_lm":
    raise ValueError(
      f"config.distillation.teacher is {path}, the run of a {run.model.kind}; give that of a "
      "bpe_lm, or of a Llama that was converted."
    )
  file = run.patching.tokenizer
  if not file or not paths.exists(file):
    raise FileNotFoundError(
      f"The teacher in {path} has no tokenizer ({folder.TOKENIZER}); put the file of its "
      "SentencePiece model there."
    )
  is_converted = run.patching.tokenizer_digest is None
  return Teacher(path, settings.make_model_config(run.model), file, is_converted)


def resolve(config: ConfigDict, began_with: ConfigDict) -> None:
  """Checks the settings of a distillation, and fills in tokenizer and digest of the teacher.

  Args:
    config: the whole settings, to be changed.
    began_with: those that the run began with; empty if it is new.

  Raises: as `find`, `Teacher.piece_ids`; and
    ValueError: the settings are not those of a first stage, or the teacher is another one
      than the run began with.
  """
  teacher = find(config)
  if teacher is None:
    return
  teacher.piece_ids()
  _check_model(config, teacher)
  _check_start(config, teacher)
  section = config.patching
  for name, value in _RULE.items():
    if section[name] != value:
      raise ValueError(
        f"config.patching.{name} is {section[name]!r}; a distillation patches as its teacher's "
        f"pieces do: set it to {value!r}."
      )
  own = began_with.get("patching", ConfigDict()).get("tokenizer")  # a run keeps a copy
  section.tokenizer = section.tokenizer or own or teacher.tokenizer
  if paths.exists(section.tokenizer) and (
    tokenizers.digest(section.tokenizer) != tokenizers.digest(teacher.tokenizer)
  ):
    raise ValueError(
      f"config.patching.tokenizer is {section.tokenizer}, and the teacher has another in "
      f"{teacher.tokenizer}; leave it out."
    )
  found = entropy_digest.find(teacher.path)
  before = began_with.get("distillation", ConfigDict()).get("teacher_digest")
  for expected in (before, config.distillation.teacher_digest):
    if expected not in (None, found) and not config.allow_changes:
      raise ValueError(
        f"The teacher in {teacher.path} is not the one that the run began with: the digest of "
        f"its parameters was {expected}, now {found}. Has it been trained on? Put the former "
        "one there, or choose another config.workdir."
      )
  config.distillation.teacher_digest = found


def _check_model(config: ConfigDict, teacher: Teacher) -> None:
  """Raises ValueError where the latent transformer is not the teacher's."""
  if config.model.kind != "blt":
    raise ValueError(
      f"config.distillation.teacher is set, and config.model.kind is {config.model.kind!r}; "
      "only a blt has a latent transformer to take the teacher's blocks."
    )
  latent = settings.make_model_config(config.model).latent
  for name, mine, other in _differences(latent, teacher.model.transformer):
    raise ValueError(
      f"config.model.latent.{name} is {mine}, and {other} in {teacher.path}; in a distillation "
      f"the latent transformer has the blocks of its teacher: set it to {other}."
    )
  if config.distillation.layers > latent.num_layers:
    raise ValueError(
      f"config.distillation.layers is {config.distillation.layers}, and the teacher in "
      f"{teacher.path} has {latent.num_layers}; compare the states after fewer."
    )


def _differences(mine: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
  """Fields of blocks that differ, but for how they are computed and were made."""
  made = ("remat", "unroll", "init_std", "depth_init", "mlp_multiplier", "mlp_multiple_of")
  for field in dataclasses.fields(mine):
    pair = getattr(mine, field.name), getattr(other, field.name)
    if field.name not in made and pair[0] != pair[1]:
      yield field.name, *pair


def _check_start(config: ConfigDict, teacher: Teacher) -> None:
  """Raises ValueError where the run does not start from the teacher's blocks."""
  is_source = paths.absolute(config.init_from or ".") == paths.absolute(teacher.path)
  if not is_source or dict(config.init_parts) != _PARTS or config.init_fitting:
    raise ValueError(
      f"A distillation starts from its teacher's blocks: set config.init_from={teacher.path!r} "
      f"and config.init_parts={_PARTS}, and leave config.init_fitting out."
    )


def make_loss(
  config: ConfigDict, model: nn.Module, teacher: Teacher, state: train_state.TrainState
) -> steps.Loss:
  """Builds the loss of a run; see `training.distillation.make_loss`.

  Args:
    config: the whole settings.
    model: of the run.
    teacher: of the run.
    state: of the run, or its shapes.

  Raises:
    ValueError: the optimizer would move the teacher's blocks.
  """
  _check_frozen(settings.make_groups(config), state.params)
  return distillation.make_loss(model, teacher.model, settings.make_distillation(config))


def _check_frozen(groups: Sequence[Group], params: Any) -> None:
  """Raises ValueError where blocks of the latent transformer would be moved, be it by decay."""
  frozen = {label_of(i) for i, group in enumerate(groups) if group.is_frozen}
  found = flax.traverse_util.flatten_dict(labels(groups, params), sep="/")
  moved = [name for name, label in found.items() if label not in frozen]
  moved = [name for name in moved if name.startswith(f"{BLOCKS}/")]
  if moved:
    raise ValueError(
      f"{moved[0]} is one of the teacher's parameters, which a distillation does not move: set "
      f"config.optimizer.groups[{BLOCKS + '/*'!r}]={{'freeze': True}}, before patterns that "
      "match it too."
    )


def look_up(config: ConfigDict) -> Callable[[Batch], Batch]:
  """What adds the pieces that the teacher reads to a batch."""
  teacher = find(config)
  if teacher is None:
    return _keep_batch
  return piece_lookup.LookUpPieces(teacher.piece_ids())


def _keep_batch(batch: Batch) -> Batch:
  return batch
