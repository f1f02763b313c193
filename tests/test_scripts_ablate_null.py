"""scripts/ablate_null.py: how many captions are left out, that its priors can be read, and what a null is put to."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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


def test_a_null_that_is_forgotten_is_the_empty_caption(material):
    data = ablate_null.build_data(*material, empty=False)
    kernel = kernels.build("absorbing", schedule=None, codebook_size=8, num_steps=4)
    prior = build_prior(kernel, material[-1], data.grid_spec, "tiny", seed=0, tokens=data.tokens)
    empty = material[-1].encode([""])
    before = prior.encode_condition(None, 1), prior.encode_condition(empty, 1)
    ablate_null.forget_null(prior)
    after = prior.encode_condition(None, 1), prior.encode_condition(empty, 1)
    assert not torch.equal(before[0].keys_values, before[1].keys_values)
    assert torch.equal(after[0].keys_values, before[1].keys_values)
    assert torch.equal(after[1].keys_values, before[1].keys_values)


def test_the_table_has_means_and_standard_errors_over_the_seeds(tmp_path):
    rows = [
        {"way": f"a, cfg {scale}", "score": 0.1 * seed, "KID": 0.5}
        for scale in ablate_null.CFG_SCALES
        for seed in (1, 3)
    ]
    *_, line = ablate_null.wide_table(rows, ["a"])
    assert line == "| a | " + " | ".join([".200 ± .100"] * 5 + [".500 ± .000"] * 5) + " |"


def test_without_guidance_no_null_tells_features_apart(tmp_path):
    def name(*of):
        return ablate_null.features_path(tmp_path, *of).name

    assert name("tuned", "learned", 1, 0) == name("none", "zero-shot", 1, 0)
    assert name("learned", "learned", 1, 0) == name("learned", "zero-shot", 1, 0) != name("fixed", "zero-shot", 1, 0)
    assert name("tuned", "learned", 2, 0) != name("none", "zero-shot", 2, 0)
