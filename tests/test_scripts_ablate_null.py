"""scripts/ablate_null.py: how many captions are left out, and that its priors can be read."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from vqtool import conditions
from vqtool.diffusion import kernels
from vqtool.images import ImageItem
from vqtool.priors import load_prior
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.vqvae import VqVaeConfig
from vqtool.training.building import build_prior

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
ablate_null = importlib.import_module("ablate_null")
CAPTIONS = [("a cat", "cat"), ("a dog", "dog", "a hound")]


@pytest.fixture
def material():
    """Two pictures, their captions, a tokenizer and what reads captions."""
    config = VqVaeConfig(codebook_size=8, channels=(8, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    items = [ImageItem(str(row), None, first, None, tuple(more)) for row, (first, *more) in enumerate(CAPTIONS)]
    said = [caption for captions in CAPTIONS for caption in captions]
    conditioner = conditions.build("caption", None, said, vocabulary="bpe", vocabulary_size=None)
    return images, items, Tokenizer(config).eval(), conditioner


def test_a_tenth_of_the_captions_of_each_picture_is_the_empty_one(material):
    conditioner = material[-1]
    data = ablate_null.build_data(*material, empty=True)
    empty = (data.conditions == conditioner.encode([""])).all(axis=1)
    grids = np.split(empty.numpy(), data.starts[1:-1])
    assert [own.mean() for own in grids] == [pytest.approx(0.1)] * 2
    assert ablate_null.build_data(*material, empty=False).starts.tolist() == [0, 2, 5]


def test_a_prior_of_such_grids_can_be_read_again(material, tmp_path):
    data = ablate_null.build_data(*material, empty=False)
    kernel = kernels.build("absorbing", schedule=None, codebook_size=8, num_steps=4)
    prior = build_prior(kernel, material[-1], data.grid_spec, "tiny", seed=0, tokens=data.tokens)
    prior.save(tmp_path / "prior.safetensors")
    assert load_prior(tmp_path / "prior.safetensors").grid_spec == data.grid_spec
