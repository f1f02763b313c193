"""Losses against sums over all K + 1 states, in value and gradient, and against the entropy they add up to."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.matrices import CASES, between, build_kernel
from torch import Tensor

from vqtool.diffusion import kernels, losses
from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.losses import LOSSES, adaptive_factor, auxiliary, cell_weights, stationary_term, variational_bound
from vqtool.diffusion.posterior import RULES, average_posterior, posterior
from vqtool.errors import VqtoolError
from vqtool.interop import read_source
from vqtool.training.times import History

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = [(1, 2), (2, 1), (4, 5), (5, 7), (64, 100)]


def dense_bound(log_x0: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, kernel: Kernel, rule: str) -> Tensor:
    """The KL of one step as its definition: a sum over all states, differentiated by autograd."""
    log_q = posterior(x_0, x_t, t, t - 1, kernel)
    log_p = average_posterior(log_x0, x_t, t, t - 1, kernel, rule)
    some = log_q.exp() > 0
    return torch.where(some, log_q.exp() * (log_q.where(some, 0.0) - log_p.where(some, 0.0)), 0.0).sum(-1)


def example(kernel: Kernel, num: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (num, 2, 3, K), x_0, x_t and t in order 1, T, then at random."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num, 2, 3, kernel.codebook_size, dtype=torch.float64, generator=generator)
    x_0 = torch.randint(kernel.codebook_size, (num, 2, 3), generator=generator)
    t = torch.randint(1, kernel.num_steps + 1, (num,), generator=generator)
    t[0], t[-1] = 1, kernel.num_steps
    x_t = kernel.sample(x_0, t, torch.rand(num, 2, 3, dtype=torch.float64, generator=generator))
    return logits, x_0, x_t, t


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_bound_and_its_gradient_equal_the_dense_sum(name, schedule, size, rule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=size[0], num_steps=size[1])
    logits, x_0, x_t, t = example(kernel, 40)
    logits.requires_grad_()
    log_x0 = logits.log_softmax(-1)
    ours, theirs = (loss(log_x0, x_0, x_t, t, kernel, rule) for loss in (variational_bound, dense_bound))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    slopes = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_at_step_1_the_bound_is_the_decoder_term(name, schedule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=5, num_steps=4)
    logits, x_0, x_t, _ = example(kernel, 10)
    log_x0, one = logits.log_softmax(-1), torch.ones(10, dtype=torch.int64)
    x_t = kernel.sample(
        x_0, one, torch.rand(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    if kernel.has_mask:
        x_t[:, 0] = kernel.mask_id
    for rule in RULES:
        log_p = average_posterior(log_x0, x_t, one, one - 1, kernel, rule)
        nll = -log_p.gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(variational_bound(log_x0, x_0, x_t, one, kernel, rule), nll, rtol=0, atol=1e-12)
    if name == "mask-replace":  # there p(x_0 | x_1) is what the denoiser says
        bound = variational_bound(log_x0, x_0, x_t, one, kernel)
        torch.testing.assert_close(bound, auxiliary(log_x0, x_0), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_with_the_exact_denoiser_of_one_cell_the_bound_adds_up_to_the_entropy_of_the_data(name, schedule):
    """E[sum_t L_t + L_T] = H(x_0) + KL(q(x_T) || stationary) when every reverse step is exact."""
    kernel = kernels.build(name, schedule=schedule, codebook_size=4, num_steps=5)
    data = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    x_0, x_t = torch.meshgrid(torch.arange(4), torch.arange(4 + kernel.has_mask), indexing="ij")
    total = (data * stationary_term(torch.arange(4).view(1, 1, 4), kernel)[0, 0]).sum()
    for t in range(1, 6):
        joint = data[:, None] * between(kernel, 0, t)[:4, : x_t.shape[1]]  # (x_0, x_t)
        law = joint.sum(0)
        exact = torch.where(law > 0, joint / law, 0.25).log()
        log_x0 = exact.T[x_t][None]  # (1, 4, states, K)
        bound = variational_bound(log_x0, x_0[None], x_t[None], torch.tensor([t]), kernel)[0]
        total += (joint * bound.where(joint > 0, 0.0)).sum()
    last = data @ between(kernel, 0, 5)[:4]
    mask = kernel.gamma_bar[-1]
    stationary = torch.cat([((1 - mask) / 4).expand(4), mask.view(1)])
    apart = torch.where(last > 0, last * (last / stationary).log(), 0.0).sum()
    entropy = -(data * data.log()).sum()
    torch.testing.assert_close(total, entropy + apart, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_stationary_term_equals_its_sum_over_states(name, schedule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=4, num_steps=5)
    mask = kernel.gamma_bar[-1]
    stationary = torch.cat([((1 - mask) / 4).expand(4), mask.view(1)])
    last = between(kernel, 0, 5)[2]
    expected = torch.where(last > 0, last * (last / stationary).log(), 0.0).sum()
    term = stationary_term(torch.full((2, 3, 1), 2), kernel)
    assert term.shape == (2, 3, 1)
    torch.testing.assert_close(term, expected.expand(2, 3, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_a_sure_and_right_denoiser_costs_nothing(name, schedule, rule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=5, num_steps=7)
    _, x_0, x_t, t = example(kernel, 30)
    sure = torch.nn.functional.one_hot(x_0, 5).double().log()
    bound = variational_bound(sure, x_0, x_t, t, kernel, rule)
    assert bound.abs().max() < 1e-12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_impossible_tokens_and_edges_give_no_nan_in_values_or_gradients(name, schedule, dtype, rule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=5, num_steps=4)
    _, x_0, x_t, t = example(kernel, 50)
    for certainty in (0.0, 30.0, 300.0, math.inf):
        for favoured in (x_0, (x_0 + 1) % 5, x_t.clamp(max=4)):
            logits = torch.full((50, 2, 3, 5), -certainty, dtype=dtype)
            logits = logits.scatter(-1, favoured.unsqueeze(-1), 0.0).requires_grad_()
            bound = variational_bound(logits.log_softmax(-1), x_0, x_t, t, kernel, rule)
            (slope,) = torch.autograd.grad(bound.sum(), logits)
            assert bound.dtype == dtype
            assert not bound.isnan().any()
            assert not slope.isnan().any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_float32_agrees_with_float64_from_untrained_to_nearly_sure_denoisers(name, schedule, rule):
    """K = 1024, T = 100. The bounds are some float32 roundings of log p: nothing is magnified."""
    kernel = kernels.build(name, schedule=schedule, codebook_size=1024, num_steps=100)
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(1, 101, 3)
    x_0 = torch.randint(1024, (len(t), 2, 2), generator=generator)
    x_t = kernel.sample(x_0, t, torch.rand(x_0.shape, dtype=torch.float64, generator=generator))
    noise = 1.5 * torch.randn(*x_0.shape, 1024, generator=generator)
    for favoured, certainty in ((x_0, 0.0), (x_0, 8.0), (x_0, 20.0), (x_t.clamp(max=1023), 20.0)):
        start = noise.scatter_add(-1, favoured.unsqueeze(-1), torch.full((*x_0.shape, 1), certainty))
        values, slopes = [], []
        for dtype in (torch.float32, torch.float64):
            logits = start.to(dtype).requires_grad_()
            bound = variational_bound(logits.log_softmax(-1), x_0, x_t, t, kernel, rule)
            values.append(bound.double())
            slopes.append(torch.autograd.grad(bound.sum(), logits)[0].double())
        torch.testing.assert_close(*values, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=5e-6)


def test_a_floor_of_rounding_errors_stays_finite_in_float32():
    alpha_bar = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    gamma_bar = 1 - alpha_bar
    gamma_bar[1:3] -= 1e-16  # as from a checkpoint's buffers: K * beta_bar is 1e-16
    kernel = kernels.Kernel("mask-replace", "buffers", 16384, 3, alpha_bar, gamma_bar)
    assert kernel.beta_bar.max() < 1e-19
    x_0 = torch.zeros(3, 1, 2, dtype=torch.int64)
    x_t = torch.tensor([0, 16384]).expand(3, 1, 2)
    for sure in (0.0, 200.0):
        logits = torch.zeros(3, 1, 2, 16384)
        logits[..., 0] = sure
        logits.requires_grad_()
        bound = variational_bound(logits.log_softmax(-1), x_0, x_t, torch.tensor([1, 2, 3]), kernel)
        (slope,) = torch.autograd.grad(bound.sum(), logits)
        assert bool(bound.isfinite().all() and slope.isfinite().all())


def test_auxiliary_is_the_cross_entropy():
    kernel = kernels.build("uniform", codebook_size=7)
    logits, x_0, _, _ = example(kernel, 5)
    expected = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), x_0, reduction="none")
    torch.testing.assert_close(auxiliary(logits.log_softmax(-1), x_0), expected, rtol=0, atol=1e-12)


def test_an_unknown_rule_is_refused():
    kernel = kernels.build("uniform", codebook_size=3)
    x = torch.zeros(1, 1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="rule must be one of mixture, plug-in"):
        variational_bound(torch.zeros(1, 1, 1, 3), x, x, torch.tensor([1]), kernel, "mean")


ABSORBING = ["linear", "maskgit-cosine"]


@pytest.mark.parametrize("schedule", ABSORBING)
def test_the_bound_of_a_kernel_that_only_masks_is_a_weighted_cross_entropy_of_its_masked_cells(schedule):
    kernel = kernels.build("absorbing", schedule=schedule, codebook_size=5, num_steps=7)
    logits, x_0, x_t, t = example(kernel, 40)
    log_x0 = logits.log_softmax(-1)
    entropy = torch.where(x_t == kernel.mask_id, auxiliary(log_x0, x_0), 0.0)
    for name in ("bound", "elbo"):
        weights = losses.masked_weights(LOSSES[name], kernel)[t].view(-1, 1, 1)
        dense = 7 * dense_bound(log_x0, x_0, x_t, t, kernel, "mixture")
        torch.testing.assert_close(weights * entropy, dense, rtol=1e-12, atol=1e-12)
    plain = losses.masked_weights(LOSSES["reweighted"], kernel)
    torch.testing.assert_close(plain[1:], torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_weights_of_a_linear_schedule_are_those_of_unleashing_transformers():
    kernel, t = kernels.build("absorbing", codebook_size=5, num_steps=8), torch.arange(1, 9).double()
    for name, expected in (
        ("elbo", 8 / t),
        ("reweighted-elbo", 1 - t / 8),
        ("reweighted-elbo-fixed", (8 - t + 1) / 8),
    ):
        weights = losses.masked_weights(LOSSES[name], kernel)[1:]
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mask-replace", "absorbing", "uniform"])
def test_reweighting_undoes_how_much_of_x_0_a_step_loses(name):
    kernel = build_kernel(name, codebook_size=5, num_steps=50)
    weights = LOSSES["reweighted"].weights(kernel)
    assert torch.isfinite(weights).all()
    falls = kernel.alpha_bar[:-1] - kernel.alpha_bar[1:]
    torch.testing.assert_close(weights[1:] * falls, 1 - kernel.alpha_bar[1:], atol=1e-9, rtol=1e-6)


def test_losses_of_masked_cells_are_refused_for_other_kernels_and_the_error_says_what_fits():
    for kernel in ("mask-replace", "uniform"):
        for name, loss in LOSSES.items():
            built = build_kernel(kernel, codebook_size=5)
            if loss.of_masked:
                with pytest.raises(VqtoolError, match=f"not with {kernel}; losses that fit that: reweighted, bound"):
                    losses.find(name, built)
            else:
                assert losses.find(name, built) is loss
    with pytest.raises(VqtoolError, match="`loss` l2: unknown; known are reweighted, bound, elbo"):
        losses.find("l2", kernels.build("absorbing", codebook_size=5))


def test_a_loss_of_the_masked_share_has_no_weights_by_step():
    with pytest.raises(ValueError, match="no weights that depend on t alone"):
        losses.masked_weights(LOSSES["mlm"], kernels.build("absorbing", codebook_size=5))


def golden(name):
    """Tensors of a golden folder; steps as ours, 1..T, and tokens as (B, 4, 4)."""
    found = load_file(GOLDEN / name / "io.safetensors")
    return found, found["x0"].view(-1, 4, 4), found["x_t"].view(-1, 4, 4)


# Folder, schedule, weight of the auxiliary term.
PUBLISHED = [
    ("ms-prior-text", "release", 5e-4),
    ("ms-prior-class", "release", 1e-3),
    ("ms-prior-uncond", "release", 1e-3),
    ("ms-prior-convmlp", "paper", 1e-3),
]


@pytest.mark.parametrize(("name", "schedule", "weight"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_losses_and_histories_equal_those_of_vq_diffusion(name, schedule, weight):
    found, x_0, x_t = golden(name)
    log_x0 = found["log_p_x0"][:, :-1].transpose(1, 2).unflatten(1, (4, 4)).double()  # without the mask's floor
    num_tokens, t = log_x0.shape[-1], found["t"] + 1
    kernel = kernels.build("mask-replace", schedule=schedule, codebook_size=num_tokens)
    weights = cell_weights(x_t, t, kernel, 1.0, 1.0)
    bound = (weights * variational_bound(log_x0, x_0, x_t, t, kernel)).sum((1, 2))
    entropy = (weights * auxiliary(log_x0, x_0)).sum((1, 2))
    later = t > 1
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(bound[later].float(), found["loss_kl"][later], **close)
    torch.testing.assert_close(bound[~later].float(), found["loss_decoder_nll"][~later], **close)
    torch.testing.assert_close(entropy.float(), found["loss_aux_ce"], **close)
    each = (bound + weight * adaptive_factor(t, 100) * entropy) / found["pt"].double()
    torch.testing.assert_close(each.float(), found["loss_per_image"], **close)
    torch.testing.assert_close((each.sum() / x_0.numel()).float(), found["loss_total"], **close)

    file = next((GOLDEN / name).glob("*.pth"))
    stored = read_source(file, file.with_name("config.yaml")).content["ema"]
    history = History(100)
    history.load_state_dict({"square": stored["Lt_history"].double(), "count": stored["Lt_count"].long()})
    torch.testing.assert_close(history.probabilities().float(), found["importance_p_t"], rtol=1e-5, atol=0)
    history.update(t, bound)
    torch.testing.assert_close(history.square.float(), found["Lt_history_after"], rtol=2e-5, atol=0)
    assert torch.equal(history.count, found["Lt_count_after"].long())


def test_losses_and_histories_equal_those_of_unleashing_transformers():
    found, x_0, x_t = golden("ut-absorbing")
    kernel = kernels.build("absorbing", codebook_size=56, num_steps=16)
    t = found["t"]
    entropy = auxiliary(found["logits"].double().log_softmax(-1).unflatten(1, (4, 4)), x_0)
    masked = (entropy * (x_t == kernel.mask_id)).sum((1, 2))
    bits = math.log(2) * 16  # of a cell
    elbo = masked * losses.masked_weights(LOSSES["elbo"], kernel)[t] / bits
    reweighted = masked * losses.masked_weights(LOSSES["reweighted-elbo"], kernel)[t] / bits
    mlm = masked / (x_t == kernel.mask_id).sum((1, 2))
    for name, ours in (("elbo", elbo), ("reweighted_elbo", reweighted), ("mlm", mlm)):
        torch.testing.assert_close(ours.float(), found[f"loss_{name}_per_image"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.mean().float(), found[f"loss_{name}"], rtol=1e-5, atol=1e-6)
    stored = read_source(GOLDEN / "ut-absorbing" / "absorbing_ema_2000000.th").content
    history = History(17)  # theirs has an entry for t = 0
    history.load_state_dict({"square": stored["Lt_history"].double(), "count": stored["Lt_count"].long()})
    history.update(t + 1, elbo)
    torch.testing.assert_close(history.square.float(), found["Lt_history_after"], rtol=2e-5, atol=0)


@pytest.mark.parametrize("name", ["vqddm-unet", "vqddm-noise"])
def test_losses_equal_those_of_vq_ddm(name):
    found, x_0, x_t = golden(name)
    log_x0 = found["log_p_x0"].movedim(1, -1).double()
    log_x0 = log_x0.reshape(*x_0.shape, log_x0.shape[-1])  # the noise variant has an axis more
    kernel = kernels.build("uniform", schedule="cosine", codebook_size=log_x0.shape[-1])
    t = found["t"] + 1
    bound = variational_bound(log_x0, x_0, x_t, t, kernel, "plug-in").sum((1, 2))
    torch.testing.assert_close(bound.float(), found["loss_Lt"], rtol=1e-5, atol=5e-5)
    left = stationary_term(x_0, kernel).sum((1, 2))
    torch.testing.assert_close(left.float(), found["kl_prior"], rtol=0, atol=2e-5)
    bits = (bound * 100 + left).sum() / (math.log(2) * x_0.numel())
    torch.testing.assert_close(bits.float(), found["bits_per_dim"], rtol=1e-5, atol=5e-4)


def test_mask_weights_count_masked_and_other_cells_but_not_the_decoder_term():
    kernel = build_kernel("mask-replace", codebook_size=5, num_steps=4)
    x_t = torch.tensor([[[5, 1]], [[5, 1]]])
    assert cell_weights(x_t, torch.tensor([1, 3]), kernel, 0.5, 2.0).tolist() == [[[1, 1]], [[0.5, 2]]]


def test_the_adaptive_factor_falls_from_2_to_nearly_1():
    assert adaptive_factor(torch.tensor([1, 2, 4]), 4).tolist() == [2, 1.75, 1.25]
