#!/usr/bin/env bash
# ReFiT: a tokenizer trained plainly, whose codebook collapses; rebuilt by k-means and fine-tuned behind its encoder.
#
#   bash recipes/refit.sh                        # seed 0, 45 minutes on one core
#   bash recipes/refit.sh --seeds 0,1,2          # three seeds, one after the other
#   bash recipes/refit.sh --steps 6000 --finetune-steps 2000
#   bash recipes/refit.sh --pictures DIR         # with what scripts/prepare_pictures.py writes
#   bash recipes/refit.sh 2                      # 2 steps of each training, on emoji and digits drawn here: 2.6 minutes of one core
#   bash recipes/refit.sh --work DIR             # default runs/refit-STEPS
#
# Without --pictures and 2 it downloads about 500 MB of packages of pictures, once, and prepares them; and what pip installs.
# table.md has the scores, comparison.png held-out pictures over what each tokenizer makes of them.
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
take_arguments "steps= finetune-steps= seeds= pictures= work=" "$@"
kinds=(emoji photos) # of held-out pictures
if [[ ${words[*]} == 2 ]]; then
    steps=2 finetune_steps=2
    [[ -n $pictures ]] || kinds=(emoji digits)
elif ((${#words[@]})); then
    usage
fi

if [[ -n $pictures ]]; then
    pictures=$(cd "$pictures" && pwd)
fi
enter "${work:-$root/runs/refit-$steps}" "$steps and $finetune_steps steps of $batch$([[ ${kinds[1]} == photos ]] || echo ", digits")"
work=$PWD
pictures=${pictures:-$work}
learned=("$pictures/emoji.tar.gz" "$pictures/clipart.tar.gz" "$pictures/extra.tar.gz")
held_out=("${kinds[@]/#/$pictures/heldout-}")
held_out=("${held_out[@]/%/.tar.gz}")
if [[ ${kinds[1]} == digits ]]; then
    learned=("$work/emoji" "$work/digits")
    held_out=("$work/heldout-emoji" "$work/heldout-digits")
fi

finetune() { # a tokenizer's name
    train "$1-finetuned.safetensors" "--steps $finetune_steps" vqtool codebook finetune "$1.safetensors" \
        "${learned[@]}" "${training[@]}"
}

# Scores of a tokenizer: PSNR of each kind of held-out pictures; usage of all of them; Frechet distance of 500.
score() {
    local number kind
    for number in 0 1; do
        kind=${kinds[number]}
        make "$1-$kind.json" vqtool eval "${held_out[number]}" --tokenizer "$1.safetensors" -o "$1-$kind.json"
        make "$1-$kind.h5" vqtool encode "${held_out[number]}" -t "$1.safetensors" --resume auto -o "$1-$kind.h5"
        make "$1-$kind.tar" vqtool decode "$1-$kind.h5" -o "$1-$kind.tar"
    done
    make "$1-distance.json" vqtool eval "$1-${kinds[0]}.tar" "$1-${kinds[1]}.tar" --ref "${held_out[0]}" \
        --ref "${held_out[1]}" --max-images 500 -o "$1-distance.json"
    if [[ ! -e $1-usage.json ]]; then
        run vqtool codebook usage "$1-${kinds[0]}.h5" "$1-${kinds[1]}.h5" --json >"$1-usage.json.part"
        mv "$1-usage.json.part" "$1-usage.json"
    fi
}

draw() { # KIND OPTIONS...: what needs no download, a part of it held out
    python "$root/recipes/draw_$1.py" "drawn-$1/" --limit 240 "${@:2}"
    hold_out "drawn-$1" "$1" "heldout-$1"
}

if [[ ${kinds[1]} == digits ]]; then
    once emoji draw emoji --no-variants --size 64
    once digits draw digits
elif [[ ! -e $pictures/emoji.tar.gz ]]; then
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
run python "$root/scripts/refit_table.py" "$work" --held-out "${held_out[@]}" --picture "$work/comparison.png" |
    tee "$work/table.md"
