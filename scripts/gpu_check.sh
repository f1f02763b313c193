#!/usr/bin/env bash
# Checks and measures vqtool on a GPU, in nine minutes at most, without a network:
#
#   bash scripts/gpu_check.sh                              # all stages, results in runs/gpu-check
#   bash scripts/gpu_check.sh --stages train,sample -o DIR
#   bash scripts/gpu_check.sh --quick                      # the tests marked gpu alone, 90 seconds
#   bash scripts/gpu_check.sh --brief                      # tests and some figures, 75 seconds
#   bash scripts/gpu_check.sh --minutes-scale 0.5          # half of the time of every stage
#   bash scripts/gpu_check.sh --device cpu --tiny          # every stage with tiny networks, to know that it works
#
# Writes gpu-check.json and gpu-check.md, after every figure, so that a run which is cut off leaves what it has. PYTHON
# names the interpreter; without it that of .venv, if there is one, else python3. $OUT is a folder for results, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
[[ -n ${PYTHON:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" scripts/gpu_check.py "$@"
