"""The posterior and its averages against Bayes' rule on explicit matrices and golden numbers; the laws of draws."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.matrices import CASES, between, check_law, exact_tables, table_kernel
from torch import Tensor

from vqtool.diffusion import kernels
from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import RULES, average_posterior, draw, least_stay, posterior, sample_posterior

GOLDEN = Path(__file__).parents[1] / "golden" / "vqddm-posterior" / "io.safetensors"
SMALL = [kernels.build(name, schedule=schedule, codebook_size=4, num_steps=5) for name, schedule in CASES]
ONE_STEP = [kernels.build(name, schedule=schedule, codebook_size=3, num_steps=1) for name, schedule in CASES]


def states(kernel: Kernel) -> int:
    return kernel.codebook_size + kernel.has_mask


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_log_x0(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))).log_softmax(-1)


def bayes(kernel: Kernel, s: int, t: int) -> Tensor:
    """(states x_t, K, K + 1): q(x_s | x_t, x_0) by brute force; NaN where x_0 cannot lead to x_t."""
    before, step = between(kernel, 0, s), between(kernel, s, t)
    joint = before[: kernel.codebook_size, None, :] * step.T[None, :, :]  # (x_0, x_t, x_s)
    return (joint / joint.sum(-1, keepdim=True)).transpose(0, 1)[: states(kernel)]


def mixture(conditional: Tensor, p0: Tensor) -> Tensor:
    """(states, K + 1) from (states, K, K + 1) and (states, K); codes that cannot lead to x_t are left out."""
    possible = ~conditional.isnan().any(-1)
    weights = p0 * possible
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights.unsqueeze(-1) * conditional.nan_to_num()).sum(1)


def plug_in(kernel: Kernel, s: int, t: int, p0: Tensor) -> Tensor:
    product = (p0 @ between(kernel, 0, s)[: kernel.codebook_size]) * between(kernel, s, t).T[: len(p0)]
    return product / product.sum(-1, keepdim=True)


def all_steps(kernel: Kernel) -> list[tuple[int, int]]:
    return [(s, t) for t in range(1, kernel.num_steps + 1) for s in range(t)]


def average(kernel: Kernel, log_x0: Tensor, s: int, t: int, rule: str) -> Tensor:
    """(states, K + 1) probabilities for every x_t, from (states, K)."""
    return averages(kernel, log_x0, [(s, t)], rule)[0]


def averages(kernel: Kernel, log_x0: Tensor, steps: list[tuple[int, int]], rule: str) -> Tensor:
    """(steps, states, K + 1) probabilities for every (s, t) and x_t, from (states, K)."""
    s, t = torch.tensor(steps).T
    x_t = torch.arange(states(kernel)).expand(len(steps), 1, -1)
    log_p = average_posterior(log_x0.expand(len(steps), 1, *log_x0.shape), x_t, t, s, kernel, rule)
    return log_p.exp()[:, 0]


@pytest.mark.parametrize("kernel", SMALL + ONE_STEP, ids=str)
def test_posterior_is_bayes_rule_for_all_s_and_t(kernel):
    x_t = torch.arange(states(kernel)).view(1, -1, 1).expand(1, -1, kernel.codebook_size)
    x_0 = torch.arange(kernel.codebook_size).expand_as(x_t)
    for s, t in all_steps(kernel):
        ours = posterior(x_0, x_t, torch.tensor([t]), torch.tensor([s]), kernel).exp()[0]
        theirs = bayes(kernel, s, t)
        possible = ~theirs.isnan()
        torch.testing.assert_close(ours[possible], theirs[possible], rtol=0, atol=1e-10)
        torch.testing.assert_close(ours.sum(-1), torch.ones_like(ours[..., 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", SMALL + ONE_STEP, ids=str)
def test_both_averages_equal_enumeration_for_all_s_and_t(kernel):
    log_x0 = random_log_x0(states(kernel), kernel.codebook_size)
    for s, t in all_steps(kernel):
        for rule, theirs in (
            ("mixture", mixture(bayes(kernel, s, t), log_x0.exp())),
            ("plug-in", plug_in(kernel, s, t, log_x0.exp())),
        ):
            possible = ~theirs.isnan()  # at t = T no token of an absorbing kernel is unmasked
            ours = average(kernel, log_x0, s, t, rule)
            torch.testing.assert_close(ours[possible], theirs[possible], rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_steps", [4, 7])
@pytest.mark.parametrize("name", ["absorbing", "uniform", "mask-replace"])
@pytest.mark.parametrize("codebook_size", [3, 5])
def test_posterior_and_averages_equal_the_exact_tables(name, codebook_size, num_steps):
    prefix = f"{name.replace('-', '_')}_K{codebook_size}_T{num_steps}__"
    kernel = table_kernel(name, codebook_size, num_steps)
    num = states(kernel)
    x_t = torch.arange(num).view(1, -1, 1).expand(1, -1, codebook_size)
    x_0 = torch.arange(codebook_size).expand_as(x_t)
    for stride in (1, 2, 3):
        for t in range(stride, num_steps + 1):
            log_x0 = torch.from_numpy(exact_tables()[f"{prefix}p0"][t]).log()
            steps = torch.tensor([t]), torch.tensor([t - stride])
            for what, ours in (
                ("post", posterior(x_0, x_t, *steps, kernel).exp()[0]),
                ("mix", average(kernel, log_x0, t - stride, t, "mixture")),
                ("plug", average(kernel, log_x0, t - stride, t, "plug-in")),
            ):
                theirs = torch.from_numpy(exact_tables()[f"{prefix}{what}_D{stride}"][t])
                possible = ~theirs.isnan()
                torch.testing.assert_close(ours[..., :num][possible], theirs[possible], rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [100, 4000])
def test_plug_in_equals_vqddm_in_float32(num_steps):
    with safe_open(GOLDEN, "pt") as file:
        about = json.loads(file.metadata()["meta"])["tensors"]
        log_x0, x_t, t, theirs = (
            file.get_tensor(f"T{num_steps}_{name}") for name in ("log_p_x0", "x_t", "t", "posterior")
        )
    kernel = kernels.build("uniform", schedule="cosine", codebook_size=9, num_steps=num_steps)
    ours = average_posterior(log_x0.movedim(1, -1), x_t, t + 1, t, kernel, "plug-in")
    worst = (ours[..., :9] - theirs.movedim(1, -1)).abs().max()
    assert worst <= float(about[f"T{num_steps}_posterior"]["tolerance"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kernel", SMALL, ids=str)
def test_a_sure_denoiser_gives_the_posterior_of_its_token(kernel, rule):
    x_t = torch.arange(states(kernel)).view(1, -1, 1).expand(1, -1, kernel.codebook_size)
    x_0 = torch.arange(kernel.codebook_size).expand_as(x_t)
    sure = torch.nn.functional.one_hot(x_0, kernel.codebook_size).double().log()  # -inf for all others
    for s, t in all_steps(kernel):
        steps = torch.tensor([t]), torch.tensor([s])
        ours = average_posterior(sure, x_t, *steps, kernel, rule)
        torch.testing.assert_close(ours.exp(), posterior(x_0, x_t, *steps, kernel).exp(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [kernel for kernel in SMALL if kernel.has_mask], ids=str)
def test_a_masked_cell_stays_masked_with_the_ratio_of_gammas_whatever_x_0(kernel):
    log_x0 = random_log_x0(1, 1, 1, 4)
    for s, t in all_steps(kernel):
        for rule in RULES:
            args = torch.tensor([[[4]]]), torch.tensor([t]), torch.tensor([s]), kernel, rule
            ratio = kernel.gamma_bar[s] / kernel.gamma_bar[t]
            torch.testing.assert_close(average_posterior(log_x0, *args).exp()[0, 0, 0, 4], ratio, rtol=0, atol=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_absorbing_keeps_an_unmasked_token_with_probability_one_even_where_it_is_impossible(rule):
    kernel = kernels.build("absorbing", codebook_size=3, num_steps=4)
    log_x0 = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(1, 1, 3, 3)  # sure of token 1
    x_t = torch.arange(3).view(1, 1, 3)
    for s, t in all_steps(kernel):  # at t = T no token can be unmasked
        steps = torch.tensor([t]), torch.tensor([s])
        p = average_posterior(log_x0, x_t, *steps, kernel, rule).exp()[0, 0]
        assert torch.equal(p, torch.eye(4)[:3])
        assert torch.equal(posterior(torch.ones_like(x_t), x_t, *steps, kernel).exp()[0, 0], torch.eye(4)[:3].double())


def edge_kernels() -> list[Kernel]:
    """Kernels whose tables hit 0 and 1 before the last step."""
    early = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    none = torch.zeros(4, dtype=torch.float64)
    late = torch.tensor([0.0, 0.0, 0.5, 1.0], dtype=torch.float64)  # no mask at t = 1, nothing else at T
    return [
        Kernel("uniform", "table", 3, 3, early, none),
        Kernel("absorbing", "table", 3, 3, early, 1 - early),
        Kernel("mask-replace", "table", 3, 3, early, late),
        Kernel("mask-replace", "table", 3, 3, torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64), late),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kernel", SMALL + ONE_STEP + edge_kernels(), ids=str)
def test_every_edge_gives_a_distribution_and_finite_gradients(kernel, rule, dtype):
    num, size = states(kernel), kernel.codebook_size
    for start in (torch.zeros(num, size), 3 * random_log_x0(num, size), torch.full((num, size), -torch.inf)):
        logits = start.to(dtype).clone()
        logits[:, 0] = 0.0  # the last one is sure of token 0
        logits.requires_grad_()
        p = averages(kernel, logits.log_softmax(-1), all_steps(kernel), rule)
        torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]), rtol=0, atol=2e-6)
        (gradient,) = torch.autograd.grad(p[p > 0].log().sum() + (p * p).sum(), logits)
        assert not gradient.isnan().any()


@pytest.mark.parametrize("kernel", SMALL, ids=str)
def test_float32_agrees_with_float64_to_2e_6_in_probability(kernel):
    log_x0 = random_log_x0(states(kernel), kernel.codebook_size)
    for rule in RULES:
        single, double = (
            averages(kernel, log_x0.to(dtype), all_steps(kernel), rule) for dtype in (torch.float32, torch.float64)
        )
        assert single.dtype == torch.float32
        assert (single - double).abs().max() < 2e-6


@pytest.mark.parametrize("kernel", SMALL, ids=str)
def test_the_exact_denoiser_walks_back_to_the_data_with_any_stride(kernel):
    data = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)  # token 3 never occurs
    for strides in ((1, 1, 1, 1, 1), (2, 3), (5,), (1, 4)):
        t = kernel.num_steps
        law = data @ between(kernel, 0, t)[:4]
        for stride in strides:
            denoiser = exact_denoiser(kernel, data, t)
            law = law[: states(kernel)] @ average(kernel, denoiser, t - stride, t, "mixture")
            t -= stride
            torch.testing.assert_close(law, data @ between(kernel, 0, t)[:4], rtol=0, atol=1e-12)
        torch.testing.assert_close(law[:4], data, rtol=0, atol=1e-12)


def exact_denoiser(kernel: Kernel, data: Tensor, t: int) -> Tensor:
    """(states, K): log p(x_0 | x_t) by Bayes' rule for one cell with that data law; even where x_t is impossible."""
    joint = (data[:, None] * between(kernel, 0, t)[:4].clamp(min=0)).T[: states(kernel)]
    total = joint.sum(-1, keepdim=True)
    return torch.where(total > 1e-15, joint / total, 0.25).log()


@pytest.mark.parametrize("way", ["draw from the average", "draw x_0, then x_s"])
@pytest.mark.parametrize("kernel", SMALL, ids=str)
def test_ancestral_walks_of_both_kinds_end_in_the_data_law(kernel, way):
    data = torch.tensor([0.6, 0.25, 0.15, 0.0], dtype=torch.float64)
    num, steps = 20_000, [5, 3, 2, 0]
    t = torch.tensor([5])
    x = kernel.sample(draw(data.log().expand(1, num, 1, 4), uniform(1, num, 1)), t, uniform(1, num, 1, seed=1))
    for seed, (level, target) in enumerate(pairwise(steps)):
        t, s = torch.tensor([level]), torch.tensor([target])
        noise = uniform(2, 1, num, 1, seed=2 + seed)
        log_x0 = exact_denoiser(kernel, data, level)[x].float()  # draw has to work in float32
        if way == "draw from the average":
            x = draw(average_posterior(log_x0, x, t, s, kernel), noise[0])
        else:
            x = sample_posterior(draw(log_x0, noise[0]), x, t, s, kernel, noise[1])
    check_law(x, data)


@pytest.mark.parametrize("kernel", SMALL, ids=str)
def test_sample_posterior_follows_the_posterior(kernel):
    num = 5_000
    for s, t in ((0, 1), (2, 4), (4, 5)):
        steps = torch.tensor([t]), torch.tensor([s])
        for x_t in range(states(kernel)):
            if bayes(kernel, s, t)[x_t, 1].isnan().any():
                continue
            x_0, seen = (torch.full((1, num, 1), token) for token in (1, x_t))
            drawn = sample_posterior(x_0, seen, *steps, kernel, uniform(1, num, 1, seed=t * 10 + x_t))
            check_law(drawn, posterior(x_0[:, :1], seen[:, :1], *steps, kernel).exp()[0, 0, 0])


@pytest.mark.parametrize("kernel", SMALL + ONE_STEP + edge_kernels(), ids=str)
def test_the_least_chance_to_stay_is_the_least_over_all_denoisers(kernel):
    """The denoisers that are sure of a token are the corners of all denoisers, and the average moves evenly."""
    num, size = states(kernel), kernel.codebook_size
    x_t = torch.arange(num).view(1, -1, 1).expand(1, -1, size)
    x_0 = torch.arange(size).expand_as(x_t)
    for s, t in all_steps(kernel):
        steps = torch.tensor([t]), torch.tensor([s])
        known = posterior(x_0, x_t, *steps, kernel).exp().gather(-1, x_t.unsqueeze(-1))[0, ..., 0]
        least = least_stay(x_t, *steps, kernel)[0]
        torch.testing.assert_close(least.amin(-1), known.amin(-1), rtol=0, atol=1e-15)
        assert bool((least <= known).all())
        for log_x0 in (torch.zeros(1, num, 1, size), random_log_x0(1, num, 1, size)):
            average = average_posterior(log_x0.double().log_softmax(-1), x_t[..., :1], *steps, kernel, "plug-in").exp()
            stay = average.gather(-1, x_t[..., :1].unsqueeze(-1))[..., 0]
            assert bool((least_stay(x_t[..., :1], *steps, kernel, "plug-in") <= stay + 1e-15).all())


def test_sample_posterior_never_gives_a_state_of_probability_0_at_the_ends_of_the_noise():
    for kernel in SMALL + ONE_STEP + edge_kernels():
        size = kernel.codebook_size
        noise = torch.tensor([0.0, 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64).expand(size, states(kernel), 4)
        x_0 = torch.arange(size).view(-1, 1, 1).expand_as(noise)
        x_t = torch.arange(states(kernel)).view(1, -1, 1).expand_as(noise)
        for s, t in all_steps(kernel):
            steps = torch.full((size,), t), torch.full((size,), s)
            p = posterior(x_0, x_t, *steps, kernel).exp()
            x_s = sample_posterior(x_0, x_t, *steps, kernel, noise)
            assert bool((p.gather(-1, x_s.unsqueeze(-1)) > 0).all())


def test_draw_follows_the_law_and_finds_a_rare_token_as_often_as_it_should():
    """Token 1023 has probability 4e-4: Poisson with mean 40 here, outside [10, 80] with probability 1.2e-8."""
    law = torch.full((1024,), 1 / 1023).double() * (1 - 4e-4)
    law[1023] = 4e-4
    num = 100_000
    for dtype in (torch.float32, torch.float64):
        log_p = law.log().to(dtype)
        drawn = torch.cat([draw(log_p.expand(1000, 1024), part) for part in uniform(num // 1000, 1000)])
        assert 10 <= int((drawn == 1023).sum()) <= 80
        check_law(drawn, law)


def test_draw_never_gives_a_token_of_probability_0_at_the_ends_of_the_noise():
    noise = torch.tensor([0.0, 2**-53, 1 - 2**-53], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        for seed in range(200):
            alive = torch.rand(9, generator=torch.Generator().manual_seed(seed)) < 0.3
            alive[seed % 9] = True
            log_p = random_log_x0(9, dtype=dtype).where(alive, -torch.inf)  # not normalised
            assert bool(alive[draw(log_p.expand(3, 9), noise)].all())


def test_draw_does_not_care_for_a_constant_or_for_the_batch():
    log_p, noise = random_log_x0(4, 3, 3, 50), uniform(4, 3, 3)
    together = draw(log_p, noise)
    assert torch.equal(draw(log_p + 5.0, noise), together)
    assert torch.equal(torch.stack([draw(*pair) for pair in zip(log_p, noise, strict=True)]), together)


def test_a_row_that_is_no_distribution_is_refused():
    for row in ([-torch.inf, -torch.inf], [0.0, torch.nan], [0.0, torch.inf]):
        with pytest.raises(ValueError, match="holds NaN, \\+inf or nothing above -inf"):
            draw(torch.tensor([row]), uniform(1))


def test_noise_in_float32_is_refused():
    with pytest.raises(ValueError, match="noise must be float64"):
        draw(torch.zeros(1, 2), torch.zeros(1))


def test_steps_rules_and_tokens_out_of_range_are_refused():
    kernel = kernels.build("uniform", codebook_size=3, num_steps=4)
    log_x0, x = torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, dtype=torch.int64)
    one, two = torch.tensor([1]), torch.tensor([2])
    with pytest.raises(ValueError, match="every s must be below its t"):
        average_posterior(log_x0, x, one, one, kernel)
    with pytest.raises(ValueError, match="steps must be 0 <= s <= t <= 4"):
        posterior(x, x, one + 4, one, kernel)
    with pytest.raises(ValueError, match="rule must be one of mixture, plug-in"):
        average_posterior(log_x0, x, two, one, kernel, "average")
    with pytest.raises(ValueError, match=r"x_t must lie in \[0, 2\]"):
        posterior(x, x + 3, two, one, kernel)
