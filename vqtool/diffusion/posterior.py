"""q(x_s | x_t, x_0) for any s < t, its average under the denoiser, and draws from both; the same code for all kernels.

Three numbers describe p(x_s) of one cell, for every kernel: with v = x_t,

    p(x_s = v) = stay,        p(x_s = j) = scale * p(x_0 = j) + floor   for every token j other than v.

For v = MASK, stay = gamma_bar_s / gamma_bar_t. So a distribution over K + 1 states costs one pass over the K tokens and
no matrix. Two rules make it from the denoiser's p(x_0):

    mixture   the average of the posterior over x_0 ~ p(x_0)                    (VQ-Diffusion, D3PM)
    plug-in   the posterior with p(x_0) in the place of x_0, normalised         (VQ-DDM, multinomial diffusion)

For a masked cell they agree. Train and sample with the mixture if the denoiser models p(x_0 | all cells), and with the
plug-in if it models p(x_0 | the other cells): the plug-in itself adds the evidence of a cell's own x_t. With the other
rule that evidence is counted twice or not at all.

To sample, draw x_0 from the denoiser with ``draw``, then x_s with ``sample_posterior``: exactly the mixture, and O(1) a
cell beyond the first draw.

Tokens x_0 that cannot have led to x_t get probability 0 and the others are renormalised; if there are no others, x_t
is kept.

Source: Austin et al. 2021 (arXiv:2107.03006), section 3; Hoogeboom et al. 2021 (arXiv:2102.05379), equation 13.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtool.diffusion._arithmetic import log_add, nonzero, quotient, safe_log
from vqtool.diffusion.kernels import Kernel
from vqtool.errors import NotFiniteError

RULES = ("mixture", "plug-in")
DAMAGED = "a row of log-probabilities holds NaN, +inf or nothing above -inf: a prior is damaged"


class Cells(NamedTuple):
    """Log p(x_s | x_t) of each cell as three numbers, (B, H, W) float64: see the equation above."""

    log_scale: Tensor
    log_floor: Tensor
    log_stay: Tensor


def posterior(x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel) -> Tensor:
    """Log q(x_s | x_t, x_0).

    Args:
        x_0: (B, H, W) int64 tokens.
        x_t: (B, H, W) int64 tokens or mask_id.
        t: (B,) int64 in [1, T].
        s: (B,) int64 in [0, t): the cleaner step.
        kernel: the forward process.

    Returns:
        (B, H, W, K + 1) float64 log-probabilities, nats; exp sums to 1 over the last axis.

    Raises:
        ValueError: some s is not below its t, or a step or token is out of range.
    """
    cells = known_cells(x_0, x_t, t, s, kernel)
    log_p = cells.log_floor.unsqueeze(-1).repeat(1, 1, 1, kernel.codebook_size + 1)
    log_p[..., kernel.mask_id] = -torch.inf
    original = log_add(cells.log_scale, cells.log_floor)
    log_p.scatter_(-1, x_0.unsqueeze(-1), original.unsqueeze(-1))
    return log_p.scatter_(-1, x_t.unsqueeze(-1), cells.log_stay.unsqueeze(-1))


def average_posterior(
    log_x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel, rule: str = "mixture"
) -> Tensor:
    """Log p(x_s | x_t): the posterior averaged over the denoiser's x_0.

    Args:
        log_x0: (B, H, W, K) log-probabilities, nats.
        x_t: (B, H, W) int64 tokens or mask_id.
        t: (B,) int64 in [1, T].
        s: (B,) int64 in [0, t): the cleaner step to go to.
        kernel: the forward process that made x_t.
        rule: "mixture" or "plug-in".

    Returns:
        (B, H, W, K + 1) log-probabilities, nats, of log_x0's type; exp sums to 1 over the last axis.

    Raises:
        ValueError: some s is not below its t, a step or token is out of range, or the rule is unknown.

    Source: Gu et al. 2022 (arXiv:2111.14822), the sum over x_0 in section 4.1; Hoogeboom et al. 2021, equation 13.
    """
    cells = average_cells(log_x0, x_t, t, s, kernel, rule)
    log_scale, log_floor, log_stay = (number.to(log_x0.dtype).unsqueeze(-1) for number in cells)
    scaled = log_x0 + log_scale  # (B, H, W, K)
    codes = log_add(scaled, log_floor) if replaces(kernel) else scaled
    return F.pad(codes, (0, 1), value=-torch.inf).scatter_(-1, x_t.unsqueeze(-1), log_stay)


def sample_posterior(x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel, noise: Tensor) -> Tensor:
    """Draw x_s from q(x_s | x_t, x_0) with one uniform number and O(1) work a cell.

    With x_0 drawn from the denoiser, x_s follows the mixture exactly.

    Args:
        x_0: (B, H, W) int64 tokens.
        x_t: (B, H, W) int64 tokens or mask_id.
        t: (B,) int64 in [1, T].
        s: (B,) int64 in [0, t).
        kernel: the forward process.
        noise: (B, H, W) float64, uniform in [0, 1).

    Returns:
        (B, H, W) int64 tokens or mask_id; never one of probability 0.

    Raises:
        ValueError: some s is not below its t, or a step or token is out of range.
    """
    scale, floor, stay = (number.exp() for number in known_cells(x_0, x_t, t, s, kernel))
    move = scale.where(x_0 != x_t, 0.0)
    left = noise - stay - move  # what is left goes to all tokens but x_t alike
    others = kernel.codebook_size - (x_t < kernel.mask_id).long()
    anew = (left / (1.0 - stay - move).clamp(min=torch.finfo(torch.float64).tiny) * others).long()
    anew = torch.minimum(anew.clamp(min=0), (others - 1).clamp(min=0))
    anew = (anew + (anew >= x_t).long()).clamp(max=kernel.codebook_size - 1)
    x_s = torch.where((left < 0) | (floor == 0), x_0, anew)
    return torch.where(noise < stay, x_t, x_s)


def least_stay(x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel, rule: str = "mixture") -> Tensor:
    """Lower bound of p(x_s = x_t) over all possible outputs of the denoiser. For a masked cell it is exact.

    A cell whose uniform number lies below it keeps x_t whatever the denoiser predicts, so a sampler can leave it out of
    the call.

    Args:
        x_t: (B, H, W) int64 tokens or mask_id.
        t: (B,) int64 in [1, T].
        s: (B,) int64 in [0, t).
        kernel: the forward process.
        rule: "mixture" (and any known x_0) or "plug-in".

    Returns:
        (B, H, W) float64.
    """
    sure = torch.zeros_like(x_t, dtype=torch.float64)
    never = torch.full_like(sure, -torch.inf)
    if rule == "plug-in":  # grows with p(x_0 = x_t)
        return _plug_in(never, x_t, t, s, kernel).log_stay.exp()
    cases = (_mixture(sure, never, x_t, t, s, kernel), _mixture(never, sure, x_t, t, s, kernel))
    return torch.minimum(cases[0].log_stay, cases[1].log_stay).exp()


def log_evidence(t: Tensor, kernel: Kernel) -> Tensor:
    """What an unmasked x_t tells about its x_0: log q(x_t | x_0 = x_t) - log q(x_t | x_0 = k) for any other k.

    Args:
        t: (B,) int64 in [0, T].
        kernel: the forward process that made x_t.

    Returns:
        (B,) float64, nats; about 700 where x_t must be x_0.
    """
    alpha_bar, beta_bar, _ = kernel.cumulative(t)
    return torch.log1p(alpha_bar / beta_bar.clamp(min=1e-300))


def add_at_tokens(log_p: Tensor, x_t: Tensor, amount: Tensor, mask_id: int) -> Tensor:
    """Add (B,) amounts to (B, ..., K) logits at the token of each unmasked cell of x_t (B, ...)."""
    known = x_t < mask_id
    added = torch.where(known, amount.to(log_p).view(-1, *[1] * (x_t.ndim - 1)), 0.0)
    return log_p.scatter_add(-1, torch.where(known, x_t, 0)[..., None], added[..., None])


def draw(log_p: Tensor, noise: Tensor) -> Tensor:
    """One token per row by the inverse of its cumulative distribution, summed in float64: unbiased for rare tokens too.

    Args:
        log_p: (..., K) log-probabilities; they need not be normalised.
        noise: (...) float64, uniform in [0, 1).

    Returns:
        (...) int64 in [0, K), never a token of probability 0.

    Raises:
        ValueError: the noise is not float64, or a row holds NaN or no probability at all.
    """
    cumulative = log_p.exp().double().cumsum(-1)  # (..., K); cumsum's own conversion is five times as slow
    return invert(cumulative, noise, cumulative[..., -1])


def invert(cumulative: Tensor, noise: Tensor, total: Tensor) -> Tensor:
    """Index (...) of the first entry of a cumulative sum (..., K) above noise * total.

    Raises:
        ValueError: the noise is not float64.
        NotFiniteError: a total is not a positive number. A GPU would have to be waited for: there the index is any.
    """
    if noise.dtype != torch.float64:
        raise ValueError(f"noise must be float64, is {noise.dtype}: with fewer digits rare tokens are drawn too rarely")
    on_cpu = noise.device.type == "cpu"
    if on_cpu and not bool(((total > 0) & (total < torch.inf)).all()):
        raise NotFiniteError(DAMAGED)
    index = torch.searchsorted(cumulative, (noise * total).unsqueeze(-1), right=True).squeeze(-1)
    return index if on_cpu else index.clamp(max=cumulative.shape[-1] - 1)


def replaces(kernel: Kernel) -> bool:
    """Whether the kernel replaces tokens by others (beta_bar > 0). If not, every cell's floor is 0."""
    return bool((kernel.beta_bar > 0).any())


def known_cells(x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel) -> Cells:
    """The numbers of q(x_s | x_t, x_0)."""
    same = torch.where(x_0 == x_t, 0.0, -torch.inf).double()
    other = torch.where(x_0 == x_t, -torch.inf, 0.0).double()
    return _mixture(same, other, x_t, t, s, kernel)


def average_cells(log_x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel, rule: str) -> Cells:
    """The numbers of the posterior averaged over log_x0 (B, H, W, K) by the rule."""
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, is {rule!r}")
    token = x_t.clamp(max=kernel.codebook_size - 1).unsqueeze(-1)
    same = log_x0.gather(-1, token).squeeze(-1).double()
    if rule == "plug-in":
        return _plug_in(same, x_t, t, s, kernel)
    # Not 1 - p(x_0 = x_t): if p(x_0 = x_t) is close to 1, that difference is all rounding error.
    if replaces(kernel):
        other = safe_log(_OtherTokens.apply(log_x0, token).double())  # type: ignore[no-untyped-call]
    else:
        other = torch.full_like(same, -torch.inf)
    return _mixture(same, other, x_t, t, s, kernel)


class _OtherTokens(torch.autograd.Function):
    """Sum of p over all tokens but one; p is recomputed in the backward pass, so no (B, H, W, K) tensor is stored."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, token: Tensor) -> Tensor:
        ctx.save_for_backward(log_p, token)
        return log_p.exp().scatter_(-1, token, 0.0).sum(-1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        log_p, token = ctx.saved_tensors
        return log_p.exp().scatter_(-1, token, 0.0).mul_(slopes[0].unsqueeze(-1)), None


class _Rates(NamedTuple):
    """Cumulative rates at s and t, and those from s to t: (B, 1, 1) float64."""

    alpha_s: Tensor
    beta_s: Tensor
    gamma_s: Tensor
    alpha_t: Tensor
    beta_t: Tensor
    gamma_t: Tensor
    alpha: Tensor
    beta: Tensor


def _rates(x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel) -> _Rates:
    if x_t.device.type == "cpu":  # a GPU would have to wait for the answer
        if not bool((s < t).all()):
            raise ValueError(f"every s must be below its t; s is {s.tolist()}, t is {t.tolist()}")
        last = kernel.mask_id if kernel.has_mask else kernel.codebook_size - 1
        if x_t.numel() and not 0 <= int(x_t.min()) <= int(x_t.max()) <= last:
            raise ValueError(f"x_t must lie in [0, {last}], spans [{int(x_t.min())}, {int(x_t.max())}]")
    alpha, beta, _ = kernel.transition(s, t)
    numbers = (*kernel.cumulative(s), *kernel.cumulative(t), alpha, beta)
    return _Rates(*(number.view(-1, 1, 1) for number in numbers))


def _mixture(same: Tensor, other: Tensor, x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel) -> Cells:
    """The numbers of sum_k q(x_s | x_t, x_0 = k) p(k), from log p(x_0 = x_t) and log p(x_0 != x_t)."""
    r = _rates(x_t, t, s, kernel)
    reachable = r.beta_t > 0  # whether x_0 other than x_t can have become x_t
    same = torch.where(reachable, same, 0.0)
    other = torch.where(reachable, other, -torch.inf)
    # q(x_t | x_0) is alpha_t + beta_t if x_0 = x_t, else beta_t.
    stay_same = torch.where(reachable, (r.alpha + r.beta) * (r.alpha_s + r.beta_s) / nonzero(r.alpha_t + r.beta_t), 1.0)
    stay_other = quotient((r.alpha + r.beta) * r.beta_s, r.beta_t)
    floor_same = quotient(r.beta * r.beta_s, r.alpha_t + r.beta_t)
    floor_other = quotient(r.beta * r.beta_s, r.beta_t)
    seen = Cells(
        log_scale=quotient(r.beta * r.alpha_s, r.beta_t).log(),
        log_floor=log_add(floor_same.log() + same, floor_other.log() + other),
        log_stay=log_add(stay_same.log() + same, stay_other.log() + other),
    )
    return _choose(x_t == kernel.mask_id, _masked(r), seen)


def _plug_in(same: Tensor, x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel) -> Cells:
    """The numbers of q(x_t | x_s) sum_k q(x_s | x_0 = k) p(k), normalised, from log p(x_0 = x_t)."""
    r = _rates(x_t, t, s, kernel)
    before = log_add(r.alpha_s.log() + same, r.beta_s.log())  # log p(x_s = x_t) without x_t
    total = log_add((r.beta * (1.0 - r.gamma_s)).log(), r.alpha.log() + before)
    possible = total > -torch.inf
    total = total.where(possible, 0.0)
    seen = Cells(
        log_scale=(r.beta * r.alpha_s).log() - total,
        log_floor=(r.beta * r.beta_s).log() - total,
        log_stay=torch.where(possible, (r.alpha + r.beta).log() + before.where(possible, 0.0) - total, 0.0),
    )
    return _choose(x_t == kernel.mask_id, _masked(r), seen)


def _masked(r: _Rates) -> Cells:
    """The numbers of a masked cell: with probability 1 - gamma_s / gamma_t it is unmasked, to x_s ~ q(x_s | token)."""
    opens = torch.where(r.gamma_t > 0, (r.gamma_t - r.gamma_s) / nonzero(r.gamma_t), 1.0)
    return Cells(
        log_scale=(opens * quotient(r.alpha_s, 1.0 - r.gamma_s)).log(),
        log_floor=(opens * quotient(r.beta_s, 1.0 - r.gamma_s)).log(),
        log_stay=quotient(r.gamma_s, r.gamma_t).log(),
    )


def _choose(masked: Tensor, if_masked: Cells, if_seen: Cells) -> Cells:
    return Cells(*(torch.where(masked, a, b) for a, b in zip(if_masked, if_seen, strict=True)))
