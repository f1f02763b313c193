"""Given tokens and starts from a noisy grid: what every sampler keeps, and the laws that exact denoisers draw from."""

import itertools

import pytest
import torch
from exact import exact_prior, random_prior
from matrices import check_law

import vqtool
from vqtool import kernels, samplers
from vqtool.errors import VqtoolError

# Cells that depend on each other in pairs, threes and fours; the sixth grid never occurs.
FOUR_CELLS = torch.tensor([30, 2, 3, 5, 1, 0, 7, 4, 6, 2, 1, 3, 2, 8, 5, 21], dtype=torch.float64) / 100
GRIDS = torch.tensor(list(itertools.product(range(2), repeat=4)))  # (16, 4): all 2x2 grids of two tokens
KERNELS = ("mask-replace", "absorbing", "uniform")
PAIRS = [(name, kernel) for name in samplers.NAMES for kernel in KERNELS]  # those that do not go together are skipped


def build(name, num_steps, codebook_size=2, schedule=None):
    return kernels.build(name, schedule=schedule, codebook_size=codebook_size, num_steps=num_steps)


def conditional(given):
    """(16,): the law of FOUR_CELLS given some tokens; 2 where unknown."""
    fits = ((given == GRIDS) | (given == 2)).all(1)
    return FOUR_CELLS * fits / FOUR_CELLS[fits].sum()


def numbers(grids):
    return (grids.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)


def goes_with(prior, sampler):
    try:
        samplers.check(prior, sampler, {})
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
    drawn = vqtool.sample(prior, 5, sampler=sampler, given=given)
    assert torch.equal(torch.where(given < 11, drawn, 11), given)
    assert int(drawn.max()) < 11


@pytest.mark.parametrize(("sampler", "kernel"), PAIRS)
def test_an_edited_sample_depends_on_seed_number_and_its_own_grid_only(sampler, kernel):
    prior = random_prior(kernel)
    goes_with(prior, sampler)
    given = some_given(9, 11)
    source = torch.randint(0, 11, (9, 4, 6), generator=torch.Generator().manual_seed(1))
    for edit in ({"given": given}, {"source": source, "strength": 0.5}, {"given": given, "source": source}):
        whole = vqtool.sample(prior, 9, sampler=sampler, **edit)
        assert torch.equal(vqtool.sample(prior, 9, sampler=sampler, batch_size=4, **edit), whole)
        rows = {name: value[6:8] if isinstance(value, torch.Tensor) else value for name, value in edit.items()}
        assert torch.equal(vqtool.sample(prior, 2, sampler=sampler, start=6, **rows), whole[6:8])


@pytest.mark.parametrize(("sampler", "kernel"), PAIRS)
def test_nothing_given_and_full_strength_change_nothing_bit_for_bit(sampler, kernel):
    prior = random_prior(kernel)
    goes_with(prior, sampler)
    plain = vqtool.sample(prior, 3, sampler=sampler)
    assert torch.equal(vqtool.sample(prior, 3, sampler=sampler, given=torch.full((1, 4, 6), 11)), plain)
    source = torch.zeros(1, 4, 6, dtype=torch.int64)
    assert torch.equal(vqtool.sample(prior, 3, sampler=sampler, source=source, strength=1.0), plain)
    assert torch.equal(vqtool.sample(prior, 3, sampler=sampler, source=source, strength=0.0), source.expand(3, -1, -1))


# ---------------------------------------------------------------------------- laws


@pytest.mark.parametrize("given", [[0, 2, 2, 0], [1, 2, 2, 2], [0, 1, 1, 2]])
def test_one_cell_a_call_draws_the_unknown_cells_from_their_law_given_the_known(given):
    prior, given = exact_prior(FOUR_CELLS, (2, 2), build("absorbing", 12)), torch.tensor(given)
    drawn = vqtool.sample(prior, 8192, sampler="fewer", steps=4, given=given.view(1, 2, 2), batch_size=8192)
    check_law(numbers(drawn), conditional(given))
