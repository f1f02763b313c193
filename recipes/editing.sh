#!/usr/bin/env bash
# Edits eight emoji with the prior of the quickstart: halves made anew, variations, wider pictures, a canvas of 2 x 2.
#
#   bash recipes/quickstart.sh && bash recipes/editing.sh
#   bash recipes/editing.sh --work DIR   # of a quickstart; default runs/quickstart-15
#
# Run again after an interruption, it begins anew. It downloads what pip installs (scripts/setup.sh) and nothing else.
#
# Hardware:  two cores, no GPU
# Time:      2 minutes of one core
# Date:      2026-11-22
# Expected:  inpaint.png, vary.png, outpaint.png and canvas.png in the work folder, much like those of docs/sampling.md;
#            the kept halves are the same in every row
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

work="$root/runs/quickstart-15"
while (($#)); do
    case $1 in
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        *) usage ;;
    esac
done
if [[ ! -e $work/prior.safetensors ]]; then
    echo "error: $work/prior.safetensors does not exist: bash recipes/quickstart.sh makes it" >&2
    exit 1
fi
bash "$root/scripts/setup.sh"
export PATH="$root/.venv/bin:$PATH"
cd "$work"

rm -rf some
mkdir some
for name in 1f600 2764-fe0f 1f34e 1f431 1f384 1f98b 1f1e7-1f1ec 26bd; do
    [[ -e imgs/$name.png ]] || continue # two minutes of the quickstart draw few
    cp "imgs/$name.png" some/
    grep "\"$name.png\"" imgs/metadata.jsonl >>some/metadata.jsonl
done
side=$(vqtool info tok.h5 --json | python -c 'import json, sys; print(json.load(sys.stdin)["grid_size"][0])')
how=(--purity --cfg-scale 3 --force)
run vqtool encode some/ --size $((8 * side)) -t tokenizer.safetensors -o some.h5 --force

for seed in 0 1; do
    run vqtool inpaint some.h5 --mask left-half --seed "$seed" "${how[@]}" -o "half-$seed.h5"
done
vqtool cat some.h5 half-0.h5 half-1.h5 | run vqtool show - --columns 8 --force -o inpaint.png

for strength in 0.4 0.6 0.8; do
    run vqtool vary some.h5 --strength "$strength" "${how[@]}" -o "vary-$strength.h5"
done
vqtool cat some.h5 vary-0.4.h5 vary-0.6.h5 vary-0.8.h5 | run vqtool show - --columns 8 --force -o vary.png

run vqtool outpaint some.h5 --left $((side / 2)) --right $((side / 2)) "${how[@]}" -o wide.h5
run vqtool show wide.h5 --columns 4 --force -o outpaint.png

run vqtool sample --grid $((2 * side))x$((2 * side)) -n 8 "${how[@]}" -o canvas.h5 --caption "red heart" --caption butterfly \
    --caption Bulgaria --caption "Christmas tree"
run vqtool show canvas.h5 --columns 8 --force -o canvas.png
