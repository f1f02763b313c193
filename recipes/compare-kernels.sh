#!/usr/bin/env bash
# The three kernels, and `release` against `paper`, on handwritten digits: the same network, grids and number of steps.
#
#   bash recipes/compare-kernels.sh                # 80 minutes in all, on two cores
#   bash recipes/compare-kernels.sh 500            # 500 training steps each instead of 3,000
#   bash recipes/compare-kernels.sh 2              # two minutes: 2 steps each, and few digits, samples and times
#   bash recipes/compare-kernels.sh --work DIR     # default runs/compare-kernels-STEPS
#
# Run again after an interruption, it goes on where it stopped. Below 100 steps likelihoods take 4 times and 50 digits, and 40
# samples are drawn. comparison.png has a row of samples each. It downloads what pip installs (scripts/setup.sh) and nothing else.
#
# 500 of the 5,000 digits are held out: bits per token are theirs, and KID is between them and 500 samples (the labels
# in turn, ancestral sampling in 100 steps, no guidance). A training step takes the same time with all of them but for
# the loss, a few hundredths of it.
#
# Hardware:  two cores, no GPU
# Time:      an estimate of 80 minutes; the four trainings took 62 to 67 minutes each, one thread, two at a time, other
#            work beside them; with 2, everything took 125 s of one core (2026-11-27)
# Date:      2026-11-22
# Expected:  the table of docs/diffusion.md: bits per token 2.89 (absorbing), 2.91 (release), 3.29 (uniform), 3.27 (paper);
#            KID-EfficientNetLite0 .121, .123, .148, .168
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

work=
take_arguments "work=" "$@"
steps=$(take_number 3000)
draw=() times=100 num=500
if ((steps < 100)); then
    draw=(--limit 500) times=4 num=40
fi

enter "${work:-$root/runs/compare-kernels-$steps}" "$steps steps"

split() { # a tenth of each class is held out
    python "$root/recipes/draw_digits.py" drawn/ "${draw[@]}"
    hold_out drawn train held
}
once split split
make tokenizer.safetensors vqtool codebook refit train/ --codebook-size 512 -o tokenizer.safetensors # digits need few codes
make train.h5 vqtool encode train/ -t tokenizer.safetensors --resume auto -o train.h5
make held.h5 vqtool encode held/ -t tokenizer.safetensors --resume auto -o held.h5

names=()
compare() { # a name, and the options of train-prior
    local name=$1 options=("${@:2}")
    names+=("$name")
    train "$name.safetensors" "--steps $steps" vqtool train-prior train.h5 --condition class --size tiny \
        --preview-every 0 "${options[@]}"
    make "$name-bits.json" vqtool eval --likelihood held.h5 --prior "$name.safetensors" --times "$times" \
        -o "$name-bits.json"
    make "$name.h5" vqtool sample "$name.safetensors" --num "$num" --steps 100 --resume auto -o "$name.h5"
    once "$name-decoded" vqtool decode "$name.h5" -f -o "$name/"
    make "$name-scores.json" vqtool eval "$name/" --ref held/ -o "$name-scores.json"
    make "$name-first.h5" vqtool head "$name.h5" -n 20 -o "$name-first.h5"
}
compare mask-replace-release --kernel mask-replace --schedule release
compare mask-replace-paper --kernel mask-replace --schedule paper
compare absorbing --kernel absorbing
compare uniform --kernel uniform
vqtool cat "${names[@]/%/-first.h5}" | run vqtool show - -n 80 --columns 20 --force -o comparison.png

cat <<END
scores:    $PWD/*-bits.json, *-scores.json
pictures:  $PWD/comparison.png, a row each: ${names[*]}
END
