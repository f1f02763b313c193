"""scripts/bench_transplant.py: its bounds are those that the runs report of all of their held-out grids."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest
from support.commands import write_pictures

from vqtool.priors import load_prior

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
bench_transplant = importlib.import_module("bench_transplant")


def test_the_bounds_are_those_that_the_runs_report(tmp_path):
    write_pictures(tmp_path / "imgs", 210)
    work = tmp_path / "work"
    settings = argparse.Namespace(before=2, anew=[2], after=[1], codes=64, batch=4, rate=None, size=16)
    found = bench_transplant.measure(str(tmp_path / "imgs"), work, settings)
    assert {name: [*bounds] for name, bounds in found.items()} == {
        "before, in the old codes": [0], "anew": [2], "counted links": [0, 1], "nearest codes": [0, 1],
    }  # fmt: skip
    for name, step, file in (
        ("before, in the old codes", 0, "prior"),
        ("anew", 2, "anew-2"),
        ("counted links", 1, "refit-1"),
        ("nearest codes", 1, "nearest-1"),
    ):
        prior = load_prior(work / f"{file}.safetensors")
        assert found[name][step] == pytest.approx(prior.summary["validation_bound"], rel=1e-5)
    assert load_prior(work / "refit-1.safetensors").kernel.codebook_size == 64
