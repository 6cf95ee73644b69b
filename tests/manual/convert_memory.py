"""How much memory converting takes: a Llama's folder of random weights, in bfloat16.

  PYTHONPATH=. python tests/manual/convert_memory.py --gigabytes=10 --folder=/tmp

Prints the peak of anonymous memory (RssAnon) of `python -m blt_jax.convert`; pages of files are
not in it, since the system takes them back when it needs them. Needs three times as much
of disk, below the folder.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

_DIM, _MLP, _KEYS, _VOCAB = 4096, 14_336, 1024, 128_256  # those of an 8B
_CONFIG = dict(
  model_type="llama", hidden_size=_DIM, intermediate_size=_MLP, num_attention_heads=32,
  num_key_value_heads=8, vocab_size=_VOCAB, rms_norm_eps=1e-5, rope_theta=500_000.0,
  tie_word_embeddings=True, hidden_act="silu",
)  # fmt: skip
_LAYER = {
  "input_layernorm": (_DIM,), "post_attention_layernorm": (_DIM,),
  "self_attn.q_proj": (_DIM, _DIM), "self_attn.k_proj": (_KEYS, _DIM),
  "self_attn.v_proj": (_KEYS, _DIM), "self_attn.o_proj": (_DIM, _DIM),
  "mlp.gate_proj": (_MLP, _DIM), "mlp.up_proj": (_MLP, _DIM), "mlp.down_proj": (_DIM, _MLP),
}  # fmt: skip


def write_llama(folder: pathlib.Path, gigabytes: float) -> float:
  """Writes a file for each layer and one for the rest; gives the size of the largest array
  of the run in gigabytes: that of all layers' gates."""
  rng = np.random.default_rng(0)

  def random(*shape):  # bfloat16 between 2^-7 and 2
    return rng.integers(0x3C00, 0x4000, shape, np.uint16).view(jnp.bfloat16)

  layer_bytes = 2 * sum(int(np.prod(shape)) for shape in _LAYER.values())
  num_layers = round((gigabytes * 1e9 - 2 * _VOCAB * _DIM) / layer_bytes)
  for i in range(num_layers):
    arrays = {f"model.layers.{i}.{k}.weight": random(*shape) for k, shape in _LAYER.items()}
    save_file(arrays, folder / f"layer_{i}.safetensors")
  rest = {"model.embed_tokens.weight": random(_VOCAB, _DIM), "model.norm.weight": random(_DIM)}
  save_file(rest, folder / "rest.safetensors")
  config = _CONFIG | {"num_hidden_layers": num_layers}
  (folder / "config.json").write_text(json.dumps(config))
  return 2 * num_layers * _MLP * _DIM / 1e9


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--gigabytes", type=float, default=10)
  parser.add_argument("--folder", default=None, help="where there is room")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    source = pathlib.Path(folder, "llama")
    source.mkdir()
    largest = write_llama(source, args.gigabytes)
    command = ["-m", "blt_jax.convert", "--from=llama", f"--path={source}"]
    process = subprocess.Popen([sys.executable, *command, f"--output={folder}/run"])
    start, peak = time.time(), 0
    while process.poll() is None:
      status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
      peak = max(peak, *map(int, re.findall(r"RssAnon:\s+(\d+)", status)), 0)
      time.sleep(0.02)
    size = sum(x.stat().st_size for x in source.iterdir()) / 1e9
    print(
      f"status {process.returncode}, {size:.1f} GB in {time.time() - start:.0f} s, "
      f"largest array {largest:.2f} GB, peak of anonymous memory {peak / 1e6:.2f} GB"
    )


if __name__ == "__main__":
  main()
