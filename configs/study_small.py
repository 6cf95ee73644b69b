r"""Five models of 24 MFLOPs per byte at 3e15 and 1e16 training FLOPs, for one GPU.

  python -m blt_jax.study --plan=configs/study_small.py --output=runs/study_small \
    --data=train.jsonl --heldout=heldout.jsonl

1e16 FLOPs are 139 MB of text.
"""

from blt_jax.studies.plan import Arm, Entropies, Plan


def get_plan() -> Plan:
  return Plan(
    arms={
      "blt": Arm("study_models.py:blt", entropies="neural", bytes_per_patch=4.5),
      "space": Arm("study_models.py:space"),
      "megabyte": Arm("study_models.py:megabyte"),
      "spacebyte": Arm("study_models.py:spacebyte"),
      "bpe": Arm("study_models.py:bpe"),
    },
    entropies={"neural": Entropies("study_models.py:entropy", stored=True)},
    budgets={3e15: 1, 1e16: 2},
    rates=(0.9e-3, 1.8e-3, 3.5e-3),
    max_extensions=1,
    reference="blt",
    settings={"data.path": "train.jsonl", "data.heldout_path": "heldout.jsonl"},
  )
