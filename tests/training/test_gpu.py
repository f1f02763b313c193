"""A training step on a GPU against the same on the CPU, and whole runs there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from support.exact import grid_spec, random_prior
from support.matrices import build_kernel
from support.prior_run import read_log, train

from vqtool.artifacts import load
from vqtool.diffusion.losses import LOSSES
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.objectives import PriorLoss, PriorObjective

pytestmark = pytest.mark.gpu

OBJECTIVES = [  # every loss with the kernels that it is for
    *((name, loss) for name in ("mask-replace", "uniform") for loss in LOSSES if not LOSSES[loss].of_masked),
    *(("absorbing", loss) for loss in LOSSES),
]


def step(device, kernel, settings, *, kind="class", rule="mixture"):
    """The loss of a step, and the gradient, of a random prior and 16 grids of noise."""
    prior = random_prior(kernel, kind)
    prior = replace(prior.to(device), rule=rule, parameterisation="direct" if rule == "plug-in" else "evidence")
    model = prior.denoiser.train().requires_grad_(True)
    noise = np.random.default_rng(0)
    texts = prior.conditioner.examples
    conditions = prior.conditioner.encode([texts[i % len(texts)] for i in range(16)])
    data = GridData(noise.integers(0, 11, (16, 4, 6)), conditions, grid_spec((4, 6)))
    objective = PriorObjective(prior, data, settings, LoopConfig(num_steps=10, batch_size=16))
    if objective.history is not None:
        objective.history.to(device)
    loss, metrics = objective(model, np.arange(16), np.arange(16), 0)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
    return float(loss.detach()), gradient, {name: float(value) for name, value in metrics.items()}


def assert_same(gpu, *settings, **more):
    (loss, gradient, metrics), (expected, wanted, known) = (step(d, *settings, **more) for d in (gpu, "cpu"))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert metrics == pytest.approx(known, rel=1e-4)
    assert float((gradient - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize(("kernel", "loss"), OBJECTIVES)
def test_a_step_of_every_kernel_and_loss_is_that_of_the_cpu(gpu, kernel, loss):
    assert_same(gpu, kernel, PriorLoss(loss=loss))


@pytest.mark.parametrize("settings", [{"times": "uniform"}, {"times": "importance"}, {"adaptive_auxiliary": True}])
def test_a_step_of_every_setting_is_that_of_the_cpu(gpu, settings):
    assert_same(gpu, "mask-replace", PriorLoss(**settings), kind="caption")


def test_a_step_by_the_plug_in_rule_is_that_of_the_cpu(gpu):
    assert_same(gpu, "uniform", PriorLoss(), rule="plug-in")


def test_a_kernel_draws_the_same_noisy_grids(gpu):
    for name in ("mask-replace", "absorbing", "uniform"):
        kernel, noise = build_kernel(name, codebook_size=7), torch.Generator().manual_seed(0)
        x_0, t = torch.randint(7, (100, 4, 6), generator=noise), torch.arange(1, 101)
        uniform = torch.rand(100, 4, 6, dtype=torch.float64, generator=noise)
        found = kernel.sample(x_0.to(gpu), t.to(gpu), uniform.to(gpu))
        assert torch.equal(found.cpu(), kernel.sample(x_0, t, uniform))


class _Stop(Exception):
    pass


@pytest.mark.filterwarnings("ignore")  # of operations that are never deterministic
@pytest.mark.parametrize("kernel", ["mask-replace", "absorbing"])
def test_a_run_that_is_resumed_is_the_run_that_was_not_bit_for_bit(gpu, tmp_path, kernel):
    def stop(step, metrics):
        if step == 7:
            raise _Stop

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        train(tmp_path / "whole", kernel=kernel, num_steps=12)
        with pytest.raises(_Stop):
            train(tmp_path / "parts", kernel=kernel, num_steps=12, report=stop)
        train(tmp_path / "parts", kernel=kernel, num_steps=12, resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    states = [load(tmp_path / name / "state.safetensors", "training-state")[1] for name in ("whole", "parts")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_bfloat16_learns_as_float32_does(gpu, tmp_path):
    last = []
    for bf16 in (False, True):
        (tmp_path / str(bf16)).mkdir()
        AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the first run
        train(tmp_path / str(bf16), num_steps=40, bf16=bf16, learning_rate=3e-3)
        log = read_log(tmp_path / str(bf16))
        last.append(np.mean([line["cross_entropy"] for line in log[-10:]]))
        assert last[-1] < 0.8 * log[0]["cross_entropy"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert last[1] == pytest.approx(last[0], rel=0.1)
