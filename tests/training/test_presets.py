"""Presets: what each sets, what goes before it, and that a denoiser's own loss is taken where nobody names one."""

import math

import pytest
import torch
from support import prior_run
from support.exact import grid_spec
from torch import nn

from vqtool import conditions, denoisers
from vqtool.errors import VqtoolError
from vqtool.options import distribute
from vqtool.training import presets
from vqtool.training._weights import build_optimizer
from vqtool.training.building import NO_PRESET, ConditionOptions, DenoiserOptions, DiffusionOptions, build_prior
from vqtool.training.clock import Length, LoopConfig, learning_rate
from vqtool.training.objectives import PriorLoss, check_loss
from vqtool.training.prior import PriorRunOptions, choose_run
from vqtool.training.runs import MachineOptions

KINDS = (DiffusionOptions, PriorLoss, DenoiserOptions, ConditionOptions, PriorRunOptions)


def settle(**given):
    """The options, the preset, and what people are told."""
    told = []
    options, preset = presets.settle(given, denoiser=None, notify=told.append)
    return options, preset, told


def prior_of(options, preset):
    """A fresh tiny prior of 2x3 cells, and its loss."""
    diffusion, loss, network, *_ = distribute(options, *KINDS)
    prior = build_prior(
        diffusion.build(7), conditions.build("none"), grid_spec((2, 3)), "tiny", seed=0, tokens=prior_run.PICTURES,
        denoiser=network.denoiser, rule=diffusion.rule, parameterisation=network.parameterisation,
        network=preset.network,
    )  # fmt: skip
    return prior, loss


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_sets_what_the_published_code_does_and_the_settings_go_together(name):
    options, preset, told = settle(preset=name)
    prior, loss = prior_of(options, preset)
    check_loss(loss, prior)
    assert told == [f"as published for {name}"]
    published = {  # reference.md, of the three papers' code
        "vq-diffusion": ("mask-replace", "release", 100, "mixture", "direct", "bound", 5e-4, "importance"),
        "unleashing": ("absorbing", "linear", 256, "mixture", "direct", "reweighted-elbo", None, "uniform"),
        "vq-ddm": ("uniform", "cosine", 4000, "plug-in", "residual", "bound", 0.0, "importance"),
    }[name]
    kernel = prior.kernel
    found = (kernel.name, kernel.schedule, kernel.num_steps, prior.rule, prior.parameterisation, loss.loss)
    assert (*found, loss.auxiliary_weight, loss.times) == published
    config = choose_run(
        Length(1_000_000), run=PriorRunOptions(), learning_rate=options["learning_rate"], seed=0,
        machine=MachineOptions(), optimiser=preset.optimiser,
    )  # fmt: skip
    rates = [learning_rate(config.length.moment(step, 0.0), config) for step in (4_999, 500_000)]
    expected = {
        "vq-diffusion": [4.5e-4, 4.5e-4],
        "unleashing": [1e-4, 2e-4],
        "vq-ddm": [1e-4 * 0.5 * (1 + math.cos(math.pi * 0.004999)), 0.5e-4],
    }[name]
    assert rates == pytest.approx(expected, rel=1e-6)
    memory = {"vq-diffusion": (25, 0.99), "unleashing": (10, 0.995), "vq-ddm": (1, 0.0)}[name]
    assert config.ema_decay ** memory[0] == pytest.approx(memory[1])


def test_the_network_of_unleashing_sees_no_time_and_has_the_names_of_the_published_one():
    prior, _ = prior_of(*settle(preset="unleashing")[:2])
    published = denoisers.module("vq-diffusion").SIZES["unleashing"]
    config = prior.denoiser.config
    for name in ("time", "positions", "activation", "head_bias"):
        assert getattr(config, name) == published[name]


def test_options_go_before_a_preset_and_take_with_them_what_belonged_to_the_old_ones():
    options, preset, told = settle(preset="vq-diffusion", kernel="uniform", loss="bound", steps=3)
    assert (options["kernel"], options["steps"]) == ("uniform", 3)
    assert "schedule" not in options
    assert told == [
        "as published for vq-diffusion, but kernel uniform in place of mask-replace, schedule no longer release"
    ]
    assert preset.optimiser == presets.PRESETS["vq-diffusion"].optimiser
    options, _, _ = settle(preset="vq-diffusion", loss="mlm")
    assert not {"auxiliary_weight", "adaptive_auxiliary", "mask_weights", "times"} & options.keys()


def test_another_denoiser_takes_none_of_the_fields_of_a_presets_network():
    options, preset, _ = settle(preset="unleashing", denoiser="transformer")
    assert preset.network == {}
    assert options["denoiser"] == "transformer"
    assert "parameterisation" not in options


@pytest.mark.parametrize(
    ("given", "denoiser", "loss"),
    [
        ({}, None, ("reweighted", "stratified")),
        ({"denoiser": "vq-diffusion"}, None, ("bound", "importance")),
        ({"text_encoder": "clip.safetensors"}, None, ("bound", "importance")),
        ({}, "vq-diffusion", ("bound", "importance")),
        ({"denoiser": "vq-diffusion", "times": "uniform"}, None, ("bound", "uniform")),
        ({"denoiser": "vq-diffusion", "loss": "mlm"}, None, ("mlm", "stratified")),
    ],
)
def test_where_nobody_names_a_loss_it_is_the_denoisers_own(given, denoiser, loss):
    options, preset = presets.settle(given, denoiser=denoiser, notify=str)
    assert preset is NO_PRESET
    settled = PriorLoss(**{name: options[name] for name in ("loss", "times") if name in options})
    assert (settled.loss, settled.times) == loss


def test_a_preset_is_refused_where_it_is_unknown_or_there_is_a_prior_to_begin_with():
    with pytest.raises(VqtoolError, match="`preset` maskgit: unknown; known are vq-diffusion, unleashing, vq-ddm"):
        settle(preset="maskgit")
    with pytest.raises(VqtoolError, match="`preset` vq-ddm is for fresh weights: leave it out, or train without"):
        presets.settle({"preset": "vq-ddm"}, denoiser="unet", notify=str)


def test_decay_of_all_parameters_shrinks_biases_too():
    for decays_all, bias in ((False, 1.0), (True, 0.5)):
        model = nn.Linear(1, 1)
        nn.init.ones_(model.bias)
        optimizer = build_optimizer(model, 1.0, (0.9, 0.99), 0.5, decays_all=decays_all)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert float(model.bias.detach()) == pytest.approx(bias)


def test_a_constant_rate_does_not_fall():
    config = LoopConfig(100, 1, 2.0, warmup_steps=4, rate_course="constant")
    rates = [learning_rate(config.length.moment(step, 0.0), config) for step in (0, 1, 3, 50, 99)]
    assert rates == [0.5, 1.0, 2.0, 2.0, 2.0]
