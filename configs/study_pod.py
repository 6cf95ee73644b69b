r"""Models of the paper's 1B, 0.92 GFLOPs per byte each, for slices of TPUs: sizes alone.

The processes of a pod do not share a study: `train_compile` and `train` take an arm's config
and settings, and `study --runs` reports on what was trained.

  python -m blt_jax.train_compile --config=configs/tpu_v4.py --topology=v4-128
"""

from blt_jax.studies.plan import Arm, Entropies, Plan

WIDE = "model.global_model.num_layers"


def get_plan() -> Plan:
  return Plan(
    arms={
      "blt": Arm("tpu_v4.py:1b", entropies="neural", bytes_per_patch=4.5),
      "megabyte": Arm(
        "tpu_baselines.py:megabyte", {WIDE: 24, "model.local_model.num_layers": 24}
      ),
      "spacebyte": Arm("tpu_baselines.py:spacebyte", {WIDE: 40}),
      "bpe": Arm(
        "tpu_baselines.py:bpe", {"model.transformer.num_layers": 36, "data.seq_len": 8192}
      ),
    },
    entropies={"neural": Entropies("tpu_entropy.py", stored=True)},
    budgets={1e21: 1, 3e21: 1},  # 0.36 and 1.1 trillion bytes
    rates=(2e-4, 4e-4, 8e-4),
    reference="blt",
    settings={
      "data.path": "gs://BUCKET/text/*.jsonl",
      "data.heldout_path": "gs://BUCKET/heldout.jsonl",
    },
  )
