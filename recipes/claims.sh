#!/usr/bin/env bash
# Claims of the papers, tested again on handwritten digits: one row of docs/claims.md a name, three seeds.
#
#   bash recipes/claims.sh calls               # the calls of ancestral sampling
#   bash recipes/claims.sh kernels             # mask-replace, absorbing, uniform: bits per token and samples
#   bash recipes/claims.sh all                 # every row, one after the other
#   bash recipes/claims.sh calls --steps 2     # two minutes: 2 training steps each, few digits and samples
#   bash recipes/claims.sh calls --work DIR    # default runs/claims-STEPS; priors serve several rows
#
# Rows: kernels auxiliary calls purity guidance nulls temperature uniform-calls networks. Run again after an interruption, it goes on where it
# stopped. It downloads what pip installs (scripts/setup.sh) and nothing else. Results are NAME.json in the work folder; those of
# the documents are in docs/claims/.
#
# 4,372 digits of 8x8 tokens (K = 512), with classes; transformer tiny, 300 steps of 32, each of three seeds one prior and 64 samples
# of it, against 256 digits held out. So short a training and so few samples tell large effects alone.
#
# Hardware:  one core of two, busy with other work
# Time:      5 to 8 minutes a training, 1 to 5 minutes a row beside
# Date:      2026-11-27
# Expected:  docs/claims.md
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/steps.sh"

steps=300 num=64 work=
take_arguments "steps= num= work=" "$@"
rows=(kernels auxiliary calls purity guidance nulls temperature uniform-calls networks)
row=${words[*]:-}
[[ " ${rows[*]} all " == *" $row "* && -n $row ]] || usage
draw=() seeds=(0 1 2)
if ((steps < 100)); then
    draw=(--limit 500) num=8 seeds=(0)
fi
enter "${work:-$root/runs/claims-$steps}" "$steps steps"

prepare() {
    split() {
        python "$root/recipes/draw_digits.py" drawn/ "${draw[@]}"
        hold_out drawn train held
    }
    once split split
    make tokenizer.safetensors vqtool codebook refit train/ --codebook-size 512 -o tokenizer.safetensors
    make train.h5 vqtool encode train/ -t tokenizer.safetensors --resume auto -o train.h5
    make held.h5 vqtool encode held/ -t tokenizer.safetensors --resume auto -o held.h5
}

fit() { # a name, and the options of train-prior: a prior of each seed
    local seed
    for seed in "${seeds[@]}"; do
        train "$1-$seed.safetensors" "--steps $steps" vqtool train-prior train.h5 --condition class --size tiny \
            --batch-size 32 --preview-every 0 --seed "$seed" "${@:2}"
    done
}

score() { # a name for the results, a name of priors, and what compare is told
    local seed
    for seed in "${seeds[@]}"; do
        once "$1-$2-$seed" vqtool compare "$2-$seed.safetensors" --ref held/ --max-images 256 --seeds "$seed" -n "$num" "${@:3}" \
            --resume auto -o "$1-$2-$seed.json"
    done
}

bits() { # a name for the results, a name of priors
    local seed
    for seed in "${seeds[@]}"; do
        make "$1-$2-$seed.json" vqtool eval --likelihood held.h5 --prior "$2-$seed.safetensors" --times 8 -o "$1-$2-$seed.json"
    done
}

tell() { # a row: its table, and NAME.json of all seeds
    python "$root/scripts/claims_table.py" "$1" . -o "$1.json"
}

absorbing() { fit absorbing --kernel absorbing; }

run_row() {
    case $1 in
    kernels)
        absorbing
        fit mask-replace --kernel mask-replace --schedule paper
        fit uniform --kernel uniform
        for name in absorbing mask-replace uniform; do
            bits kernels-bits $name
            score kernels $name --sampler ancestral --steps 100
        done
        ;;
    auxiliary)
        fit bound --kernel mask-replace --schedule paper --loss bound --times importance
        fit bound-alone --kernel mask-replace --schedule paper --loss bound --times importance --auxiliary-weight 0
        for name in bound bound-alone; do
            bits auxiliary-bits $name
            score auxiliary $name --sampler ancestral --steps 100
        done
        ;;
    calls) absorbing && score calls absorbing --sampler ancestral --steps 8,25,50,100 ;;
    purity) absorbing && score purity absorbing --sampler purity --sampler fewer --sampler ancestral --steps 8,16 ;;
    guidance) absorbing && score guidance absorbing --sampler purity --steps 8 --option cfg-scale=1,2,3,5 ;;
    nulls) absorbing && score nulls absorbing --sampler purity --steps 8 --cfg-scale 3 --option null=learned,zero-shot ;;
    temperature) absorbing && score temperature absorbing --sampler fewer --steps 16 --option temperature=0.6,0.8,1,1.2 ;;
    uniform-calls)
        fit uniform --kernel uniform
        score uniform-calls uniform --sampler ancestral --steps 5,10,25,50,100
        ;;
    networks) # to be compared with the authors' own code: with --steps 1200
        absorbing
        fit published --denoiser vq-diffusion --kernel mask-replace --schedule paper
        fit reweighted --denoiser vq-diffusion --kernel mask-replace --schedule paper --loss reweighted
        fit transformer --kernel mask-replace --schedule paper
        for name in published reweighted transformer absorbing; do
            bits networks-bits $name
        done
        ;;
    esac
    tell "$1"
}

prepare
for each in "${rows[@]}"; do
    if [[ $row == "$each" || $row == all ]]; then
        run_row "$each"
    fi
done
