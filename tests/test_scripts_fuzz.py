"""scripts/fuzz.py: a case is the same every time, every format has its mutator, and what is wrong gets its class."""

import importlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))
fuzz = importlib.import_module("fuzz")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    fuzz.prepare(folder)
    return folder


def test_every_target_is_there_and_broken_alike_by_the_same_numbers(made):
    found = fuzz.targets(made)
    assert {target.kind for target in found} == {"bytes", *fuzz.MUTATORS}
    assert len({target.name for target in found}) == len(found) > 30
    for target in found:
        data = next(iter(target.files.values())).read_bytes()
        break_it = fuzz.MUTATORS.get(target.kind, fuzz.break_bytes)
        if target.kind in ("json", "text", "safetensors", "tar"):
            changed = [break_it(data, random.Random(seed)) for seed in range(3)]
            assert changed == [break_it(data, random.Random(seed)) for seed in range(3)]
            assert any(one != data for one in changed)


@pytest.mark.slow
def test_some_cases_find_nothing():
    command = [sys.executable, "scripts/fuzz.py", "--seconds", "20", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found" in done.stdout
