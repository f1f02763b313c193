"""Encoding and decoding images with a VQGAN of published size, against diffusers and as taming runs it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import VQModel
from torch import Tensor

from benchmarks import Row, race, taming
from vqtool.interop import diffusers_vqmodel
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.vqgan import VqganConfig

BATCH, PIXELS = 4, 256


class Case:
    """One tokenizer with random weights, for all three."""

    def __init__(self, config: VqganConfig, pixels: int, folder: Path) -> None:
        torch.manual_seed(0)
        self.tokenizer = Tokenizer(config).eval().requires_grad_(False)
        self.images = torch.rand(BATCH, 3, pixels, pixels) * 2 - 1
        latents = self.tokenizer.latents(self.images[:1]).flatten(0, 2)
        spread = torch.randn(config.codebook_size, config.code_dim) * latents.std(0)
        self.tokenizer.codebook.copy_(latents.mean(0) + spread)  # around the latents, as codes are
        diffusers_vqmodel.export(self.tokenizer, folder / "vqmodel")
        self.model = VQModel.from_pretrained(folder / "vqmodel").eval().requires_grad_(False)
        self.contiguous = taming.contiguous(self.tokenizer)
        self.grid = torch.randint(config.codebook_size, (BATCH, pixels // config.factor, pixels // config.factor))

    def diffusers_encode(self, images: Tensor) -> Tensor:
        """(B, H, W) by diffusers."""
        latents = self.model.encode(images).latents
        tokens: Tensor = self.model.quantize(latents)[2][2]
        return tokens.view(len(images), *latents.shape[-2:])

    def diffusers_decode(self, grid: Tensor) -> Tensor:
        """(B, 3, h, w) by diffusers."""
        shape = (*grid.shape, self.tokenizer.config.code_dim)
        codes = self.model.quantize.get_codebook_entry(grid.flatten(), shape)
        images: Tensor = self.model.decode(codes, force_not_quantize=True).sample
        return images

    def taming_encode(self, images: Tensor) -> Tensor:
        """(B, H, W) as taming runs it."""
        return taming.encode(self.contiguous, images)

    def taming_decode(self, grid: Tensor) -> Tensor:
        """(B, 3, h, w) as taming runs it."""
        return taming.decode(self.contiguous, grid)

    def agreement(self) -> tuple[float, float]:
        """Of one image: the least share of tokens that the others give too, and the largest difference of pixels."""
        image, grid = self.images[:1], self.grid[:1]
        tokens, pixels = self.tokenizer.encode(image), self.tokenizer.decode(grid)
        equal = [(each(image) == tokens).float().mean() for each in (self.diffusers_encode, self.taming_encode)]
        apart = [(each(grid) - pixels).abs().max() for each in (self.diffusers_decode, self.taming_decode)]
        return float(min(equal)), float(max(apart))


def compare(config: VqganConfig, pixels: int, folder: Path, repeats: int) -> Iterator[Row]:
    """The rows of `tokenizer` for this network."""
    case = Case(config, pixels, folder)
    equal, apart = case.agreement()
    name = f"f{config.factor} VQGAN at {pixels} px"
    yield f"{name}, tokens equal in all three; largest difference of decoded pixels", f"{equal:.0%}; {apart:.0e}"
    for verb, given, functions in (
        ("encode", case.images, (case.tokenizer.encode, case.diffusers_encode, case.taming_encode)),
        ("decode", case.grid, (case.tokenizer.decode, case.diffusers_decode, case.taming_decode)),
    ):
        turns = [lambda function=function, given=given: function(given) for function in functions]
        ours, theirs, plain = race(*turns, repeats=repeats)
        for peer, its in (("diffusers", theirs), ("the layout of taming-transformers", plain)):
            rates = f"{BATCH / its:.2f} and {BATCH / ours:.2f} images/s"
            yield f"{name}, {verb}, {peer} over ours", f"{its / ours:.2f}x ({rates})"


@torch.no_grad()
def tokenizer(folder: Path, num: int) -> Iterator[Row]:
    """Images a second, factor 16 and the published widths at 256 px, batches of 4, the same random weights.

    `Tokenizer.encode` (images to tokens) and `Tokenizer.decode` (tokens to images) against diffusers' VQModel, and
    against the formulation of taming-transformers in plain PyTorch (`benchmarks.taming`; the package itself cannot be
    installed beside today's versions). Tokens and pixels of all three are compared first.
    """
    yield from compare(VqganConfig(), PIXELS, folder, repeats=2)
