#!/usr/bin/env bash
# Run the CUDA tests, print times and ratios of one GPU, and train; needs no network. About 4 minutes.
#
#     benchmarks/on_gpu.sh BSDS_ROOT [--train SECONDS] [--out DIR]
#
# BSDS_ROOT is the folder that contains BSDS500/. Training takes 60 seconds, or SECONDS, and ends with a validation;
# checkpoints and log are in DIR (default: log_gpu). DEVICE=cpu QUICK=1 tries the script without a GPU.
set -euo pipefail

usage() {
    sed -n '4s/^# *//p' "$0" >&2
    exit 2
}

[[ $# -ge 1 ]] || usage
bsds_root=$(realpath -- "$1")
shift
seconds=60
out=log_gpu
while [[ $# -gt 0 ]]; do
    [[ $# -ge 2 ]] || usage
    case $1 in
        --train) seconds=$2 ;;
        --out) out=$2 ;;
        *) usage ;;
    esac
    shift 2
done
out=$(realpath -m -- "$out")
cd "$(dirname "$0")/.."
mkdir -p "$out"

device=${DEVICE:-cuda}
quick=()
# Trained on train alone, so that val can score it. choose_settings.py needs no GPU.
recipe=(--recipe gpu --bsds_splits train --choose_settings False)
n_images=500
if [[ ${QUICK:-} ]]; then
    quick=(--quick)
    recipe=(--batchsize=2 --crop_size=64 --nspix=24 --precision=auto)
    n_images=8
fi
failed=0

step() { # NAME COMMAND...: run a step; a failure is reported, and the other steps follow
    local name=$1 start=$SECONDS status=0
    shift
    echo "== $name"
    "$@" || status=$?
    echo "== $name: $((SECONDS - start)) s, exit status $status"
    if [[ $status -ne 0 ]]; then failed=1; fi
}

run_tests() { # without the options of pyproject.toml for a plugin that may be missing
    python -m pytest -q -o addopts="--import-mode=importlib --strict-markers" -k cuda tests
}

measure() {
    python -m benchmarks.benchmark_gpu --bsds_root "$bsds_root" --device "$device" --n_images "$n_images" \
        "${quick[@]}" | tee "$out/figures.txt"
}

train() { # as many steps as fit the time, by the measured time of a step
    local milliseconds steps interval status=0 folder
    folder=$out/train_$(date +%Y%m%d_%H%M%S)
    milliseconds=$(sed -n 's/^training.* \([0-9.]*\) ms a step.*/\1/p' "$out/figures.txt")
    steps=$(awk -v s="$seconds" -v ms="${milliseconds:-100}" 'BEGIN {n = int(900 * s / ms); print n < 1 ? 1 : n}')
    # A validation takes some 20 seconds: one at the end, and one for each further 10 minutes.
    interval=$((steps / (1 + seconds / 600) + 1))
    timeout --signal=TERM --kill-after=60 "$((seconds + 60))" python train_base_model.py \
        --bsds_root "$bsds_root" --device "$device" --out_dir "$folder" --train_iter "$steps" \
        --log_interval "$((steps / 10 + 1))" --test_interval "$interval" --save_interval "$interval" \
        --nworkers "$(nproc)" "${recipe[@]}" || status=$?
    case $status in
        0) ;;
        124 | 143) # stopped by the time limit, after saving
            python eval_base_model.py --bsds_root "$bsds_root" --bsds_split val --nspix 200 --device "$device" \
                --nworkers "$(nproc)" --base_model_weights "$folder/last_model.pth"
            ;;
        *) return "$status" ;;
    esac
}

step tests run_tests
step figures measure
step training train
exit "$failed"
