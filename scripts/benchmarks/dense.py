"""VQ-Diffusion by stacks of logarithms over all K + 1 states, as published: what the benchmarks compare with.

One-hot vectors are logarithms with a floor of 1e-30, probabilities have one of exp(-70), x_t is drawn by the largest of
Gumbel variables. Nothing of it is used by vqtool.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vqtool.denoisers.vq_diffusion import Network
from vqtool.diffusion.kernels import Kernel

FLOOR = -70.0


def log_one_hot(x: Tensor, num: int) -> Tensor:
    """(B, num, N) of tokens (B, N)."""
    return F.one_hot(x, num).movedim(-1, 1).float().clamp(min=1e-30).log()


class DenseDiffusion:
    """The chain with float32 tables of the logarithms of its rates."""

    def __init__(self, kernel: Kernel) -> None:
        self.num_tokens, self.num_steps = kernel.codebook_size, kernel.num_steps
        t = torch.arange(kernel.num_steps + 1)
        alpha, beta, gamma = kernel.transition((t - 1).clamp(min=0), t)
        self.one_step = self._logs(alpha, beta, gamma)
        self.cumulative = self._logs(*kernel.cumulative(t))

    @staticmethod
    def _logs(alpha: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
        """Each (T + 1, 1, 1): keep, replace, mask, not mask."""
        return tuple(rate.log().float().view(-1, 1, 1) for rate in (alpha, beta, gamma, 1 - gamma))

    def _move(self, log_p: Tensor, rates: tuple[Tensor, ...], t: Tensor) -> Tensor:
        """(B, K + 1, N): where states with these probabilities go."""
        keep, replace, mask, rest = (rate[t] for rate in rates)
        tokens = torch.logaddexp(log_p[:, :-1] + keep, replace)
        return torch.cat([tokens, torch.logaddexp(log_p[:, -1:] + rest, mask)], dim=1)

    def sample(self, x_0: Tensor, t: Tensor) -> Tensor:
        """Draw x_t (B, N)."""
        log_p = self._move(log_one_hot(x_0, self.num_tokens + 1), self.cumulative, t)
        noise = -torch.log(-torch.log(torch.rand_like(log_p) + 1e-30) + 1e-30)
        return (log_p + noise).argmax(1)

    def posterior(self, log_x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, K + 1, N): log p(x_{t-1} | x_t) of log p(x_0), (B, K + 1, N)."""
        log_x_t, masked = log_one_hot(x_t, self.num_tokens + 1), (x_t == self.num_tokens)[:, None]
        impossible = torch.full_like(log_x_t[:, :1], 1e-30).log()
        from_x_0 = self._move(log_x_t, self.cumulative, t)[:, :-1]
        from_x_0 = torch.where(masked, self.cumulative[2][t], from_x_0)
        from_before = self._move(log_x_t, self.one_step, t)[:, :-1]
        from_before = torch.where(masked, self.one_step[2][t], from_before)
        from_before = torch.cat([from_before, torch.where(masked, 0.0, impossible)], dim=1)
        weights = torch.cat([log_x0[:, :-1] - from_x_0, impossible], dim=1)
        total = weights.logsumexp(1, keepdim=True)
        return (self._move(weights - total, self.cumulative, t - 1) + from_before + total).clamp(FLOOR, 0)

    def loss(self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, auxiliary_weight: float) -> Tensor:
        """T times the mean over cells of the bound's term t and the weighted cross-entropy; output is (B, K, N)."""
        log_x0 = output.double().log_softmax(1).float()
        log_x0 = torch.cat([log_x0, torch.full_like(log_x0[:, :1], FLOOR)], dim=1).clamp(FLOOR, 0)
        log_true = log_one_hot(x_0, self.num_tokens + 1)
        theirs, ours = self.posterior(log_true, x_t, t), self.posterior(log_x0, x_t, t)
        divergence = (theirs.exp() * (theirs - ours)).sum(1)
        decoder = -(log_true.exp() * log_x0).sum(1)
        entropy = (log_true[:, :-1].exp() * (log_true[:, :-1] - log_x0[:, :-1])).sum(1)
        first = (t == 1)[:, None]
        terms = torch.where(first, decoder, divergence) + auxiliary_weight * torch.where(first, decoder, entropy)
        return self.num_steps * terms.mean()


def dense_logits(network: Network, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """(B, N, K): the text network of VQ-Diffusion with the matrix of attention weights; the text anew in every call."""
    config = network.config
    places = network._places((x_t.shape[1], x_t.shape[2]))
    x = network.tokens(x_t.flatten(1)) + places
    for block in network.blocks:
        h = _adaptive_norm(block.attention_norm, x, t)
        q, k, v = (F.linear(h, w, b) for w, b in zip(*_thirds(block.attention.qkv, 3), strict=True))
        x = x + block.attention.out(_attend(q, k, v, config.num_heads))
        h = block.cross.q(_adaptive_norm(block.cross_norm, x, t))
        k, v = (F.linear(text, w, b) for w, b in zip(*_thirds(block.cross.kv, 2), strict=True))
        x = x + block.cross.out(_attend(h, k, v, config.num_heads))
        h = block.mlp.first(block.mlp_norm(x))
        x = x + block.mlp.second(h * torch.sigmoid(1.702 * h))
    logits: Tensor = network.head(network.norm(x))
    return logits


def _thirds(linear: torch.nn.Linear, num: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return linear.weight.chunk(num), linear.bias.chunk(num)


def _adaptive_norm(norm: torch.nn.Module, x: Tensor, t: Tensor) -> Tensor:
    scale, shift = norm.linear(F.silu(norm.table(t - 1)))[:, None].chunk(2, dim=2)
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    q, k, v = (each.view(len(each), each.shape[1], num_heads, -1).transpose(1, 2) for each in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)
