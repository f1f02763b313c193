"""`--cache`: grids a second by how many calls keys and values are kept, against none kept."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

import vqtool
from benchmarks import Row, alternate
from vqtool import conditions, denoisers
from vqtool.diffusion import kernels
from vqtool.priors import GridSpec, Prior

SIDE, TOKENS, STEPS, CALLS = 16, 1024, 100, 25
NETWORKS = (("transformer", "small"), ("transformer", "base"), ("transformer", "large"), ("halton-maskgit", "tiny"))
SAMPLERS = ("ancestral", "fewer", "purity")
KEPT = (2, 4, 8)


def _prior(name: str, size: str) -> Prior:
    """Random weights: how long a call takes does not depend on them."""
    torch.manual_seed(0)
    config = {"codebook_size": TOKENS, "grid_size": (SIDE, SIDE), "num_steps": STEPS}
    denoiser = denoisers.build(name, config | denoisers.module(name).SIZES[size]).eval().requires_grad_(False)
    kernel = kernels.build("absorbing", codebook_size=TOKENS, num_steps=STEPS)
    spec = GridSpec("", "", (SIDE, SIDE), (8 * SIDE, 8 * SIDE), "")
    return Prior(kernel, denoiser, name, conditions.build("none"), spec, "direct")


def cache(folder: Path, num: int) -> Iterator[Row]:
    """Sampling of a grid of 16x16 in 25 steps: no cache over a cache, medians of turns."""
    for name, size in NETWORKS:
        prior = _prior(name, size)
        for sampler in SAMPLERS:
            draw: Callable[..., object] = partial(vqtool.sample, prior, 1, sampler=sampler, steps=CALLS)
            for kept in KEPT:
                ratio = alternate(draw, partial(draw, cache=kept), repeats=5)
                yield f"{name} {size}, {SIDE}x{SIDE}, {sampler}, no cache over `--cache {kept}`", str(ratio)
