# shellcheck shell=bash
# What the builds of the networks inside the package begin with. Sourced with root, work and pictures set; leaves PYTHON, a
# full path in `pictures`, the pictures themselves, and the work folder as the current one.

: "${root:?}" "${work:?}" "${pictures:?}"

run() {
    echo "\$ $*" >&2
    "$@"
}

if [[ -z ${PYTHON:-} ]]; then
    bash "$root/scripts/setup.sh"
    PYTHON="$root/.venv/bin/python"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$work" "$pictures"
pictures=$(realpath "$pictures")
cd "$work" || exit

if [[ ! -e $pictures/emoji.tar.gz ]]; then
    run "$PYTHON" "$root/scripts/prepare_pictures.py" --work "$pictures"
fi
