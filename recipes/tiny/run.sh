#!/usr/bin/env bash
# arlow-tiny from nothing: `make tiny`. Every step is a command that users have. A step that is done is not done again,
# one that was stopped goes on. SEED=1 trains another one on the same data.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
SEED=${SEED:-0} data=build/tiny/data
run=build/tiny/seed-$SEED cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
bin=${BIN:-.venv/bin} python=${BIN:-.venv/bin}/python
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
# On Linux with glibc: freed memory is kept, in huge pages, instead of being fetched from the system for every tensor. On
# two CPU cores that is an eighth of a step.
export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=100000000
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# Two processes, each with half of every batch: on a CPU faster than one with two threads. On a GPU one process takes the
# halves in turn.
launch="$bin/torchrun --standalone --nproc-per-node 2 -m arlow.cli train" here=() workers=0
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    launch="$bin/arlow train" here=(accumulation=2) workers=$((cores / 2))
elif [ -r /proc/cpuinfo ] && ! grep -qwE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo; then
    here=(precision=fp32)  # a CPU without bf16 products takes five times as long for them as for float32's
fi
mkdir -p "$run"
exec > >(tee -a "$run/log.txt") 2>&1
echo "== $(date -u +%F' '%T) UTC, seed $SEED, $("$python" -c 'from benchmarks.harness import machine; print(machine())')"

step() {  # step NAME COMMAND...: once; NAME.seconds counts every part of a stopped step, NAME.done says it is through
    local name=$1 began=$SECONDS mark=${marks:-$run}/$1; shift
    [ -f "$mark.done" ] && return
    echo "== $name: $*"
    trap "echo \$((SECONDS - $began)) >> '$mark.seconds'" EXIT
    "$@"
    trap - EXIT
    echo "$((SECONDS - began))" >> "$mark.seconds"
    touch "$mark.done"
    echo "== $name took $((SECONDS - began)) s"
}
train() {  # train NAME STAGE key=value...
    local name=$1 stage=$2; shift 2
    [ "$stage" = text ] || set -- workers="$workers" "$@"
    step "$name" $launch "$stage" "recipes/tiny/$name.yaml" seed="$SEED" output_dir="$run/$name" ${here[@]+"${here[@]}"} "$@"
}

marks=build/tiny step data "$bin/arlow" data shapes "$data" --workers "$cores"  # for all seeds
train text text
train vision-mae vision-mae
train align align vision="$run/vision-mae" text="$run/text"
train sheets finetune model="$run/align"
train finetune finetune model="$run/sheets"
train sizes finetune model="$run/finetune"
step export "$python" recipes/tiny/export.py "$run"
export OMP_NUM_THREADS=$cores
for split in test unseen; do
    step "eval-$split" "$bin/arlow" eval vqa "$run/arlow-tiny" --data "$data/$split/data.jsonl" --batch-size 64 \
        --dtype float32 --max-new-tokens 96 --answer-after ": " --out "$run/$split.json"
done
"$python" -m recipes.tiny.card "$run"
first=build/tiny/seed-0
if [ -d "$first/arlow-tiny" ]; then  # the one that comes with the package; its card tells of all seeds
    [ "$SEED" = 0 ] || "$python" -m recipes.tiny.card "$first"
    mkdir -p src/arlow/checkpoints && rm -rf src/arlow/checkpoints/arlow-tiny
    cp -r "$first/arlow-tiny" src/arlow/checkpoints/
fi
took=$(cat "${run%/*}/data.seconds" "$run"/*.seconds | awk '{ all += $1 } END { print int(all / 60) }')
echo "== seed $SEED took $took minutes in all"
cp "$run/log.txt" "recipes/tiny/seed-$SEED.log"
