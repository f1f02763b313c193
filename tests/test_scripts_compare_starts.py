"""scripts/compare_starts.py, ablate_null.py: what is a copy, what a way learns from, how often nothing is said."""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

from vqtool import conditions
from vqtool.captions import join_captions
from vqtool.grids import GridBatch, GridHeader
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.vqvae import VqVaeConfig

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
compare_starts = importlib.import_module("compare_starts")
ablate_null = importlib.import_module("ablate_null")


def test_a_copy_agrees_with_one_grid_in_more_than_half_of_its_cells():
    grids = np.arange(3)[:, None, None] * 100 + np.arange(4).reshape(2, 2)  # (3, 2, 2), all tokens different
    half, most, mixed = grids[0].copy(), grids[1].copy(), grids[2].copy()
    half[0] = 999
    most[0, 0] = 999
    mixed[0], mixed[1, 0] = grids[0, 0], grids[1, 1, 0]  # of three grids, of none the half
    assert compare_starts.share_copied(np.stack([half, most, mixed, grids[2]]), grids) == 0.5


def test_the_table_has_means_and_standard_errors_of_runs_that_are_alike():
    def run(way, bound):
        end = {"bound": bound, "step": 30, "learned": 1.0, "copied": 0.5, "KID": 0.1}
        return {"folder": "flags", "way": way, "steps": 60, "alike": 0.17, "best": end, "last": end}

    _, _, several, one, *_ = compare_starts.table([run("a", 6.0), run("a", 8.0), run("b", 2.0)])
    cells = "7.00 ± 1.00 | 30 ± 0 | 1.00 ± 0.00 | 0.50 ± 0.00 | 0.100 ± 0.000"
    assert several == f"| flags | a | 2 | 60 | {cells} | {cells.replace('30 ± 0 | ', '')} |"
    assert one == "| flags | b | 1 | 60 | 2.00 | 30 | 1.00 | 0.50 | 0.100 | 2.00 | 1.00 | 0.50 | 0.100 |"


def folder(captions):
    header = GridHeader(8, (1, 2), (8, 16), "", "", "")
    batch = GridBatch(np.array([[[0, 1]], [[2, 3]]], np.uint8), ["a", "b"], None, captions)
    mirrored = np.array([[[1, 0]], [[3, 2]]])
    return compare_starts.Folder(header, batch, mirrored, batch, np.zeros((4, 3)))


def test_a_way_learns_from_mirrored_pictures_and_from_as_many_captions_as_it_says():
    own = folder([join_captions(["a red apple", "an apple"]), "a bee"])
    ways = compare_starts.WAYS
    mirrored = own.batch_of(ways["mirrored"])
    assert mirrored.tokens.tolist() == [[[0, 1]], [[2, 3]], [[1, 0]], [[3, 2]]]
    assert mirrored.captions == own.batch.captions * 2
    assert mirrored.ids == ["a", "b", "a#mirrored", "b#mirrored"]
    assert own.batch_of(ways["one-caption"]).captions == ["a red apple", "a bee"]
    assert own.batch_of(ways["scratch"]) == own.batch


def test_a_fixed_null_is_the_empty_caption_in_a_tenth_of_the_draws():
    class Item:
        captions = ("a red apple", "an apple")

    config = VqVaeConfig(codebook_size=8, channels=(8, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1))
    images = np.zeros((2, 3, 64, 64), np.uint8)
    conditioner = conditions.build("caption", None, list(Item.captions))
    data = ablate_null.build_data(images, [Item, Item], Tokenizer(config).eval(), conditioner, empty=True)
    empty = (data.conditions == conditioner.encode([""])).all(1)
    assert data.starts.tolist() == [0, 20, 40]
    assert torch.stack([part.sum() for part in empty.split(20)]).tolist() == [2, 2]
