"""Without a GPU: no training step would wait for one, nor mix its tensors with the CPU's."""

import numpy as np
import pytest
import torch
from support.exact import grid_spec, random_prior
from support.pretended_gpu import PretendedGpu

from vqtool.diffusion.losses import LOSSES
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.objectives import PriorLoss, PriorObjective

OBJECTIVES = [  # every loss with the kernels that it is for
    *((name, loss) for name in ("mask-replace", "uniform") for loss in LOSSES if not LOSSES[loss].of_masked),
    *(("absorbing", loss) for loss in LOSSES),
]


def build_step(device, kernel, kind, **settings):
    """The loss of a step of a random prior as a function; gradients need a device that is there."""
    prior = random_prior(kernel, kind).to(device)
    model = prior.denoiser.train().requires_grad_(False)
    texts = prior.conditioner.examples
    conditions = prior.conditioner.encode([texts[i % len(texts)] for i in range(8)])
    data = GridData(np.random.default_rng(0).integers(0, 11, (8, 4, 6)), conditions, grid_spec((4, 6)))
    objective = PriorObjective(prior, data, PriorLoss(**settings), LoopConfig(num_steps=10, batch_size=8))
    return lambda: objective(model, np.arange(8), np.arange(8), 0)[0]


def assert_never_waits(kernel, kind="class", **settings):
    expected = build_step("cpu", kernel, kind, **settings)()
    with PretendedGpu() as gpu:
        step = build_step("cuda:0", kernel, kind, **settings)
        step()  # the first copies what all others use
        before = len(gpu.waits)
        loss = step()
        assert gpu.waits[before:] == []
        torch.testing.assert_close(loss.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "loss"), OBJECTIVES)
def test_no_loss_waits_for_a_gpu(kernel, loss):
    assert_never_waits(kernel, loss=loss)


@pytest.mark.parametrize("settings", [{"times": "uniform"}, {"adaptive_auxiliary": True}, {"mask_weights": (1.0, 0.5)}])
def test_no_setting_waits_for_a_gpu(settings):
    assert_never_waits("mask-replace", "caption", **settings)
