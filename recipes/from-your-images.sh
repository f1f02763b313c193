#!/usr/bin/env bash
# Samples like the pictures of your folder, from the built-in prior fine-tuned on them. Run again after an interruption, it
# goes on where it stopped.
#
#   bash recipes/from-your-images.sh FOLDER              # 30 minutes of training
#   bash recipes/from-your-images.sh FOLDER 1            # two minutes in all for a small folder: one of training, 16 samples
#   bash recipes/from-your-images.sh FOLDER 600          # 10 hours
#   bash recipes/from-your-images.sh FOLDER --from-scratch        # does not begin with the built-in prior
#   bash recipes/from-your-images.sh FOLDER --own-tokenizer 600   # trains a tokenizer first, as long again, and then the
#                                                        # prior from scratch: for many pictures unlike emoji and clip art
#   bash recipes/from-your-images.sh FOLDER --size 48x80 # pixels, height x width; default 64
#   bash recipes/from-your-images.sh FOLDER --work DIR   # default runs/NAME-DIGEST of the folder
#
# Everything is kept in the work folder, which goes by what is in yours: with other pictures another one is begun. Settings
# stay as they were begun. It downloads what pip installs (scripts/setup.sh) and nothing else.
#
# Hardware:  two cores, no GPU; a GPU is used where there is one
# Time:      MINUTES, and some more for the other steps: with 1 and 11 pictures all of it took 25 s of one core, of which the
#            training had 10 in its minute (at a load of 18 on two cores, where the clock showed 9 minutes)
# Date:      2026-11-27
# Expected:  depends on the pictures
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

size=64
own_tokenizer=no
from_scratch=no
work=
take_arguments "work= size= own-tokenizer from-scratch" "$@"
folder=${words[0]:-}
minutes=${words[1]:-30}
if [[ ! -d $folder || ! $minutes =~ ^[0-9.]+$ || ${#words[@]} -gt 2 ]]; then
    usage
fi
if [[ $own_tokenizer == yes ]]; then
    from_scratch=yes
fi
folder=$(cd "$folder" && pwd)
num=256
if [[ $minutes == 1 || $minutes == 0* ]]; then
    num=16
fi

settings="--size $size --own-tokenizer $own_tokenizer --from-scratch $from_scratch $minutes"
enter "${work:-$root/runs/$(name_of_pictures "$folder")}" "$settings"

tokenizer=tokenizer.safetensors
if [[ $own_tokenizer == yes ]]; then
    train "$tokenizer" "--minutes $minutes" vqtool train-tokenizer "$folder" --size "$size"
elif [[ $from_scratch == yes ]]; then
    make "$tokenizer" vqtool codebook refit "$folder" --size "$size" -o "$tokenizer"
else
    tokenizer=builtin # whose tokens the built-in prior knows
fi
make tok.h5 vqtool encode "$folder" --size "$size" -t "$tokenizer" --resume auto -o tok.h5
begin=()
if [[ $from_scratch == no ]]; then
    begin=(--from builtin)
fi
train prior.safetensors "--minutes $minutes" vqtool train-prior tok.h5 "${begin[@]}"
guide=()
if grep -q '"kind": "class"' <(vqtool info prior.safetensors --json) ||
    grep -q '"caption"' <(vqtool info tok.h5 --json); then # the built-in prior takes captions that pictures may lack
    guide=(--cfg-scale 3)
fi
make samples.h5 vqtool sample prior.safetensors -n "$num" "${guide[@]}" --purity --resume auto -o samples.h5
once decoded vqtool decode samples.h5 -f -o decoded/
make sheet.png vqtool show decoded/ -o sheet.png
make scores.json vqtool eval decoded/ --ref "$folder" -o scores.json

cat <<END
scores:         $PWD/scores.json
contact sheet:  $PWD/sheet.png
END
