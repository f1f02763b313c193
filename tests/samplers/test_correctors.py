"""Correctors: the law of Gibbs steps with exact denoisers, by enumeration and by chi-square; what remasking keeps."""

import itertools
import math
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from support.exact import exact_prior, random_prior
from support.laws import FOUR_CELLS, all_states, apart, build, stationary_law, step_back
from support.matrices import between, check_law

import vqtool
from vqtool.diffusion.parameterisations import leave_one_out, log_probabilities
from vqtool.errors import VqtoolError
from vqtool.samplers import Method
from vqtool.samplers.gibbs import conditional

KERNELS = [("absorbing", "linear"), ("mask-replace", "paper"), ("uniform", "linear")]
GRIDS = torch.tensor(list(itertools.product(range(2), repeat=4)))
WEIGHTS = torch.tensor([8, 4, 2, 1])


def law_at(kernel, t):
    """(S,): q(x_t) of FOUR_CELLS."""
    states, matrix = all_states(kernel, 4), between(kernel, 0, t)
    return sum(weight * matrix[grid, states].prod(-1) for weight, grid in zip(FOUR_CELLS, GRIDS, strict=True))


def neighbours(states, cell, num_tokens):
    """(S, K): the indices of the states that differ in the token of one cell."""
    base = int(states.max()) + 1
    places = base ** torch.arange(states.shape[1] - 1, -1, -1)
    own = (states * places).sum(1) - states[:, cell] * places[cell]
    return own[:, None] + torch.arange(num_tokens) * places[cell]


def gibbs_matrix(kernel, t):
    """(S, S): one cell that is not masked, any of them alike, is drawn from its law given the others."""
    states, law = all_states(kernel, 4), law_at(kernel, t)
    matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
    for index, state in enumerate(states):
        free = [cell for cell in range(4) if state[cell] < 2]
        if not free:
            matrix[index, index] = 1
        for cell in free:
            others = neighbours(states, cell, 2)[index]
            matrix[index, others] += law[others] / law[others].sum() / len(free)
    return torch.where(law[:, None] > 0, matrix, torch.eye(len(states), dtype=torch.float64))


@pytest.mark.parametrize(("name", "schedule"), KERNELS)
def test_the_conditional_law_of_a_cell_is_that_of_brute_force(name, schedule):
    kernel = build(name, schedule, 2, 6)
    states, denoiser = all_states(kernel, 4), exact_prior(FOUR_CELLS, (2, 2), kernel).denoiser
    for t in (1, 3, 5):
        law, steps = law_at(kernel, t), torch.full((len(states),), t)
        for cell in range(4):
            seen = (states[:, cell] < 2) & (law > 0)
            asked = states.clone()
            if kernel.has_mask:
                asked[:, cell] = 2
            log_x0 = denoiser(asked.view(-1, 2, 2), steps).log_softmax(-1).flatten(1, 2)
            loo = log_x0 if kernel.has_mask else leave_one_out(log_x0, states, steps, kernel)
            found = conditional(loo[:, cell], t, kernel).exp()
            wanted = law[neighbours(states, cell, 2)]
            wanted = wanted / wanted.sum(1, keepdim=True)
            torch.testing.assert_close(found[seen], wanted[seen], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "schedule"), [("mask-replace", "paper"), ("uniform", "cosine")])
def test_what_the_others_say_is_the_same_with_the_cell_masked_and_without_its_evidence(name, schedule):
    """Where tokens are replaced, by enumeration; and for "evidence" it is the logits themselves."""
    kernel = build(name, schedule, 2, 6)
    states, denoiser = all_states(kernel, 4), exact_prior(FOUR_CELLS, (2, 2), kernel).denoiser
    steps = torch.full((len(states),), 4)
    log_x0 = denoiser(states.view(-1, 2, 2), steps).log_softmax(-1).flatten(1, 2)
    found = leave_one_out(log_x0, states, steps, kernel)
    grids = torch.nn.functional.one_hot(GRIDS, 2).double()  # (G, 4, 2)
    chances = between(kernel, 0, 4)[:2][GRIDS[None], states[:, None]]  # (S, G, 4)
    for cell in range(4):
        rest = [other for other in range(4) if other != cell]
        joint = chances[..., rest].prod(-1) * FOUR_CELLS  # (S, G)
        wanted = joint @ grids[:, cell]
        torch.testing.assert_close(found[:, cell].exp(), wanted / wanted.sum(1, keepdim=True), rtol=0, atol=1e-12)
    logits = torch.randn(5, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    x_t, t = torch.randint(0, 2, (5, 2, 2), generator=torch.Generator().manual_seed(1)), torch.arange(2, 7)
    log_p = log_probabilities(logits, x_t, t, kernel, "evidence")
    torch.testing.assert_close(leave_one_out(log_p, x_t, t, kernel), logits.log_softmax(-1), rtol=0, atol=1e-5)
    warm = leave_one_out((log_p / 0.6).log_softmax(-1), x_t, t, kernel, 0.6)
    torch.testing.assert_close(warm, (logits / 0.6).log_softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "schedule"), KERNELS)
def test_gibbs_steps_keep_the_law_of_each_time_and_bring_samples_nearer_to_that_of_the_data(name, schedule):
    kernel = build(name, schedule, 2, 12)
    for t in (2, 9):
        torch.testing.assert_close(law_at(kernel, t) @ gibbs_matrix(kernel, t), law_at(kernel, t), rtol=0, atol=1e-12)
    laws = []
    for calls in (0, 2):
        law = stationary_law(kernel, 4)
        for t, s in pairwise((12, 8, 4, 0)):
            law = law @ step_back(kernel, FOUR_CELLS, (2, 2), t, s)
            if s:
                law = law @ torch.linalg.matrix_power(gibbs_matrix(kernel, s), calls)
        laws.append(law[(all_states(kernel, 4) < 2).all(-1)])
    assert apart(laws[1], FOUR_CELLS) < 0.85 * apart(laws[0], FOUR_CELLS)
    settings = {"steps": 3, "corrector_calls": 2, "corrector_cells": 1, "batch_size": 8192}
    drawn = vqtool.sample(exact_prior(FOUR_CELLS, (2, 2), kernel), 8192, sampler="gibbs", **settings)
    check_law((drawn.flatten(1) * WEIGHTS).sum(1), laws[1])


def test_the_conditional_law_is_that_of_diffusers_for_the_uniform_kernel():
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_discrete_ddim")
    kernel = build("uniform", "linear", 5, 10)
    generator = torch.Generator().manual_seed(0)
    logits, x_t = torch.randn(3, 7, 5, generator=generator), torch.randint(0, 5, (3, 7), generator=generator)
    scheduler = scheduling.DiscreteDDIMScheduler(10, corrector_k=7, corrector_selection="random")
    for index in (0, 4, 8):
        with patch.object(scheduling.torch, "multinomial", wraps=torch.multinomial) as multinomial:
            scheduler.step_correct(logits, index, x_t)
        theirs = multinomial.call_args.args[0].view(3, 7, 5).sort(1).values  # they take the cells in any order
        t = 10 - (index + 1)
        loo = leave_one_out(logits.double(), x_t, torch.full((3,), t), kernel)
        torch.testing.assert_close(conditional(loo, t, kernel).exp().sort(1).values, theirs, rtol=0, atol=1e-12)


def test_the_least_sure_cells_are_drawn_anew_and_no_others():
    """One token of a grid is impossible beside the others; with many candidates it is nearly always the one chosen."""
    law = torch.zeros(16, dtype=torch.float64)
    law[0] = law[15] = 0.5
    kernel = build("uniform", "linear", 2, 50)
    prior = exact_prior(law, (2, 2), kernel)
    plain, mended = (
        vqtool.sample(prior, 2048, sampler="gibbs", steps=3, batch_size=2048, corrector_calls=calls, corrector_cells=1,
                      corrector_choice="least-sure", corrector_interval=(0.5, 1.0))
        for calls in (0, 8)
    )  # fmt: skip
    wrong = [1 - float(((grids.flatten(1).sum(1) % 4) == 0).double().mean()) for grids in (plain, mended)]
    assert wrong[1] < 0.75 * wrong[0]


def test_without_corrector_calls_gibbs_is_ancestral_bit_for_bit():
    prior = random_prior("mask-replace")
    ancestral = vqtool.sample(prior, 6, steps=5, seed=2)
    assert torch.equal(vqtool.sample(prior, 6, sampler="gibbs", steps=5, seed=2, corrector_calls=0), ancestral)
    assert not torch.equal(vqtool.sample(prior, 6, sampler="gibbs", steps=5, seed=2), ancestral)


def test_gibbs_counts_its_calls():
    batch = next(
        Method.build(random_prior(), has_condition=False, sampler="gibbs", steps=5, corrector_calls=2).batches(3)
    )
    assert batch.num_calls == 5 + 2 * 4


# ---------------------------------------------------------------------------- remasking


@pytest.mark.parametrize("steps", [1, 3, 24, 60])
def test_remasking_leaves_as_many_masks_after_each_call_as_the_cosine_says(steps):
    seen = []
    prior = random_prior("absorbing")  # 24 cells
    vqtool.sample(
        prior, 3, sampler="remask", steps=steps,
        observe=lambda walk, x_t: seen.append((x_t == prior.kernel.mask_id).flatten(1).sum(1).tolist()),
    )  # fmt: skip
    masked = [max(1, math.floor(24 * math.cos(math.pi / 2 * call / steps))) for call in range(steps)]
    assert seen == [[count] * 3 for count in [*masked, 0]]


def test_remasking_masks_tokens_of_earlier_calls_again_and_keeps_known_ones():
    prior, grids = random_prior("absorbing"), []
    known = torch.full((1, 4, 6), prior.kernel.mask_id)
    known[0, 0, :3] = torch.tensor([1, 2, 3])
    drawn = vqtool.sample(
        prior, 4, sampler="remask", steps=12, known=known, observe=lambda walk, x_t: grids.append(x_t.clone())
    )
    assert torch.equal(drawn[:, 0, :3], known[:, 0, :3].expand(4, -1))
    mask = prior.kernel.mask_id
    assert any(((before < mask) & (after == mask)).any() for before, after in pairwise(grids))
    assert all(torch.equal(each[:, 0, :3], drawn[:, 0, :3]) for each in grids)


def test_two_cells_that_belong_together_are_drawn_so_in_two_calls():
    """The second call sees the token that is kept: law AA, BB exactly, and no AB of the first call is left."""
    law = torch.tensor([0.6, 0.0, 0.0, 0.4], dtype=torch.float64)
    prior = exact_prior(law, (1, 2), build("absorbing", "linear", 2, 4))
    for steps in (2, 5):
        drawn = vqtool.sample(prior, 4096, sampler="remask", steps=steps, choice_temperature=1e6, batch_size=4096)
        index = (drawn.flatten(1) * torch.tensor([2, 1])).sum(1)
        assert not bool(((index == 1) | (index == 2)).any())
        if steps == 2:
            check_law(index, law)


def test_sureness_of_now_mends_what_was_drawn_together_by_mistake():
    """AAAA or BBBB: cells that open together are often mixed, unless later calls look at them again."""
    law = torch.zeros(16, dtype=torch.float64)
    law[0] = law[15] = 0.5
    prior = exact_prior(law, (2, 2), build("mask-replace", "paper", 2, 20))
    wrong = {}
    for sureness in ("drawn", "now"):
        drawn = vqtool.sample(
            prior, 2048, sampler="remask", steps=8, sureness=sureness, choice_temperature=0.5, batch_size=2048
        )
        wrong[sureness] = 1 - float(((drawn.flatten(1).sum(1) % 4) == 0).double().mean())
    assert wrong["now"] < 0.5 * wrong["drawn"] or wrong["now"] < 0.02


@pytest.mark.parametrize(
    ("kernel", "options", "words"),
    [
        ("absorbing", {"sampler": "remask", "sureness": "now"}, "`sureness` now needs a kernel that replaces tokens"),
        ("absorbing", {"sampler": "gibbs", "corrector_choice": "least-sure"}, "as uniform does; absorbing does not"),
        ("uniform", {"sampler": "gibbs", "corrector_cells": 99}, "`corrector_cells` 99: these grids have 24 cells"),
        (
            "uniform",
            {"sampler": "gibbs", "corrector_calls": 2**62},
            "`corrector_calls` 4.61169e.18: .* at most 1000",
        ),
        ("uniform", {"sampler": "remask"}, "sampler remask needs a kernel with a mask"),
        ("absorbing", {"sampler": "remask", "steps": 0}, "`steps` 0: must be 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(kernel, options, words):
    with pytest.raises(VqtoolError, match=words):
        vqtool.sample(random_prior(kernel), 2, **options)
