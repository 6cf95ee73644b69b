"""A random Llama of the 135M class against transformers, at many positions.

  PYTHONPATH=. python tests/manual/llama_exactness.py --positions=9000

Prints the largest difference of the hidden states, whose standard deviation is about 1.
Frequencies are scaled, with an old context of 2048.
"""

import argparse
import tempfile

import jax
import numpy as np
import torch
import transformers

from blt_jax import convert
from blt_jax.models.transformer import Transformer
from blt_jax.ops import norm

_ROPE = dict(
  rope_type="llama3", rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0,
  high_freq_factor=4.0, original_max_position_embeddings=2048,
)  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--positions", type=int, default=9000)
  parser.add_argument("--layers", type=int, default=30)
  args = parser.parse_args()
  torch.manual_seed(0)
  settings = transformers.LlamaConfig(
    vocab_size=300, hidden_size=576, intermediate_size=1536, num_hidden_layers=args.layers,
    num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=16_384,
    rope_parameters=_ROPE, initializer_range=0.04,
  )  # fmt: skip
  model = transformers.LlamaForCausalLM(settings).eval()
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config, params = convert.from_llama(folder)
  x = np.random.default_rng(0).normal(size=(1, args.positions, 576)).astype(np.float32)
  with torch.no_grad():
    want = model.model(inputs_embeds=torch.tensor(x), use_cache=False).last_hidden_state
  hidden = jax.jit(lambda p, x: Transformer(config).apply({"params": p}, x, None))(params, x)
  scale = model.model.norm.weight.detach().numpy()
  got = np.asarray(norm.rms_norm(hidden, scale, config.norm_epsilon))
  difference = np.abs(got - want.numpy()).max(axis=(0, 2))
  for position in (0, 99, args.positions - 1):
    print(f"position {position}: {difference[position]:.2g}")
  print(f"largest: {difference.max():.2g} of values with deviation {got.std():.2f}")


if __name__ == "__main__":
  main()
