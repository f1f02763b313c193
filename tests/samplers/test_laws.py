"""The law that a sampler with the exact denoiser draws from: by enumeration of the reverse chain, and by chi-square.

The exact denoiser knows p(x_0 | x_t) of a known law. One cell: the mixture then walks back along q itself, with any
kernel, schedule and list of times. Several cells: those that change in one step do so independently, which they are
not; so the law is exact where one cell changes a call, and else off by about 1 / T.
"""

import itertools
from itertools import pairwise

import pytest
import torch
from support.exact import exact_prior
from support.laws import FOUR_CELLS, ONE_CELL, all_states, apart, build, stationary_law, step_back
from support.matrices import CASES, between, check_law

import vqtool
from vqtool.diffusion.losses import variational_bound
from vqtool.diffusion.posterior import average_posterior, draw, posterior, sample_posterior

GRIDS = torch.tensor(list(itertools.product(range(2), repeat=4)))  # (16, 4): all 2x2 grids of two tokens
# Cells that depend on each other in pairs, threes and fours; the sixth grid never occurs.


def noisy_law(kernel, law, num_cells):
    """(S,): q(x_T) of grids of that law."""
    grids = torch.tensor(list(itertools.product(range(kernel.codebook_size), repeat=num_cells)))
    states = all_states(kernel, num_cells)
    last = between(kernel, 0, kernel.num_steps)
    return sum(weight * last[grid, states].prod(-1) for weight, grid in zip(law, grids, strict=True))


def walk_back(kernel, law, grid_size, times, start, rule="mixture"):
    """(K ** N,): the law of x_0 after steps along the times from the law `start` of x_T."""
    for t, s in pairwise(times):
        start = start @ step_back(kernel, law, grid_size, t, s, rule)
    states = all_states(kernel, grid_size[0] * grid_size[1])
    clean = (states < kernel.codebook_size).all(-1)
    torch.testing.assert_close(start[~clean].sum(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-14)
    return start[clean]


# ---------------------------------------------------------------------------- one cell


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_one_cell_walks_back_to_the_data_along_every_list_of_times(name, schedule):
    kernel = build(name, schedule, 4, 5)
    start = noisy_law(kernel, ONE_CELL, 1)
    for number in range(6):
        for inner in itertools.combinations(range(4, 0, -1), number):
            law = walk_back(kernel, ONE_CELL, (1, 1), [5, *inner, 0], start)
            torch.testing.assert_close(law, ONE_CELL, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 30, 1000])
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_one_cell_walks_back_to_the_data_for_any_T_but_for_what_x_T_still_knows(name, schedule, num_steps):
    """From the stationary law instead of q(x_T) the result is no farther off than the two are apart."""
    kernel = build(name, schedule, 4, num_steps)
    times = sorted({num_steps, 1, 0, *(num_steps * k // 7 for k in range(8))}, reverse=True)
    noisy, stationary = noisy_law(kernel, ONE_CELL, 1), stationary_law(kernel, 1)
    law = walk_back(kernel, ONE_CELL, (1, 1), times, noisy)
    torch.testing.assert_close(law, ONE_CELL, rtol=0, atol=1e-12)
    sampled = walk_back(kernel, ONE_CELL, (1, 1), times, stationary)
    assert apart(sampled, ONE_CELL) <= apart(noisy, stationary) + 1e-12


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_sampler_draws_one_cell_from_the_data_law(name, schedule, steps):
    """Seven strides of 20 steps are uneven. What x_T still knows (up to .0009 here) is far below what 2048 show."""
    kernel = build(name, schedule, 4, 20)
    drawn = vqtool.sample(exact_prior(ONE_CELL, (1, 1), kernel), 2048, steps=steps, batch_size=2048)
    check_law(drawn, ONE_CELL)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_each_rule_is_exact_at_the_optimum_of_its_own_loss(name, schedule):
    """The mixture wants p(x_0 | x_t), the plug-in what is known without x_t: for one cell the law of the data."""
    kernel, data = build(name, schedule, 3, 5), torch.tensor([0.55, 0.3, 0.15], dtype=torch.float64)
    states = all_states(kernel, 1)[:, 0]
    x_0, x_t = (index.flatten() for index in torch.meshgrid(torch.arange(3), states, indexing="ij"))
    for t in range(1, 6):
        chances = data[x_0] * between(kernel, 0, t)[x_0, x_t]  # of x_0 and x_t
        some = chances > 0
        joint = (data[:, None] * between(kernel, 0, t)[:3, : len(states)]).T  # (x_t, x_0)
        bayes = torch.where(joint.sum(-1, keepdim=True) > 0, joint / joint.sum(-1, keepdim=True), data)
        steps = torch.tensor([t]), torch.tensor([t - 1])
        for rule, best in (("mixture", bayes), ("plug-in", data.expand(len(states), 3))):
            logits = best.clamp(min=1e-300).log().clone().requires_grad_()
            log_x0 = logits.log_softmax(-1)
            bound = variational_bound(
                log_x0[x_t][None, None], x_0.view(1, 1, -1), x_t.view(1, 1, -1), steps[0], kernel, rule
            )
            loss = (chances[some] * bound[0, 0][some]).sum()
            (slope,) = torch.autograd.grad(loss, logits)
            torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
            law = data @ between(kernel, 0, t)[:3, : len(states)]
            p = average_posterior(log_x0[None, None].detach(), states.view(1, 1, -1), *steps, kernel, rule).exp()[0, 0]
            torch.testing.assert_close(law @ p, data @ between(kernel, 0, t - 1)[:3], rtol=0, atol=1e-12)


def test_the_plug_in_of_the_exact_denoiser_is_not_the_way_back():
    """What x_t says of its own x_0 would be counted twice."""
    kernel = build("uniform", "cosine", 4, 8)
    law = walk_back(kernel, ONE_CELL, (1, 1), range(8, -1, -1), noisy_law(kernel, ONE_CELL, 1), "plug-in")
    assert apart(law, ONE_CELL) > 0.01


@pytest.mark.parametrize(("name", "schedule"), [case for case in CASES if case[0] != "uniform"])
def test_for_masked_cells_the_two_rules_are_one(name, schedule):
    kernel = build(name, schedule, 3, 6)
    log_x0 = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().expand(1, 1, 1, 3)
    for t in range(1, 7):
        for s in range(t):
            args = torch.tensor([[[3]]]), torch.tensor([t]), torch.tensor([s]), kernel
            laws = [average_posterior(log_x0, *args, rule).exp() for rule in ("mixture", "plug-in")]
            torch.testing.assert_close(*laws, rtol=0, atol=1e-15)


# ---------------------------------------------------------------------------- four cells


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_error_of_four_cells_falls_as_1_over_T(name, schedule):
    """Two cells change in one step with chance of order 1 / T**2, and there are T steps."""
    errors = []
    for num_steps in (1, 16, 32, 64):
        kernel = build(name, schedule, 2, num_steps)
        start = noisy_law(kernel, FOUR_CELLS, 4)
        law = walk_back(kernel, FOUR_CELLS, (2, 2), range(num_steps, -1, -1), start)
        errors.append(apart(law, FOUR_CELLS))
    assert errors[0] > 5 * errors[1] > 0
    for coarse, fine in pairwise(errors[1:]):
        assert 0.42 < fine / coarse < 0.58


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_sampler_draws_four_cells_from_the_enumerated_law(name, schedule):
    kernel = build(name, schedule, 2, 12)
    times = torch.linspace(12, 0, 6).round().long().tolist()
    law = walk_back(kernel, FOUR_CELLS, (2, 2), times, stationary_law(kernel, 4))
    drawn = vqtool.sample(exact_prior(FOUR_CELLS, (2, 2), kernel), 8192, steps=5, batch_size=8192)
    check_law((drawn.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1), law)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_aa_bb_is_mixed_with_chance_1_over_twice_the_steps(steps):
    """Each cell opens in any of the steps alike, both in one with chance 1 / steps, and half of these are AB or BA."""
    law = torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    kernel = build("absorbing", "linear", 2, 8)
    drawn = walk_back(kernel, law, (1, 2), range(8, -1, -8 // steps), stationary_law(kernel, 2))
    mixed = 1 / (2 * steps)
    wanted = torch.tensor([1 - mixed, mixed, mixed, 1 - mixed], dtype=torch.float64) / 2
    torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-12)


def test_one_cell_a_call_draws_four_cells_from_the_data_law_in_whatever_order():
    """Which cell is opened depends on what is seen alone, so each token is drawn from its exact conditional law."""
    prior = exact_prior(FOUR_CELLS, (2, 2), build("absorbing", "linear", 2, 12))
    drawn = vqtool.sample(prior, 8192, sampler="purity", steps=4, purity_weight=0.0, batch_size=8192)
    check_law((drawn.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1), FOUR_CELLS)


# ---------------------------------------------------------------------------- draws


@pytest.mark.parametrize("place", [0, 500, 1023])
@pytest.mark.parametrize("rare", [1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rare_token_has_just_the_share_of_the_noise_that_is_its_probability(dtype, rare, place):
    """`draw` rises with the noise, so the two ends of a token's share are found by halving: no sampling, no alarm."""
    law = torch.rand(1024, dtype=torch.float64, generator=torch.Generator().manual_seed(place)) + 0.1
    law[place] = 0.0
    law = law / law.sum() * (1 - rare)
    law[place] = rare
    log_p = law.log().to(dtype)
    ends = []
    for token in (place, place + 1):  # the least noise that gives this token or a later one
        low, high = 0, 1 << 53  # in units of 2 ** -53, the step of the noise
        while low < high:
            middle = (low + high) // 2
            reached = int(draw(log_p, torch.tensor(middle * 2.0**-53, dtype=torch.float64))) >= token
            low, high = (low, middle) if reached else (middle + 1, high)
        ends.append(low)
    share = (ends[1] - ends[0]) * 2.0**-53
    wanted = float(log_p.double().softmax(-1)[place])
    assert share == pytest.approx(wanted, rel=1e-6, abs=4 * 2.0**-53)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_every_state_has_the_share_of_the_noise_that_the_posterior_gives_it(name, schedule):
    """The noise falls into at most K + 2 pieces of one state each, so a comb of n teeth counts to (K + 2) / n."""
    kernel, teeth = build(name, schedule, 4, 5), 2000
    comb = ((torch.arange(teeth, dtype=torch.float64) + 0.5) / teeth).view(1, 1, -1)
    for t, s in ((5, 0), (5, 4), (3, 1), (1, 0)):
        steps = torch.tensor([t]), torch.tensor([s])
        for x_0, x_t in itertools.product(range(4), range(4 + kernel.has_mask)):
            if between(kernel, 0, t)[x_0, x_t] == 0:
                continue
            clean, seen = torch.full_like(comb, x_0, dtype=torch.int64), torch.full_like(comb, x_t, dtype=torch.int64)
            x_s = sample_posterior(clean, seen, *steps, kernel, comb)
            share = torch.bincount(x_s.flatten(), minlength=5).double() / teeth
            wanted = posterior(clean[..., :1], seen[..., :1], *steps, kernel).exp()[0, 0, 0]
            assert (share - wanted).abs().max() <= 6 / teeth
