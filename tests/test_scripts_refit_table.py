"""scripts/refit_table.py: the scores that a run has left, each in its row, and their means."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vqtool import save_images

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
refit_table = importlib.import_module("refit_table")


def write_scores(work, seed, base):
    """Scores that say which they are: `base`, then one more for each tokenizer."""
    folder = work / f"seed-{seed}"
    folder.mkdir()
    for i, name in enumerate(refit_table.TOKENIZERS):
        usage = {
            "usage": (base + i) / 100,
            "usage-10": (base + i) / 200,
            "perplexity": 10.0 * (base + i),
            "codebook_size": 8 * (i + 1),
        }
        (folder / f"{name}-usage.json").write_text(json.dumps(usage))
        scores = {"emoji": {"PSNR": base + i}, "photos": {"PSNR": base + i + 0.5}}
        scores["distance"] = {"FD-EfficientNetLite0": base + i + 0.25}
        for part, found in scores.items():
            (folder / f"{name}-{part}.json").write_text(json.dumps({"scores": found}))


def test_each_tokenizer_of_each_seed_has_its_scores_and_the_means_follow(tmp_path):
    write_scores(tmp_path, 10, 40)
    write_scores(tmp_path, 2, 20)
    head, rule, *rows = refit_table.lines(tmp_path)
    assert head.count("|") == rule.count("|") == 10
    assert rows[0] == "| 2 | plain | 8 | 20.0% | 10.0% | 200 | 20.00 | 20.50 | 20.2 |"
    assert rows[7] == "| 10 | plain, fine-tuned (control) | 16 | 41.0% | 20.5% | 410 | 41.00 | 41.50 | 41.2 |"
    usage = "30.0% ± 14.1% | 15.0% ± 7.1% | 300 ± 141"  # deviations: half of 40 - 20, times sqrt(2)
    assert rows[12] == f"| mean | plain | 8 | {usage} | 30.00 ± 14.14 | 30.50 ± 14.14 | 30.2 ± 14.1 |"
    assert len(rows) == 18


def test_a_run_that_has_not_ended_is_named_with_what_is_missing(tmp_path, monkeypatch, capsys):
    write_scores(tmp_path, 0, 1)
    missing = tmp_path / "seed-0" / "refit-512-photos.json"
    missing.unlink()
    monkeypatch.setattr(sys, "argv", ["refit_table.py", str(tmp_path)])
    assert refit_table.main() == 1
    streams = capsys.readouterr()
    assert (streams.out, str(missing) in streams.err, "recipes/refit.sh" in streams.err) == ("", True, True)


def test_the_picture_has_a_row_of_each_tokenizer_under_the_originals(tmp_path):
    """Oracle: pictures of one colour each, which says whose they are."""
    folder = tmp_path / "seed-0"
    folder.mkdir()
    for row, name in enumerate(["held", *refit_table.TOKENIZERS]):
        for column, kind in enumerate(refit_table.KINDS):
            colour = np.full((9, 3, 64, 64), 30 * row + column, np.uint8)
            path = tmp_path / f"{kind}.tar" if name == "held" else folder / f"{name}-{kind}.tar"
            save_images(colour, path)
    refit_table.draw(tmp_path, [tmp_path / f"{kind}.tar" for kind in refit_table.KINDS], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("L"))
    colours = pixels[np.arange(7) * pixels.shape[0] // 7 + pixels.shape[0] // 14]
    found = colours[:, np.arange(16) * pixels.shape[1] // 16 + pixels.shape[1] // 32]
    assert np.array_equal(found, 30 * np.arange(7)[:, None] + np.repeat([0, 1], 8))
