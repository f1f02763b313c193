#!/usr/bin/env bash
# Builds the tokenizer inside the package: prepares pictures, makes a tokenizer that is there as large as the built-in one,
# rebuilds its codebook, trains it on, then its decoder alone, scores it on held-out emoji, clip art and photographs, and
# writes vqtool/builtin/tokenizer.safetensors and docs/tokenizer.png.
#
#   bash scripts/build_tokenizer.sh                    # in build/tokenizer, from the built-in tokenizer
#   bash scripts/build_tokenizer.sh --from FILE --codes 4096 --minutes 5 -- --batch-size 128
#   bash scripts/build_tokenizer.sh --decoder-minutes 0      # the decoder is not trained alone; default: .8 of --minutes
#   bash scripts/build_tokenizer.sh --pictures DIR     # where emoji.tar.gz, clipart.tar.gz, extra.tar.gz lie already
#   bash scripts/build_tokenizer.sh --only-train       # no scores, and nothing is put into the package
#
# What stands after -- goes to both trainings. Run again after an interruption, it goes on where it stopped; what is
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
decoder_minutes=
only_train=
while (($#)); do
    case $1 in
        --work) work=${2:?--work needs a folder} && shift 2 ;;
        --pictures) pictures=${2:?--pictures needs a folder} && shift 2 ;;
        --from) start=${2:?--from needs a file} && shift 2 ;;
        --codes) codes=${2:?--codes needs a number} && shift 2 ;;
        --minutes) minutes=${2:?--minutes needs a number} && shift 2 ;;
        --decoder-minutes) decoder_minutes=${2:?--decoder-minutes needs a number} && shift 2 ;;
        --only-train) only_train=1 && shift ;;
        --) shift && break ;;
        *) sed '1d;/^set/,$d;s/^# \{0,1\}//' "$0" >&2 && exit 2 ;;
    esac
done

[[ $start == builtin ]] || start=$(realpath "$start")
source "$root/scripts/lib/build.sh"
train=("$pictures"/{emoji,clipart,extra}.tar.gz)
judges=(--perceptual efficientnet-lite0 --perceptual-share 0.5 --adversarial-start 0 --adversarial-warmup 200
    --adversarial-max 0.5)
pieces=(--size 64 --crop 2 --zoom) # of every scale
if [[ ! -e grown.safetensors ]]; then # without changing what it does; one as large already stays as it is
    run "$PYTHON" "$root/scripts/grow_tokenizer.py" "$start" --channels 64 128 192 --encoder-blocks 1 1 3 \
        --decoder-blocks 2 3 5 -o grown.safetensors
fi
if [[ ! -e refitted.safetensors ]]; then
    run "$PYTHON" -m vqtool codebook refit "${train[@]}" -t grown.safetensors --size 64 --codebook-size "$codes" \
        --vectors 100000 --seeding afk-mc2 -o refitted.safetensors
fi
if [[ ! -e trained.safetensors ]]; then
    run "$PYTHON" -m vqtool train-tokenizer "${train[@]}" --from refitted.safetensors "${pieces[@]}" "${judges[@]}" \
        --perceptual-weight 3 --adversarial 0.4 --learning-rate 5e-4 --half --minutes "$minutes" --resume auto "$@" \
        -o trained.safetensors
fi
decoder_minutes=${decoder_minutes:-$("$PYTHON" -c "print(.8 * $minutes)")}
if [[ ! -e tokenizer.safetensors && $decoder_minutes == 0 ]]; then
    cp trained.safetensors tokenizer.safetensors
elif [[ ! -e tokenizer.safetensors ]]; then # tokens stay what they are
    run "$PYTHON" -m vqtool codebook finetune trained.safetensors "${train[@]}" --keep-codes "${pieces[@]}" \
        "${judges[@]}" --perceptual-weight 4 --adversarial 0.6 --learning-rate 3e-4 --minutes "$decoder_minutes" \
        --resume auto "$@" -o tokenizer.safetensors
fi
[[ -z $only_train ]] || exit 0
held_out=()
for name in heldout-emoji heldout-clipart heldout-photos; do
    held_out+=("$pictures/$name.tar.gz")
    run "$PYTHON" -m vqtool eval "${held_out[-1]}" --tokenizer tokenizer.safetensors --size 64 \
        -o "$pictures/$name.scores.json" --force
done
run "$PYTHON" "$root/scripts/finish_tokenizer.py" tokenizer.safetensors "${held_out[@]}"
