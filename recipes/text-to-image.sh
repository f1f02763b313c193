#!/usr/bin/env bash
# A text prior of your own, from nothing: a folder of pictures with captions -> tokenizer, tokens, prior -> your prompts drawn
# with guidance 1, 3 and 5, and scores. Run again after an interruption, it goes on where it stopped.
#
#   bash recipes/text-to-image.sh FOLDER                    # 60 minutes of training
#   bash recipes/text-to-image.sh FOLDER 1                  # two minutes in all for a small folder
#   bash recipes/text-to-image.sh FOLDER --prompts FILE     # one a line; default: eight captions of the folder
#   bash recipes/text-to-image.sh FOLDER --size 96          # pixels; default 64
#   bash recipes/text-to-image.sh FOLDER --work DIR         # default runs/text-NAME-DIGEST of the folder
#
# Captions are found where docs/images.md says: metadata.jsonl, a .txt beside each picture, ... `from-your-images.sh` is
# quicker: it begins with the built-in prior. It downloads what pip installs (scripts/setup.sh) and nothing else.
#
# Hardware:  two cores, no GPU; a GPU is used where there is one
# Time:      MINUTES, and some more for the other steps; tried with shortened trainings only
# Date:      2026-11-26
# Expected:  depends on the pictures and captions
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

size=64
prompts=
work=
take_arguments "work= size= prompts=" "$@"
folder=${words[0]:-}
minutes=${words[1]:-60}
if [[ ! -d $folder || ! $minutes =~ ^[0-9.]+$ || (-n $prompts && ! -f $prompts) || ${#words[@]} -gt 2 ]]; then
    usage
fi
folder=$(cd "$folder" && pwd)
which=(-n 8)
if [[ -n $prompts ]]; then
    prompts=$(cd "$(dirname "$prompts")" && pwd)/$(basename "$prompts")
    which=(--captions "$prompts")
fi

enter "${work:-$root/runs/text-$(name_of_pictures "$folder")}" "--size $size $minutes"

make tokenizer.safetensors vqtool codebook refit "$folder" --size "$size" -o tokenizer.safetensors
make tok.h5 vqtool encode "$folder" --size "$size" -t tokenizer.safetensors --resume auto -o tok.h5
train prior.safetensors "--minutes $minutes" vqtool train-prior tok.h5 --condition caption
for scale in 1 3 5; do # the prompts, with more and more guidance
    make "guided-$scale.h5" vqtool sample prior.safetensors "${which[@]}" --cfg-scale "$scale" --purity --resume auto \
        -o "guided-$scale.h5"
done
vqtool cat guided-1.h5 guided-3.h5 guided-5.h5 | run vqtool show - --force -o guidance.png
make samples.h5 vqtool sample prior.safetensors -n 64 --cfg-scale 3 --purity --resume auto -o samples.h5
once decoded vqtool decode samples.h5 -f -o decoded/
make scores.json vqtool eval decoded/ --ref "$folder" -o scores.json

cat <<END
scores:              $PWD/scores.json
prompts, guided:     $PWD/guidance.png
END
