"""Priors for tests: the exact denoiser of a known law over tiny grids, and small networks with random weights."""

import itertools

import torch

from support.matrices import build_kernel
from vqtool import conditions, denoisers
from vqtool.denoisers import Denoiser, EncodedCondition, transformer
from vqtool.priors import GridSpec, Prior

FINGERPRINT = "0123456789abcdef"


def grid_spec(grid_size):
    """Of grids made by the built-in tokenizer."""
    return GridSpec(FINGERPRINT, "builtin", grid_size, (8 * grid_size[0], 8 * grid_size[1]), "crop")


class ExactDenoiser(Denoiser):
    """p(x_0 cell = k | x_t) by Bayes' rule, enumerating all grids; its forward counts its calls."""

    def __init__(self, law, grid_size, kernel):
        super().__init__()
        size = grid_size[0] * grid_size[1]
        grids = list(itertools.product(range(kernel.codebook_size), repeat=size))
        self.grids = torch.tensor(grids)  # (G, N)
        self.law = torch.as_tensor(law, dtype=torch.float64).flatten()  # (G,)
        self.kernel = kernel
        self.calls = 0
        self.seen = []  # (t, masked cells) of each call
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def encode_condition(self, condition):
        return EncodedCondition()

    def set_frequencies(self, frequencies):
        raise NotImplementedError

    def forward(self, x_t, t, condition=None, cells=None):
        self.calls += 1
        self.seen.append((int(t[0]), (x_t == self.kernel.mask_id).flatten(1).sum(1).tolist()))
        rows, count = x_t.flatten(1), self.kernel.codebook_size
        alpha, beta, gamma = (rate.view(-1, 1, 1) for rate in self.kernel.cumulative(t))
        seen = rows[:, None] == self.grids[None]  # (B, G, N)
        likelihood = torch.where(rows[:, None] == count, gamma, alpha * seen + beta).prod(-1)  # (B, G)
        joint = likelihood * self.law
        tokens = torch.nn.functional.one_hot(self.grids, count).double()  # (G, N, K)
        marginal = torch.einsum("bg,gnk->bnk", joint, tokens)
        # Places that no sample fills hold grids that may be impossible: they get the even law.
        marginal = torch.where(marginal.sum(-1, keepdim=True) > 0, marginal, 1.0)
        if cells is not None:
            return marginal.log().gather(1, cells[..., None].expand(-1, -1, count))
        return marginal.log().view(*x_t.shape, count)


def exact_prior(law, grid_size, kernel):
    """A prior whose denoiser knows the law of the data."""
    denoiser = ExactDenoiser(law, grid_size, kernel)
    return Prior(kernel, denoiser, "exact", conditions.build("none"), grid_spec(grid_size), parameterisation="direct")


def random_prior(
    kernel="mask-replace", kind="none", grid_size=(4, 6), codebook_size=11, num_steps=20, scale=0.5, **network
):
    """A tiny transformer whose weights are all noise: its predictions differ much between cells and conditions."""
    conditioner = conditions.build(
        kind,
        ["ant", "bee", "cat"] if kind == "class" else None,
        ["an ant", "a bee", "a striped cat"] if kind == "caption" else None,
    )
    forward = build_kernel(kernel, codebook_size=codebook_size, num_steps=num_steps)
    config = {
        "codebook_size": codebook_size,
        "grid_size": list(grid_size),
        "num_steps": num_steps,
        "num_layers": 2,
        "width": 64,
        "num_heads": 2,
        "num_classes": getattr(conditioner, "num_classes", 0),
        "vocabulary_size": getattr(conditioner, "vocabulary_size", 0),
        "max_length": getattr(conditioner, "max_length", 0),
        **network,
    }
    denoiser = denoisers.build("transformer", config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * scale / max(1, parameter.shape[-1]) ** 0.5
            )
        denoiser.head.weight.mul_(8)
    return Prior(forward, denoiser.eval(), "transformer", conditioner, grid_spec(grid_size))


__all__ = ["ExactDenoiser", "exact_prior", "grid_spec", "random_prior", "transformer"]
