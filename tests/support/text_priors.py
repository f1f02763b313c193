"""A random text encoder, and a prior that reads captions by it."""

from dataclasses import replace
from pathlib import Path

import torch

from support.exact import grid_spec
from vqtool import denoisers
from vqtool.conditions.text_encoders import Config, TextEncoder
from vqtool.diffusion import kernels
from vqtool.interop.transformers import read_vocabulary
from vqtool.priors import Prior

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = Config(vocabulary_size=50, max_length=9, width=16, num_layers=2, num_heads=2, mlp_width=24)


def random_encoder(config=TINY, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = TextEncoder(config)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval().requires_grad_(False)


def text_prior(*, learned_null=True):
    """A random text prior over 2x3 grids whose captions are in the golden vocabulary."""
    conditioner = read_vocabulary(GOLDEN / "df-pipeline" / "tokenizer", max_length=9)
    encoder = random_encoder(replace(TINY, vocabulary_size=conditioner.vocabulary_size))
    config = {"codebook_size": 5, "grid_size": (2, 3), "num_steps": 6, "num_layers": 1, "width": 16, "num_heads": 2}
    text = {"text_width": 16, "text_length": 9, "learned_null": learned_null}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        denoiser = denoisers.build("vq-diffusion", config | text)
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    kernel = kernels.build("mask-replace", schedule="release", codebook_size=5, num_steps=6)
    denoiser = denoiser.eval().requires_grad_(False)
    return Prior(
        kernel,
        denoiser,
        "vq-diffusion",
        conditioner,
        grid_spec((2, 3)),
        parameterisation="direct",
        text_encoder=encoder,
    )
