"""The folder of a Llama as Hugging Face writes it, with fresh weights."""

import json

from blt_jax.convert import llama, names, plan, safe_file
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.init import fresh_params

_FIELDS = dict(model_type="llama", num_hidden_layers=1, vocab_size=300)


def write(path, **fields):
  """Writes it; `fields` are those of its config.json. Returns the model's config."""
  fields = _FIELDS | fields
  (path / "config.json").write_text(json.dumps(fields))
  model = ByteLM(llama.config_from_llama(fields))
  entries = names.llama_entries(model.config)
  with (path / "model.safetensors").open("wb") as file:
    safe_file.write(file, plan.split_as(entries, fresh_params(model, 3)))
  return model.config
