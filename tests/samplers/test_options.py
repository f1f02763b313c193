"""Options of samplers and of what is done to predictions: stated once, the same for flags and for Python."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from support.exact import random_prior

import vqtool
from vqtool import samplers
from vqtool.diffusion import guidance, posterior
from vqtool.errors import VqtoolError
from vqtool.options import options_of, read_options
from vqtool.samplers import Settings, _settings, runs
from vqtool.samplers._machine import MachineOptions
from vqtool.samplers._tiles import TileOptions
from vqtool.samplers.runs import RunOptions

STATED = [(f"samplers/{name.replace('-', '_')}.py", samplers.find(name).Options) for name in samplers.NAMES]
STATED += [("samplers/_settings.py", Settings), ("samplers/_tiles.py", TileOptions), ("samplers/runs.py", RunOptions)]
STATED += [("samplers/_machine.py", MachineOptions)]


@pytest.mark.parametrize(("file", "kind"), STATED, ids=[file for file, _ in STATED])
def test_what_is_read_from_the_source_is_what_an_import_gives(file, kind):
    read = [replace(each, type="") for each in read_options(file, kind.__name__)]
    assert read == [replace(each, type="") for each in options_of(kind)]
    assert [each.name for each in read] == [each.name for each in fields(kind)]


@pytest.mark.parametrize("name", samplers.NAMES)
def test_a_sampler_lists_its_options_by_name(name):
    listed = samplers.options(name)
    assert all(each.name == option and each.help.endswith(".") for option, each in listed.items())
    assert list(vars(samplers.find(name).Options())) == list(listed)


def test_choices_are_those_of_the_code_that_takes_them():
    assert samplers.options("ancestral")["rule"].known == samplers.options("psi")["rule"].known == posterior.RULES
    known = {each.name: each.known for each in options_of(Settings)}
    assert (known["cfg_schedule"], known["null"]) == (guidance.SCHEDULES, _settings.NULLS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": "5"}, "`steps` '5': a whole number is expected"),
        ({"steps": 2.5}, "`steps` 2.5: a whole number is expected"),
        ({"sampler": "halton", "roll": 1}, "`roll` 1: True or False is expected"),
        ({"times": 5}, "`times` 5: a list of whole numbers or text is expected"),
        ({"times": [5, 1.5]}, "a list of whole numbers or text is expected"),
        ({"temperature": "warm"}, "`temperature` 'warm': a number or a list of numbers is expected"),
        ({"temperature": None}, "`temperature` None: a number or a list of numbers is expected"),
        ({"cfg_scale": 2.0, "guide_with": 3}, "`guide_with` 3: a prior or its file is expected"),
        ({"seed": -1}, "`seed` -1: a whole number from 0 to"),
        ({"seed": 1.5}, "`seed` 1.5: a whole number from 0 to"),
    ],
)
def test_values_of_a_wrong_type_are_refused_by_name(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        vqtool.sample(random_prior(), 1, **arguments)


@pytest.mark.parametrize("size", [0, -1, "all", "1e3", 2.5])
def test_a_batch_size_is_auto_or_a_number(size):
    with pytest.raises(VqtoolError, match="`batch_size`"):
        runs.RunOptions(batch_size=size)


TOY = '''"""A toy: `fewer` by another name.

When to use it: never. Cost: a call. Source: this test.
"""

from dataclasses import dataclass

from vqtool.options import Checked, option
from vqtool.samplers import fewer

NEEDS_MASK = True


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How many calls."""

    toy_option: int = option(2, "Toy calls.", minimum=1)


def sample(walk, options):
    """Draw a batch of grids."""
    return fewer.sample(walk, fewer.Options(steps=options.toy_option))
'''


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory):
    """A copy of the package with one more sampler: one file, and one name."""
    folder = tmp_path_factory.mktemp("toy")
    ignored = shutil.ignore_patterns("__pycache__")
    package = Path(shutil.copytree(Path(vqtool.__file__).parent, folder / "vqtool", ignore=ignored)) / "samplers"
    (package / "toy.py").write_text(TOY)
    listed = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(listed.replace("NAMES = (", 'NAMES = ("toy", ', 1))
    random_prior().save(folder / "prior.safetensors")

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
        command = [sys.executable, "-m", "vqtool", *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.slow
def test_a_new_sampler_is_one_file_and_one_name(with_toy):
    for command in ("sample", "inpaint"):
        text = with_toy(command, "--sampler", "toy", "--toy-option", "3", "--help").stdout
        assert "Sampler toy" in text
        assert "toy: Toy calls. Default: 2." in text
        assert "One of toy, ancestral, first-hitting" in " ".join(text.replace("│", " ").split())
    done = with_toy("sample", "-n", 2, "--sampler", "toy", "--toy-option", 3, "-o", "x.h5")
    assert "3 network calls a grid" in done.stderr
    refused = with_toy("sample", "-n", 2, "--toy-option", 3, "-o", "y.h5").stderr
    assert "error: --toy-option is not an option of sampler ancestral; of toy it is" in refused
    assert "--toy-option 0: must be 1 or more" in with_toy("sample", "--sampler", "toy", "--toy-option", 0).stderr
    compared = with_toy("compare", "--sampler", "toy", "--option", "toy-option=1,4", "-n", 2, "--seeds", 0)
    assert compared.returncode == 0, compared.stderr
    assert '"toy_option": 4' in compared.stdout
