#!/usr/bin/env bash
# Builds the text prior inside the package as the present one was made, in two stages: of 128 pixels (16x16 tokens) on all
# pictures, in variants; then, on from it, of 64 pixels (8x8 tokens) on four styles of emoji, one of each gender. Each stage
# encodes and trains in a folder of its own; the last one's prior becomes vqtool/builtin/prior.safetensors, 16-bit numbers.
#
#   bash scripts/build_prior.sh                       # both, in build/prior/128 and build/prior/64
#   bash scripts/build_prior.sh --stages 128          # here on a GPU, then the other one on any machine
#   bash scripts/build_prior.sh --stages 64 --from FILE      # on from another prior; without --from, from nothing
#   bash scripts/build_prior.sh --steps 10 --batch-size 8    # of each stage, in place of 2,889 of 256 and 5,600 of 32
#   bash scripts/build_prior.sh --work DIR --pictures DIR    # where emoji.tar.gz and clipart.tar.gz lie already: no network
#   bash scripts/build_prior.sh --tokenizer FILE      # another tokenizer; then nothing is put into the package
#   bash scripts/build_prior.sh --output FILE         # not into the package
#   bash scripts/build_prior.sh --jobs 8              # processes that encode; default: half of the cores beside a GPU
#
# What stands after -- goes to both trainings. Run again after an interruption, it goes on where it stopped; what is finished
# in DIR is not done again. PYTHON names an interpreter that has what vqtool needs; without it .venv is made and used.
# Hardware:  a GPU for 128 pixels (5 minutes of an H200; a core takes some 30 hours); a core for 64 (100 minutes)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

declare -A variants=([128]=4 [64]=1)
declare -A which=([128]="" [64]="--styles openmoji noto fluent flat --no-genders")
declare -A steps=([128]=2889 [64]=5600)
declare -A batch_size=([128]=256 [64]=32)
stages=(128 64)
sampling='{"sampler": "purity", "cfg_scale": 3.0, "temperature": 0.6}' # docs/text-to-image.md says why
work="$root/build/prior"
pictures="$root/build/pictures"
tokenizer=builtin
from=
output=
jobs=
while (($#)); do
    case $1 in
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        --pictures) pictures=${2:?--pictures needs a folder} && shift 2 ;;
        --tokenizer) tokenizer=${2:?--tokenizer needs a file} && shift 2 ;;
        --stages) read -ra stages <<<"${2:?--stages needs pixels}" && shift 2 ;;
        --steps) steps=([128]=${2:?--steps needs a number} [64]=$2) && shift 2 ;;
        --batch-size) batch_size=([128]=${2:?--batch-size needs a number} [64]=$2) && shift 2 ;;
        --from) from=$(realpath "${2:?--from needs a prior}") && shift 2 ;;
        --output) output=$(realpath "${2:?--output needs a file}") && shift 2 ;;
        --jobs) jobs=${2:?--jobs needs a number} && shift 2 ;;
        --) shift && break ;;
        *) sed '1d;/^set/,$d;s/^# \{0,1\}//' "$0" >&2 && exit 2 ;;
    esac
done

[[ $tokenizer == builtin ]] || tokenizer=$(realpath "$tokenizer")
source "$root/scripts/lib/build.sh"
gpu=$("$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))')
jobs=${jobs:-$((gpu ? ($(getconf _NPROCESSORS_ONLN) + 1) / 2 : 1))}

encode_part() { # one of `jobs` parts of the pictures: reading them, not the network, is what takes time on a GPU
    [[ ! -e tok-$2.h5 ]] || return 0
    # shellcheck disable=SC2086
    run "$PYTHON" "$root/scripts/vary_pictures.py" "$pictures/emoji.tar.gz" "$pictures/clipart.tar.gz" \
        --variants "${variants[$1]}" --part "$2/$jobs" ${which[$1]} -o "varied-$2.h5"
    run "$PYTHON" -m vqtool encode "varied-$2.h5" -t "$tokenizer" --size "$1" --batch-size 256 --resume auto \
        -o "tok-$2.h5"
    rm "varied-$2.h5" # gigabytes
}

encode() {
    local pids=() part
    for ((part = 0; part < jobs; part++)); do
        encode_part "$1" "$part" &
        pids+=($!)
    done
    for part in "${pids[@]}"; do
        wait "$part"
    done
    run "$PYTHON" -m vqtool cat tok-*.h5 -o tok.h5 --force
    rm tok-*.h5
}

train() { # pixels, further options
    local begin=(--from "$from")
    # Of a new one, vocabulary and network have at most 8 million weights together: 16 MB as 16-bit numbers. Absorbing is as
    # good as mask-replace (docs/diffusion.md), and its loss is the cross-entropy of masked cells.
    [[ -n $from ]] || begin=(--from none --vocabulary-size 2000 --size light --dropout 0.1 --kernel absorbing)
    run "$PYTHON" -m vqtool train-prior tok.h5 --condition caption "${begin[@]}" --steps "${steps[$1]}" \
        --batch-size "${batch_size[$1]}" --learning-rate 1e-3 --preview-every 0 --keep last --tokenizer "$tokenizer" \
        --resume auto "${@:2}" -o prior.safetensors
}

for size in "${stages[@]}"; do
    mkdir -p "$size"
    cd "$size"
    [[ -e tok.h5 ]] || encode "$size"
    [[ -e prior.safetensors ]] || train "$size" "$@"
    from=$PWD/prior.safetensors
    cd ..
done
if [[ $tokenizer == builtin && (-n $output || ${stages[-1]} == 64) ]]; then
    run "$PYTHON" "$root/scripts/finish_prior.py" "$from" --sampling "$sampling" ${output:+--output "$output"}
fi
