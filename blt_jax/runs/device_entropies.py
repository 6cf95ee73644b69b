"""Entropies on the device: the entropy model that runs in the step of a run."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.hashing import NgramTable
from blt_jax.models import boundary_head
from blt_jax.models.boundary_head import HeadPatchedBLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig
from blt_jax.patching import PatchingConfig
from blt_jax.runs import folder, parameters
from blt_jax.runs.patcher import Patcher, check_threshold
from blt_jax.training import state as train_state

Named = dict[str, Any]  # what the method `forward` of a model takes by name


@dataclasses.dataclass(frozen=True)
class DeviceEntropies:
  """The entropy model of a run that is to be trained, not read yet.

  Attributes:
    path: folder of its run.
    model: its config.
    rule: by which its entropies make patches.
  """

  path: str
  model: ByteLMConfig
  rule: PatchingConfig

  def abstract(self, mesh: Mesh) -> Named:
    """Shapes, dtypes and places of its parameters, spread as those of a run of its own."""
    model = ByteLM(self.model)
    return {"entropy_params": train_state.abstract_state(model, optax.identity(), mesh).params}

  def load(self, abstract: Named) -> Named:
    """Reads what `abstract` gave, each array directly where it belongs."""
    wanted = flax.traverse_util.flatten_dict(abstract["entropy_params"], sep="/")
    found = parameters.find(self.path).load(wanted)
    return {"entropy_params": flax.traverse_util.unflatten_dict(found, sep="/")}


def find(config: ConfigDict) -> DeviceEntropies | None:
  """The entropy model that the step of a run needs, if it does.

  Raises:
    FileNotFoundError: it is missing.
    ValueError: none is given, or it is no entropy model.
  """
  section = config.patching
  is_patched = kinds.find_kind(config.model.kind).patched
  if not (is_patched and section.scheme == "entropy" and section.entropies == "device"):
    if width := config.model.get("entropy_state_dim"):
      raise ValueError(
        f"config.model.entropy_state_dim={width} wants the states of an entropy model in the "
        "step: set config.patching.scheme='entropy' and entropies='device', or leave it 0."
      )
    return None
  if not section.entropy_model:
    raise ValueError(
      "config.patching.entropies='device' runs an entropy model in the step: set "
      "config.patching.entropy_model to the folder of its run."
    )
  run = folder.load_config(section.entropy_model)
  if run.model.kind != "byte_lm":
    raise ValueError(
      f"config.patching.entropy_model is {section.entropy_model}, the run of a "
      f"{run.model.kind}; give that of a byte_lm."
    )
  check_threshold(section.entropy_model, section)
  model, rule = settings.make_model_config(run.model), settings.make_patching_config(section)
  return DeviceEntropies(section.entropy_model, model, rule)


def attach(model: nn.Module, entropies: ByteLMConfig, rule: PatchingConfig) -> nn.Module:
  """A model that makes its patches itself, of the parameters of an entropy model.

  Raises:
    ValueError: the rule compares all bytes of a text, the kind of model makes no patches so,
      or takes states of another width.
  """
  if rule.is_top_k:
    raise ValueError(
      "config.patching.entropies='device' needs a threshold: top-k patching compares all bytes "
      "of a text, and rows cut texts. Set config.patching.threshold."
    )
  make = kinds.kind_of(model.config).device_patched
  if make is None:
    raise ValueError("config.patching.entropies='device' is of a blt; leave it out.")
  width, given = model.config.entropy_state_dim, entropies.transformer.dim
  if width not in (0, given):
    raise ValueError(
      f"config.model.entropy_state_dim is {width}, and the states of the entropy model have "
      f"width {given}: set it to that, or to 0 for none."
    )
  return make(model.config, entropies, rule)


def attach_loaded(
  model: nn.Module, patcher: Patcher, mesh: Mesh, tables: Sequence[NgramTable] = ()
) -> tuple[nn.Module, Named]:
  """A model as it patches by an entropy model that is loaded, and what it takes by name.

  Args:
    model: of a run.
    patcher: of the run.
    mesh: the devices, each of which gets all parameters.
    tables: the model's frequency n-gram tables.

  Returns:
    The model itself and nothing where the device does not patch.
  """
  if not patcher.on_device:
    return model, {}
  everywhere = NamedSharding(mesh, PartitionSpec())
  if patcher.patched_by == "head":
    boundary_head.check(model.config)
    return HeadPatchedBLT(model.config, rule=patcher.config), {}
  if patcher.patched_by == "own":
    make = kinds.own_patched(model.config)
    keys = jax.device_put([table.keys for table in tables], everywhere)
    return make(model.config, patcher.config), {"ngram_keys": keys}
  entropies = patcher.entropy_model
  assert isinstance(entropies, folder.EntropyModel)  # as `patcher.load_patcher` has seen to
  placed = jax.device_put(entropies.params, everywhere)
  return attach(model, entropies.config, patcher.config), {"entropy_params": placed}
