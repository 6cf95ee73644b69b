"""Which foreign arrays make each of our parameters, for Meta's and Hugging Face's names."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from blt_jax.models.config import BLTConfig, ByteLMConfig

_BLOCK = {  # our path: (Meta, Hugging Face)
  "attention/query/kernel": ("attention.wq", "self_attn.q_proj"),
  "attention/key/kernel": ("attention.wk", "self_attn.k_proj"),
  "attention/value/kernel": ("attention.wv", "self_attn.v_proj"),
  "attention/output/kernel": ("attention.wo", "self_attn.o_proj"),
  "mlp/gate/kernel": ("feed_forward.w1", "mlp.gate_proj"),
  "mlp/up/kernel": ("feed_forward.w3", "mlp.up_proj"),
  "mlp/down/kernel": ("feed_forward.w2", "mlp.down_proj"),
  "attention_norm/scale": ("attention_norm", "input_layernorm"),
  "mlp_norm/scale": ("ffn_norm", "post_attention_layernorm"),
}
_CROSS = {
  "query/kernel": ("wq", "q_proj"),
  "key/kernel": ("wk", "k_proj"),
  "value/kernel": ("wv", "v_proj"),
  "output/kernel": ("wo", "o_proj"),
  "query_norm/scale": ("cross_attn_norm_q", "q_norm"),
  "context_norm/scale": ("cross_attn_norm_kv", "k_norm"),
}
META, HF = 0, 1


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of our parameters and the foreign arrays that it is made of.

  Attributes:
    path: of our parameter, joined by "/".
    names: of the foreign arrays, in order.
    join: "one", "stack" along a new first axis (layers) or "concat" along the first.
    padding: rows at the end of ours that the foreign arrays lack.
    rotated_heads: heads of a projection whose halves rotate there, and pairs here; 0 for
      all else.
  """

  path: str
  names: tuple[str, ...]
  join: str = "one"
  padding: int = 0
  rotated_heads: int = 0

  @property
  def is_transposed(self) -> bool:
    """Linear maps are [in, out] here and [out, in] there."""
    return self.path.endswith("kernel")

  def foreign_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each foreign array, given that of our parameter."""
    if self.join == "stack":
      shape = shape[1:]
    if self.join == "concat":
      shape = ((shape[0] - self.padding) // len(self.names), *shape[1:])
    return shape[::-1] if self.is_transposed else shape

  def combine(self, arrays: Iterable[Any], out: np.ndarray) -> np.ndarray:
    """Makes our parameter of the foreign arrays, read one by one, in `out` of zeros."""
    for index, array in enumerate(arrays):
      rows = np.asarray(array)
      if self.rotated_heads:  # halves of a head become adjacent pairs
        rows = _swap_pairs(rows, (self.rotated_heads, 2, -1))
      out[self._slot(index, out.shape)] = rows.T if self.is_transposed else rows
    return out

  def split(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Makes the foreign arrays by name, one by one; undoes `combine`."""
    for index, name in enumerate(self.names):
      rows = array[self._slot(index, array.shape)]
      rows = rows.T if self.is_transposed else rows
      if self.rotated_heads:
        rows = _swap_pairs(rows, (self.rotated_heads, -1, 2))
      yield name, np.ascontiguousarray(rows)

  def _slot(self, index: int, shape: tuple[int, ...]) -> Any:
    """Where a foreign array is in our parameter."""
    if self.join == "stack":
      return index
    if self.join == "concat":
      size = (shape[0] - self.padding) // len(self.names)
      return slice(index * size, (index + 1) * size)
    return ...


def _swap_pairs(rows: np.ndarray, parts: tuple[int, int, int]) -> np.ndarray:
  """Rows [N H, D] of heads, each cut in two ways that change places."""
  return rows.reshape(*parts, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def blt_entries(config: BLTConfig, style: int) -> list[Entry]:
  """Everything a BLT consists of, in the names of `META` or `HF`."""
  return list(_blt_entries(config, style))


def byte_lm_entries(config: ByteLMConfig, style: int, prefix: str = "") -> list[Entry]:
  """Everything a byte language model consists of; Hugging Face calls it patcher."""
  embedding, output = (("tok_embeddings", "output"), ("embed_tokens", "lm_head"))[style]
  entries = [
    Entry("embedding/embedding", (f"{prefix}{embedding}.weight",)),
    Entry("norm/scale", (f"{prefix}norm.weight",)),
    *_stacked("transformer/layers", f"{prefix}layers", config.transformer.num_layers, style),
  ]
  if not config.tie_embeddings:
    entries.append(Entry("output/kernel", (f"{prefix}{output}.weight",)))
  return entries


def llama_entries(config: ByteLMConfig, prefix: str = "model.") -> list[Entry]:
  """Everything a Llama of Hugging Face consists of, whose heads rotate in halves.

  Args:
    config: of the model over its pieces.
    prefix: of all names but that of the output.
  """
  stack = config.transformer
  heads = {"query": stack.num_heads, "key": stack.num_kv_heads}

  def as_llama(entry: Entry) -> Entry:
    if entry.path == "output/kernel":
      return dataclasses.replace(entry, names=("lm_head.weight",))
    return dataclasses.replace(entry, rotated_heads=heads.get(entry.path.split("/")[-2], 0))

  return [as_llama(entry) for entry in byte_lm_entries(config, HF, prefix)]


def _blt_entries(config, style) -> Iterator[Entry]:
  model = ("", "model.")[style]
  encoder, decoder = f"{model}local_encoder", f"{model}local_decoder"
  latent = f"{model}global_transformer"
  projection = "patch_embedding_projection.weight"

  bytes_name = ("tok_embeddings", "embed_tokens")[style]
  yield Entry("embedder/bytes/embedding", (f"{encoder}.{bytes_name}.weight",))
  tables = config.num_hash_tables
  hashes = f"{model}encoder_hash_tok_embedding"
  if tables:
    parts = [f".{i}" for i in range(tables)] if style == META else [""]
    names = tuple(f"{hashes}{part}.weight" for part in parts)
    padding = config.hash_rows - tables * config.hash_vocab_size
    yield Entry("embedder/hashes/embedding", names, "concat", padding)
  for i in range(len(config.ngram_vocab_sizes)):
    yield Entry(
      f"embedder/ngrams_{i}/embedding", (f"{model}encoder_ngram_embedding.{i}.weight",)
    )

  for i in range(config.encoder.num_layers):
    yield from _one(_BLOCK, f"encoder/layers_{i}", f"{encoder}.layers.{i}", style)
  if config.encoder_cross:
    yield Entry("encoder/patch_projection/kernel", (f"{encoder}.{projection}",))
    for i in range(config.encoder.num_layers if config.encoder_cross.all_layers else 1):
      yield from _one(_CROSS, f"encoder/cross_{i}", f"{encoder}.cross_attn_layers.{i}", style)

  if config.patch_dim != config.latent.dim:
    yield Entry("latent/projection/kernel", (f"{latent}.token_embedding_projection.weight",))
  yield from _stacked(
    "latent/transformer/layers", f"{latent}.layers", config.latent.num_layers, style
  )

  if config.project_latent:
    yield Entry("decoder/patch_projection/kernel", (f"{decoder}.{projection}",))
  yield from _decoder_layers(config, decoder, style)
  yield Entry("decoder/norm/scale", (f"{decoder}.norm.weight",))
  if not config.tie_embeddings:
    yield Entry("output/kernel", ((f"{decoder}.output", "lm_head")[style] + ".weight",))


def _decoder_layers(config, decoder, style) -> Iterator[Entry]:
  count = config.decoder.num_layers
  every_layer = config.decoder_cross and config.decoder_cross.all_layers
  block = "decoder/layers/block" if every_layer else "decoder/layers"
  yield from _stacked(block, f"{decoder}.layers", count, style)
  cross = f"{decoder}.cross_attn_layers"
  if every_layer:
    yield from _stacked("decoder/layers/cross", cross, count, style, _CROSS)
  elif config.decoder_cross:
    yield from _one(_CROSS, "decoder/cross_0", f"{cross}.0", style)


def _one(table: Mapping[str, Any], ours: str, theirs: str, style: int) -> Iterator[Entry]:
  for path, names in table.items():
    yield Entry(f"{ours}/{path}", (f"{theirs}.{names[style]}.weight",))


def _stacked(ours, theirs, count, style, table=_BLOCK) -> Iterator[Entry]:
  for path, names in table.items():
    layers = tuple(f"{theirs}.{i}.{names[style]}.weight" for i in range(count))
    yield Entry(f"{ours}/{path}", layers, "stack")
