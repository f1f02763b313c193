#!/usr/bin/env bash
# The three kernels, and `release` against `paper`, on handwritten digits: the same network, grids and number of steps.
#
#   bash recipes/compare-kernels.sh                # 80 minutes in all, on two cores
#   bash recipes/compare-kernels.sh 500            # 500 training steps each instead of 3,000
#   bash recipes/compare-kernels.sh --work DIR     # default runs/compare-kernels; an earlier run is removed
#
# 500 of the 5,000 digits are held out: bits per token are theirs, and KID is between them and 500 samples (the labels
# in turn, ancestral sampling in 100 steps, no guidance). A training step takes the same time with all of them but for
# the loss, a few hundredths of it.
#
# Hardware:  two cores, no GPU
# Time:      an estimate of 80 minutes; the four trainings took 62 to 67 minutes each, one thread, two at a time, other
#            work beside them
# Date:      2026-11-22
# Expected:  the table of docs/diffusion.md: bits per token 2.89 (absorbing), 2.91 (release), 3.29 (uniform), 3.27 (paper);
#            KID-EfficientNetLite0 .121, .123, .148, .168
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

steps=3000
work="$root/runs/compare-kernels"
while (($#)); do
    case $1 in
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        *[!0-9]* | "") usage ;;
        *) steps=$1 && shift ;;
    esac
done

enter_anew "$work"

run python "$root/recipes/draw_digits.py" train/
for file in train/*/*5.png; do # a tenth of each class
    mkdir -p "held${file%/*}"
    mv "$file" "held$file"
done
mv heldtrain held
run vqtool codebook refit train/ --codebook-size 512 # digits need few codes
run vqtool encode train/ -t tokenizer.safetensors -o train.h5
run vqtool encode held/ -t tokenizer.safetensors -o held.h5

compare() { # a name, and the options of train-prior
    local name=$1 options=("${@:2}")
    run vqtool train-prior train.h5 --condition class --size tiny --steps "$steps" --preview-every 0 "${options[@]}" \
        -o "$name.safetensors"
    run vqtool eval --likelihood held.h5 --prior "$name.safetensors" --times 100 -o "$name-bits.json"
    run vqtool sample "$name.safetensors" --num 500 --steps 100 -o "$name.h5"
    run vqtool decode "$name.h5" -o "$name/"
    run vqtool eval "$name/" --ref held/ -o "$name-scores.json"
}
compare mask-replace-release --kernel mask-replace --schedule release
compare mask-replace-paper --kernel mask-replace --schedule paper
compare absorbing --kernel absorbing
compare uniform --kernel uniform
