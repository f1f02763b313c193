#!/usr/bin/env bash
# Tries the lowest versions that pyproject.toml allows: installs constraints-lowest.txt into an environment of its own
# and runs the fast tests there. Arguments go to pytest.
#
#   bash scripts/test_lowest.sh
#   FOLDER=lowest bash scripts/test_lowest.sh tests/cli     # keeps the environment for the next time
#
# PYTHON names the interpreter (default: python3.10, else python3); wheels of such age exist for Python 3.10 to 3.12.
# The torch of that age may bring 5 GB of GPU libraries, whether there is a GPU or not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=${PYTHON:-$(command -v python3.10 || command -v python3)}
folder=${FOLDER:-}
if [[ -z $folder ]]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python=$folder/bin/python
[[ -x $python ]] || "$base" -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check --requirement constraints-lowest.txt
export PATH="$folder/bin:$PATH" PYTHONPATH="$PWD" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$python" -m pytest -n 2 --dist worksteal -p no:cacheprovider -W default -m "not slow and not gpu and not network and not release" "$@"
