"""Planned times: brute force over all lists of times, with exact denoisers in float64; damaged and missing curves."""

import itertools
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.exact import exact_prior, random_prior
from support.laws import FOUR_CELLS, all_states, build, stationary_law, step_back
from support.matrices import between

import vqtool
from vqtool.diffusion.posterior import average_posterior, posterior
from vqtool.errors import FormatError, VqtoolError
from vqtool.samplers._planning import find_slopes, plan_times, shortest

GRIDS = torch.tensor(list(itertools.product(range(2), repeat=4)))


def jump_bound(kernel, t, s, law=FOUR_CELLS):
    """E KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of a law under the exact denoiser, nats, by enumeration."""
    matrix = between(kernel, 0, t)
    states = all_states(kernel, 4)
    steps = torch.full((len(states),), t), torch.full((len(states),), s)
    x_t = states.view(-1, 2, 2)
    log_x0 = exact_prior(law, (2, 2), kernel).denoiser(x_t, steps[0]).log_softmax(-1)
    log_p = average_posterior(log_x0, x_t, *steps, kernel)
    total = 0.0
    for weight, grid in zip(law, GRIDS, strict=True):
        if weight == 0:
            continue
        chance = matrix[grid, states].prod(-1)
        some = chance > 0
        rows = steps[0][some], steps[1][some]
        log_q = posterior(grid.view(1, 2, 2).expand(int(some.sum()), -1, -1), x_t[some], *rows, kernel)
        terms = torch.where(log_q > -torch.inf, log_q.exp() * (log_q - log_p[some]), 0.0)
        total += float(weight * (chance[some] * terms.sum((1, 2, 3))).sum())
    return total


def curve_of(kernel, law=FOUR_CELLS):
    """What `eval --likelihood` measures, without noise."""
    times = list(range(1, kernel.num_steps + 1))
    bits = [jump_bound(kernel, t, t - 1, law) / (4 * np.log(2)) for t in times]
    return {"t": times, "looks": [5] * len(times), "bits_per_token": bits}


@pytest.mark.parametrize("schedule", ["linear", "maskgit-cosine"])
def test_the_plan_has_the_least_bound_of_all_lists_of_times_for_a_kernel_that_masks(schedule):
    kernel = build("absorbing", schedule, 2, 8)
    jumps = {(t, s): jump_bound(kernel, t, s) for t in range(1, 9) for s in range(t)}
    curve = curve_of(kernel)
    for steps in (1, 2, 3, 5, 8):
        lists = [(8, *inner[::-1], 0) for inner in itertools.combinations(range(1, 8), steps - 1)]
        bounds = {times: sum(jumps[pair] for pair in pairwise(times)) for times in lists}
        found = tuple(plan_times(curve, kernel, 8, steps))
        assert bounds[found] == pytest.approx(min(bounds.values()), rel=1e-12)
        if 1 < steps < 8:
            assert bounds[found] < max(bounds.values()) - 1e-3  # there was something to choose


@pytest.mark.parametrize(("name", "schedule"), [("mask-replace", "paper"), ("uniform", "cosine")])
def test_with_replaced_tokens_the_plan_is_near_the_best_and_hardly_worse_than_even_times(name, schedule):
    kernel = build(name, schedule, 2, 8)
    jumps = {(t, s): jump_bound(kernel, t, s) for t in range(1, 9) for s in range(t)}
    for steps in (2, 3, 4):
        lists = [(8, *inner[::-1], 0) for inner in itertools.combinations(range(1, 8), steps - 1)]
        bounds = {times: sum(jumps[pair] for pair in pairwise(times)) for times in lists}
        found, least = bounds[tuple(plan_times(curve_of(kernel), kernel, 8, steps))], min(bounds.values())
        even = bounds[tuple(torch.linspace(8, 0, steps + 1).round().long().tolist())]
        assert found - least <= 0.15 * (max(bounds.values()) - least)
        assert found <= even + 0.01


def test_planned_times_draw_nearer_to_the_data_than_even_ones():
    """Cells that nearly determine each other: the first tokens are worth more calls than the last."""
    kernel = build("absorbing", "linear", 2, 16)
    data = torch.full((16,), 0.04 / 14, dtype=torch.float64)
    data[0] = data[15] = 0.48
    divergences = []
    for times in (plan_times(curve_of(kernel, data), kernel, 16, 4), (16, 12, 8, 4, 0)):
        law = stationary_law(kernel, 4)
        for t, s in pairwise(times):
            law = law @ step_back(kernel, data, (2, 2), t, s)
        law = law[(all_states(kernel, 4) < 2).all(-1)]
        divergences.append(float((data * (data / law).log()).sum()))
    assert divergences[0] < 0.9 * divergences[1]


def test_the_shortest_way_is_that_of_brute_force():
    costs = np.random.default_rng(0).random((9, 9))
    for steps in range(1, 9):
        ways = [(8, *inner[::-1], 0) for inner in itertools.combinations(range(1, 8), steps - 1)]
        wanted = min(ways, key=lambda way: sum(costs[pair] for pair in pairwise(way)))
        assert tuple(shortest(costs, steps)) == wanted


def test_noise_of_a_curve_is_pooled_until_it_rises():
    kernel = build("absorbing", "linear", 2, 4)
    curve = {"t": [1, 2, 3, 4], "looks": [1, 3, 1, 1], "bits_per_token": [0.25, 0.75, 0.25, 1.0]}
    assert find_slopes(curve, kernel)[1:].tolist() == pytest.approx([1.0, 2.5, 2.5, 4.0])


def test_a_prior_of_many_steps_is_planned_among_some_of_its_times():
    kernel = build("uniform", "cosine", 4, 4000)
    curve = {"t": [1, 2000, 4000], "looks": [9, 9, 9], "bits_per_token": [0.001, 0.002, 0.003]}
    times = plan_times(curve, kernel, 4000, 10)
    assert (times[0], times[-1], len(times)) == (4000, 0, 11)
    assert all(s < t for t, s in pairwise(times))


def test_a_walk_takes_the_planned_times_of_its_prior_or_of_a_file(tmp_path):
    prior, seen = random_prior("absorbing"), []
    curve = {"t": [*range(1, 21)], "looks": [4] * 20, "bits_per_token": [0.01 * t for t in range(1, 21)]}
    prior.summary["curve"] = curve
    settings = {"steps": 5, "times": "auto", "observe": lambda walk, x_t: seen.append(walk.num_planned)}
    drawn = vqtool.sample(prior, 3, **settings)
    times = tuple(plan_times(curve, prior.kernel, 20, 5)[1:-1])
    assert torch.equal(drawn, vqtool.sample(prior, 3, times=times))
    assert seen[0] == 5
    path = tmp_path / "likelihood.json"
    path.write_text(json.dumps({"curve": curve}))
    del prior.summary["curve"]
    assert torch.equal(vqtool.sample(prior, 3, steps=5, times="auto", curve=str(path)), drawn)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"times": "auto"}, "`times` auto goes by how much .* `vqtool eval --likelihood GRIDS --prior PRIOR"),
        ({"times": "auto", "curve": "none.json"}, "none.json: this file is missing"),
        ({"times": "soon"}, "`times` soon: numbers with commas between them, or auto, are expected"),
        ({"curve": "none.json"}, "`curve` is for `times` auto: give that too, or leave it out"),
        ({"times": "auto", "steps": 21}, "`steps` 21: 1 to 20 planned times are possible here"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, words):
    with pytest.raises(VqtoolError, match=words):
        vqtool.sample(random_prior("absorbing"), 1, **options)


@pytest.mark.parametrize(
    "curve",
    [
        {},
        {"t": [1], "looks": [1], "bits_per_token": [float("nan")]},
        {"t": [5], "looks": [1], "bits_per_token": [0.1]},
        {"t": [2, 1], "looks": [1, 1], "bits_per_token": [0.1, 0.1]},
        {"t": [1, 2], "looks": [1], "bits_per_token": [0.1, 0.1]},
        {"t": "ab", "looks": [1, 2], "bits_per_token": [0.1, 0.1]},
    ],
)
def test_damaged_curves_are_named(curve):
    with pytest.raises(FormatError, match="the curve of the likelihood is damaged"):
        find_slopes(curve, build("absorbing", "linear", 2, 4))
