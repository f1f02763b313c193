"""A release: wheel and sdist as they are built, the wheel in an environment of its own, the README's five commands."""

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from support.command_lines import commands_in
from support.commands import write_pictures

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.release

# What builds, tests and version control leave behind in a checkout.
LEFT_BEHIND = (".git", ".venv", "__pycache__", ".*_cache", "build", "dist", "runs", "*.egg-info", "*.pyc")


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder with source/, and in dist/ what `python -m build` makes of it."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source")
    return folder


@pytest.fixture(scope="module")
def wheel(release):
    return next((release / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as file:
        return email.message_from_bytes(file.read(next(name for name in file.namelist() if name.endswith("/METADATA"))))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The programs of a new environment with the wheel; its libraries are those of the environment that runs this."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel)
    where = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    Path(where, "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return programs


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """Nothing leads to the repository: neither the folder nor the search path."""
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_five_commands_of_the_readme_run_as_typed_from_the_wheel(environment, clean, monkeypatch):
    monkeypatch.setenv("PATH", str(environment), prepend=os.pathsep)
    where = run(environment / "python", "-c", "import vqtool; print(vqtool.__file__)").stdout
    assert str(environment.parent) in where
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Your own pictures")[1].split("\n## ")[0]
    lines = re.findall(r"^    (vqtool .*)$", section, flags=re.MULTILINE)
    assert [args[0] for line in lines for args in commands_in(line)] == [
        "encode", "train-prior", "sample", "decode", "show", "eval",
    ]  # fmt: skip
    assert len(lines) == 5
    write_pictures(clean / "imgs", 10, size=(64, 64))
    for line in lines:
        run("bash", "-eo", "pipefail", "-c", line)
    assert len([*(clean / "decoded").glob("*.png")]) == 64


def test_the_wheel_says_where_it_is_from_and_what_may_be_done_with_it(wheel, metadata):
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT AND Bitstream-Vera"
    assert len(metadata.get_all("Project-URL")) >= 4
    classifiers = metadata.get_all("Classifier")
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)} <= {*classifiers}
    assert metadata["Requires-Python"] == ">=3.10"
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    licences = {name.split("/licenses/")[1] for name in names if "/licenses/" in name}
    parts = {f"vqtool/builtin/{name}.LICENSE.txt" for name in ("clip-vocabulary", "dejavu-sans")}
    assert licences == {*metadata.get_all("License-File")} == {"LICENSE", *parts}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vqtool"}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vqtool").rglob("*") if path.is_file()}
    assert {name for name in here if "__pycache__" not in name} == {
        name for name in names if name.startswith("vqtool/")
    }


def test_a_package_index_shows_no_broken_link(metadata):
    text = str(metadata.get_payload(decode=True) or b"", "utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert text.startswith("# vqtool")
    assert [link for link in links if not re.match(r"https?:|#", link)] == []
    assert "samples of the quickstart: docs/quickstart.png in the source" in text


def test_pictures_lead_to_where_the_files_are_if_that_is_known():
    spec = importlib.util.spec_from_file_location("vqtool_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    text = "![a picture](docs/a.png), [more](docs/b.md), [elsewhere](https://e.org), [here](#here)"
    assert setup.description(text, "https://h.org/raw/v1/") == (
        "![a picture](https://h.org/raw/v1/docs/a.png), [more](https://h.org/raw/v1/docs/b.md), "
        "[elsewhere](https://e.org), [here](#here)"
    )
    assert setup.description(text, None) == (
        "*(a picture: docs/a.png in the source)*, more, [elsewhere](https://e.org), [here](#here)"
    )


def test_the_sdist_holds_every_file_of_the_repository(release):
    source = release / "source"
    with tarfile.open(next((release / "dist").glob("*.tar.gz"))) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or name.startswith("vqtool.egg-info/")}
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert names - made == {name for name in expected if ".egg-info/" not in name}


def test_the_sdist_can_be_tested(release, clean):
    with tarfile.open(next((release / "dist").glob("*.tar.gz"))) as file:
        file.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        file.extractall(clean)
    folder = next(clean.iterdir())
    tests = [
        "tests/cli/test_head.py",
        "tests/interop/test_tokenizers.py",
        "tests/test_rng.py",
    ]  # conftest, golden, support
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=folder, env=environment)
    assert re.search(r"\b\d+ passed|100%", done.stdout)
