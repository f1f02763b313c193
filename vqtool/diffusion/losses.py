"""Training losses and likelihood terms of a prior, per cell, in nats.

The bound on -log p(x_0) is the sum of ``variational_bound`` over t = 1..T plus ``stationary_term``. It is computed from
the three numbers a cell of ``vqtool.diffusion.posterior``: O(K) memory and time a cell, O(1) for kernels that never
replace tokens. Numbers of a cell are float64; only sums over the codebook have the type of log_x0.

``LOSSES`` lists what a prior can be trained with. Each is a mean over all cells of a batch, masked or not, in nats:

    bound                  T * (bound of step t)                         an estimate of the bound on -log p(x_0)
    reweighted             T * (bound of step t) * (1 - alpha_bar_t) / (T (alpha_bar_{t-1} - alpha_bar_t))
    elbo                   T * (gamma_bar_t - gamma_bar_{t-1}) / gamma_bar_t * CE, with a linear schedule T / t * CE
    reweighted-elbo        (1 - gamma_bar_t) * CE: 1 - t / T; grids that are all mask have weight 0
    reweighted-elbo-fixed  (1 - gamma_bar_{t-1}) * CE: (T - t + 1) / T; grids that are all mask count, too
    mlm                    H * W / n * CE with exactly n = max(1, round(gamma_bar_t * H * W)) cells masked
    mdlm                   CE / g with a share g, uniform in (0, 1], of the cells masked: the bound in continuous time

CE is -log p(x_0 | x_t) of a masked cell and 0 elsewhere, so ``mlm`` is the mean over the masked cells of a grid. For a
kernel that only masks, ``bound`` is ``elbo``, and ``reweighted`` leaves the plain CE, at every t.
Sources: Bond-Taylor et al. 2022 (arXiv:2111.12701), section 3.2, and its published code, which divides by ln 2 too and
has no fix; Sahoo et al. 2024 (arXiv:2406.07524), equation 10, for mdlm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqtool.diffusion._arithmetic import log_add, quotient
from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import Cells, average_cells, known_cells, replaces
from vqtool.errors import VqtoolError

# Keeps float32 finite. A larger ratio means a floor below 1e-30, a rounding error of a schedule, with as little weight.
LARGEST_LOG_RATIO = 69.0


@dataclass(frozen=True)
class Loss:
    """One way to train a prior."""

    summary: str  # for help
    weights: Callable[[Kernel], Tensor] | None  # (T + 1,) float64 by t, entry 0 unused; None: 1 / the masked share
    of_masked: bool = True  # of the cross-entropy of masked cells; else of the bound of step t
    noising: str = "steps"  # x_t by the kernel's "steps", by a "count" of masked cells, by a "share" in continuous time
    summed: bool = False  # whether the auxiliary term is a sum over t like the bound; else it is a mean


def find(name: str, kernel: Kernel) -> Loss:
    """The loss of that name, if it is defined for the kernel.

    Raises:
        VqtoolError: the name is unknown, or the loss counts masked cells alone and the kernel also replaces tokens.
    """
    if name not in LOSSES:
        raise VqtoolError(f"`loss` {name}: unknown; known are {', '.join(LOSSES)}")
    if LOSSES[name].of_masked and replaces(kernel):
        fitting = ", ".join(other for other, loss in LOSSES.items() if not loss.of_masked)
        raise VqtoolError(
            f"`loss` {name} counts masked cells alone, so it goes with kernels that do nothing but mask (absorbing), "
            f"not with {kernel.name}; losses that fit that: {fitting}"
        )
    return LOSSES[name]


def masked_weights(loss: Loss, kernel: Kernel) -> Tensor:
    """(T + 1,) float64: a loss of a kernel that only masks, as a weight of the cross-entropy of the masked cells."""
    if loss.weights is None:
        raise ValueError("the loss has no weights that depend on t alone")
    weights = loss.weights(kernel)
    return weights if loss.of_masked else weights * _opening(kernel)


def cell_weights(x_t: Tensor, t: Tensor, kernel: Kernel, masked: float, unmasked: float) -> Tensor:
    """Weights of the terms of masked and unmasked cells: (B, H, W) float64; 1 at t = 1, the decoder's term.

    Source: VQ-Diffusion's published code; every published setting has 1 and 1.
    """
    weights = torch.where(x_t == kernel.mask_id, masked, unmasked).double()
    return torch.where((t == 1).view(-1, 1, 1), 1.0, weights)


def adaptive_factor(t: Tensor, num_steps: int) -> Tensor:
    """Factor of the auxiliary term's weight: falls from 2 at t = 1 to 1 + 1 / T at t = T. (B,) float64.

    Source: VQ-Diffusion's published code, (1 - t' / T) + 1 with its t' = t - 1.
    """
    return 2.0 - (t - 1).double() / num_steps


def variational_bound(
    log_x0: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, kernel: Kernel, rule: str = "mixture"
) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at t = 1 it is the decoder's -log p(x_0 | x_1).

    Args:
        log_x0: (B, H, W, K) log-probabilities of the denoiser, nats.
        x_0: (B, H, W) int64 tokens.
        x_t: (B, H, W) int64 tokens or mask_id, drawn from q(x_t | x_0).
        t: (B,) int64 in [1, T].
        kernel: the forward process that made x_t.
        rule: the average that makes p from log_x0: "mixture" or "plug-in".

    Returns:
        (B, H, W) nats, of log_x0's type; +inf where p gives x_0 no chance.

    Raises:
        ValueError: a step or token is out of range, or the rule is unknown.

    Source: Gu et al. 2022 (arXiv:2111.14822), equation 9; Hu et al. 2022 (arXiv:2112.01799) for "plug-in".
    """
    q = known_cells(x_0, x_t, t, t - 1, kernel)
    p = average_cells(log_x0, x_t, t, t - 1, kernel, rule)
    elsewhere = x_0 != x_t
    log_p0 = log_x0.gather(-1, x_0.unsqueeze(-1)).squeeze(-1).double()
    at_x_t = _divergence(q.log_stay, p.log_stay)
    at_x_0 = _divergence(log_add(q.log_scale, q.log_floor), log_add(p.log_scale + log_p0, p.log_floor))
    bound = at_x_t + torch.where(elsewhere, at_x_0, 0.0)
    if replaces(kernel):
        bound = bound + _elsewhere(log_x0, log_p0, x_0, x_t, q, p)
    return bound.to(log_x0.dtype)


def auxiliary(log_x0: Tensor, x_0: Tensor) -> Tensor:
    """Cross-entropy -log p(x_0 | x_t) of the denoiser: (B, H, W, K) and (B, H, W) to (B, H, W) nats.

    Source: Austin et al. 2021 (arXiv:2107.03006), equation 5.
    """
    return -log_x0.gather(-1, x_0.unsqueeze(-1)).squeeze(-1)


def stationary_term(x_0: Tensor, kernel: Kernel) -> Tensor:
    """KL(q(x_T | x_0) || stationary distribution), nats: information about x_0 in x_T. Independent of the denoiser.

    Args:
        x_0: (B, H, W) int64 tokens.
        kernel: the forward process; stationary is gamma_bar_T at the mask and uniform over the tokens.

    Returns:
        (B, H, W) float64 nats, the same for every token.
    """
    alpha, beta, gamma = (table[-1] for table in (kernel.alpha_bar, kernel.beta_bar, kernel.gamma_bar))
    even = (1.0 - gamma) / kernel.codebook_size
    term = torch.special.xlogy(alpha + beta, (alpha + beta) / even)
    term = term + (kernel.codebook_size - 1) * torch.special.xlogy(beta, beta / even)
    term = torch.where(even > 0, term, 0.0)
    return term.to(x_0.device).expand(x_0.shape)


def _steps(kernel: Kernel) -> Tensor:
    return torch.full((kernel.num_steps + 1,), float(kernel.num_steps), dtype=torch.float64)


def _reweighted(kernel: Kernel) -> Tensor:
    """(1 - alpha_bar_t) / (alpha_bar_{t-1} - alpha_bar_t): steps that destroy much of x_0 get small weights."""
    falls = kernel.alpha_bar[:-1] - kernel.alpha_bar[1:]
    weights = (1 - kernel.alpha_bar[1:]) / falls.clamp(min=1e-12)
    return torch.cat([torch.zeros(1, dtype=torch.float64), torch.where(falls > 0, weights, 0.0)])


def _opening(kernel: Kernel) -> Tensor:
    """(T + 1,): probability that a cell masked at t is not masked at t - 1; 0 at t = 0."""
    before = torch.cat([kernel.gamma_bar[:1], kernel.gamma_bar[:-1]])
    return quotient(kernel.gamma_bar - before, kernel.gamma_bar)


def _visible_before(kernel: Kernel) -> Tensor:
    return 1.0 - torch.cat([kernel.gamma_bar[:1], kernel.gamma_bar[:-1]])


LOSSES: dict[str, Loss] = {
    "reweighted": Loss("for samples", _reweighted, of_masked=False),
    "bound": Loss("for likelihood", _steps, of_masked=False, summed=True),
    "elbo": Loss("the bound of masked cells", lambda kernel: kernel.num_steps * _opening(kernel)),
    "reweighted-elbo": Loss("that of Unleashing Transformers", lambda kernel: 1.0 - kernel.gamma_bar),
    "reweighted-elbo-fixed": Loss("counts grids that are all mask, too", _visible_before),
    "mlm": Loss("a fixed number of masks a step", None, noising="count"),
    "mdlm": Loss("the bound in continuous time", None, noising="share"),
}


def _divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """q log(q / p), and 0 where q is 0, in the gradient too."""
    some = log_q > -torch.inf
    return log_q.exp() * (log_q.where(some, 0.0) - log_p.where(some, 0.0))


def _elsewhere(log_x0: Tensor, log_p0: Tensor, x_0: Tensor, x_t: Tensor, q: Cells, p: Cells) -> Tensor:
    """The part of the divergence over tokens j other than x_t and x_0: q_j = floor, p_j = scale * p(x_0 = j) + floor.

    Summed as log(1 + scale / floor * p(x_0 = j)): terms of one sign, small where p(x_0 = j) is small, so nothing
    cancels in float32.
    """
    num_tokens = log_x0.shape[-1]
    some = q.log_floor > -torch.inf  # q has a floor only where p has one
    log_floor = p.log_floor.where(some, 0.0)
    log_ratio = (p.log_scale - log_floor).where(some, -torch.inf)
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()  # (B, H, W)
    log_seen = log_x0.gather(-1, x_t.clamp(max=num_tokens - 1).unsqueeze(-1)).squeeze(-1).double()
    seen, other = x_t < num_tokens, x_0 != x_t
    above: Tensor = _SumAboveFloor.apply(log_x0, ratio.to(log_x0.dtype)).double()  # type: ignore[no-untyped-call]
    above = above - torch.where(seen, torch.log1p(ratio * log_seen.exp()), 0.0)
    above = above - torch.where(other, torch.log1p(ratio * log_p0.exp()), 0.0)
    count = num_tokens - seen.long() - other.long()
    return q.log_floor.exp() * (count * (q.log_floor.where(some, 0.0) - log_floor) - above)


class _SumAboveFloor(torch.autograd.Function):
    """Sum over the tokens of log(1 + ratio * p): (B, H, W, K) and (B, H, W) to (B, H, W).

    Its derivative, ratio * p / (1 + ratio * p), is computed in the backward pass: no (B, H, W, K) tensor is stored.
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, ratio: Tensor) -> Tensor:
        ctx.save_for_backward(log_p, ratio)
        return log_p.exp().mul_(ratio.unsqueeze(-1)).log1p_().sum(-1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        log_p, ratio = ctx.saved_tensors
        share = (log_p + ratio.log().unsqueeze(-1)).sigmoid_()  # (B, H, W, K)
        by_ratio = slopes[0] * share.sum(-1) / ratio.clamp(min=torch.finfo(ratio.dtype).tiny)
        return share.mul_(slopes[0].unsqueeze(-1)), by_ratio
