"""Noise, loss and its gradient of one training step, against the dense formulation."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import Row, race
from benchmarks.dense import DenseDiffusion
from vqtool.diffusion import kernels
from vqtool.diffusion.losses import auxiliary, variational_bound
from vqtool.diffusion.parameterisations import log_probabilities

NAME = "noise, loss and gradient of a training step"
BATCH, SIZE, TOKENS, STEPS = 8, (16, 16), 1024, 100
AUXILIARY_WEIGHT = 5e-4


class _Case:
    def __init__(self) -> None:
        noise = torch.Generator().manual_seed(0)
        self.kernel = kernels.build("mask-replace", schedule="release", codebook_size=TOKENS, num_steps=STEPS)
        self.dense = DenseDiffusion(self.kernel)
        self.logits = 2 * torch.randn(BATCH, *SIZE, TOKENS, generator=noise)
        self.x_0 = torch.randint(0, TOKENS, (BATCH, *SIZE), generator=noise)
        self.t = torch.randint(1, STEPS + 1, (BATCH,), generator=noise)
        self.t[0] = 1
        self.output = self.logits.flatten(1, 2).transpose(1, 2).contiguous()  # (B, K, N)

    def ours(self, x_t: Tensor | None = None) -> tuple[float, Tensor]:
        """The loss and its gradient, (B, H, W, K)."""
        if x_t is None:
            x_t = self.kernel.sample(self.x_0, self.t, torch.rand(BATCH, *SIZE, dtype=torch.float64))
        logits = self.logits.detach().requires_grad_()
        log_x0 = log_probabilities(logits, x_t, self.t, self.kernel, "direct")
        bound = variational_bound(log_x0, self.x_0, x_t, self.t, self.kernel)
        loss = STEPS * (bound.mean() + AUXILIARY_WEIGHT * auxiliary(log_x0, self.x_0).mean())
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss.item(), gradient

    def theirs(self, x_t: Tensor | None = None) -> tuple[float, Tensor]:
        """The same, (B, K, N)."""
        if x_t is None:
            x_t = self.dense.sample(self.x_0.flatten(1), self.t)
        output = self.output.detach().requires_grad_()
        loss = self.dense.loss(output, self.x_0.flatten(1), x_t.flatten(1), self.t, AUXILIARY_WEIGHT)
        (gradient,) = torch.autograd.grad(loss, output)
        return loss.item(), gradient


def loss(folder: Path, num: int) -> Iterator[Row]:
    """Noise, loss and gradient with respect to the logits, 8 grids of 16x16, K = 1024, without the network.

    Against VQ-Diffusion's formulation by stacks of (B, K + 1, N) logarithms, written out in `benchmarks.dense`; first
    both see the same x_t, and their losses and gradients are compared.
    """
    case = _Case()
    x_t = case.kernel.sample(case.x_0, case.t, torch.rand(BATCH, *SIZE, dtype=torch.float64))
    (ours, slopes), (theirs, their_slopes) = case.ours(x_t), case.theirs(x_t)
    worst = (slopes.flatten(1, 2) - their_slopes.transpose(1, 2)).abs().max() / their_slopes.abs().max()
    yield f"{NAME}, largest difference of gradients", f"{worst:.0e} (losses {ours:.5f} and {theirs:.5f})"
    dense, fast = race(case.theirs, case.ours, repeats=9)
    figure = f"{dense / fast:.1f}x ({dense * 1e3:.0f} and {fast * 1e3:.1f} ms)"
    yield f"{NAME}, the published dense formulation over ours", figure
