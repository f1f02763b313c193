"""scripts/compare_quantizers.py: every quantizer is trained and scored, on pictures that it has not seen."""

import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.commands import TINY, build_tokenizer, write_pictures
from support.features import MeanColour

from vqtool.metrics import extract
from vqtool.tokenizers import SIZES

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
compare = importlib.import_module("compare_quantizers")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "vqvae-f8", replace(TINY, codebook_size=1024, code_dim=16))
    return write_pictures(tmp_path / "imgs", 30)


def test_each_quantizer_has_a_line_of_scores_for_each_seed(pictures, capsys):
    settings = [str(pictures), "--size", "16", "--batch-size", "4", "--codebook-size", "32"]
    assert compare.main([*settings, "--steps", "3", "--seeds", "0", "1"], MeanColour()) == 0
    first, _, head, rule, *lines = capsys.readouterr().out.splitlines()
    assert first == "27 pictures of 16 px, 3 steps each; N = 3 held out"
    assert head.count("|") == rule.count("|") == 11
    assert len(lines) == 2 * len(compare.VARIANTS)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows[::2]] == list(compare.VARIANTS)
    assert {row[4] for row in rows} == {"3"}
    assert all(np.isfinite([float(cell) for cell in row[7:]]).all() for row in rows)
    assert len({tuple(row[6:]) for row in rows}) > len(compare.VARIANTS)  # seeds differ, and so do quantizers
    assert compare.main([*settings, "--minutes", "0.001", "--quantizers", "ema"], MeanColour()) == 0
    assert "0.001 min each" in capsys.readouterr().out


def test_cpu_time_is_not_spent_by_waiting_for_other_work(pictures, capsys, monkeypatch):
    """Oracle: a clock of the wall that runs a thousand times as fast leaves one step of it, but as many of CPU time."""
    fast = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 1000 * fast())
    settings = [str(pictures), "--size", "16", "--batch-size", "4", "--codebook-size", "32", "--quantizers", "ema"]
    assert compare.main([*settings, "--minutes", "0.005", "--cpu-time"], MeanColour()) == 0
    first, _, head, _, line = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert ("0.005 CPU min each" in first, " CPU min " in head) == (True, True)
    assert int(cells[4]) > 3


def test_scores_are_those_of_the_pictures_as_the_tokenizer_rebuilds_them():
    """Oracle: pictures that the tokenizer itself has decoded from one token are of known usage."""
    tokenizer = build_tokenizer()
    tokenizer.codebook[1:] = 1e3
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16)).astype(np.uint8)
    found = compare.score(tokenizer, images, MeanColour(), extract(MeanColour(), [images]).pooled)
    assert (found["usage"], found["perplexity"]) == (1 / 16, 1.0)
    same = compare.to_uint8(tokenizer.decode(tokenizer.encode(compare.to_float(images[:1]))))[0]
    error = ((images.astype(float) - same) ** 2).mean((1, 2, 3))
    assert found["PSNR"] == pytest.approx((10 * np.log10(255**2 / error)).mean())
