"""Training of priors: the loss by hand, what is learnt, and a killed run."""

import math
import subprocess
import sys
import time

import numpy as np
import prior_run
import pytest
import torch
from exact import exact_prior, origin, random_prior

import vqtool
from vqtool import artifacts, conditions, kernels
from vqtool.training import prior as training
from vqtool.training.loop import LoopConfig


def test_the_times_of_a_step_are_spread_evenly_and_do_not_depend_on_who_draws_them():
    times = training.draw_times(np.arange(400, 440), 40, 20, seed=3)
    assert torch.bincount(times, minlength=21).tolist() == [0] + [2] * 20
    parts = [training.draw_times(np.arange(first, first + 8), 40, 20, seed=3) for first in range(400, 440, 8)]
    assert torch.equal(torch.cat(parts), times)
    assert not torch.equal(training.draw_times(np.arange(440, 480), 40, 20, seed=3), times)


def test_times_are_uniform_over_a_run():
    times = training.draw_times(np.arange(30_000), 3, 7, seed=0)
    counts = torch.bincount(times)[1:]
    # Each count is binomial with standard deviation 61 at most; six of them: a false alarm in 10**8.
    assert (counts - 30_000 / 7).abs().max() < 6 * 61


def test_reweighting_makes_a_masked_cell_of_any_time_its_cross_entropy():
    prior = random_prior("absorbing", num_steps=20)
    data = training.GridData(np.zeros((4, 4, 6), np.int64) + 3, torch.zeros(4, 0, dtype=torch.int64), origin((4, 6)))
    loss = training.PriorLoss(auxiliary_weight=0.0)
    objective = training.build_objective(prior, data, loss, LoopConfig(1, 4, seed=5))
    with torch.no_grad():
        total, metrics = objective(prior.denoiser, np.arange(4), np.arange(4), 0)
        x_0, _ = data.rows(np.arange(4))
        t = training.draw_times(np.arange(4), 4, 20, seed=5)
        noise = vqtool.rng.uniform(5, range(4), 0, (25,), stream=vqtool.rng.TRAINING)[:, 1:].view_as(x_0)
        x_t = prior.kernel.sample(x_0, t, noise)
        entropy = -prior.log_x0(x_t, t)[..., 3]
    masked = x_t == 11
    assert float(total) == pytest.approx(float(entropy[masked].sum()) / 96, rel=1e-4)
    assert float(metrics["cross_entropy"]) == pytest.approx(float(entropy.mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["mask-replace", "absorbing", "uniform"])
def test_weights_are_finite_and_one_on_average_over_the_loss_of_time(name):
    kernel = kernels.build(name, codebook_size=5, num_steps=50)
    weights = training.step_weights(kernel)
    assert torch.isfinite(weights).all()
    falls = kernel.alpha_bar[:-1] - kernel.alpha_bar[1:]
    torch.testing.assert_close(weights[1:] * falls * 50, 1 - kernel.alpha_bar[1:], atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("name", ["mask-replace", "absorbing", "uniform"])
def test_the_bound_of_an_exact_denoiser_of_one_cell_is_the_entropy_of_the_law(name):
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    prior = exact_prior(law, (1, 1), kernels.build(name, codebook_size=3, num_steps=8))
    tokens = np.repeat([0, 1, 2], [600, 300, 100]).reshape(-1, 1, 1)
    data = training.GridData(tokens, torch.zeros(1000, 0, dtype=torch.int64), origin((1, 1)))
    entropy = -float((law * law.log()).sum())
    left = float(training.stationary_term(torch.zeros(1, 1, 1, dtype=torch.int64), prior.kernel))
    # 8,000 terms; their spread makes an error of 0.06 a matter of more than five standard deviations.
    assert left < 0.02
    assert float(training.validate(prior.denoiser, prior, data, seed=1)) == pytest.approx(entropy, abs=0.06)


def test_dropped_conditions_are_the_null_condition_in_the_share_asked_for():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = random_prior(kind="class").denoiser

        def forward(self, x_t, t, condition):
            seen.append(condition)
            return self.inner(x_t, t, condition)

    prior = random_prior(kind="class")
    data = training.GridData(np.zeros((2, 4, 6), np.int64), torch.tensor([0, 1]), origin((4, 6)))
    for share in (0.0, 0.25, 1.0):
        loss = training.PriorLoss(drop_condition=share)
        objective = training.build_objective(prior, data, loss, LoopConfig(1, 400))
        with torch.no_grad():
            objective(Spy(), np.arange(400) % 2, np.arange(400), 0)
    nulls = [int((condition == 3).sum()) for condition in seen]
    assert nulls[0] == 0
    assert nulls[2] == 400
    assert 50 < nulls[1] < 150  # binomial, standard deviation 8.7: a false alarm in 10**8


@pytest.mark.parametrize("kernel", ["mask-replace", "absorbing", "uniform"])
def test_a_tiny_prior_learns_four_pictures_and_which_label_has_which(tmp_path, kernel):
    prior = prior_run.train(tmp_path, kernel=kernel, num_steps=250, learning_rate=3e-3, save_seconds=1e9)
    condition = prior.conditioner.encode(["up", "down"] * 32)
    # One cell a call, or many steps: cells that open together may belong to two pictures.
    options = {"steps": 40} if kernel == "uniform" else {"sampler": "purity", "steps": 6}
    drawn = vqtool.sample(prior, 64, condition=condition, **options).numpy()
    same = (drawn[:, None] == prior_run.PICTURES[None]).all((2, 3))  # (64, 4)
    wanted = np.where(np.arange(64)[:, None] % 2 == 0, [[1, 1, 0, 0]], [[0, 0, 1, 1]]).astype(bool)
    assert (same & wanted).any(1).mean() > 0.8
    assert same.any(0).all()
    assert prior.summary["num_grids"] == 16


def test_a_killed_run_that_is_resumed_has_the_losses_of_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    prior = prior_run.train(whole)
    process = subprocess.Popen([sys.executable, prior_run.__file__, str(killed)])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (killed / "state.safetensors").exists() and artifacts.read_header(killed / "state.safetensors").summary[
            "step"
        ] >= 5:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert len(prior_run.read_log(killed)) < 40
    resumed = prior_run.train(killed, resume=True)
    assert prior_run.read_log(killed) == prior_run.read_log(whole)
    for name, tensor in prior.denoiser.state_dict().items():
        assert torch.equal(resumed.denoiser.state_dict()[name], tensor)


def test_some_grids_are_held_out_where_there_are_enough_and_their_bound_is_logged(tmp_path):
    prior = prior_run.train(tmp_path, copies=60, num_steps=200, batch_size=2, save_seconds=1e9)
    assert prior.summary["num_held_out"] == 7
    assert prior.summary["num_grids"] == 233
    log = prior_run.read_log(tmp_path)
    assert ["validation_bound" in line for line in log] == [False] * 199 + [True]
    assert math.isfinite(prior.summary["validation_bound"])


def test_a_split_is_a_partition_and_the_same_every_time():
    tokens = np.arange(300).reshape(-1, 1, 1)
    data = training.GridData(tokens, torch.arange(300), origin((1, 1)))
    kept, held_out = data.split(4)
    assert sorted([*kept.tokens.flatten(), *held_out.tokens.flatten()]) == list(range(300))
    assert kept.conditions.tolist() == kept.tokens.flatten().tolist()
    assert np.array_equal(data.split(4)[1].tokens, held_out.tokens)
    assert kept.digest() != data.digest()


def test_a_fresh_prior_predicts_each_token_as_often_as_it_is_found():
    tokens = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2]).reshape(10, 1, 1)
    kernel = kernels.build("absorbing", codebook_size=4, num_steps=10)
    prior = training.build_prior(kernel, conditions.build("none"), origin((1, 1)), "tiny", seed=0, tokens=tokens)
    found = prior.log_x0(torch.full((1, 1, 1), 4), torch.tensor([10])).exp().flatten()
    torch.testing.assert_close(found, torch.tensor([3.5, 2.5, 5.5, 0.5]) / 12)


def test_sizes_and_lengths_follow_data_and_machine():
    assert training.choose_size(300, 64, gpu=False) == "tiny"
    assert training.choose_size(5000, 64, gpu=False) == "small"
    assert training.choose_size(100_000, 256, gpu=True) == "large"
    assert training.choose_num_steps(100, 50, 0.1, gpu=False) == 600
    assert training.choose_num_steps(1_000_000, 50, 0.1, gpu=False) == 6000
    assert training.choose_num_steps(10, 1000, 1e-3, gpu=True) == 3
