#!/usr/bin/env bash
# Builds the tokenizer inside the package: downloads and prepares pictures, trains, rebuilds the codebook and trains on
# from there, evaluates on held-out emoji and photographs, and writes vqtool/builtin/tokenizer.safetensors and
# docs/tokenizer.png.
#
#   bash scripts/build_tokenizer.sh                   # in build/tokenizer
#   bash scripts/build_tokenizer.sh --work DIR --steps 20000 --more-steps 20000
#
# Run again after an interruption, it goes on where it stopped; what is finished in DIR is not done again.
# Hardware:  two cores without a GPU, or one GPU
# Time:      measured: 71 minutes for the first training on two cores, 55 for the second on one of them, both busy with
#            other work; 13 minutes for pictures, codebook and scores
# Date:      2026-11-22
# Expected:  PSNR 21.7 dB and usage 99 % on held-out emoji, 26.8 dB and 89 % on held-out photographs; after the first
#            training 21.0 dB and 98 %, 26.4 dB and 88 %. Those of the package: its first training was begun with --steps
#            7000 and shortened to 4500 after step 727.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

work="$root/build/tokenizer"
steps=4500      # of the first training
more_steps=3600 # of the second
while (($#)); do
    case $1 in
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        --steps) steps=${2:?--steps needs a number} && shift 2 ;;
        --more-steps) more_steps=${2:?--more-steps needs a number} && shift 2 ;;
        *) sed '1d;/^set/,$d;s/^# \{0,1\}//' "$0" >&2 && exit 2 ;;
    esac
done

bash "$root/scripts/setup.sh"
export PATH="$root/.venv/bin:$PATH"
mkdir -p "$work"
cd "$work"

run() {
    echo "\$ $*" >&2
    "$@"
}

# vqtool in as many processes as pay: one on a GPU, two on the cores of a computer without.
launch() {
    if [[ $(getconf _NPROCESSORS_ONLN) == 1 ]] || python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        run vqtool "$@"
    else
        # "multi_gpu" is what makes accelerate start several processes, on CPUs too
        OMP_NUM_THREADS=1 run accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \
            --dynamo_backend no -m vqtool "$@"
    fi
}

if [[ ! -e train.h5 ]]; then
    run python "$root/scripts/prepare_pictures.py" --work .
fi
# What it writes, its steps, and further flags; goes on where it stopped.
train() {
    local length=(--steps "$2")
    if [[ -e ${1%.safetensors}.state.safetensors ]]; then
        length=(--resume)
    fi
    if [[ ! -e $1 ]]; then
        launch train-tokenizer train.h5 "${@:3}" "${length[@]}" --half --preview-every 500 -o "$1"
    fi
}

train first.safetensors "$steps"
if [[ ! -e refitted.safetensors ]]; then
    run vqtool codebook refit train.h5 -t first.safetensors --vectors 100000 --seeding afk-mc2 -o refitted.safetensors
fi
train tokenizer.safetensors "$more_steps" --from refitted.safetensors --learning-rate 6e-4
held_out=()
for name in heldout-emoji heldout-photos; do
    if [[ -e $name.h5 ]]; then
        held_out+=("$name.h5")
        run vqtool eval "$name.h5" --tokenizer tokenizer.safetensors -o "$name.scores.json" --force
    fi
done
run python "$root/scripts/finish_tokenizer.py" tokenizer.safetensors "${held_out[@]}"
