"""Kernels against explicit transition matrices, and their samplers against their laws."""

import pytest
import torch
from support.matrices import CASES, between, check_law, exact_tables, table_kernel
from torch import Tensor

from vqtool import VqtoolError
from vqtool.diffusion import kernels
from vqtool.diffusion.kernels import Kernel

SIZES = [(1, 3), (2, 1), (3, 4), (5, 7)]


def filled(kernel: Kernel, alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """(K + 1, K + 1) from three rates."""
    size = kernel.codebook_size
    full = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    full[:size, :size] = beta + alpha * torch.eye(size, dtype=torch.float64)
    full[:size, size] = gamma
    full[size, size] = 1
    return full


BUILT = [
    kernels.build(name, schedule=schedule, codebook_size=codebook_size, num_steps=num_steps)
    for name, schedule in CASES
    for codebook_size, num_steps in SIZES
]


@pytest.mark.parametrize("kernel", BUILT, ids=str)
def test_transitions_equal_products_of_one_step_matrices_for_all_s_and_t(kernel):
    for s in range(kernel.num_steps + 1):
        for t in range(s, kernel.num_steps + 1):
            rates = kernel.transition(torch.tensor([s]), torch.tensor([t]))
            torch.testing.assert_close(filled(kernel, *rates), between(kernel, s, t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", BUILT, ids=str)
def test_cumulative_rates_equal_products_of_one_step_matrices(kernel):
    for t in range(kernel.num_steps + 1):
        rates = kernel.cumulative(torch.tensor(t))
        torch.testing.assert_close(filled(kernel, *rates), between(kernel, 0, t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_steps", [4, 7])
@pytest.mark.parametrize("name", ["absorbing", "uniform", "mask-replace"])
@pytest.mark.parametrize("codebook_size", [3, 5])
def test_one_step_and_cumulative_rates_equal_the_exact_tables(name, codebook_size, num_steps):
    prefix = f"{name.replace('-', '_')}_K{codebook_size}_T{num_steps}__"
    one_step, matrix, cumulative = (
        torch.from_numpy(exact_tables()[prefix + what]) for what in ("alpha_beta_gamma", "Q", "Qbar")
    )
    kernel = table_kernel(name, codebook_size, num_steps)
    states = codebook_size + kernel.has_mask
    for t in range(1, num_steps + 1):
        rates = kernel.transition(torch.tensor([t - 1]), torch.tensor([t]))
        torch.testing.assert_close(torch.cat(rates), one_step[t], rtol=0, atol=1e-12)
        torch.testing.assert_close(filled(kernel, *rates)[:states, :states], matrix[t], rtol=0, atol=1e-12)
        full = filled(kernel, *kernel.cumulative(torch.tensor(t)))[:states, :states]
        torch.testing.assert_close(full, cumulative[t], rtol=0, atol=1e-12)


def test_edges_are_exact():
    absorbing = kernels.build("absorbing", codebook_size=3, num_steps=4)
    linear = kernels.build("uniform", schedule="linear", codebook_size=3, num_steps=4)  # alpha_bar_T = 0
    last, t = torch.tensor([4, 4, 2, 0]), torch.tensor([4, 4, 2, 0])
    for kernel in (absorbing, linear):
        alpha, beta, gamma = kernel.transition(last, t)  # s = t: nothing happens
        assert (alpha.tolist(), beta.tolist(), gamma.tolist()) == ([1.0] * 4, [0.0] * 4, [0.0] * 4)
    alpha, beta, gamma = absorbing.transition(torch.tensor([3]), torch.tensor([4]))
    assert (alpha.item(), beta.item(), gamma.item()) == (0.0, 0.0, 1.0)
    twice_clean = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)  # alpha_bar_s = 0 below the last step
    kernel = Kernel("uniform", "table", 4, 2, twice_clean, torch.zeros_like(twice_clean))
    alpha, beta, gamma = kernel.transition(torch.tensor([1]), torch.tensor([2]))
    assert (alpha.item(), beta.item(), gamma.item()) == (0.0, 0.25, 0.0)
    kernel = Kernel("absorbing", "table", 4, 2, twice_clean, 1 - twice_clean)  # all masked below the last step
    alpha, beta, gamma = kernel.transition(torch.tensor([1]), torch.tensor([2]))
    assert (alpha.item(), beta.item(), gamma.item()) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_sample_follows_q_of_x_t_given_x_0(name, schedule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=5, num_steps=7)
    num = 40_000
    for t in (1, 4, 7):
        noise = torch.rand(1, num, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
        x_t = kernel.sample(torch.full((1, num, 1), 3), torch.tensor([t]), noise)
        check_law(x_t, between(kernel, 0, t)[3])


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_stationary_law_has_the_mask_share_of_step_T_and_is_even_over_tokens(name, schedule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=5, num_steps=7)
    noise = torch.rand(1, 200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = kernel.gamma_bar[-1]
    check_law(kernel.sample_stationary(noise), torch.cat([((1 - mask) / 5).expand(5), mask.view(1)]))


def test_sample_at_step_0_is_x_0_and_the_last_absorbing_step_is_all_mask():
    noise = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64).view(1, 1, 3)
    for kernel in BUILT:
        x_0 = torch.full((1, 1, 3), kernel.codebook_size - 1)
        assert torch.equal(kernel.sample(x_0, torch.tensor([0]), noise), x_0)
    kernel = kernels.build("absorbing", codebook_size=5, num_steps=3)
    assert bool((kernel.sample(torch.zeros_like(x_0), torch.tensor([3]), noise) == kernel.mask_id).all())


def test_noise_at_both_ends_stays_inside_the_tokens():
    noise = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64).view(1, 1, 2)
    for kernel in BUILT:
        for t in range(kernel.num_steps + 1):
            x_t = kernel.sample(torch.zeros(1, 1, 2, dtype=torch.int64), torch.tensor([t]), noise)
            assert 0 <= x_t.min() <= x_t.max() <= kernel.codebook_size - (not kernel.has_mask)
        assert kernel.sample_stationary(noise).max() <= kernel.codebook_size - (not kernel.has_mask)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_a_kernel_is_made_again_from_its_config(name, schedule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=9, num_steps=13)
    again = kernels.build(**kernel.config)
    assert torch.equal(again.alpha_bar, kernel.alpha_bar)
    assert torch.equal(again.gamma_bar, kernel.gamma_bar)
    assert again.config == kernel.config


def test_defaults_are_release_linear_and_cosine():
    found = {name: kernels.build(name, codebook_size=5).schedule for name in kernels.KERNELS}
    assert found == {"mask-replace": "release", "absorbing": "linear", "uniform": "cosine"}


def test_an_unknown_kernel_is_refused_with_the_known_ones():
    with pytest.raises(VqtoolError, match="unknown kernel 'gauss': known are mask-replace, absorbing, uniform"):
        kernels.build("gauss", codebook_size=5)


@pytest.mark.parametrize(("sizes", "message"), [((0, 5), "codebook size"), ((5, 0), "number of diffusion steps")])
def test_sizes_below_one_are_refused(sizes, message):
    with pytest.raises(VqtoolError, match=f"the {message} must be at least 1, is 0"):
        kernels.build("uniform", codebook_size=sizes[0], num_steps=sizes[1])


def test_tables_that_are_no_schedule_are_refused():
    good = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    with pytest.raises(ValueError, match="float64 of length 3"):
        Kernel("uniform", "table", 4, 2, good.float(), torch.zeros(3))
    for alpha_bar, gamma_bar in ((good.flip(0), 0 * good), (good, good), (good, 0.9 - 0.9 * good.sqrt() + 0.1)):
        with pytest.raises(ValueError, match="alpha_bar must fall from 1"):
            Kernel("mask-replace", "table", 4, 2, alpha_bar, gamma_bar)


def test_steps_out_of_order_or_range_are_refused():
    kernel = kernels.build("uniform", codebook_size=4, num_steps=5)
    for s, t in ((3, 2), (-1, 2), (2, 6)):
        with pytest.raises(ValueError, match="steps must be 0 <= s <= t <= 5"):
            kernel.transition(torch.tensor([s]), torch.tensor([t]))


def rounded(kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """Its cumulative rates as a checkpoint has them: float32 logarithms."""
    return tuple(rate.log().float().exp() for rate in (kernel.alpha_bar, kernel.beta_bar, kernel.gamma_bar))  # type: ignore[return-value]


@pytest.mark.parametrize("built", BUILT, ids=str)
def test_rates_of_a_named_schedule_become_that_kernel_in_full_digits(built):
    found = kernels.from_rates(*rounded(built), built.codebook_size)
    assert torch.equal(found.alpha_bar, built.alpha_bar)
    assert torch.equal(found.gamma_bar, built.gamma_bar)


def test_other_rates_keep_the_digits_that_float32_has_and_lose_beta_only_where_it_is_zero():
    alpha = torch.linspace(1, 0.2, 11, dtype=torch.float64)
    for replaced in (0.0, 1e-6, 0.1):
        share = replaced * torch.linspace(0, 1, 11, dtype=torch.float64)
        rates = [rate.log().float().exp() for rate in (alpha - share, share / 7, 1 - alpha)]
        found = kernels.from_rates(*rates, 7)
        assert (found.name, found.schedule) == ("mask-replace" if replaced else "absorbing", "checkpoint")
        torch.testing.assert_close(found.beta_bar, share / 7, atol=0, rtol=1e-5)
        torch.testing.assert_close(found.gamma_bar, 1 - alpha, atol=0, rtol=1e-6)


@pytest.mark.parametrize(
    "rates",
    [
        ([1.0, 0.5, 0.6], [0.0, 0.0, 0.0], [0.0, 0.5, 0.4]),
        ([1.0, 0.5, 0.2], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]),
        ([0.9, 0.5, 0.2], [0.0, 0.0, 0.0], [0.1, 0.5, 0.8]),
        ([1.0, 0.5, -0.1], [0.0, 0.0, 0.0], [0.0, 0.5, 1.1]),
        ([1.0, 0.5, float("nan")], [0.0, 0.0, 0.0], [0.0, 0.5, 0.8]),
    ],
    ids=["rises again", "sum", "start", "negative", "nan"],
)
def test_rates_that_are_no_diffusion_are_refused(rates):
    with pytest.raises(VqtoolError, match="starts from x_0 and loses it step by step"):
        kernels.from_rates(*map(torch.tensor, rates), 5)
