#!/usr/bin/env bash
# Prepares .venv in the repository root: vqtool (editable), the extras named, and what the recipes draw pictures with.
#
#   bash scripts/setup.sh            # for users
#   bash scripts/setup.sh dev        # extras of pyproject.toml; eval and onnx are always among them
#
# Does nothing, quickly, when nothing has changed since the last time. PYTHON names the interpreter (3.10 or later,
# default python3). Where packages come from is pip's own configuration; if it offers a CPU build of torch, that is
# taken. PYTHON counts only while .venv does not exist: remove the folder to change it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=(eval onnx)
for extra in "$@"; do
    [[ $extra == eval || $extra == onnx ]] || extras+=("$extra")
done
python=.venv/bin/python

# What is installed depends on these files, the interpreter and the folder alone.
current_state() {
    cat pyproject.toml constraints.txt recipes/requirements*.txt scripts/setup.sh 2>/dev/null | cksum
    "$python" --version
    pwd
}

is_ready() {
    local extra
    [[ -x $python && -x .venv/bin/vqtool ]] || return 1
    for extra in "${extras[@]}"; do
        [[ "$(cat ".venv/setup-$extra.txt" 2>/dev/null)" == "$(current_state)" ]] || return 1
    done
}

pip_install() {
    "$python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"
}

if is_ready; then
    exit 0
fi

echo "setting up .venv: takes some minutes the first time" >&2
if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=${PYTHON:-python3}
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: $base is not Python 3.10 or later: name another one, e.g. PYTHON=python3.12 bash $0" >&2
        exit 1
    fi
    "$base" -m venv .venv
fi
rm -f .venv/setup-*.txt
joined=$(IFS=,; echo "${extras[*]}")
pip_install torch # first and pinned: nothing below may bring another one
pip_install --editable ".[$joined]" --requirement recipes/requirements.txt
pip_install --no-deps --requirement recipes/requirements-nodeps.txt
if [[ " ${extras[*]} " == *" dev "* ]] && ! pip_install --editable ".[ray]"; then
    echo "no Ray to be had for this Python: its tests will be skipped" >&2 # there are no wheels for every one
fi
if [[ " ${extras[*]} " == *" dev "* ]] && ! command -v chromium chromium-browser google-chrome >/dev/null; then
    # a test opens the page of `vqtool eval --report` in it, and is skipped without it
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } >/dev/null 2>&1 ||
            echo "no Chromium to be had from apt: the test of pages will be skipped" >&2
    else
        echo "no Chromium here, and no right to install it: the test of pages will be skipped" >&2
    fi
fi
for extra in "${extras[@]}"; do
    current_state >".venv/setup-$extra.txt"
done
echo "ready: .venv/bin/vqtool" >&2
