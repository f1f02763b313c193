"""Tokens of several parts in the transformer: its heads, its law by enumeration, and what it learns."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from support.exact import random_prior

import vqtool
from vqtool import denoisers
from vqtool.denoisers import transformer
from vqtool.diffusion.parts import split_tokens
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.metrics.likelihood import measure_likelihood
from vqtool.priors import load_prior
from vqtool.samplers.halton import find_order
from vqtool.training.prior import train_prior

LIGHT = {"token_width": 24, "caption_width": 32, "shared_modulation": True}


def shaken(grid_size, **changes):
    """A network for 5 codes in two parts each, whose gates and head are open."""
    torch.manual_seed(0)
    config = transformer.Config(5, grid_size, 12, num_layers=2, width=64, num_heads=2, num_parts=2, **changes)
    network = transformer.Network(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("changes", [{}, LIGHT])
def test_the_wanted_parts_have_the_logits_that_they_have_among_all(changes):
    network = shaken((2, 6), **changes)
    x_t, t = torch.randint(6, (3, 2, 6), generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4, 9])
    logits = network(x_t, t)
    assert logits.shape == (3, 2, 6, 5)
    cells = torch.tensor([[0, 1, 7], [11, 4, 4], [3, 2, 10]])
    expected = logits.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, 5))
    torch.testing.assert_close(network(x_t, t, None, cells), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, LIGHT])
def test_every_part_is_told_apart_and_changes_the_prediction_of_all_others(changes):
    network = shaken((2, 4), **changes)
    x_t, t = torch.full((1, 2, 4), 5), torch.tensor([8])
    logits, seen = network(x_t, t)[0].flatten(0, 1), []
    for part in range(8):
        changed = x_t.flatten(1).index_fill(1, torch.tensor([part]), 3).view(1, 2, 4)
        seen.append(network(changed, t)[0].flatten(0, 1))
        assert float((seen[-1] - logits).abs().amax(-1).min()) > 1e-5
    distances = torch.cdist(torch.stack(seen).flatten(1), torch.stack(seen).flatten(1)).fill_diagonal_(1)
    assert float(distances.min()) > 1e-3


@pytest.mark.parametrize("changes", [{}, LIGHT])
def test_a_fresh_network_says_how_frequent_codes_are_in_both_parts(changes):
    config = transformer.Config(3, (2, 4), 9, num_layers=1, width=32, num_heads=2, num_parts=2, **changes)
    network = denoisers.transformer.Network(config)
    shares = torch.tensor([0.2, 0.5, 0.3])
    network.set_frequencies(shares)
    found = network(torch.randint(4, (2, 2, 4)), torch.tensor([1, 5])).softmax(-1)
    torch.testing.assert_close(found, shares.expand(2, 2, 4, 3))


def test_tokens_have_the_enumerated_law_of_their_parts():
    """A token over another, of 4 codes each, in the order of Halton: the product of the network's predictions."""
    prior = random_prior("absorbing", grid_size=(2, 2), codebook_size=2, num_steps=4, num_parts=2)
    prior.denoiser.requires_grad_(False)
    prior = replace(prior, grid_spec=replace(prior.grid_spec, grid_size=(2, 1), image_size=(16, 8)))
    order = find_order(2, 2)
    law = []
    for tokens in itertools.product(range(4), repeat=2):
        parts = split_tokens(torch.tensor(tokens).view(1, 2, 1), 2, 2).flatten(1)
        x_t, log_p = torch.full((1, 4), 2), 0.0
        for step, cell in enumerate(order):
            found = prior.log_x0(x_t.view(1, 2, 2), torch.tensor([4 - step])).view(4, 2)
            log_p += float(found[cell, parts[0, cell]])
            x_t[0, cell] = parts[0, cell]
        law.append(log_p)
    law = torch.tensor(law, dtype=torch.float64).exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    drawn = vqtool.sample(prior, 2048, sampler="halton", steps=4, batch_size=2048)
    assert drawn.shape == (2048, 2, 1)
    counts = torch.bincount(drawn.flatten(1) @ torch.tensor([4, 1]), minlength=16)
    assert stats.chisquare(counts, law / law.sum() * 2048).pvalue > 1e-4
    uneven = (law / law.sum()).max() / (law / law.sum()).min()
    assert uneven > 3  # the law is not that of tokens all alike, nor a product of both parts' own


@pytest.mark.filterwarnings("ignore:.*preview")
def test_a_prior_learns_which_parts_go_together(tmp_path, monkeypatch):
    """Of 16 tokens only those of two equal parts are there: half a token tells the other half."""
    monkeypatch.chdir(tmp_path)
    tokens = 5 * np.random.default_rng(0).integers(0, 4, (32, 2, 2)).astype(np.uint16)  # 0, 5, 10, 15
    header = GridHeader(16, (2, 2), (16, 16), "0" * 16, "nowhere.safetensors", "")
    with GridWriter(Path("tok.h5"), header) as writer:
        writer.write(GridBatch(tokens, [str(i) for i in range(32)]))
    chosen = {"size": "tiny", "kernel": "absorbing", "diffusion_steps": 8, "batch_size": 16, "learning_rate": 4e-3}
    train_prior("tok.h5", "p.safetensors", num_parts=2, steps=60, **chosen)
    prior = load_prior("p.safetensors")
    assert (prior.num_parts, prior.kernel.codebook_size, prior.codebook_size) == (2, 4, 16)
    drawn = vqtool.sample(prior, 64, sampler="halton", steps=8, seed=1)
    assert float((drawn % 5 == 0).double().mean()) > 0.8  # a quarter, if parts did not see each other
    bound = {score.name: score.value for score in measure_likelihood(prior, ["tok.h5"]).scores}["bits-per-token"]
    assert 1.9 < bound < 3  # 2 bits a token; 4 of two parts on their own
