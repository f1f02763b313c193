"""Guidance, temperature and truncation against their definitions, and their off positions bit for bit."""

import math

import pytest
import torch
from torch import Tensor

from vqtool import VqtoolError
from vqtool.guidance import draw_truncated, guide, temper, truncate
from vqtool.posterior import draw


def random_log_p(*shape: int, seed: int = 0) -> Tensor:
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def log(*p: float) -> Tensor:
    return torch.tensor(p, dtype=torch.float64).log()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_is_off_bit_for_bit(dtype):
    log_p, log_u = random_log_p(2, 3, 3, 9).to(dtype), random_log_p(2, 3, 3, 9, seed=1).to(dtype)
    assert guide(log_p, log_u, 1.0) is log_p
    assert temper(log_p, 1.0) is log_p
    assert truncate(log_p, 1.0) is log_p


@pytest.mark.parametrize("cfg_scale", [0.0, 0.3, 0.5, 0.7, 2.0, 5.0])
def test_guidance_is_the_normalised_power_of_the_ratio(cfg_scale):
    log_c, log_u = random_log_p(4, 50), random_log_p(4, 50, seed=1)
    weight = log_u.exp() * (log_c - log_u).exp() ** cfg_scale
    expected = weight / weight.sum(-1, keepdim=True)
    torch.testing.assert_close(guide(log_c, log_u, cfg_scale).exp(), expected, rtol=1e-12, atol=0)


def test_a_scale_of_zero_ignores_the_condition_bit_for_bit():
    log_u = random_log_p(4, 50)
    assert torch.equal(guide(log(*[1.0] * 50).log_softmax(-1).expand(4, 50), log_u, 0.0), log_u)


@pytest.mark.parametrize("cfg_scale", [0.3, 0.5, 0.7, 3.0])
def test_guidance_with_impossible_tokens_agrees_with_the_limit_of_rare_ones(cfg_scale):
    """Token 0: never with the condition; token 1: never at all. The others keep their ratio."""
    log_c, log_u = log(0, 0, 0.6, 0.4), log(0.5, 0, 0.25, 0.25)
    p = guide(log_c, log_u, cfg_scale).exp()
    assert torch.equal(p[:2], torch.zeros(2, dtype=torch.float64))
    rare = guide(log(1e-300, 1e-300, 0.6, 0.4), log(0.5, 1e-300, 0.25, 0.25), cfg_scale).exp()
    torch.testing.assert_close(p[2:], rare[2:], rtol=1e-12, atol=0)


def test_a_token_that_only_the_condition_allows_keeps_its_conditional_value_under_strong_guidance():
    p = guide(log(0.2, 0.8, 0), log(0, 0.5, 0.5), 3.0).exp()
    weight = torch.tensor([0.2, 0.5 * (0.8 / 0.5) ** 3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(p, weight / weight.sum(), rtol=1e-12, atol=0)
    assert guide(log(0.2, 0.8, 0), log(0, 0.5, 0.5), 0.5).exp()[0] == 0


def test_guidance_between_laws_that_exclude_each_other_falls_back_to_the_conditional_one():
    log_c, log_u = log(1, 0), log(0, 1)
    for cfg_scale in (0.5, 3.0):
        assert torch.equal(guide(log_c, log_u, cfg_scale).exp(), log_c.exp())


def test_one_row_with_impossible_tokens_does_not_change_the_others():
    log_c, log_u = random_log_p(3, 6), random_log_p(3, 6, seed=1)
    mixed_c, mixed_u = log_c.clone(), log_u.clone()
    mixed_c[1], mixed_u[1] = log(1, 0, 0, 0, 0, 0), log(0, 0, 0, 0, 0, 1)
    torch.testing.assert_close(guide(mixed_c, mixed_u, 3.0)[::2], guide(log_c, log_u, 3.0)[::2], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("temperature", [0.25, 0.9, 2.0])
def test_temperature_is_the_normalised_power(temperature):
    log_p = random_log_p(4, 50)
    weight = log_p.exp() ** (1 / temperature)
    torch.testing.assert_close(temper(log_p, temperature).exp(), weight / weight.sum(-1, keepdim=True))


def test_extreme_temperatures_approach_the_best_token_and_the_even_law_over_possible_ones():
    log_p = log(0.5, 0.3, 0.2, 0)
    for dtype in (torch.float32, torch.float64):
        assert temper(log_p.to(dtype), 1e-37).exp().tolist() == [1, 0, 0, 0]
        torch.testing.assert_close(temper(log_p.to(dtype), 1e9).exp(), torch.tensor([1, 1, 1, 0]).to(dtype) / 3)


@pytest.mark.parametrize("truncation", [0.01, 0.3, 0.86, 0.999])
def test_truncation_keeps_the_smallest_set_that_has_the_mass(truncation):
    log_p = random_log_p(40, 12)
    for row, ours in zip(log_p.exp(), truncate(log_p, truncation).exp(), strict=True):
        ordered = sorted(row.tolist(), reverse=True)
        smallest = next(n for n in range(1, 13) if sum(ordered[:n]) >= truncation or n == 12)
        best = row >= ordered[smallest - 1]
        torch.testing.assert_close(ours, row * best / (row * best).sum(), rtol=1e-12, atol=0)


def test_truncation_keeps_a_token_iff_the_mass_in_front_of_it_is_below_the_rate():
    kept = {
        rate: (truncate(log(0.25, 0.5, 0.125, 0.125), rate) > -math.inf).tolist() for rate in (0.5, 0.51, 0.75, 0.76)
    }
    assert kept[0.5] == [False, True, False, False]
    assert kept[0.51] == kept[0.75] == [True, True, False, False]
    assert kept[0.76] == [True, True, True, False]  # of two equal tokens the first


def test_truncation_leaves_a_sure_row_and_impossible_tokens_as_they_are():
    assert truncate(log(0, 1, 0), 0.9).exp().tolist() == [0, 1, 0]
    assert truncate(log(0.5, 0, 0.5), 0.9999).exp().tolist() == pytest.approx([0.5, 0, 0.5])


def test_a_truncated_row_can_be_drawn_from_in_float32():
    log_p = truncate(random_log_p(100, 64).float(), 0.5)
    noise = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert bool((log_p.gather(-1, draw(log_p, noise).unsqueeze(-1)) > -math.inf).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("truncation", [0.01, 0.3, 0.5, 0.86, 0.999])
def test_a_truncated_draw_has_the_law_of_the_truncated_row(truncation, dtype):
    """Noise at 20 000 even places: each token is drawn as often as its share of the line says, give or take one."""
    log_p = random_log_p(6, 40).to(dtype)
    log_p[3] = log(*[1 / 40] * 40)  # all equal
    log_p[4, 1::2] = log_p[4, ::2]  # pairs of equal tokens
    log_p[5, 7:] = -math.inf
    log_p = log_p.log_softmax(-1)
    num = 20_000
    noise = ((torch.arange(num) + 0.5) / num).double().expand(6, num)
    drawn = draw_truncated(log_p[:, None].expand(6, num, 40), noise, truncation)
    counts = torch.stack([torch.bincount(row, minlength=40) for row in drawn])
    expected = truncate(log_p, truncation).double().exp() * num
    assert float((counts - expected).abs().max()) < 1.1
    assert bool((counts[expected == 0] == 0).all())


def test_a_truncated_draw_at_the_ends_of_the_noise_stays_in_the_set():
    noise = torch.tensor([0.0, 2**-53, 1 - 2**-53], dtype=torch.float64)
    for seed in range(100):
        log_p = random_log_p(9, seed=seed).float().expand(3, 9)
        kept = truncate(log_p, 0.7) > -math.inf
        assert bool(kept.gather(-1, draw_truncated(log_p, noise, 0.7)[:, None]).all())


def test_a_draw_without_truncation_is_the_plain_one_bit_for_bit():
    log_p, noise = random_log_p(100, 64).float(), torch.linspace(0, 1 - 2**-53, 100, dtype=torch.float64)
    assert torch.equal(draw_truncated(log_p, noise, 1.0), draw(log_p, noise))


def test_a_truncated_draw_refuses_what_is_no_distribution():
    with pytest.raises(ValueError, match="holds NaN"):
        draw_truncated(log(0.5, math.nan)[None], torch.zeros(1, dtype=torch.float64), 0.5)


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (temper, 0.0, "temperature must be above 0"),
        (temper, -1.0, "temperature must be above 0"),
        (temper, math.nan, "temperature must be above 0"),
        (truncate, 0.0, "truncation rate must lie above 0"),
        (truncate, 1.1, "truncation rate must lie above 0"),
        (truncate, math.nan, "truncation rate must lie above 0"),
        (lambda log_p, value: draw_truncated(log_p, log_p[0], value), 0.0, "truncation rate must lie above 0"),
        (lambda log_p, value: guide(log_p, log_p, value), -0.1, "guidance scale must be 0 or more"),
        (lambda log_p, value: guide(log_p, log_p, value), math.inf, "guidance scale must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(function, value, message):
    with pytest.raises(VqtoolError, match=message):
        function(log(0.5, 0.5), value)
