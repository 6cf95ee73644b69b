"""Every config builds, and those of pods divide the slices that they name."""

import dataclasses
import importlib
import importlib.util
import pathlib

import llama_folder
import pytest

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.cost import topologies
from blt_jax.parallel import sharding
from blt_jax.runs import settings_flags
from blt_jax.studies import plan

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
PLANS = (
  "study_tiny",
  "study_small",
  "study_paper",
  "study_llama",
  "study_pictures",
  "study_pod",
)
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("pods", *PLANS))
PODS = [
  ("tpu_v4", "1b", "v4-128"),
  ("tpu_v4", "8b", "v4-256"),
  ("tpu_v5p", "1b", "v5p-128"),
  ("tpu_v5p", "8b", "v5p-256"),
  ("tpu_v6e", "1b", "v6e-64"),
  ("tpu_v6e", "8b", "v6e-256"),
  ("tpu_entropy", None, "v4-32"),
  *(("tpu_baselines", name, "v4-128") for name in ("megabyte", "spacebyte", "flat", "bpe")),
]


def _get(name, size=None):
  module = importlib.import_module(f"configs.{name}")
  return module.get_config(*([size] if size else []))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_its_parts(name):
  config = _get(name)
  settings.make_model_config(config.model)
  settings.make_patching_config(config.patching, threshold=1.0)
  settings.make_batch_shape(config)
  settings.make_optimizer(config)


@pytest.mark.parametrize(
  ("stage", "patch_size"),
  [
    ("static", 6), ("space", 8), ("megabyte", 8), ("spacebyte", 8), ("flat", 1),
    ("flat_window", 1), ("end_to_end", 4.5), ("mixture", 4.5),
  ],
)  # fmt: skip
def test_baselines_of_the_quickstart_cost_as_much_as_its_blt(stage, patch_size):
  """By the paper's count, for each byte; and learn from as many."""
  config, blt = _get("quickstart", stage), _get("quickstart")
  model = settings.make_model_config(config.model)
  settings.make_patching_config(config.patching, threshold=1.0)
  cost = kinds.flops_per_byte(model, patch_size, config.data.seq_len)
  wanted = kinds.flops_per_byte(settings.make_model_config(blt.model), 4.5, blt.data.seq_len)
  assert cost == pytest.approx(wanted, rel=0.03)
  assert settings.make_batch_shape(config).batch_size == blt.data.batch_size
  assert (config.data.seq_len, config.num_steps) == (blt.data.seq_len, blt.num_steps)


def test_the_llama_of_the_quickstart_costs_as_much_as_its_blt():
  config, blt = _get("quickstart", "bpe"), _get("quickstart")
  seq_len = blt.data.seq_len
  wanted = kinds.flops_per_byte(settings.make_model_config(blt.model), 4.5, seq_len)
  # Bytes per piece of its tokenizer on its training text, as train_tokenizer prints them.
  cost = kinds.flops_per_byte(settings.make_model_config(config.model), 3.216, seq_len)
  assert cost == pytest.approx(wanted, rel=0.03)
  assert config.data.seq_len * 3.216 == pytest.approx(seq_len, rel=0.01)


@pytest.mark.parametrize("name", PLANS)
def test_arms_of_plans_cost_the_same_per_byte(name):
  """Words have 6.65 bytes and pieces 3.23 in English and code, 8 and 3.216 in Python."""
  whole = plan.load(str(FOLDER / f"{name}.py"))
  words, pieces = {"study_tiny": (8.0, 3.216), "study_pod": (6.0, 4.0)}.get(name, (6.65, 3.23))
  costs = {}
  for arm, config in plan.load_arms(whole).items():
    sizes = {"spacebyte": words, "space": words, "bpe": pieces}
    if config.patching.scheme == "static":
      sizes[arm] = settings.stated_patch_size(config.patching)
    own = config.model.get("patch_size") if config.model.kind == "end_to_end" else None
    patch_size = whole.arms[arm].bytes_per_patch or own or sizes.get(arm) or 1.0
    model, seq_len = settings.make_model_config(config.model), config.data.seq_len
    costs[arm] = kinds.flops_per_byte(model, patch_size, seq_len)
    settings.make_batch_shape(config)
  assert costs == pytest.approx(dict.fromkeys(costs, costs[whole.reference]), rel=0.03)
  for source in filter(lambda source: source.config, whole.entropies.values()):
    entropy = settings_flags.load(source.config, plan.flags(source.settings))
    assert entropy.model.kind == "byte_lm"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(("name", "size", "topology"), PODS)
def test_pods_divide_their_slices(name, size, topology):
  config = _get(name, size)
  mesh = sharding.make_mesh(**config.mesh, devices=topologies.get_topology(topology).devices)
  sharding.check_batch_size(config.data.batch_size, config.optimizer.accumulate, mesh)


@pytest.mark.parametrize("size", ["1b", "8b"])
def test_the_papers_recipe(size):
  config = _get("tpu_v4", size)
  assert config.data.batch_size * config.data.seq_len == 2**24
  assert 4.4 < config.data.seq_len / config.data.num_patches < 4.5
  assert (config.optimizer.learning_rate, config.schedule.warmup_steps) == (4e-4, 2000)
  assert (config.schedule.name, config.schedule.min_ratio) == ("cosine", 0.0)


def test_a_blt_around_a_llama_takes_its_blocks(tmp_path):
  llama = llama_folder.write(
    tmp_path, hidden_size=2048, intermediate_size=64, num_attention_heads=32,
    num_key_value_heads=8, rope_theta=5e5,
  )  # fmt: skip
  config = _get("blt_from_llama", str(tmp_path))
  blt = settings.make_model_config(config.model)
  assert blt.latent == dataclasses.replace(llama.transformer, unroll=blt.latent.unroll)
  assert (blt.vectors_per_patch, blt.encoder.dim, blt.decoder.head_dim) == (2, 1024, 64)
  assert blt.patch_dim == blt.latent.dim and config.init_parts.latent == "transformer"
  entropy = _get("entropy_from_llama", str(tmp_path))
  stack = settings.make_model_config(entropy.model).transformer
  assert (stack.dim, stack.num_kv_heads, stack.window) == (2048, 8, 512)
  settings.make_optimizer(config)


def test_both_stages_of_a_distillation_are_of_one_model():
  first, second = (_get("distillation", stage) for stage in ("first", "second"))
  model = settings.make_model_config(first.model)
  assert model == settings.make_model_config(second.model)
  teacher = settings.make_model_config(_get("quickstart", "bpe").model)
  assert model.latent == teacher.transformer and model.patch_dim == model.latent.dim
  assert first.distillation.teacher == first.init_from and not second.distillation.teacher
  assert second.init_from == first.workdir and second.patching.scheme == "entropy"
  with pytest.raises(ValueError, match="Unknown stage 'third'; choose one of .*second"):
    _get("distillation", "third")


def test_unknown_sizes_are_errors():
  with pytest.raises(ValueError, match="Unknown size '3b'; choose one of .*1b.*8b"):
    _get("tpu_v4", "3b")
