"""What a run would take: counted by hand, and said without a weight or a file."""

import re
from dataclasses import asdict, replace

import pytest
import torch
from support.exact import grid_spec, random_prior
from support.matrices import build_kernel
from support.text_priors import text_prior

from vqtool import denoisers
from vqtool.training import rehearsal
from vqtool.training.clock import LoopConfig
from vqtool.training.objectives import PriorLoss
from vqtool.training.rehearsal import FEW_LAYERS, rehearse, trace

RUN = LoopConfig(10, 8)


def linear_operations(prior, num):
    """Products of the transformer's blocks and head, forwards and twice backwards."""
    config, cells = prior.denoiser.config, prior.grid_spec.grid_size[0] * prior.grid_spec.grid_size[1]
    layers, width = config.num_layers, config.width
    products = 12 * layers * width**2 + width * config.codebook_size
    attention = 2 * layers * cells * width
    return 3 * 2 * num * cells * (products + attention)


def test_operations_are_those_of_the_formula_and_grow_with_the_grids():
    prior = random_prior("mask-replace", width=128, num_layers=3)
    for num in (2, 4):
        found = trace(prior, PriorLoss(), RUN, num).operations
        assert found == pytest.approx(linear_operations(prior, num), rel=0.12)  # time and norms have some, too
    twice = trace(prior, PriorLoss(), replace(RUN, checkpoint=True), 2).operations
    assert twice == pytest.approx(4 / 3 * linear_operations(prior, 2), rel=0.12)


def test_what_is_kept_is_what_a_step_on_the_cpu_keeps():
    prior = random_prior("mask-replace")
    objective = rehearsal.PriorObjective(prior, rehearsal._blank(prior, 4), PriorLoss(), replace(RUN, compile=True))
    kept = rehearsal._Kept(prior.denoiser.train().requires_grad_(True), 24)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        objective(prior.denoiser, range(4), range(4), rehearsal.Moment(0, 0.0, 1.0))
    assert trace(prior, PriorLoss(), RUN, 4).kept == pytest.approx(kept.total(checkpoint=False), rel=0.25)


def test_blocks_that_are_computed_again_keep_their_inputs_and_one_of_them_all():
    deep, deeper = (random_prior("mask-replace", num_layers=layers) for layers in (4, 8))
    kept = [trace(prior, PriorLoss(), replace(RUN, checkpoint=True), 8).kept for prior in (deep, deeper)]
    assert kept[1] - kept[0] == pytest.approx(4 * 8 * 24 * 64 * 4, rel=0.01)  # layers, grids, cells, width, bytes
    assert trace(deeper, PriorLoss(), RUN, 8).kept > 3 * kept[1]


def told(prior, run=RUN, **more):
    lines = []
    rehearse(prior, PriorLoss(), run, keep_best=False, notify=lines.append, **more)
    return " / ".join(lines)


@pytest.fixture
def paced(monkeypatch):
    """Steps of a millisecond; what is measured."""
    seen = []

    def measure(model, objective, **given):
        seen.append(model)
        return 1e-3

    monkeypatch.setattr(rehearsal, "measure_step_seconds", measure)
    return seen


def test_memory_and_pace_are_told_and_follow_from_parameters_and_operations(paced):
    prior = random_prior("mask-replace", num_layers=6, width=256)
    prior.denoiser.requires_grad_(True)
    text = told(prior, replace(RUN, accumulate=2))
    assert "a step: 8 grids, by 1 process, 2 parts of 4 each" in text
    parameters = sum(p.numel() for p in prior.denoiser.parameters())
    assert f"{20 * parameters / 1e9:.3g} GB of weights" in text
    assert paced[0].config.num_layers == FEW_LAYERS
    small = replace(prior, denoiser=denoisers.build("transformer", {**asdict(prior.denoiser.config), "num_layers": 2}))
    rate = trace(small, PriorLoss(), RUN, 4).operations / 1e-3
    steps = 3600 * rate / (2 * trace(prior, PriorLoss(), RUN, 4).operations)
    assert float(re.search(r": ([\d.e+]+) steps an hour", text)[1]) == pytest.approx(steps, rel=0.01)


def test_a_prior_of_captions_under_a_text_encoder_can_be_rehearsed(paced):
    assert "steps an hour" in told(text_prior())


@pytest.mark.slow
def test_the_largest_published_network_is_rehearsed_without_its_weights(paced, monkeypatch):
    """VQ-Diffusion L on 32 x 32 cells: 36 layers, 1408 wide; two of them have weights where the pace is measured."""
    monkeypatch.setattr(denoisers, "build", build := WithoutWeights(denoisers.build))
    prior = text_prior()
    size = {"num_layers": 36, "width": 1408, "num_heads": 16, "codebook_size": 4096, "grid_size": (32, 32)}
    network = build("vq-diffusion", {**asdict(prior.denoiser.config), **size})
    kernel = build_kernel("mask-replace", codebook_size=4096)
    large = replace(prior, denoiser=network, kernel=kernel, grid_spec=grid_spec((32, 32)))
    text = told(large, LoopConfig(10, 64, accumulate=32, checkpoint=True))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert 1.1e9 < parameters < 1.4e9
    assert f"{20 * parameters / 1e9:.3g} GB of weights" in text
    split = float(re.search(r"by FSDP: ([\d.]+) GB over 8", text)[1])
    assert 20 * parameters / 8e9 < split < 20 * parameters / 8e9 + 1.0
    assert paced[0].config.num_layers == FEW_LAYERS


class WithoutWeights:
    """Builds networks that have none."""

    def __init__(self, build):
        self._build = build

    def __call__(self, name, config):
        with torch.device("meta"):
            return self._build(name, config)
