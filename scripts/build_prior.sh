#!/usr/bin/env bash
# Builds the text prior inside the package: prepares captioned pictures, varies and encodes them, trains a prior of 64
# or 128 pixels (8x8 or 16x16 tokens), and writes vqtool/builtin/prior.safetensors as 16-bit numbers.
#
#   bash scripts/build_prior.sh                       # in build/prior, with the built-in tokenizer, 240 minutes
#   bash scripts/build_prior.sh --work DIR --minutes 6 -- --batch-size 256
#   bash scripts/build_prior.sh --size 128            # pixels: four times the tokens, five times as slow; default 64
#   bash scripts/build_prior.sh --pictures DIR        # where emoji.tar.gz and clipart.tar.gz lie already: no network
#   bash scripts/build_prior.sh --tokenizer FILE      # another tokenizer; then nothing is put into the package
#   bash scripts/build_prior.sh --variants 8          # of each picture: smaller, shifted, mirrored
#   bash scripts/build_prior.sh --styles "openmoji noto fluent flat" --no-genders   # fewer pictures, learned better
#   bash scripts/build_prior.sh --jobs 8              # processes that encode; default: half of the cores beside a GPU
#
# What stands after -- goes to train-prior. Run again after an interruption, it goes on where it stopped; what is finished
# in DIR is not done again. PYTHON names an interpreter that has what vqtool needs; without it .venv is made and used.
# Hardware:  one GPU, or two cores without one
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

work="$root/build/prior"
pictures="$root/build/pictures"
tokenizer=builtin
minutes=240
size=64
variants=6
which=()
jobs=
while (($#)); do
    case $1 in
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        --pictures) pictures=${2:?--pictures needs a folder} && shift 2 ;;
        --tokenizer) tokenizer=${2:?--tokenizer needs a file} && shift 2 ;;
        --minutes) minutes=${2:?--minutes needs a number} && shift 2 ;;
        --size) size=${2:?--size needs pixels} && shift 2 ;;
        --styles) read -ra styles <<<"${2:?--styles needs names}" && which+=(--styles "${styles[@]}") && shift 2 ;;
        --no-genders) which+=(--no-genders) && shift ;;
        --jobs) jobs=${2:?--jobs needs a number} && shift 2 ;;
        --variants) variants=${2:?--variants needs a number} && shift 2 ;;
        --) shift && break ;;
        *) sed '1d;/^set/,$d;s/^# \{0,1\}//' "$0" >&2 && exit 2 ;;
    esac
done

[[ $tokenizer == builtin ]] || tokenizer=$(realpath "$tokenizer")
source "$root/scripts/lib/build.sh"
gpu=$("$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))')
encode_part() { # one of `jobs` parts of the pictures: reading them, not the network, is what takes time on a GPU
    [[ ! -e tok-$1.h5 ]] || return 0
    run "$PYTHON" "$root/scripts/vary_pictures.py" "$pictures/emoji.tar.gz" "$pictures/clipart.tar.gz" \
        --variants "$variants" --part "$1/$jobs" "${which[@]}" -o "varied-$1.h5"
    run "$PYTHON" -m vqtool encode "varied-$1.h5" -t "$tokenizer" --size "$size" --batch-size 256 --resume auto \
        -o "tok-$1.h5"
    rm "varied-$1.h5" # gigabytes
}
if [[ ! -e tok.h5 ]]; then
    jobs=${jobs:-$((gpu ? ($(getconf _NPROCESSORS_ONLN) + 1) / 2 : 1))}
    pids=()
    for ((part = 0; part < jobs; part++)); do
        encode_part "$part" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid"
    done
    run "$PYTHON" -m vqtool cat tok-*.h5 -o tok.h5 --force
    rm tok-*.h5
fi
if [[ ! -e prior.safetensors ]]; then
    ((gpu)) && pace=(--batch-size 256 --learning-rate 1e-3) || pace=(--batch-size 64)
    # absorbing: as good as mask-replace (docs/diffusion.md), and its loss is the cross-entropy of masked cells.
    # The vocabulary and the network have at most 8 million weights together: 16 MB as 16-bit numbers.
    run "$PYTHON" -m vqtool train-prior tok.h5 --condition caption --vocabulary-size 2000 --size light --dropout 0.1 \
        --kernel absorbing --minutes "$minutes" "${pace[@]}" --preview-every 0 --keep last --tokenizer "$tokenizer" \
        --resume auto "$@" -o prior.safetensors
fi
if [[ $tokenizer == builtin ]]; then
    run "$PYTHON" "$root/scripts/finish_prior.py" prior.safetensors
fi
