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
exec > >(tee -a "$run/log.txt") 2>&1
echo "== $(date -u +%F' '%T) UTC, seed $SEED, $cores cores, $("$python" -c 'from arlow.evaluation.report import versions as v; print(v())')"

step() {  # step NAME COMMAND...: once; NAME.seconds counts every part of a stopped step, NAME.done says it is through
    local name=$1 began=$SECONDS; shift
    [ -f "$run/$name.done" ] && return
    echo "== $name: $*"
    trap 'echo "$((SECONDS - began))" >> "$run/$name.seconds"' EXIT
    "$@"
    trap - EXIT
    echo "$((SECONDS - began))" >> "$run/$name.seconds"
    touch "$run/$name.done"
    echo "== $name took $((SECONDS - began)) s"
}
train() {  # train STAGE key=value...
    local stage=$1; shift
    step "$stage" "$arlow" train "$stage" "recipes/tiny/$stage.yaml" seed="$SEED" output_dir="$run/$stage" "$@"
}

OMP_NUM_THREADS=1 step data "$arlow" data shapes "$data" --workers "$cores"  # splits that are whole stay
train text
train vision-mae
train align vision="$run/vision-mae" text="$run/text"
train finetune model="$run/align"
step export "$python" recipes/tiny/export.py "$run"
for split in test unseen; do
    step "eval-$split" "$arlow" eval vqa "$run/arlow-tiny" --data "$data/$split/data.jsonl" --batch-size 64 \
        --out "$run/$split.json"
done
step card "$python" recipes/tiny/card.py "$run"
if [ "$SEED" = 0 ]; then  # the one that comes with the package
    mkdir -p src/arlow/checkpoints && rm -rf src/arlow/checkpoints/arlow-tiny
    cp -r "$run/arlow-tiny" src/arlow/checkpoints/
fi
