r"""What a Llama's blocks are worth to a BLT: fresh ones, and those of a trained Llama.

  TEXT="--config.data.path=train.jsonl --config.data.heldout_path=heldout.jsonl"
  python -m blt_jax.train_tokenizer --config=configs/study_models.py:llama $TEXT
  python -m blt_jax.train --config=configs/study_models.py:llama $TEXT
  python -m blt_jax.train --config=configs/study_models.py:distilled_llama $TEXT
  python -m blt_jax.study --plan=configs/study_llama.py --output=runs/study_llama \
    --data=train.jsonl --heldout=heldout.jsonl

The first three make the Llama, of 14M parameters in its blocks, and the first stage of a
distillation from it. Budgets count what follows alone: neither the Llama nor the first stage.
In `rate_1`, `rate_0.5` and `rate_0.1` the latent transformer begins with the Llama's blocks and
learns at this part of the rate; in `distilled_*` all begins with the first stage.
"""

from blt_jax.studies.plan import Arm, Entropies, Plan

BLOCKS = "latent/transformer/*"
LLAMA = {"init_from": "runs/study/llama", "init_parts": {"latent": "transformer"}}
DISTILLED = {"init_from": "runs/study/distilled_llama"}


def get_plan() -> Plan:
  return Plan(
    arms={
      "fresh": _arm(),
      "rate_1": _arm(LLAMA),
      "rate_0.5": _arm(LLAMA, 0.5),
      "rate_0.1": _arm(LLAMA, 0.1),
      "distilled_1": _arm(DISTILLED),
      "distilled_0.5": _arm(DISTILLED, 0.5),
    },
    entropies={"neural": Entropies("study_models.py:entropy", stored=True)},
    budgets={3e14: 1, 1e15: 1, 3e15: 2},
    rates=(0.9e-3, 1.8e-3, 3.5e-3),
    max_extensions=1,
    reference="fresh",
    settings={"data.path": "train.jsonl", "data.heldout_path": "heldout.jsonl"},
  )


def _arm(start=None, scale=1):
  own = dict(start or {})
  if scale != 1:
    own["optimizer.groups"] = {BLOCKS: {"learning_rate_scale": scale}}
  return Arm("study_models.py:around_llama", own, entropies="neural", bytes_per_patch=4.5)
