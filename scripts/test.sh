#!/usr/bin/env bash
# Checks everything but the building of a release: ruff, mypy and pytest, after setting up what they need. Arguments go
# to pytest.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_rng.py -k seed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh dev
python=.venv/bin/python
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two test processes share two cores

status=0
check() {
    echo "== $*" >&2
    "$python" -m "$@" || {
        echo "error: $* failed" >&2
        status=1
    }
}

check ruff check .
check ruff format --check .
check mypy
echo "== pytest" >&2 # the last, so that its closing line is
"$python" -m pytest -n 2 --dist worksteal -m "not gpu and not network and not release" "$@" || status=1
exit "$status"
