# shellcheck shell=bash
# Sourced by the recipes: their help, their work folders, and steps that show what they do. A recipe that was interrupted,
# anywhere, is run again with the same arguments: finished steps are passed over, the others go on or begin anew.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Shows the head of the recipe and ends it.
usage() {
    sed '1d;/^set/,$d;s/^# \{0,1\}//' "$0" >&2
    exit 2
}

# Takes the arguments of a recipe apart: --finetune-steps 9 sets finetune_steps=9, --full sets full=yes; `words` are the others.
take_arguments() { # "FLAG= FLAG ..." ARGUMENT...; a flag with = has a value
    local known=" $1 " name
    words=()
    shift
    while (($#)); do
        name=${1#--}
        if [[ $1 != -* ]]; then
            words+=("$1") && shift
        elif [[ $known == *" $name= "* ]]; then
            printf -v "${name//-/_}" %s "${2:?$1 needs a value}" && shift 2
        elif [[ $known == *" $name "* ]]; then
            printf -v "${name//-/_}" yes && shift
        else
            usage
        fi
    done
}

# The one word of a recipe's arguments, which is a whole number, in place of a default.
take_number() { # DEFAULT
    if ((${#words[@]} > 1)) || [[ ! ${words[0]:-$1} =~ ^[0-9]+$ ]]; then
        usage
    fi
    echo "${words[0]:-$1}"
}

# The name of a folder and twelve digits of what is in it: folders of one name share nothing, nor do two states of one.
name_of_pictures() { # FOLDER
    local digest
    digest=$(cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 cksum | cksum | cut -d ' ' -f 1)
    printf '%s-%012d\n' "$(basename "$1")" "$digest"
}

# Sets vqtool up and goes into a work folder, which is new, empty or an earlier run's of the same recipe and settings.
enter() { # FOLDER [SETTINGS]
    local mark reason
    mark=$1/.$(basename "$0" .sh)
    if [[ -d $1 && ! -e $mark && -n "$(ls -A "$1")" ]]; then
        echo "error: $1 holds something else: name an empty or new folder with --work" >&2
        exit 1
    fi
    if [[ -f $mark && $(cat "$mark") != "${2:-}" ]]; then
        echo "error: $1 was begun with other settings ($(cat "$mark")): remove it, or name a new folder with --work" >&2
        exit 1
    fi
    if ! reason=$({ mkdir -p "$1" && echo "${2:-}" >"$mark"; } 2>&1); then
        rmdir "$1" 2>/dev/null || true
        echo "error: $1 cannot be written (${reason##*: }): name another folder with --work" >&2
        exit 1
    fi
    bash "$root/scripts/setup.sh"
    export PATH="$root/.venv/bin:$PATH"
    cd "$1" || exit 1
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

# Runs a command that fills a folder, or writes a file several times, unless it has ended well before.
once() { # NAME COMMAND...
    if [[ -e .done-$1 ]]; then
        echo "$1: there already" >&2
    else
        run "${@:2}"
        touch ".done-$1"
    fi
}

# The same for a training, which goes on if it was interrupted.
train() { # FILE LENGTH COMMAND...; LENGTH is "--steps 100" or "--minutes 10"
    local length
    read -ra length <<<"$2"
    if [[ -e ${1%.safetensors}.state.safetensors ]]; then
        length=(--resume)
    fi
    once "$1" "${@:3}" "${length[@]}" -o "$1"
}

# Parts a folder of PNG files: every tenth digit, or any file whose name ends with 5, is held out.
hold_out() { # DRAWN TRAIN HELD
    local file
    rm -rf "$2" "$3"
    while IFS= read -r file; do
        mkdir -p "$3/$(dirname "$file")"
        mv "$1/$file" "$3/$file"
    done < <(cd "$1" && find . -name '*5.png')
    mv "$1" "$2"
}

# Whole minutes that are left of some for a training.
minutes_left() { # MINUTES
    local left=$(($1 - (SECONDS + 59) / 60))
    echo $((left > 0 ? left : 1))
}
