"""scripts/damage_table.py: damage is what it says, and the table marks what gets worse step by step."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.features import MeanColour

from vqtool.metrics import Features

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
damage_table = importlib.import_module("damage_table")


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8))


def test_damage_is_what_it_says():
    generator = np.random.default_rng(0)
    flat = Image.new("RGB", (64, 64), (128, 128, 128))
    noisy = np.asarray(damage_table.noise(flat, 16, generator)).astype(float) - 128
    assert noisy.std() == pytest.approx(16, rel=0.05)
    assert np.asarray(damage_table.blur(picture(), 2, generator)).std() < 0.3 * np.asarray(picture()).std()
    gaps = [
        np.abs(
            np.asarray(damage_table.jpeg(picture(), quality, generator)).astype(float) - np.asarray(picture())
        ).mean()
        for quality in (95, 50, 5)
    ]
    assert gaps == sorted(gaps)


def test_copies_and_kinds_left_out_are_as_many_as_asked():
    rows = np.random.default_rng(0).normal(size=(40, 3)) + 20 * (np.arange(40) % 10)[:, None]
    features = Features("Net", rows)
    copies = damage_table.with_copies(features, 0.75, 0)
    assert (len(copies), len(np.unique(copies.pooled, axis=0))) == (40, 10)
    assert len(damage_table.without_kinds(features, 4, 0)) == 24


def test_the_table_has_a_row_a_step_and_marks_what_got_worse(tmp_path, capsys):
    (tmp_path / "imgs").mkdir()
    for seed in range(60):
        picture(seed).save(tmp_path / "imgs" / f"{seed}.png")
    arguments = [str(tmp_path / "imgs"), "--num", "30", "--size", "16", "-o", str(tmp_path / "out.json")]
    assert damage_table.main(arguments, MeanColour()) == 0
    first, _, head, _, *lines = capsys.readouterr().out.splitlines()
    assert first == "30 pictures of 16 px a side, seed 0"
    assert head.startswith("| damage | step | FD | KID | precision |")
    assert len(lines) == 1 + 9 + 6
    found = json.loads((tmp_path / "out.json").read_text())
    rows = [row["scores"]["FD"] for row in found if row["damage"] in ("none", "share of copies")]
    marked = "✓" in lines[-1].split("|")[3]
    assert marked == (rows == sorted(rows) and rows[-1] > rows[0])


def test_pictures_that_are_not_there_are_told_in_one_line(tmp_path, capsys):
    assert damage_table.main([str(tmp_path / "none")], MeanColour()) == 1
    assert capsys.readouterr().err.startswith("error: ")
