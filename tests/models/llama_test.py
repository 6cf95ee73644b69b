"""A model over pieces is a Llama: the same logits as Hugging Face's from the same weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import FLOAT32

from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BPELMConfig, TransformerConfig

torch = pytest.importorskip("torch", reason="the convert extra")
transformers = pytest.importorskip("transformers", reason="the convert extra")


def _in_pairs(matrix, heads):
  """Rows [N H, D] of heads whose halves are rotated, as heads whose neighbours are."""
  rows = matrix.reshape(heads, 2, -1, matrix.shape[1]).swapaxes(1, 2)
  return rows.reshape(matrix.shape)


def _layer(weights, number, heads, kv_heads):
  """Our parameters of one layer of a Llama."""

  def read(name):
    return weights[f"model.layers.{number}.{name}.weight"]

  query, key = read("self_attn.q_proj"), read("self_attn.k_proj")
  attention = {
    "query": _in_pairs(query, heads),
    "key": _in_pairs(key, kv_heads),
    "value": read("self_attn.v_proj"),
    "output": read("self_attn.o_proj"),
  }
  mlp = {name: read(f"mlp.{name}_proj") for name in ("gate", "up", "down")}
  return {
    "attention": {name: {"kernel": matrix.T} for name, matrix in attention.items()},
    "mlp": {name: {"kernel": matrix.T} for name, matrix in mlp.items()},
    "attention_norm": {"scale": read("input_layernorm")},
    "mlp_norm": {"scale": read("post_attention_layernorm")},
  }


@pytest.mark.parametrize("is_tied", [True, False])
def test_logits_are_those_of_hugging_face(is_tied):
  """Grouped heads, an MLP of its own width, embeddings tied or not."""
  torch.manual_seed(0)
  reference = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=300, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
      num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=10_000.0,
      tie_word_embeddings=is_tied, initializer_range=0.2, attn_implementation="eager",
    )
  ).eval()  # fmt: skip
  weights = {k: v.detach().numpy() for k, v in reference.state_dict().items()}
  layers = [_layer(weights, number, 4, 2) for number in range(3)]
  params = {
    "embedding": {"embedding": weights["model.embed_tokens.weight"]},
    "transformer": {"layers": jax.tree.map(lambda *x: np.stack(x), *layers)},
    "norm": {"scale": weights["model.norm.weight"]},
  }
  if not is_tied:
    params["output"] = {"kernel": weights["lm_head.weight"].T}
  stack = TransformerConfig(32, num_layers=3, num_heads=4, num_kv_heads=2, mlp_dim=56)
  model = ByteLM(BPELMConfig(stack, vocab_size=300, tie_embeddings=is_tied))
  ids = np.random.default_rng(0).integers(4, 300, (2, 24))
  ids[:, 0] = 1
  with torch.no_grad():
    expected = reference(torch.tensor(ids)).logits.numpy()
  logits = model.apply({"params": params}, jnp.asarray(ids))
  chex.assert_trees_all_close(np.asarray(logits), expected, **FLOAT32)
