r"""A BLT and its baselines once, small, on the source code of Python's standard library.

  python -m blt_jax.study --plan=configs/study_tiny.py --output=runs/study_tiny

Minutes on two CPU cores. One learning rate and one seed: it shows what a study is, and decides
nothing.
"""

from blt_jax.studies.plan import Arm, Entropies, Plan


def get_plan() -> Plan:
  return Plan(
    arms={
      "blt": Arm("quickstart.py", entropies="neural", bytes_per_patch=4.5),
      "blt_table": Arm("quickstart.py", entropies="table", bytes_per_patch=4.5),
      "static": Arm("quickstart.py:static"),
      "space": Arm("quickstart.py:space"),
      "megabyte": Arm("quickstart.py:megabyte"),
      "spacebyte": Arm("quickstart.py:spacebyte"),
      "flat": Arm("quickstart.py:flat"),
      "flat_window": Arm("quickstart.py:flat_window"),
      "bpe": Arm("quickstart.py:bpe"),
    },
    entropies={
      "neural": Entropies("quickstart.py:entropy", {"num_steps": 200}),
      "table": Entropies(text=2_000_000),
    },
    budgets={2e11: 1},
    rates=(4e-3,),
    reference="blt",
    settings={"data.seq_len": 1024},
    evaluations=1,
  )
