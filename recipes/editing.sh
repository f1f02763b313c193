#!/usr/bin/env bash
# Edits eight emoji with the prior of the quickstart: halves made anew, variations, wider pictures, a canvas of 2 x 2.
#
#   bash recipes/quickstart.sh && bash recipes/editing.sh
#   bash recipes/editing.sh --work DIR   # of a quickstart; default runs/quickstart-15
#
# Run again after an interruption, it goes on where it stopped. It downloads what pip installs (scripts/setup.sh) and nothing
# else. Everything is in the folder editing/ of the quickstart's.
#
# Hardware:  two cores, no GPU
# Time:      2 minutes of one core
# Date:      2026-11-22
# Expected:  inpaint.png, vary.png, outpaint.png and canvas.png in editing/, much like those of docs/sampling.md;
#            the kept halves are the same in every row
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

work="$root/runs/quickstart-15"
take_arguments "work=" "$@"
if ((${#words[@]})); then
    usage
fi
if [[ ! -e $work/prior.safetensors ]]; then
    echo "error: $work/prior.safetensors does not exist: bash recipes/quickstart.sh makes it" >&2
    exit 1
fi
work=$(cd "$work" && pwd)

enter "$work/editing" "prior $(cksum <"$work/prior.safetensors" | cut -d ' ' -f 1)"

choose() {
    rm -rf some
    mkdir some
    local name
    for name in 1f600 2764-fe0f 1f34e 1f431 1f384 1f98b 1f1e7-1f1ec 26bd; do
        [[ -e $work/imgs/$name.png ]] || continue # two minutes of the quickstart draw few
        cp "$work/imgs/$name.png" some/
        grep "\"$name.png\"" "$work/imgs/metadata.jsonl" >>some/metadata.jsonl
    done
}
rows() { # PICTURE GRIDS...
    vqtool cat "${@:2}" | vqtool show - --columns "$columns" -o "$1"
}
once some choose
columns=$(find some -name '*.png' | wc -l)
side=$(vqtool info "$work/tok.h5" --json | python -c 'import json, sys; print(json.load(sys.stdin)["grid_size"][0])')
prior="$work/prior.safetensors"
how=(--purity --cfg-scale 3)
tokenizer="$work/tokenizer.safetensors" # of a quickstart of its own codes
[[ -e $tokenizer ]] || tokenizer=builtin
make some.h5 vqtool encode some/ --size $((8 * side)) -t "$tokenizer" --resume auto -o some.h5

for seed in 0 1; do
    make "half-$seed.h5" vqtool inpaint some.h5 --prior "$prior" --mask left-half --seed "$seed" "${how[@]}" \
        -o "half-$seed.h5"
done
make inpaint.png rows inpaint.png some.h5 half-0.h5 half-1.h5

for strength in 0.4 0.6 0.8; do
    make "vary-$strength.h5" vqtool vary some.h5 --prior "$prior" --strength "$strength" "${how[@]}" \
        -o "vary-$strength.h5"
done
make vary.png rows vary.png some.h5 vary-0.4.h5 vary-0.6.h5 vary-0.8.h5

make wide.h5 vqtool outpaint some.h5 --prior "$prior" --left $((side / 2)) --right $((side / 2)) "${how[@]}" -o wide.h5
make outpaint.png vqtool show wide.h5 --columns 4 -o outpaint.png

make canvas.h5 vqtool sample "$prior" --grid $((2 * side))x$((2 * side)) -n 8 "${how[@]}" --resume auto -o canvas.h5 \
    --caption "red heart" --caption butterfly --caption Bulgaria --caption "Christmas tree"
make canvas.png vqtool show canvas.h5 --columns 8 -o canvas.png

echo "pictures:  $PWD/{inpaint,vary,outpaint,canvas}.png"
