#!/usr/bin/env bash
# Trains a small BLT on this machine's CPU, from nothing, in minutes; replaces runs/quickstart.
# Usage: bash launch/quickstart.sh [--data=PATH] [--short]
#   --data=PATH  your own text, a file or a folder; default: Python's standard library
#   --short      a few steps of everything, to see that it runs
set -euo pipefail
start=$SECONDS

data=stdlib steps=()
for argument in "$@"; do
  case $argument in
    --data=stdlib) ;;
    --data=*)
      data=${argument#--data=}
      [ -e "$data" ] || { echo "There is no '$data' for --data." >&2; exit 2; }
      data=$(realpath "$data") ;;
    --short) steps=(--config.num_steps=30 --config.eval.max_batches=2) ;;
    *) sed -n '3,5s/^# //p' "$0"; exit 2 ;;
  esac
done

source "$(dirname "$0")/env.sh" ""
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
out=runs/quickstart
rm -rf "$out"
options=(--config.data.path="$data" "${steps[@]}")

echo "== 1/4 Training the entropy model"
python -m blt_jax.train --config=configs/quickstart.py:entropy "${options[@]}"

echo "== 2/4 Choosing the threshold for 4.5 bytes per patch"
python -m blt_jax.calibrate --run=$out/entropy --target_bytes_per_patch=4.5

echo "== 3/4 Training the BLT"
python -m blt_jax.train --config=configs/quickstart.py "${options[@]}"

echo "== 4/4 A continuation, and the patches of a text"
python -m blt_jax.generate --run=$out/blt --prompt="def main(" --max_bytes=120
python -m blt_jax.show_patches --run=$out/blt --text="def main(argv): return sum(argv)"

python - $((SECONDS - start)) <<'EOF'
import json, pathlib, statistics, sys
out = pathlib.Path("runs/quickstart")
numbers = {k: [json.loads(line) for line in (out / k / "metrics.jsonl").open()]
           for k in ("entropy", "blt")}
sizes = [n["patch_size"] for n in numbers["blt"] if n["kind"] == "train"]
summary = {"entropy_bpb": numbers["entropy"][-1]["bpb"],
           "blt_bpb": numbers["blt"][-1]["bpb"],
           "mean_patch_size": statistics.harmonic_mean(sizes),  # of the training text
           "seconds": int(sys.argv[1])}
(out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
print("Held-out bits per byte: BLT {blt_bpb:.3f}, entropy model {entropy_bpb:.3f}; "
      "{mean_patch_size:.2f} bytes per patch; {seconds} seconds.".format(**summary))
EOF
