"""The kinds of models, and everything about each: the one place that knows them all."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from blt_jax.cost import flops
from blt_jax.decode import end_to_end, language_model, megabyte, mixture, spacebyte
from blt_jax.decode.own_entropies import OwnPatchedBLT
from blt_jax.models.blt import BLT
from blt_jax.models.boundary_head import BoundaryBLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import (
  BLTConfig,
  BPELMConfig,
  ByteLMConfig,
  CrossAttentionConfig,
  TransformerConfig,
)
from blt_jax.models.device_patches import DevicePatchedBLT
from blt_jax.models.end_to_end import EndToEndBLT, EndToEndConfig
from blt_jax.models.megabyte import MegaByte, MegaByteConfig
from blt_jax.models.mixture import MixtureBLT, MixtureConfig
from blt_jax.models.spacebyte import SpaceByte, SpaceByteConfig


@dataclasses.dataclass(frozen=True)
class Kind:
  """What the library needs to know of a kind of model.

  Attributes:
    config: class of its frozen config.
    module: class of its Flax module, made from a config; called with tokens [B, S],
      patch_lengths [B, P] or None, and the `batch_keys` by name, it gives float32 logits.
    reader: makes a `LanguageModel` of the module and its parameters; what patches takes
      the patching and the source of entropies too, as `language_model.from_blt` does.
    flops_per_byte: the paper's count, (config, bytes_per_patch, seq_len) -> forward FLOPs.
    model_flops: FLOPs of one row of a training step, (config, seq_len, num_patches).
    default: a config of the size that a run trains unless it says otherwise.
    tiny: a small valid config, for tests and first tries.
    batch_keys: extra arrays of a batch that the module may take, as it says itself, or
      that its loss takes: `target_bytes`, where ids are pieces.
    patched: whether it reads `patch_lengths`.
    unlimited: of a config, one of the same parameters that leaves no position of a row out.
    device_patched: of a config, that of an entropy model and a rule, the module that makes its
      patches in the step; None where there is none.
    own_patched: of a config and a rule, the module that makes its patches by its own entropies;
      None where there is none.
    with_head: the module in place of it where the config has a `boundary_weight`.
    measures_entropies: whether it does, inside, and makes patches by them, whose mean comes to
      `patch_size` of its config while it trains.
  """

  config: type
  module: Callable[[Any], nn.Module]
  reader: Callable[..., language_model.LanguageModel]
  flops_per_byte: Callable[[Any, float, int], float]
  model_flops: Callable[[Any, int, int], float]
  default: Callable[[], Any]
  tiny: Callable[[], Any]
  batch_keys: tuple[str, ...] = ()
  patched: bool = False
  unlimited: Callable[[Any], Any] = lambda config: config
  device_patched: Callable[..., nn.Module] | None = None
  own_patched: Callable[..., nn.Module] | None = None
  with_head: Callable[[Any], nn.Module] | None = None
  measures_entropies: bool = False

  @property
  def reads_pieces(self) -> bool:
    """Whether ids are pieces of a tokenizer, and not bytes."""
    return "target_bytes" in self.batch_keys


def _blt() -> BLTConfig:
  """The paper's 1B."""
  local = TransformerConfig(1024, num_layers=1, num_heads=16, window=512, rope_theta=5e5)
  return BLTConfig(
    encoder=local,
    latent=TransformerConfig(2048, num_layers=25, num_heads=16, rope_theta=5e5),
    decoder=dataclasses.replace(local, num_layers=9),
    encoder_cross=CrossAttentionConfig(num_heads=16),
    decoder_cross=CrossAttentionConfig(num_heads=16, all_layers=True),
    dtype="bfloat16",
  )


def _tiny_blt() -> BLTConfig:
  local = TransformerConfig(dim=16, num_layers=1, num_heads=2, window=8, mlp_multiple_of=8)
  return BLTConfig(
    encoder=local,
    latent=TransformerConfig(dim=32, num_layers=1, num_heads=2, mlp_multiple_of=8),
    decoder=local,
    encoder_cross=CrossAttentionConfig(num_heads=2),
    decoder_cross=CrossAttentionConfig(num_heads=2, all_layers=True),
    hash_sizes=(3, 4),
    hash_vocab_size=64,
  )


def _byte_lm() -> ByteLMConfig:
  """The entropy model of Meta's code, 100M."""
  stack = TransformerConfig(dim=768, num_layers=14, num_heads=12, window=512)
  return ByteLMConfig(stack, dtype="bfloat16")


def _bpe_lm() -> BPELMConfig:
  """Llama's layers at the size of `_byte_lm`, which sees whole rows of pieces."""
  stack = TransformerConfig(dim=768, num_layers=14, num_heads=12)
  return BPELMConfig(stack, dtype="bfloat16")


def _tiny_bpe_lm() -> BPELMConfig:
  stack = dataclasses.replace(_tiny_byte_lm().transformer, window=None)
  return BPELMConfig(stack, vocab_size=260)  # bytes alone are pieces too


def _tiny_byte_lm() -> ByteLMConfig:
  stack = TransformerConfig(dim=16, num_layers=1, num_heads=2, window=8, mlp_multiple_of=8)
  return ByteLMConfig(stack)


def _megabyte() -> MegaByteConfig:
  """Both stacks of the paper's runs on text (section 5), 758M and 262M."""
  global_model = TransformerConfig(dim=2048, num_layers=14, num_heads=16)
  local_model = TransformerConfig(dim=1024, num_layers=18, num_heads=16)
  return MegaByteConfig(global_model, local_model, dtype="bfloat16")


def _tiny_megabyte() -> MegaByteConfig:
  stack = TransformerConfig(dim=16, num_layers=1, num_heads=2, mlp_multiple_of=8)
  wide = dataclasses.replace(stack, dim=32)
  return MegaByteConfig(wide, stack, patch_size=4, max_patches=256)


def _spacebyte() -> SpaceByteConfig:
  """A size of the paper's runs of 1e19 FLOPs (section 4): half as wide as its global model."""
  local = TransformerConfig(dim=512, num_layers=16, num_heads=8, window=512)
  wide = TransformerConfig(dim=1024, num_layers=16, num_heads=16)
  return SpaceByteConfig(local, wide, num_patches=1024, dtype="bfloat16")


def _tiny_spacebyte() -> SpaceByteConfig:
  local = TransformerConfig(dim=16, num_layers=2, num_heads=2, window=8, mlp_multiple_of=8)
  wide = TransformerConfig(dim=24, num_layers=1, num_heads=2, mlp_multiple_of=8)
  return SpaceByteConfig(local, wide)


def _end_to_end() -> EndToEndConfig:
  """The paper's 1B behind a predictor of 2M parameters."""
  return EndToEndConfig(**_fields(_blt()), num_patches=1024)


def _tiny_end_to_end() -> EndToEndConfig:
  stack = TransformerConfig(dim=8, num_layers=1, num_heads=2, window=8, mlp_dim=8)
  return EndToEndConfig(**_fields(_tiny_blt()), predictor=stack, num_patches=64)


def _mixture() -> MixtureConfig:
  """The paper's 1B over patches of 9 bytes, which read patches of 4.5 bytes."""
  return MixtureConfig(**_fields(_blt()))


def _tiny_mixture() -> MixtureConfig:
  return MixtureConfig(**_fields(_tiny_blt()), finer_attention=True, read_finer=True)


def _fields(config: Any) -> dict[str, Any]:
  return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


KINDS: dict[str, Kind] = {
  "blt": Kind(
    config=BLTConfig,
    module=BLT,
    with_head=BoundaryBLT,
    reader=language_model.from_blt,
    flops_per_byte=flops.blt_flops_per_byte,
    model_flops=flops.blt_model_flops,
    default=_blt,
    tiny=_tiny_blt,
    batch_keys=BLT.batch_keys,
    patched=True,
    device_patched=DevicePatchedBLT,
    own_patched=OwnPatchedBLT,
  ),
  "byte_lm": Kind(
    config=ByteLMConfig,
    module=ByteLM,
    reader=language_model.from_byte_lm,
    flops_per_byte=flops.byte_lm_flops_per_byte,
    model_flops=flops.byte_lm_model_flops,
    default=_byte_lm,
    tiny=_tiny_byte_lm,
  ),
  "bpe_lm": Kind(
    config=BPELMConfig,
    module=ByteLM,
    reader=language_model.from_byte_lm,
    flops_per_byte=flops.bpe_lm_flops_per_byte,
    model_flops=flops.byte_lm_model_flops,
    default=_bpe_lm,
    tiny=_tiny_bpe_lm,
    batch_keys=("target_bytes",),
  ),
  "megabyte": Kind(
    config=MegaByteConfig,
    module=MegaByte,
    reader=megabyte.from_megabyte,
    flops_per_byte=flops.megabyte_flops_per_byte,
    model_flops=flops.megabyte_model_flops,
    default=_megabyte,
    tiny=_tiny_megabyte,
  ),
  "spacebyte": Kind(
    config=SpaceByteConfig,
    module=SpaceByte,
    reader=spacebyte.from_spacebyte,
    flops_per_byte=flops.spacebyte_flops_per_byte,
    model_flops=flops.spacebyte_model_flops,
    default=_spacebyte,
    tiny=_tiny_spacebyte,
    unlimited=lambda config: dataclasses.replace(config, num_patches=None),
  ),
  "end_to_end": Kind(
    config=EndToEndConfig,
    module=EndToEndBLT,
    reader=end_to_end.from_end_to_end,
    flops_per_byte=flops.end_to_end_flops_per_byte,
    model_flops=flops.end_to_end_model_flops,
    default=_end_to_end,
    tiny=_tiny_end_to_end,
    batch_keys=EndToEndBLT.batch_keys,
    unlimited=lambda config: dataclasses.replace(config, num_patches=None),
    measures_entropies=True,
  ),
  "mixture": Kind(
    config=MixtureConfig,
    module=MixtureBLT,
    reader=mixture.from_mixture,
    flops_per_byte=flops.mixture_flops_per_byte,
    model_flops=flops.mixture_model_flops,
    default=_mixture,
    tiny=_tiny_mixture,
    batch_keys=MixtureBLT.batch_keys,
    patched=True,
    unlimited=lambda config: dataclasses.replace(config, num_patches=None),
  ),
}


def own_patched(config: Any) -> Callable[..., nn.Module]:
  """`Kind.own_patched` of a model's config.

  Raises:
    ValueError: its kind has none, or it reads the states of an entropy model.
  """
  kind = kind_of(config)
  if kind.own_patched is None:
    (name,) = (name for name, other in KINDS.items() if other is kind)
    able = " or ".join(name for name, other in KINDS.items() if other.own_patched)
    raise ValueError(
      f"--entropy_model=own is of a {able}, and the run's model is a {name}: leave it out, or "
      "give an entropy model."
    )
  if config.entropy_state_dim:
    raise ValueError(
      "--entropy_model=own leaves the entropy model out, and the run's model reads its states "
      "(entropy_state_dim): leave it out."
    )
  return kind.own_patched


def find_kind(name: str) -> Kind:
  """The kind of a name.

  Raises:
    ValueError: there is none.
  """
  if name not in KINDS:
    raise ValueError(f"config.model.kind is {name!r}; choose one of {tuple(KINDS)}.")
  return KINDS[name]


def kind_of(config: Any) -> Kind:
  """The kind of a model's config.

  Raises:
    TypeError: it is the config of none.
  """
  for kind in KINDS.values():
    if type(config) is kind.config:
      return kind
  names = [kind.config.__name__ for kind in KINDS.values()]
  raise TypeError(f"{type(config).__name__} is no config of a model; those are {names}.")


def build_model(config: Any) -> nn.Module:
  """The module of a model's config."""
  kind = kind_of(config)
  if kind.with_head is not None and config.boundary_weight:
    return kind.with_head(config)
  return kind.module(config)


def read_all(model: nn.Module) -> nn.Module:
  """The module with slots for all patches that rows bring; models that make theirs stay."""
  kind = kind_of(model.config)
  return model.clone(config=kind.unlimited(model.config)) if kind.patched else model


def flops_per_byte(config: Any, bytes_per_patch: float, seq_len: int) -> float:
  """The paper's forward FLOPs per byte; see `cost.flops`."""
  return kind_of(config).flops_per_byte(config, bytes_per_patch, seq_len)


def model_flops(config: Any, seq_len: int, num_patches: int) -> float:
  """FLOPs of one row of a training step, forward and backward; see `cost.flops`."""
  return kind_of(config).model_flops(config, seq_len, num_patches)
