"""`vqtool vary`: pictures like those given, the less alike the higher the strength."""

import math

import numpy as np
import pytest
import torch
from support.commands import error_lines
from support.editing_run import entries, make_work, save_prior, tokens  # noqa: F401

from vqtool import samplers
from vqtool.grids import read_grids
from vqtool.priors import load_prior


@pytest.mark.parametrize("kernel", ["mask-replace", "absorbing", "uniform"])
def test_strength_0_gives_the_input_and_1_a_fresh_sample(vqtool, work, tokenizer_path, kernel):
    save_prior("prior.safetensors", tokenizer_path, kernel)
    old, alike = tokens("tok.h5"), []
    for strength in (0, 0.2, 0.5, 1):
        result = vqtool("vary", "tok.h5", "-s", strength, "-n", 8, "-f", "-o", "x.h5")
        assert result.code == 0
        assert f": {math.ceil(8 * strength)} network calls a grid" in result.err
        alike.append((tokens("x.h5").reshape(3, 8, 4, 6) == old[:, None]).mean())
    assert alike[0] == 1
    assert alike == sorted(alike, reverse=True)
    assert np.array_equal(tokens("x.h5"), samplers.sample(load_prior("prior.safetensors"), 24).numpy())


def test_variants_are_what_the_library_draws_and_keep_what_is_known(vqtool, work):
    assert vqtool("vary", "tok.h5", "--strength", 0.4, "-n", 2, "--purity", "-b", 3, "-o", "x.h5").code == 0
    source = torch.from_numpy(tokens("tok.h5").repeat(2, axis=0))
    drawn = samplers.sample(load_prior("prior.safetensors"), 6, sampler="purity", source=source, strength=0.4)
    header, batch = read_grids("x.h5")
    assert np.array_equal(batch.tokens, drawn.numpy())
    assert batch.ids == ["00-1", "00-2", "01-1", "01-2", "02-1", "02-2"]
    assert batch.captions == ["", "", "a bee", "a bee", "", ""]
    assert (header.history[-1]["step"], header.history[-1]["strength"]) == ("vary", 0.4)


def test_images_become_pictures(vqtool, work):
    assert vqtool("vary", "imgs", "-n", 2, "-o", "out").code == 0
    assert entries("out") == ["00-1.png", "00-2.png", "01-1.png", "01-2.png", "02-1.png", "02-2.png", "metadata.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "1.2"], "--strength 1.2: must lie in 0 (nothing changes) to 1"),
        (["--strength", "-0.1"], "--strength -0.1: must lie in 0"),
        (["--strength", "nan"], "--strength nan: must lie in 0"),
        (["--strength", "0.2", "--steps", "5"], "takes 1 to 4 steps here"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(vqtool, work, arguments, message):
    before = entries()
    result = vqtool("vary", "tok.h5", *arguments, "-o", "x.h5")
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert message in error_lines(result.err)[0]
    assert entries() == before
