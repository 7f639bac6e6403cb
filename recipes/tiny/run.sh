#!/usr/bin/env bash
# arlow-tiny from nothing: `make tiny`. Every step is a command that users have. A step that is done is not done again,
# one that was stopped goes on. SEED=1 trains another one on the same data.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
SEED=${SEED:-0} data=build/tiny/data
run=build/tiny/seed-$SEED cores=$(nproc)
arlow=${ARLOW:-.venv/bin/arlow} python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=$cores HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
mkdir -p "$run"

step() {  # step NAME COMMAND...: once, with its seconds in NAME.done
    local name=$1 began=$SECONDS; shift
    if [ ! -f "$run/$name.done" ]; then
        echo "== $name: $*"
        "$@"
        echo "$((SECONDS - began))" > "$run/$name.done"
        echo "== $name took $((SECONDS - began)) s"
    fi
}
train() {  # train STAGE key=value...
    local stage=$1; shift
    step "$stage" "$arlow" train "$stage" "recipes/tiny/$stage.yaml" seed="$SEED" output_dir="$run/$stage" "$@"
}

[ -f "$data/train/data.jsonl" ] || OMP_NUM_THREADS=1 step data "$arlow" data shapes "$data" --workers "$cores"
train text
train vision-mae
train align vision="$run/vision-mae" text="$run/text"
train finetune model="$run/align"
for split in test unseen; do
    step "eval-$split" "$arlow" eval vqa "$run/finetune" --data "$data/$split/data.jsonl" --batch-size 64 \
        --dtype float32 --out "$run/$split.json"
done
step export "$python" recipes/tiny/export.py "$run"
