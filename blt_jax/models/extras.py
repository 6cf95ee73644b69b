"""What a model tells a training step beside its logits."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Extras:
  """What the method `forward` of a model gives as well, where it has one.

  Attributes:
    metrics: float32 scalars, sums over the batch, which stand in for those of `steps.sums`
      or come on top of them.
    loss_mask: bool [B, S], what the model could predict at all; None for everything.
    losses: float32 scalars, sums over the batch in nats, that are learned beside the cross
      entropy of the logits, weighted already.
    patch_lengths: int32 [B, P], the patches that the model made; rows sum to S + 1.
    entropies: float32 [B, S] nats, those that made them, where they are not of the logits.
  """

  metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  loss_mask: jax.Array | None = None
  losses: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  patch_lengths: jax.Array | None = None
  entropies: jax.Array | None = None
