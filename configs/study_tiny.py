r"""Every kind of model once, small, on the source code of Python's standard library.

python -m blt_jax.study --plan=configs/study_tiny.py --output=runs/study_tiny
"""

from blt_jax.studies.plan import Arm, Entropies, Plan


def get_plan() -> Plan:
  """Minutes on two cores."""
  return Plan(
    arms={
      "blt": Arm("quickstart.py", entropies="neural", bytes_per_patch=4.5),
      "megabyte": Arm("quickstart.py:megabyte"),
    },
    entropies={"neural": Entropies("quickstart.py:entropy", {"num_steps": 200})},
    budgets={1e11: 1},
    rates=(4e-3,),
    reference="blt",
    settings={"data.heldout_fraction": 0.02},
  )
