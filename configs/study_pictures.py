r"""Pictures as bytes: patches of four pixels against patches by entropy, and n-grams of pixels.

  pip install -e '.[images]'
  python -m blt_jax.study --plan=configs/study_pictures.py --output=runs/study_pictures

On 4,500 MNIST digits. Bits per byte are bits per dimension, and what the ends of pictures cost.
"""

from blt_jax.studies.plan import Arm, Entropies, Plan


def get_plan() -> Plan:
  return Plan(
    arms={
      "static": Arm("pictures.py:mnist"),
      "entropy": Arm("pictures.py:mnist_entropy", entropies="neural", bytes_per_patch=4.0),
      "no_ngrams": Arm("pictures.py:mnist", {"model.pixel_ngrams": False}),
    },
    entropies={"neural": Entropies("pictures.py:entropy")},
    budgets={1e12: 1, 3e12: 3},
    rates=(2e-3, 4e-3, 8e-3),
    reference="static",
  )
