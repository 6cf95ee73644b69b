"""How fast Hugging Face's BLT generates, for a comparison in the same run."""

import time
from typing import Any

from blt_jax.convert import hf
from blt_jax.models.config import BLTConfig, ByteLMConfig
from blt_jax.patching import PatchingConfig


def measure(
  blt: BLTConfig, entropy: ByteLMConfig, prompt_bytes: int, new_bytes: int = 24
) -> dict[str, Any]:
  """Bytes per second of a model of these sizes, of random weights in bfloat16, batch 1.

  Patches have four bytes. It runs without a cache, the one way in which it generates.
  """
  import torch
  import transformers

  patching = PatchingConfig(threshold=100.0, max_patch_length=4)
  config = transformers.BltConfig(**hf.to_hf(blt, entropy, patching))
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_default_dtype(torch.bfloat16)
  with torch.device(device):
    model = transformers.BltForCausalLM(config).eval()
    prompt = torch.randint(4, 260, (1, prompt_bytes))

  def generate(number):
    model.generate(
      prompt, max_new_tokens=number, min_new_tokens=number, do_sample=False, use_cache=False
    )
    if device == "cuda":
      torch.cuda.synchronize()

  generate(2)
  begin = time.perf_counter()
  generate(new_bytes)
  rate = new_bytes / (time.perf_counter() - begin)
  return {
    "model": f"Hugging Face BLT, transformers {transformers.__version__}",
    "bytes_per_s": rate,
  }
