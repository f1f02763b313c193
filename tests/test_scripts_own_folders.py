"""scripts/own_folders.py: what is held out is of other things, and pieces keep their shapes."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
own_folders = importlib.import_module("own_folders")


def test_stamps_of_one_sentence_are_on_one_side_and_letters_are_left_out(tmp_path):
    root = tmp_path / "usr/share/tuxpaint/stamps"
    for name, sentence in [(f"animals/frog-{i}", "A frog.") for i in range(9)] + [("symbols/a", "The letter A.")]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (60, 90), (0, 0, 0, 0)).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(f"{sentence}\nde.utf8=Ein Frosch.\n", encoding="utf-8")
    pieces = list(own_folders.stamps(tmp_path))
    assert len(pieces) == 9
    assert len({piece.secret for piece in pieces}) == 1
    assert pieces[0].captions == ("A frog.", "frog 0", "animals: frog 0")
    assert pieces[0].image.getpixel((0, 0)) == (255, 255, 255)  # clear pixels are white paper


def test_folders_have_captions_in_rows_and_no_side_larger_than_256(tmp_path):
    pieces = [
        own_folders.Piece(f"p{i}", Image.new("RGB", (512, 300)), (f"picture {i}",), secret=i % 4 == 0)
        for i in range(12)
    ]
    counts = own_folders.write_folder(tmp_path, "things", iter(pieces))
    assert counts == {str(tmp_path / "things"): 9, str(tmp_path / "heldout/things"): 3}
    rows = [json.loads(line) for line in (tmp_path / "things/metadata.jsonl").read_text().splitlines()]
    assert sorted(row["text"][0] for row in rows) == sorted(f"picture {i}" for i in range(12) if i % 4)
    with Image.open(tmp_path / "things/p1.png") as image:
        assert image.size == (256, 150)


def test_pieces_of_a_photograph_are_not_flat():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    pixels[:, :250] = 128  # flat
    for seed in range(5):
        piece = own_folders._photo_piece(Image.fromarray(pixels), np.random.default_rng(seed))
        assert max(piece.size) == 256
        assert np.asarray(piece).std(axis=(0, 1)).max() >= own_folders.MIN_STD
