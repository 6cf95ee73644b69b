"""A table of byte n-grams as an entropy source."""

import dataclasses

import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.decode.reader import Pending
from blt_jax.entropy.contexts import MAX_ORDER
from blt_jax.entropy.table import TableModel

_REACH = MAX_ORDER + 1  # ids before a byte that its entropy may depend on


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableCache:
  """The last ids of each row."""

  cursor: jax.Array  # int32 [B, _REACH]


@dataclasses.dataclass(frozen=True)
class TableSource:
  """Entropies of a `TableModel`; its weights are `TableModel.jax_tables()`."""

  table: TableModel
  gives_logits: bool = dataclasses.field(default=False, init=False)

  def init(self, batch_size: int, capacity: int, chunk: int) -> TableCache:
    """See `EntropySource`."""
    del capacity, chunk
    return TableCache(jnp.full((batch_size, _REACH), tokenizer.BOE_ID, jnp.int32))

  def read(
    self, weights: list[jax.Array], cache: TableCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, None, Pending]:
    """See `EntropySource`; a table does not say which byte comes next."""
    del count
    ids = jnp.concatenate([cache.cursor, tokens], axis=1)
    entropies = self.table.score_jax(weights, ids)[:, _REACH:]
    windows = jnp.arange(tokens.shape[1] + 1)[:, None] + jnp.arange(_REACH)[None]
    return entropies, None, Pending(cache, ids[:, windows])
