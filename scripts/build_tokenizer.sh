#!/usr/bin/env bash
# Builds the tokenizer inside the package: prepares pictures, rebuilds the codebook of a tokenizer that is there, trains it
# on, scores it on held-out emoji, clip art and photographs, and writes vqtool/builtin/tokenizer.safetensors and
# docs/tokenizer.png.
#
#   bash scripts/build_tokenizer.sh                    # in build/tokenizer, from the built-in tokenizer
#   bash scripts/build_tokenizer.sh --from FILE --codes 4096 --minutes 5 -- --batch-size 128
#   bash scripts/build_tokenizer.sh --pictures DIR     # where emoji.tar.gz, clipart.tar.gz, extra.tar.gz lie already
#   bash scripts/build_tokenizer.sh --only-train       # no scores, and nothing is put into the package
#
# What stands after -- goes to train-tokenizer. Run again after an interruption, it goes on where it stopped; what is
# finished in DIR is not done again. PYTHON names an interpreter that has what vqtool needs, [eval] included; without it
# .venv is made and used. No weights but those of EfficientNet-Lite0 (Apache-2.0) judge the pictures.
# Hardware:  one GPU, or two cores without one
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

work="$root/build/tokenizer"
pictures="$root/build/pictures"
start=builtin
codes=4096
minutes=240
only_train=
while (($#)); do
    case $1 in
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        --pictures) pictures=${2:?--pictures needs a folder} && shift 2 ;;
        --from) start=${2:?--from needs a file} && shift 2 ;;
        --codes) codes=${2:?--codes needs a number} && shift 2 ;;
        --minutes) minutes=${2:?--minutes needs a number} && shift 2 ;;
        --only-train) only_train=1 && shift ;;
        --) shift && break ;;
        *) sed '1d;/^set/,$d;s/^# \{0,1\}//' "$0" >&2 && exit 2 ;;
    esac
done

[[ $start == builtin ]] || start=$(realpath "$start")
source "$root/scripts/lib/build.sh"
train=("$pictures"/{emoji,clipart,extra}.tar.gz)
if [[ ! -e refitted.safetensors ]]; then
    run "$PYTHON" -m vqtool codebook refit "${train[@]}" -t "$start" --size 64 --codebook-size "$codes" \
        --vectors 100000 --seeding afk-mc2 -o refitted.safetensors
fi
if [[ ! -e tokenizer.safetensors ]]; then
    run "$PYTHON" -m vqtool train-tokenizer "${train[@]}" --from refitted.safetensors --size 64 --crop 2 --zoom \
        --perceptual efficientnet-lite0 --perceptual-weight 3 --perceptual-share 0.5 \
        --adversarial 0.4 --adversarial-start 0 --adversarial-warmup 200 --adversarial-max 0.5 \
        --learning-rate 5e-4 --half --minutes "$minutes" --resume auto "$@" -o tokenizer.safetensors
fi
[[ -z $only_train ]] || exit 0
held_out=()
for name in heldout-emoji heldout-clipart heldout-photos; do
    held_out+=("$pictures/$name.tar.gz")
    run "$PYTHON" -m vqtool eval "${held_out[-1]}" --tokenizer tokenizer.safetensors --size 64 \
        -o "$pictures/$name.scores.json" --force
done
run "$PYTHON" "$root/scripts/finish_tokenizer.py" tokenizer.safetensors "${held_out[@]}"
