#!/usr/bin/env bash
# ReFiT: a tokenizer trained plainly, whose codebook collapses; rebuilt by k-means and fine-tuned behind its encoder.
#
#   bash recipes/refit.sh                        # seed 0, 45 minutes on one core
#   bash recipes/refit.sh --seeds 0,1,2          # three seeds, one after the other
#   bash recipes/refit.sh --steps 6000 --finetune-steps 2000
#   bash recipes/refit.sh --pictures DIR         # with what scripts/prepare_pictures.py writes
#   bash recipes/refit.sh 2                      # two minutes beside --pictures: 2 steps of each training
#   bash recipes/refit.sh --work DIR             # default runs/refit-STEPS
#
# Without --pictures it downloads about 500 MB of packages of pictures, once, and prepares them; and what pip installs.
#
# Plain is close to the training as first published: codes learn by gradients and nothing is done against collapse. They
# start on single latents, after a twentieth of the run in which latents pass as they are; as published, at random.
# It is fine-tuned as long as the rebuilt ones (the control), so that what they gain is not the longer training. Only
# the training files are learned from; only the held-out ones are scored. Loss, network and batches are those of all.
#
# Run again after an interruption, it goes on where it stopped; what is finished in DIR is not done again, with whatever
# steps it was begun.
# Hardware:  two cores, no GPU
# Time:      42 minutes for one seed on one core busy with other work; 3 more for the pictures, the first time
# Date:      2026-11-22
# Expected:  the table of docs/codebooks.md (with pictures of 64 pixels, before those of 128): usage 78 % before, 96 % (1,024 codes) and 98 % (512) after
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

steps=2000         # of the plain training
finetune_steps=800 # of each of the three fine-tunings
batch=16
seeds=0
pictures=
work=
while (($#)); do
    case $1 in
        --steps) steps=${2:?--steps needs a number} && shift 2 ;;
        --finetune-steps) finetune_steps=${2:?--finetune-steps needs a number} && shift 2 ;;
        --seeds) seeds=${2:?--seeds needs numbers, such as 0,1,2} && shift 2 ;;
        --pictures) pictures=${2:?--pictures needs a folder} && shift 2 ;;
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        2) steps=2 finetune_steps=2 && shift ;;
        *) usage ;;
    esac
done

if [[ -n $pictures ]]; then
    pictures=$(cd "$pictures" && pwd)
fi
enter "${work:-$root/runs/refit-$steps}" "$steps and $finetune_steps steps of $batch"
work=$PWD
pictures=${pictures:-$work}
learned=("$pictures/emoji.tar.gz" "$pictures/clipart.tar.gz" "$pictures/extra.tar.gz")

finetune() { # a tokenizer's name
    train "$1-finetuned.safetensors" "--steps $finetune_steps" vqtool codebook finetune "$1.safetensors" \
        "${learned[@]}" "${training[@]}"
}

# Scores of a tokenizer: PSNR of each kind of held-out pictures; usage of all of them; Frechet distance of 500.
score() {
    local kind held_out
    for kind in emoji photos; do
        held_out="$pictures/heldout-$kind.tar.gz"
        make "$1-$kind.json" vqtool eval "$held_out" --tokenizer "$1.safetensors" -o "$1-$kind.json"
        make "$1-$kind.h5" vqtool encode "$held_out" -t "$1.safetensors" --resume auto -o "$1-$kind.h5"
        make "$1-$kind.tar" vqtool decode "$1-$kind.h5" -o "$1-$kind.tar"
        make "$1-$kind.png" vqtool show "$1-$kind.h5" --num 16 --columns 16 -o "$1-$kind.png"
    done
    make "$1-distance.json" vqtool eval "$1-emoji.tar" "$1-photos.tar" --ref "$pictures/heldout-emoji.tar.gz" \
        --ref "$pictures/heldout-photos.tar.gz" --max-images 500 -o "$1-distance.json"
    if [[ ! -e $1-usage.json ]]; then
        run vqtool codebook usage "$1-emoji.h5" "$1-photos.h5" --json >"$1-usage.json.part"
        mv "$1-usage.json.part" "$1-usage.json"
    fi
}

if [[ ! -e $pictures/emoji.tar.gz ]]; then
    run python "$root/scripts/prepare_pictures.py" --work "$pictures"
fi
for seed in ${seeds//,/ }; do
    mkdir -p "$work/seed-$seed"
    cd "$work/seed-$seed"
    training=(--batch-size "$batch" --seed "$seed" --preview-every 0)
    train plain.safetensors "--steps $steps" vqtool train-tokenizer "${learned[@]}" "${training[@]}" \
        --quantizer vq -K 1024 --k-means 0 --no-restart
    make refit-1024.safetensors vqtool codebook refit "${learned[@]}" -t plain.safetensors -K 1024 \
        --seed "$seed" -o refit-1024.safetensors
    make refit-512.safetensors vqtool codebook refit "${learned[@]}" -t plain.safetensors -K 512 \
        --seed "$seed" -o refit-512.safetensors
    for name in plain refit-1024 refit-512; do
        finetune "$name"
        score "$name"
        score "$name-finetuned"
    done
done
run python "$root/scripts/refit_table.py" "$work" | tee "$work/table.md"
