#!/usr/bin/env bash
# A text prior of a folder of pictures with captions: the built-in prior fine-tuned on them -> your prompts drawn with guidance
# 1, 3 and 5, and scores. Run again after an interruption, it goes on where it stopped.
#
#   bash recipes/text-to-image.sh FOLDER                    # 60 minutes of training
#   bash recipes/text-to-image.sh FOLDER 1                  # two minutes in all for a small folder: one of training, 16 samples
#   bash recipes/text-to-image.sh FOLDER --prompts FILE     # one a line; default: eight captions of the folder; with another
#                                                           # file later on they are drawn by the prior that is there
#   bash recipes/text-to-image.sh FOLDER --from-scratch 600 # a prior from nothing, in codes of the folder's own: for many
#                                                           # pictures unlike emoji and clip art, and hours
#   bash recipes/text-to-image.sh FOLDER --size 96          # pixels; default 64
#   bash recipes/text-to-image.sh FOLDER --work DIR         # default runs/text-NAME-DIGEST of the folder
#
# Captions are found where docs/images.md says: metadata.jsonl, a .txt beside each picture, ... Settings stay as they were
# begun. guidance.png has a row of prompts a scale. It downloads what pip installs (scripts/setup.sh) and nothing else.
#
# Hardware:  two cores, no GPU; a GPU is used where there is one
# Time:      MINUTES, and some more for the other steps: with 1 and 24 pictures all of it took 50 s of one core, interrupted
#            in training, sampling and scoring and run again each time (at a load of 20: 7 minutes by the clock)
# Date:      2026-11-27
# Expected:  depends on the pictures and captions
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

size=64
prompts=
from_scratch=no
work=
take_arguments "work= size= prompts= from-scratch" "$@"
folder=${words[0]:-}
minutes=${words[1]:-60}
if [[ ! -d $folder || ! $minutes =~ ^[0-9.]+$ || (-n $prompts && ! -f $prompts) || ${#words[@]} -gt 2 ]]; then
    usage
fi
folder=$(cd "$folder" && pwd)
which=(-n 8) asked=own columns=8
if [[ -n $prompts ]]; then
    prompts=$(cd "$(dirname "$prompts")" && pwd)/$(basename "$prompts")
    which=(--captions "$prompts")
    asked=$(cksum <"$prompts" | cut -d ' ' -f 1)
    columns=$(grep -c '[^[:space:]]' "$prompts")
fi
num=64
if [[ $minutes == 1 || $minutes == 0* ]]; then
    num=16
fi

enter "${work:-$root/runs/text-$(name_of_pictures "$folder")}" "--size $size --from-scratch $from_scratch $minutes"

tokenizer=builtin begin=(--from builtin)
if [[ $from_scratch == yes ]]; then
    tokenizer=tokenizer.safetensors begin=()
    make "$tokenizer" vqtool codebook refit "$folder" --size "$size" -o "$tokenizer"
fi
make tok.h5 vqtool encode "$folder" --size "$size" -t "$tokenizer" --resume auto -o tok.h5
train prior.safetensors "--minutes $minutes" vqtool train-prior tok.h5 "${begin[@]}" --condition caption
for scale in 1 3 5; do # the prompts, with more and more guidance
    make "$asked-$scale.h5" vqtool sample prior.safetensors "${which[@]}" --cfg-scale "$scale" --purity --resume auto \
        -o "$asked-$scale.h5"
done
shown=$((3 * columns < 400 ? 3 * columns : 400)) # `show` takes no more
vqtool cat "$asked"-{1,3,5}.h5 | run vqtool show - -n "$shown" --columns "$columns" --force -o guidance.png
make samples.h5 vqtool sample prior.safetensors -n "$num" --cfg-scale 3 --purity --resume auto -o samples.h5
once decoded vqtool decode samples.h5 -f -o decoded/
make scores.json vqtool eval decoded/ --ref "$folder" -o scores.json

cat <<END
scores:              $PWD/scores.json
prompts, guided:     $PWD/guidance.png
END
