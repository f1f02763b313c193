#!/usr/bin/env bash
# Digits of a chosen class: 5,000 handwritten digits, a prior that takes the label, ten samples of each class.
#
#   bash recipes/class-conditional.sh                # 15 minutes in all, on two cores
#   bash recipes/class-conditional.sh 2              # two minutes: 1,000 digits, the least training, two samples a class
#   bash recipes/class-conditional.sh 60             # 60 minutes: what the other steps leave goes into training
#   bash recipes/class-conditional.sh --work DIR     # default runs/class-conditional-MINUTES
#
# Run again after an interruption, it goes on where it stopped. It downloads what pip installs (scripts/setup.sh) and nothing
# else.
#
# Hardware:  two cores, no GPU
# Time:      8 minutes with "11", the tests of vqtool running beside it (402 steps)
# Date:      2026-11-22
# Expected:  after these 402 steps most digits can be read, 8 the worst; of 100 samples KID-EfficientNetLite0 .202 +- .011
#            (FD 137, biased by so few): strokes have gaps and coloured rims that handwriting has not
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

work=
take_arguments "work=" "$@"
minutes=$(take_number 15) # in all
draw=()
after_training=3 # minutes kept for sampling, decoding and scoring
num=100
if ((minutes < 10)); then
    draw=(--limit 1000) after_training=1 num=20
fi

enter "${work:-$root/runs/class-conditional-$minutes}" "$minutes minutes"

once imgs python "$root/recipes/draw_digits.py" imgs/ "${draw[@]}"
make tokenizer.safetensors vqtool codebook refit imgs/ --codebook-size 512 -o tokenizer.safetensors # digits need few codes
# At 64 pixels, grids of 8x8; class folders are labels:
make tok.h5 vqtool encode imgs/ -t tokenizer.safetensors --resume auto -o tok.h5
train_minutes=$(minutes_left $((minutes - after_training)))
train prior.safetensors "--minutes $train_minutes" vqtool train-prior tok.h5 --condition class
make samples.h5 vqtool sample -n "$num" --cfg-scale 2 --purity --resume auto -o samples.h5 # the labels in turn
once decoded vqtool decode samples.h5 -f -o decoded/
make sheet.png vqtool show samples.h5 --num "$num" --columns 10 -o sheet.png # a column a class
make scores.json vqtool eval decoded/ --ref imgs/ -o scores.json

cat <<END
done in $(((SECONDS + 30) / 60)) minutes
scores:         $PWD/scores.json
contact sheet:  $PWD/sheet.png, a column a class
END
