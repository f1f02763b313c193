"""Small denoisers with random weights."""

import torch

from vqtool import denoisers
from vqtool.denoisers import Denoiser


def shaken(name: str, **more: object) -> Denoiser:
    """The smallest network of a kind for 8x8 cells of 13 codes, with all weights away from 0."""
    file = denoisers.module(name)
    size = dict(next(iter(file.SIZES.values())))
    config = {"codebook_size": 13, "grid_size": (8, 8), "num_steps": 20, **size, **more}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = denoisers.build(name, config).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network
