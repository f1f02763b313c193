# shellcheck shell=bash
# Sourced by the recipes: their help, their work folders, and steps that show what they do.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Shows the head of the recipe and ends it.
usage() {
    sed '1d;/^set/,$d;s/^# \{0,1\}//' "$0" >&2
    exit 2
}

# Sets vqtool up and goes into a work folder.
enter() { # FOLDER
    bash "$root/scripts/setup.sh"
    export PATH="$root/.venv/bin:$PATH"
    mkdir -p "$1"
    cd "$1" || exit 1
}

# The same with an empty folder: an earlier run of the recipe is removed, a folder of something else is not.
enter_anew() { # FOLDER
    local mark
    mark=.$(basename "$0" .sh)
    if [[ -d $1 && ! -e $1/$mark && -n "$(ls -A "$1")" ]]; then
        echo "error: $1 holds something else: name an empty or new folder with --work" >&2
        exit 1
    fi
    rm -rf "$1"
    enter "$1"
    touch "$mark"
}

# Shows a command and runs it.
run() {
    echo "\$ $*" >&2
    "$@"
}

# Runs a command that writes a file, unless the file is there. vqtool exits with 1 when it had to skip bad pictures;
# what it wrote then is good, and it never leaves half a file.
make() { # FILE COMMAND...
    if [[ -e $1 ]]; then
        echo "$1: there already" >&2
    else
        run "${@:2}" || [[ -e $1 ]]
    fi
}

# The same for a training, which goes on if it was interrupted.
train() { # FILE LENGTH COMMAND...; LENGTH is "--steps 100" or "--minutes 10"
    local length
    read -ra length <<<"$2"
    if [[ -e ${1%.safetensors}.state.safetensors ]]; then
        length=(--resume)
    fi
    make "$1" "${@:3}" "${length[@]}" -o "$1"
}

# Whole minutes that are left of some for a training.
minutes_left() { # MINUTES
    local left=$(($1 - (SECONDS + 59) / 60))
    echo $((left > 0 ? left : 1))
}
