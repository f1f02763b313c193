"""Given tokens and starts from a noisy grid: what every sampler keeps, and the laws that exact denoisers draw from."""

import itertools

import pytest
import torch
from support.exact import exact_prior, random_prior
from support.matrices import SCHEDULES, between, check_law

import vqtool
from vqtool import samplers
from vqtool.diffusion import kernels
from vqtool.diffusion.posterior import average_posterior
from vqtool.errors import VqtoolError
from vqtool.samplers import Settings, Walk
from vqtool.samplers._edit import Edit

# Cells that depend on each other in pairs, threes and fours; the sixth grid never occurs.
FOUR_CELLS = torch.tensor([30, 2, 3, 5, 1, 0, 7, 4, 6, 2, 1, 3, 2, 8, 5, 21], dtype=torch.float64) / 100
GRIDS = torch.tensor(list(itertools.product(range(2), repeat=4)))  # (16, 4): all 2x2 grids of two tokens
KERNELS = ("mask-replace", "absorbing", "uniform")
PAIRS = [(name, kernel) for name in samplers.NAMES for kernel in KERNELS]  # those that do not go together are skipped


def build(name, num_steps, codebook_size=2, schedule=None):
    return kernels.build(
        name, schedule=schedule or SCHEDULES.get(name), codebook_size=codebook_size, num_steps=num_steps
    )


def conditional(given):
    """(16,): the law of FOUR_CELLS given some tokens; 2 where unknown."""
    fits = ((given == GRIDS) | (given == 2)).all(1)
    return FOUR_CELLS * fits / FOUR_CELLS[fits].sum()


def numbers(grids):
    return (grids.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)


def goes_with(prior, sampler):
    try:
        samplers.choose_options(prior, sampler, {})
    except VqtoolError:
        pytest.skip(f"{sampler} is not for {prior.kernel.name}")


def some_given(num, mask_id, size=(4, 6), seed=0):
    """(num, *size): tokens at another number of random cells each, none of one grid and all of another."""
    noise = torch.Generator().manual_seed(seed)
    tokens, share = torch.randint(0, mask_id, (num, *size), generator=noise), torch.linspace(0, 1, num)[:, None, None]
    return torch.where(torch.rand(num, *size, generator=noise) < share, tokens, mask_id)


# ---------------------------------------------------------------------------- what every sampler keeps


@pytest.mark.parametrize(("sampler", "kernel"), PAIRS)
def test_given_tokens_are_in_the_result_and_in_all_that_the_denoiser_sees(sampler, kernel):
    prior = random_prior(kernel)
    goes_with(prior, sampler)
    given, forward = some_given(5, 11), prior.denoiser.forward

    def watch(x_t, t, condition=None, cells=None):
        assert torch.equal(torch.where(given < 11, x_t[:5], 11), given)
        return forward(x_t, t, condition, cells)

    prior.denoiser.forward = watch
    drawn = vqtool.sample(prior, 5, sampler=sampler, known=given)
    assert torch.equal(torch.where(given < 11, drawn, 11), given)
    assert int(drawn.max()) < 11


@pytest.mark.parametrize(("sampler", "kernel"), PAIRS)
def test_an_edited_sample_depends_on_seed_number_and_its_own_grid_only(sampler, kernel):
    prior = random_prior(kernel)
    goes_with(prior, sampler)
    given = some_given(9, 11)
    source = torch.randint(0, 11, (9, 4, 6), generator=torch.Generator().manual_seed(1))
    for edit in ({"known": given}, {"source": source, "strength": 0.5}, {"known": given, "source": source}):
        whole = vqtool.sample(prior, 9, sampler=sampler, **edit)
        assert torch.equal(vqtool.sample(prior, 9, sampler=sampler, batch_size=4, **edit), whole)
        rows = {name: value[6:8] if isinstance(value, torch.Tensor) else value for name, value in edit.items()}
        assert torch.equal(vqtool.sample(prior, 2, sampler=sampler, start=6, **rows), whole[6:8])


@pytest.mark.parametrize(("sampler", "kernel"), PAIRS)
def test_nothing_given_and_full_strength_change_nothing_bit_for_bit(sampler, kernel):
    prior = random_prior(kernel)
    goes_with(prior, sampler)
    plain = vqtool.sample(prior, 3, sampler=sampler)
    assert torch.equal(vqtool.sample(prior, 3, sampler=sampler, known=torch.full((1, 4, 6), 11)), plain)
    source = torch.zeros(1, 4, 6, dtype=torch.int64)
    assert torch.equal(vqtool.sample(prior, 3, sampler=sampler, source=source, strength=1.0), plain)
    assert torch.equal(vqtool.sample(prior, 3, sampler=sampler, source=source, strength=0.0), source.expand(3, -1, -1))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sampler", ["ancestral", "psi"])
def test_given_tokens_cost_no_further_calls(sampler, kernel):
    prior, given = random_prior(kernel, num_steps=50), some_given(5, 11)
    (batch,) = samplers.sample_batches(prior, 5, sampler=sampler, steps=20, known=given)
    assert batch.num_calls == 20


@pytest.mark.parametrize(("sampler", "kernel"), PAIRS)
def test_vary_is_quicker_the_lower_the_strength(sampler, kernel):
    prior, source = random_prior(kernel), torch.zeros(8, 4, 6, dtype=torch.int64)
    goes_with(prior, sampler)
    batches = [
        next(samplers.sample_batches(prior, 8, sampler=sampler, source=source, strength=strength))
        for strength in (0.0, 0.3, 1.0)
    ]
    calls = [batch.num_calls for batch in batches]
    assert 0 == calls[0] < calls[1]
    if sampler in ("ancestral", "psi"):
        assert calls[1:] == ([3, 8] if sampler == "ancestral" else [5, 16])  # those that are usual, from t on
    same = [float((batch.grids == 0).double().mean()) for batch in batches]
    assert same == sorted(same, reverse=True)


# ---------------------------------------------------------------------------- laws


GIVEN = ([0, 2, 2, 0], [1, 2, 2, 2], [0, 1, 1, 2])


@pytest.mark.parametrize("given", GIVEN)
def test_one_cell_a_call_draws_the_unknown_cells_from_their_law_given_the_known(given):
    prior, given = exact_prior(FOUR_CELLS, (2, 2), build("absorbing", 12)), torch.tensor(given)
    drawn = vqtool.sample(prior, 8192, sampler="fewer", steps=4, known=given.view(1, 2, 2), batch_size=8192)
    check_law(numbers(drawn), conditional(given))


def start_law(kernel, strength, hide):
    """(K + 1,): the law of a cell of the first x_t when the source has token 2."""
    t = samplers.find_start(kernel, strength)
    law = between(kernel, 0, t)[2]
    if hide:  # what is lost is masked
        kept = float(kernel.alpha_bar[t])
        law = torch.tensor([0.0, 0.0, kept, 0.0, 1 - kept], dtype=torch.float64)
    return law


@pytest.mark.parametrize("strength", [0.2, 0.55, 0.9])
@pytest.mark.parametrize("kernel", KERNELS)
def test_vary_starts_from_the_law_of_x_t_given_the_picture(kernel, strength):
    prior = exact_prior(torch.ones(4) / 4, (1, 1), build(kernel, 20, codebook_size=4))
    source = torch.full((1, 8, 8), 2)
    edit = Edit(source=source.expand(300, -1, -1), start=samplers.find_start(prior.kernel, strength))
    walk = Walk(prior, range(300), None, seed=0, grid_size=(8, 8), settings=Settings(), edit=edit)
    for hide in (False, True) if prior.kernel.has_mask else (False,):
        check_law(walk.begin(mask_lost=hide), start_law(prior.kernel, strength, hide))


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_cell_made_noisy_and_clean_again_has_the_law_of_both_ways(kernel):
    """x_t ~ q(x_t | x_0), then x_0' ~ p(x_0 | x_t): ancestral sampling of one cell is exact along any times."""
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    prior = exact_prior(law, (1, 1), build(kernel, 20, codebook_size=3))
    there = between(prior.kernel, 0, 8)[:3]  # (x_0, x_t)
    back = there.T * law
    back = back / back.sum(1, keepdim=True).clamp(min=1e-300)
    drawn = vqtool.sample(prior, 8192, source=torch.full((1, 1, 1), 1), strength=0.4, steps=3, batch_size=8192)
    check_law(drawn, there[1] @ back)


def shown_law(kernel, given, times):
    """(16,): the law that ancestral sampling with the exact denoiser draws when given tokens are shown throughout."""
    states = torch.tensor(list(itertools.product(range(2 + kernel.has_mask), repeat=4)))
    known = given < 2
    mask = float(kernel.gamma_bar[-1])
    cell = torch.tensor([(1 - mask) / 2] * 2 + [mask], dtype=torch.float64)
    fits = ((states == given) | ~known).all(1).double()
    start = cell[states[:, ~known]].prod(-1) * fits
    denoiser = exact_prior(FOUR_CELLS, (2, 2), kernel).denoiser
    for t, s in itertools.pairwise(times):
        x_t, steps = states.view(-1, 2, 2), (torch.full((len(states),), t), torch.full((len(states),), s))
        log_x0 = denoiser(x_t, steps[0]).log_softmax(-1)
        cells = average_posterior(log_x0, x_t, *steps, kernel).exp().flatten(1, 2)  # (S, 4, 3)
        whole = fits.expand(len(states), -1)
        for place in range(4):
            if not known[place]:
                whole = whole * cells[:, place][:, states[:, place]]
        start = start @ whole
    return start[(states < 2).all(-1)]


def apart(a, b):
    """Total variation of two laws."""
    return float((a - b).abs().sum() / 2)


@pytest.mark.parametrize("given", GIVEN)
def test_with_an_absorbing_kernel_the_error_of_ancestral_inpainting_falls_as_1_over_T(given):
    given, errors = torch.tensor(given), []
    for num_steps in (16, 32, 64):
        law = shown_law(build("absorbing", num_steps), given, range(num_steps, -1, -1))
        errors.append(apart(law, conditional(given)))
    for coarse, fine in itertools.pairwise(errors):
        assert 0.4 < fine / coarse < 0.6


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kernel", ["mask-replace", "uniform"])
def test_kernels_that_replace_tokens_come_near_but_not_to_the_law(kernel, given):
    """The exact denoiser takes what is shown for as noisy as t says; the error stays as T grows."""
    given = torch.tensor(given)
    shown = shown_law(build(kernel, 40), given, range(40, -1, -1))
    assert 0.005 < apart(shown, conditional(given)) < 0.13


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_sampler_inpaints_with_the_enumerated_law(kernel):
    given, forward = torch.tensor([0, 2, 2, 0]), build(kernel, 12)
    times = torch.linspace(12, 0, 6).round().long().tolist()
    prior = exact_prior(FOUR_CELLS, (2, 2), forward)
    drawn = vqtool.sample(prior, 8192, steps=5, known=given.view(1, 2, 2), batch_size=8192)
    check_law(numbers(drawn), shown_law(forward, given, times))
