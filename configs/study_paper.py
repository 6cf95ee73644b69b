r"""The articles' figures at 24 MFLOPs per byte: main models, ablations, fixed inference FLOPs.

  python -m blt_jax.study --plan=configs/study_paper.py --output=runs/study_paper \
    --data=train.jsonl --heldout=heldout.jsonl --gpus=0,1,2,3

Main models are trained at 3e15, 1e16 and 3e16 FLOPs, with three paired seeds at the larger two.
`blt_6` and `blt_8` have larger patches, and as many more layers in the latent transformer as
cost the same per byte: with `blt` and `bpe` they are the comparison at fixed inference FLOPs.
Ablations are trained at the larger two, as often, with the learning rate of the BLT. 3e16 FLOPs
are 416 MB of text.
"""

from blt_jax.studies.plan import Arm, Entropies, Plan

ABLATIONS = (1e16, 3e16)


def get_plan() -> Plan:
  return Plan(
    arms={
      "blt": _blt(),
      "space": Arm("study_models.py:space"),
      "static": Arm("study_models.py:static"),
      "megabyte": Arm("study_models.py:megabyte"),
      "spacebyte": Arm("study_models.py:spacebyte"),
      "flat": Arm("study_models.py:flat"),
      "bpe": Arm("study_models.py:bpe"),
      "blt_6": _blt("blt_6", bytes_per_patch=6.0),
      "blt_8": _blt("blt_8", bytes_per_patch=8.0),
      # Embeddings of n-grams, cross-attention, depth
      "no_ngrams": _ablation("no_ngrams"),
      "frequent_ngrams": _ablation("no_ngrams", ngrams=True),
      "no_cross": _ablation("no_cross"),
      "deep_encoder": _ablation("deep_encoder"),
      "shallow_decoder": _ablation("shallow_decoder"),
      # What says where patches end, and by which rule
      "small_entropy": _ablation("blt", entropies="small"),
      "table_entropy": _ablation("blt", entropies="table"),
      "cumulative": _ablation("blt", cumulative=True),
      # What came out ahead or level, together: no cross-attention, frequent n-grams, entropies
      # of a table
      "lean": _ablation("lean", ngrams=True, entropies="table"),
      # The entropy model in the step, its states as inputs, in place of n-grams
      "device_entropies": _ablation("device_entropies"),
      "entropy_states": _ablation("entropy_states"),
      "states_short_ngrams": _ablation("states_short_ngrams"),
      "states_no_ngrams": _ablation("states_no_ngrams"),
      "boundary_head": _ablation("boundary_head"),
      # Patches of 9 bytes that read those of 4.5 bytes, beside `no_ngrams` and `blt`
      "mixture": _ablation("mixture"),
      "mixture_no_ngrams": _ablation("mixture_no_ngrams"),
      # Entropies measured inside
      "end_to_end": _end_to_end(),
      "frequent_inside": _end_to_end(ngrams=True, hash_sizes=()),
      "no_skip": _end_to_end(skip=False, hash_sizes=()),
      "backward_2": _end_to_end(head="backward", backward_bytes=2),
      "backward_4": _end_to_end(head="backward", backward_bytes=4),
      "backward_8": _end_to_end(head="backward", backward_bytes=8),
    },
    entropies={
      "neural": Entropies("study_models.py:entropy", stored=True),
      "small": Entropies("study_models.py:small_entropy", stored=True),
      "table": Entropies(),
    },
    budgets={3e15: 1, 1e16: 3, 3e16: 3},
    rates=(0.9e-3, 1.8e-3, 3.5e-3),
    reference="blt",
    settings={"data.path": "train.jsonl", "data.heldout_path": "heldout.jsonl"},
  )


def _blt(model="blt", **changes):
  usual = dict(entropies="neural", bytes_per_patch=4.5)
  return Arm(f"study_models.py:{model}", **usual | changes)


def _ablation(model, **changes):
  return _blt(model, budgets=ABLATIONS, rate_of="blt", **changes)


def _end_to_end(ngrams=False, **model):
  settings = {f"model.{name}": value for name, value in model.items()}
  return Arm(
    "study_models.py:end_to_end", settings, ngrams=ngrams, budgets=ABLATIONS, rate_of="blt"
  )
