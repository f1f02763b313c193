"""Noise, loss and its gradient of one training step, against the dense formulation; and tokens in parts."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import Row, race
from benchmarks.dense import DenseDiffusion
from vqtool import conditions, denoisers
from vqtool.cli.main import _keep_freed_memory
from vqtool.denoisers import transformer
from vqtool.diffusion import kernels
from vqtool.diffusion.losses import auxiliary, variational_bound
from vqtool.diffusion.parameterisations import log_probabilities
from vqtool.priors import GridSpec, Prior
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.loop import measure_step_seconds
from vqtool.training.objectives import PriorLoss, PriorObjective

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


def step(folder: Path, num: int) -> Iterator[Row]:
    """A whole step of `transformer`, 32 grids of 8x8, K = 1024, classes, on the default kernel and on absorbing.

    Run it in two checkouts in turn to compare them; `vqtool` keeps freed memory as this does.
    """
    _keep_freed_memory()
    for size in ("tiny", "small"):
        for kernel in ("mask-replace", "absorbing"):
            torch.manual_seed(0)
            conditioner = conditions.build("class", ["a", "b", "c"])
            config = {"codebook_size": TOKENS, "grid_size": (8, 8), "num_steps": STEPS, "num_classes": 3}
            network = denoisers.build("transformer", config | denoisers.module("transformer").SIZES[size])
            process = kernels.build(kernel, codebook_size=TOKENS, num_steps=STEPS)
            prior = Prior(process, network, "transformer", conditioner, GridSpec("", "", (8, 8), (64, 64), ""))
            noise = np.random.default_rng(0)
            grids = noise.integers(0, TOKENS, (512, 8, 8))
            data = GridData(grids, torch.from_numpy(noise.integers(0, 3, 512)), prior.grid_spec)
            run = LoopConfig(1000, 32)
            objective = PriorObjective(prior, data, PriorLoss(), run)
            seconds = measure_step_seconds(network, objective, num_items=len(data), config=run)
            yield f"training step of transformer {size}, {kernel}", f"{32 / seconds:.0f} pictures/s"


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


def parts(folder: Path, num: int) -> Iterator[Row]:
    """A step's forward and backward pass, and a call without gradient: 16,384 codes whole, and as two parts of 128.

    `transformer` base on two grids of 16x16 tokens, by the processor's clock; the loss is that of an absorbing kernel.
    """
    networks, grids = {}, {}
    for count, codes in ((1, 16384), (2, 128)):
        config = transformer.Config(codes, (16, 16 * count), 100, num_parts=count, **transformer.SIZES["base"])
        networks[count] = transformer.Network(config)
        grids[count] = torch.randint(codes + 1, (2, 16, 16 * count))
    t = torch.tensor([20, 80])

    def step(count: int) -> None:
        log_p = networks[count](grids[count], t).log_softmax(-1)
        loss = -log_p.gather(-1, grids[count].clamp(max=log_p.shape[-1] - 1)[..., None]).mean()
        torch.autograd.grad(loss, [*networks[count].parameters()], allow_unused=True)

    @torch.no_grad()
    def call(count: int) -> None:
        networks[count](grids[count], t).log_softmax(-1)

    sizes = [sum(value.numel() for value in networks[count].parameters()) / 1e6 for count in networks]
    yield "weights of `transformer` base, K = 16,384, whole and in two parts", f"{sizes[0]:.1f} and {sizes[1]:.1f} M"
    for name, function in (("training step", step), ("call", call)):
        whole, apart = race(lambda f=function: f(1), lambda f=function: f(2), repeats=3, clock=time.process_time)  # type: ignore[misc]
        figure = f"{whole / apart:.1f}x ({whole * 500:.0f} and {apart * 500:.0f} ms a grid)"
        yield f"{name} of it, whole over two parts", figure
