#!/usr/bin/env bash
# Samples like the pictures of your folder. Run again after an interruption, it goes on where it stopped.
#
#   bash recipes/from-your-images.sh FOLDER              # 30 minutes of training
#   bash recipes/from-your-images.sh FOLDER 600          # 10 hours
#   bash recipes/from-your-images.sh FOLDER --own-tokenizer 600   # trains a tokenizer first, as long again: for many
#                                                        # pictures unlike emoji, clip art and photographs
#   bash recipes/from-your-images.sh FOLDER --size 48x80 # pixels, height x width; default 64
#   bash recipes/from-your-images.sh FOLDER --work DIR   # default runs/NAME-OF-FOLDER
#
# Everything is kept in the work folder: remove it to start anew, with other pictures or another size. The length of a
# training that has begun stays.
#
# Hardware:  two cores, no GPU; a GPU is used where there is one
# Time:      MINUTES, and some more for the other steps; tried with shortened trainings only, interrupted and resumed
# Date:      2026-11-22
# Expected:  depends on the pictures
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

minutes=30
size=64
own_tokenizer=no
folder=
work=
while (($#)); do
    case $1 in
        --own-tokenizer) own_tokenizer=yes && shift ;;
        --size) size=${2:?--size needs pixels} && shift 2 ;;
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        -*) folder= && break ;;
        *)
            if [[ -z $folder ]]; then folder=$1; else minutes=$1; fi
            shift
            ;;
    esac
done
if [[ ! -d $folder || ! $minutes =~ ^[0-9.]+$ ]]; then
    usage
fi
folder=$(cd "$folder" && pwd)
work=${work:-$root/runs/$(basename "$folder")}

enter "$work"

if [[ $own_tokenizer == yes ]]; then
    train tokenizer.safetensors "--minutes $minutes" vqtool train-tokenizer "$folder" --size "$size"
else
    make tokenizer.safetensors vqtool codebook refit "$folder" --size "$size" -o tokenizer.safetensors
fi
make tok.h5 vqtool encode "$folder" --size "$size" -t tokenizer.safetensors -o tok.h5
train prior.safetensors "--minutes $minutes" vqtool train-prior tok.h5 --kernel mask-replace
rm -rf samples.h5 decoded sheet.png scores.json
run vqtool sample --num 256 --cfg-scale 3 --purity -o samples.h5
run vqtool decode samples.h5 -o decoded/
run vqtool show decoded/ -o sheet.png
make scores.json vqtool eval decoded/ --ref "$folder" -o scores.json

cat <<END
scores:         $work/scores.json, in the table above
contact sheet:  $work/sheet.png
END
