"""scripts/claims_table.py: means and standard errors over seeds of what recipes/claims.sh leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "claims_table.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_values_of_seeds_are_put_together_and_other_rows_left_out(tmp_path):
    for seed, kid in enumerate((0.1, 0.2, 0.3)):
        row = {"sampler": "purity", "steps": 8, "options": {"null": "learned"}, "values": {"calls": 16, "KID-Net": kid}}
        (tmp_path / f"nulls-absorbing-{seed}.json").write_text(json.dumps({"rows": [row]}))
    (tmp_path / "nulls-bits-absorbing-0.json").write_text(json.dumps({"scores": {"bits-per-token": 3.5}}))
    (tmp_path / "calls-absorbing-0.json").write_text(json.dumps({"rows": []}))
    done = run("nulls", tmp_path, "-o", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    way, bits = json.loads((tmp_path / "out.json").read_text())["lines"]
    assert (bits["way"], bits["values"], "standard_errors" in bits) == ("", {"bits": 3.5}, False)
    assert (way["prior"], way["way"], way["seeds"]) == ("absorbing", "purity 8 null=learned", [0, 1, 2])
    assert way["values"]["KID"] == pytest.approx(0.2)
    assert way["standard_errors"]["KID"] == pytest.approx(0.1 / 3**0.5)
    assert "| absorbing | purity 8 null=learned | 16 | 3 |  | 0.2 +- 0.06 |" in done.stdout.splitlines()
    assert run("kernels", tmp_path, "-o", tmp_path / "none.json").returncode == 1
