"""Guidance (over time, by other priors), temperature, truncation, top-k: definitions, and off positions bit for bit."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from support.exact import random_prior
from support.text_priors import text_prior
from torch import Tensor

import vqtool
from vqtool import MismatchError, VqtoolError, conditions, samplers
from vqtool.diffusion.guidance import draw_truncated, guide, scales, temper, truncate
from vqtool.diffusion.posterior import draw
from vqtool.samplers._settings import encode_null, interpolate


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
        (temper, 0.0, "`temperature` .*: must be above 0"),
        (temper, -1.0, "`temperature` .*: must be above 0"),
        (temper, math.nan, "`temperature` .*: must be above 0"),
        (truncate, 0.0, "must be above 0 and at most 1"),
        (truncate, 1.1, "must be above 0 and at most 1"),
        (truncate, math.nan, "must be above 0 and at most 1"),
        (lambda log_p, value: draw_truncated(log_p, log_p[0], value), 0.0, "must be above 0 and at most 1"),
        (lambda log_p, value: guide(log_p, log_p, value), -0.1, "`cfg_scale` -0.1: must be 0 or more"),
        (lambda log_p, value: guide(log_p, log_p, value), math.inf, "`cfg_scale` inf: must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(function, value, message):
    with pytest.raises(VqtoolError, match=message):
        function(log(0.5, 0.5), value)


# ---------------------------------------------------------------------------- top-k


@pytest.mark.parametrize(("truncation", "top_k"), [(1.0, 3), (0.99, 3), (0.5, 9), (0.7, 1)])
def test_top_k_keeps_so_many_of_the_set_that_truncation_keeps(truncation, top_k):
    log_p = random_log_p(40, 12)
    for row, ours in zip(log_p.exp(), truncate(log_p, truncation, top_k).exp(), strict=True):
        ordered = sorted(row.tolist(), reverse=True)
        smallest = next(n for n in range(1, 13) if sum(ordered[:n]) >= truncation or n == 12)
        best = row >= ordered[min(smallest, top_k) - 1]
        torch.testing.assert_close(ours, row * best / (row * best).sum(), rtol=1e-12, atol=0)


def test_top_k_of_all_tokens_or_more_is_off_bit_for_bit_and_of_equal_tokens_the_first_are_kept():
    log_p = random_log_p(3, 9)
    assert truncate(log_p, 1.0, 9) is log_p
    assert truncate(log_p, 1.0, 100) is log_p
    assert truncate(log(0.25, 0.25, 0.25, 0.25), 1.0, 2).exp().tolist() == [0.5, 0.5, 0, 0]
    assert truncate(log(0.5, 0, 0, 0.5), 1.0, 3).exp().tolist() == [0.5, 0, 0, 0.5]


@pytest.mark.parametrize(("truncation", "top_k"), [(1.0, 4), (0.9, 5)])
def test_a_draw_of_top_k_has_the_law_of_the_truncated_row(truncation, top_k):
    log_p, num = random_log_p(5, 40).float().log_softmax(-1), 20_000
    noise = ((torch.arange(num) + 0.5) / num).double().expand(5, num)
    drawn = draw_truncated(log_p[:, None].expand(5, num, 40), noise, truncation, top_k)
    counts = torch.stack([torch.bincount(row, minlength=40) for row in drawn])
    assert float((counts - truncate(log_p, truncation, top_k).double().exp() * num).abs().max()) < 1.1
    assert torch.equal(draw_truncated(log_p, noise[:, 7], 1.0, 40), draw(log_p, noise[:, 7]))


# ---------------------------------------------------------------------------- over time


def test_the_scale_over_time_is_that_of_its_formula():
    share = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    assert scales(share, 3.0, "constant", (0.0, 1.0)).tolist() == [3, 3, 3, 3, 3]
    assert scales(share, 3.0, "constant", (0.25, 0.5)).tolist() == [1, 3, 3, 1, 1]
    assert scales(share, 3.0, "linear", (0.0, 1.0)).tolist() == [1, 1.5, 2, 2.5, 3]
    assert scales(share, 3.0, "linear", (0.3, 0.8)).tolist() == [1, 1, 2, 2.5, 1]
    cosine = [2 - math.cos(math.pi * u) for u in share.tolist()]
    assert scales(share, 3.0, "cosine", (0.0, 1.0)).tolist() == pytest.approx(cosine, abs=1e-15)


def test_each_row_is_guided_by_its_own_scale_and_does_not_feel_the_others():
    log_c, log_u = random_log_p(5, 3, 7).float(), random_log_p(5, 3, 7, seed=1).float()
    log_c[4, 0, 2], log_u[4, 0, 2] = -math.inf, -math.inf
    own = torch.tensor([1.0, 0.0, 2.0, 0.4, 3.0])
    guided = guide(log_c, log_u, own)
    assert torch.equal(guided[0], log_c[0])
    assert torch.equal(guided[1], log_u[1])
    for row in range(5):
        assert torch.equal(guided[row], guide(log_c[row : row + 1], log_u[row : row + 1], own[row : row + 1])[0])
    torch.testing.assert_close(guided[2], guide(log_c[2], log_u[2], 2.0))


def class_samples(prior, num=6, steps=10, **settings):
    return vqtool.sample(prior, num, steps=steps, condition=prior.conditioner.encode(["bee"]), **settings)


def count_calls(prior, **settings):
    condition = prior.conditioner.encode(["bee"])
    (batch,) = samplers.sample_batches(prior, 4, steps=10, condition=condition, **settings)
    return batch.num_calls


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({}, 10),
        ({"cfg_scale": 3.0}, 20),
        ({"cfg_scale": 0.0}, 10),  # the null condition alone
        ({"cfg_scale": 3.0, "cfg_interval": (0.2, 0.5)}, 14),  # shares 0, 0.1, ... 0.9
        ({"cfg_scale": 3.0, "cfg_interval": (0.95, 1.0)}, 10),
        ({"cfg_scale": 3.0, "cfg_schedule": "linear"}, 19),  # off at share 0
    ],
)
def test_where_guidance_is_off_the_network_is_asked_once_and_the_count_says_so(settings, calls):
    prior = random_prior(kind="class")
    asked = []
    forward = prior.denoiser.forward

    def watch(*arguments):
        asked.append(len(arguments[0]))
        return forward(*arguments)

    prior.denoiser.forward = watch
    assert count_calls(prior, **settings) == calls
    assert asked == [256 // 24] * calls  # groups of one size


def test_an_interval_of_no_step_is_no_guidance_and_one_of_all_is_guidance_bit_for_bit():
    prior = random_prior(kind="class")
    assert torch.equal(class_samples(prior, cfg_scale=3.0, cfg_interval=(0.95, 1.0)), class_samples(prior))
    guided = class_samples(prior, cfg_scale=3.0)
    assert torch.equal(class_samples(prior, cfg_scale=3.0, cfg_interval=(0.0, 0.9)), guided)
    assert torch.equal(class_samples(prior, cfg_scale=3.0, cfg_schedule="constant"), guided)
    for settings in ({"cfg_interval": (0.2, 0.7)}, {"cfg_schedule": "linear"}, {"cfg_schedule": "cosine"}):
        assert not torch.equal(class_samples(prior, cfg_scale=3.0, **settings), guided)


def test_guidance_does_not_change_when_a_masked_cell_opens():
    prior = random_prior("absorbing", kind="class")
    opened = []
    for cfg_scale in (1.0, 5.0):
        seen = []
        vqtool.sample(
            prior,
            3,
            steps=6,
            condition=prior.conditioner.encode(["bee"]),
            cfg_scale=cfg_scale,
            observe=lambda samples, x_t, seen=seen: seen.append(x_t == 11),
        )
        opened.append(torch.stack(seen))
    assert torch.equal(*opened)


# ---------------------------------------------------------------------------- what it compares with


def unconditional(prior):
    """A prior without condition that says what another says under its null condition."""
    denoiser = copy.deepcopy(prior.denoiser)
    null = prior.conditioner.null(1)
    encode = prior.denoiser.encode_condition
    denoiser.encode_condition = lambda condition: encode(null.expand(len(condition), *null.shape[1:]))
    return replace(prior, denoiser=denoiser, conditioner=conditions.build("none"))


@pytest.mark.parametrize("kind", ["class", "caption"])
def test_a_second_prior_that_is_the_null_condition_guides_as_it_does_bit_for_bit(kind):
    prior = random_prior(kind=kind)
    condition = prior.conditioner.encode([prior.conditioner.examples[1]])
    own = vqtool.sample(prior, 5, steps=6, condition=condition, cfg_scale=3.0)
    second = unconditional(prior)
    assert torch.equal(vqtool.sample(prior, 5, steps=6, condition=condition, cfg_scale=3.0, guide_with=second), own)


def test_a_second_prior_is_asked_under_the_same_condition():
    prior = random_prior(kind="class")
    plain = class_samples(prior)
    assert torch.equal(class_samples(prior, cfg_scale=3.0, guide_with=prior), plain)  # nothing to amplify
    weak = random_prior(kind="class", scale=0.2)
    assert not torch.equal(class_samples(prior, cfg_scale=3.0, guide_with=weak), plain)
    assert torch.equal(class_samples(prior, cfg_scale=0.0, guide_with=weak), class_samples(weak))


def test_a_prior_without_condition_can_be_guided_by_a_second_one():
    prior, weak = random_prior(), random_prior(scale=0.2)
    guided = vqtool.sample(prior, 4, steps=5, cfg_scale=2.0, guide_with=weak)  # without a warning
    assert not torch.equal(guided, vqtool.sample(prior, 4, steps=5))


def other_labels():
    return replace(random_prior(kind="class"), conditioner=conditions.ClassCondition(["ant", "bee", "dog"]))


def other_tokenizer():
    prior = random_prior(kind="class")
    return replace(prior, grid_spec=replace(prior.grid_spec, tokenizer_fingerprint="fedc"))


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (lambda: random_prior("absorbing", kind="class"), "kernel absorbing, the first mask-replace"),
        (lambda: random_prior(kind="class", codebook_size=12), "codebook size 12, the first 11"),
        (lambda: random_prior(kind="class", num_steps=10), "number of diffusion steps 10, the first 20"),
        (lambda: random_prior(kind="class", grid_size=(4, 4)), r"grid size \(4, 4\), the first \(4, 6\)"),
        (lambda: random_prior(kind="caption"), r"other conditions \(caption\) than the first \(class\)"),
        (other_labels, r"other conditions \(class\) than the first \(class\)"),
        (other_tokenizer, "tokenizer fedc, the first 0123456789abcdef"),
    ],
)
def test_a_second_prior_of_another_kind_is_refused(second, what):
    with pytest.raises(MismatchError, match=what):
        class_samples(random_prior(kind="class"), cfg_scale=2.0, guide_with=second())


def test_the_learned_null_is_the_default_and_the_zero_shot_one_of_classes_is_the_mean_of_their_table():
    prior = random_prior(kind="class")
    table = prior.denoiser.classes.weight
    learned = class_samples(prior, cfg_scale=3.0)
    assert torch.equal(class_samples(prior, cfg_scale=3.0, null="learned"), learned)
    zero_shot = class_samples(prior, cfg_scale=3.0, null="zero-shot")
    assert not torch.equal(zero_shot, learned)
    with torch.no_grad():
        table[3] = table[:3].mean(0)  # as the learned null
    assert torch.equal(class_samples(prior, cfg_scale=3.0), zero_shot)


def test_the_zero_shot_null_of_captions_is_the_empty_caption():
    prior = random_prior(kind="caption")
    condition = prior.conditioner.encode(["a bee"])
    zero_shot = vqtool.sample(prior, 3, steps=5, condition=condition, cfg_scale=0.0, null="zero-shot")
    empty = vqtool.sample(prior, 3, steps=5, condition=prior.conditioner.encode([""]))
    assert torch.equal(zero_shot, empty)


@pytest.mark.parametrize("learned_null", [True, False])
def test_the_zero_shot_null_of_features_is_the_empty_caption_and_not_the_learned_one(learned_null):
    prior = text_prior(learned_null=learned_null)
    empty = prior.text_encoder(prior.conditioner.null(1)).expand(2, -1, -1)
    wanted = prior.denoiser.encode_condition(empty).keys_values
    torch.testing.assert_close(encode_null(prior, 2, "zero-shot").keys_values, wanted, rtol=0, atol=1e-6)
    apart = (encode_null(prior, 2, None).keys_values - wanted).abs().max()
    assert (apart > 0.01) == learned_null


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg_scale": 2.0, "null": "none"}, "`null` none: unknown; known are learned, zero-shot"),
        (
            {"cfg_scale": 2.0, "cfg_schedule": "steep"},
            "`cfg_schedule` steep: unknown; known are constant, linear, cosine",
        ),
        ({"cfg_scale": 2.0, "cfg_interval": (0.5, 1.5)}, "`cfg_interval` 1.5: must be at least 0 and at most 1"),
        ({"cfg_scale": 2.0, "cfg_interval": (0.5,)}, "`cfg_interval` 0.5: two rising"),
        ({"cfg_interval": (0.5, 1.0)}, "`cfg_interval` is about guidance, and there is none"),
        ({"cfg_schedule": "linear"}, "`cfg_schedule` is about guidance"),
        ({"null": "learned"}, "`null` is about guidance"),
        ({"top_k": 0}, "`top_k` 0: must be 1 or more"),
        ({"cfg_scale": -1.0}, "`cfg_scale` -1: must be 0 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(VqtoolError, match=message):
        class_samples(random_prior(kind="class"), **settings)


def test_guiding_away_from_two_things_or_from_a_null_that_is_not_there_is_refused():
    prior = random_prior(kind="class")
    with pytest.raises(VqtoolError, match="`null` and `guide_with` both"):
        class_samples(prior, cfg_scale=2.0, null="learned", guide_with=prior)
    with pytest.raises(VqtoolError, match="`guide_with` is about guidance"):
        class_samples(prior, guide_with=prior)
    with pytest.raises(VqtoolError, match="`null` learned: this prior's null conditions are none: it takes no"):
        vqtool.sample(random_prior(), 2, cfg_scale=2.0, null="learned")
    with pytest.raises(VqtoolError, match="`null` learned: this prior's null conditions are zero-shot"):
        vqtool.sample(text_prior(learned_null=False), 2, cfg_scale=2.0, null="learned")


def test_guidance_by_a_power_of_time_is_its_equation():
    share = torch.linspace(0, 1, 5, dtype=torch.float64)
    found = scales(share, 6.9, "power-cosine", (0.0, 1.0), 3.0).tolist()
    assert found == pytest.approx([1 + 5.9 * (1 - math.cos(math.pi * u**3)) / 2 for u in share.tolist()], abs=1e-12)
    assert torch.equal(scales(share, 3.0, "power-cosine", (0.0, 1.0)), scales(share, 3.0, "cosine", (0.0, 1.0)))
    with pytest.raises(VqtoolError, match="`cfg_power` is about `cfg_schedule` power-cosine, not linear"):
        samplers.Settings(cfg_scale=2.0, cfg_schedule="linear", cfg_power=2.0)


def test_temperatures_of_rows_are_those_of_each_row():
    log_p = random_log_p(3, 4, 9)
    found = temper(log_p, torch.tensor([0.5, 1.0, 2.0]))
    for row, temperature in enumerate((0.5, 1.0, 2.0)):
        assert torch.equal(found[row], temper(log_p[row], temperature))
    assert temper(log_p, torch.ones(3)) is log_p


def test_a_list_of_temperatures_goes_from_the_first_call_to_the_last():
    shares = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    assert interpolate([2.0, 1.0], shares).tolist() == [2.0, 1.75, 1.5, 1.0]
    assert interpolate([2.0, 1.0, 4.0], shares).tolist() == [2.0, 1.5, 1.0, 4.0]
    assert interpolate([3.0], shares).tolist() == [3.0] * 4
    prior = random_prior("absorbing", num_steps=6)
    for sampler in ("ancestral", "halton", "first-hitting", "confidence"):
        drawn = samplers.sample(prior, 5, sampler=sampler, steps=4, temperature=[2.0, 0.5], seed=3)
        assert torch.equal(
            samplers.sample(prior, 5, sampler=sampler, steps=4, temperature=[2.0, 0.5], seed=3, batch_size=2), drawn
        )
        same = samplers.sample(prior, 5, sampler=sampler, steps=4, temperature=(0.7, 0.7), seed=3)
        assert torch.equal(samplers.sample(prior, 5, sampler=sampler, steps=4, temperature=0.7, seed=3), same)
