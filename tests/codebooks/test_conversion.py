"""What `vqtool codebook` does, from Python: refit, prune, remap and apply_map."""

import numpy as np
import pytest
import torch
from support.commands import build_tokenizer, write_pictures

from vqtool import codebooks
from vqtool.errors import VqtoolError, VqtoolWarning
from vqtool.grids import GridBatch, GridHeader, GridWriter, read_grids
from vqtool.tokenizers import load_tokenizer, save_tokenizer


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """A current folder with pictures, a tokenizer of 16 codes, and grids that use ten of them."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 8)
    header = save_tokenizer("old.safetensors", build_tokenizer())
    tokens = np.random.default_rng(0).integers(0, 10, (20, 2, 2)).astype(np.uint8)
    about = GridHeader(16, (2, 2), (16, 16), header.fingerprint, "old.safetensors", "test")
    with GridWriter("tok.h5", about) as writer:
        writer.write(GridBatch(tokens, [str(i) for i in range(20)]))


def test_pruned_grids_go_there_and_back():
    made = codebooks.prune("tok.h5")
    assert (made.num_codes_before, made.num_codes, made.share) == (16, 10, 1.0)
    there = codebooks.apply_map("tok.h5", "few.h5", made.code_map)
    assert (there.num_grids, there.target.codebook_size) == (20, 10)
    codebooks.apply_map("few.h5", "back.h5", codebooks.load_map(made.map_path), inverse=True)
    np.testing.assert_array_equal(read_grids("back.h5")[1].tokens, read_grids("tok.h5")[1].tokens)
    nearest = codebooks.remap("tok.h5", "again.h5", tokenizer="pruned.safetensors")
    assert nearest.num_grids == 20
    np.testing.assert_array_equal(read_grids("again.h5")[1].tokens, read_grids("few.h5")[1].tokens)
    with pytest.raises(VqtoolError, match="`min_uses` 0: must be 1 or more"):
        codebooks.prune("tok.h5", "other.safetensors", min_uses=0)


def test_a_refit_says_what_it_wrote_and_how_many_images_it_has_seen():
    seen = []

    class Progress:
        def __enter__(self):
            return seen.append

        def __exit__(self, *_):
            pass

    made = codebooks.refit(
        "imgs",
        "new.safetensors",
        tokenizer="old.safetensors",
        size="16",
        codebook_size=6,
        progress=lambda *about: seen.append(about) or Progress(),
    )
    assert seen == [("take vectors", 8), 8]
    assert made.after.error < made.before.error
    new = load_tokenizer("new.safetensors")
    assert (new.fingerprint, new.codebook_size) == (made.fingerprint, 6)
    assert torch.equal(new.codebook, made.tokenizer.codebook)
    with pytest.warns(VqtoolWarning, match="vectors go to"):
        codebooks.refit("imgs", "file.safetensors", tokenizer="old.safetensors", size="16", codebook_size=2, memory=0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"seeding": "random"}, r"`seeding` random: unknown; known are k-means\+\+, afk-mc2"),
        ({"chain_length": 3}, "`chain_length` is for `seeding` afk-mc2"),
        ({"k_means": "lloyd", "memory": 0}, "`k_means` lloyd needs the vectors in memory"),
        ({"grids": "tok.h5", "size": "16"}, "`size` is that of the images that `grids` was made of"),
    ],
)
def test_parameters_of_a_refit_that_are_not_possible_are_named(parameters, message):
    with pytest.raises(VqtoolError, match=message):
        codebooks.refit("imgs", tokenizer="old.safetensors", **{"size": "16"} | parameters)
