"""Published models with random weights: sampling, importing and decoding, by the processor's clock.

Processor time of one process, what is compared taking turns: it tells more than the wall clock does where other
programs want the same cores.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import vqtool
from benchmarks import Row, race, taming
from benchmarks.commands import peak_megabytes
from vqtool.conditions import numbered_classes
from vqtool.denoisers import halton_maskgit
from vqtool.interop import _masked
from vqtool.interop.halton_maskgit import BLOCK, TOP
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.vqgan import VqganConfig

STEPS, SCALE = 32, 2.5
LLAMAGEN = VqganConfig(codebook_size=16384, code_dim=8)


def _network(size: str) -> halton_maskgit.Network:
    """Of ImageNet's classes at 256 pixels."""
    torch.manual_seed(0)
    config = halton_maskgit.Config(16384, (16, 16), 256, num_classes=1000, **halton_maskgit.SIZES[size])
    network = halton_maskgit.Network(config).eval().requires_grad_(False)
    for name, value in network.named_parameters():
        if "modulation" in name:  # zeros at first
            value.normal_(std=0.02)
    return network


@torch.no_grad()
def halton(folder: Path, num: int) -> Iterator[Row]:
    """One and two grids of Halton-MaskGIT tiny, 32 steps, guidance: `vqtool.sample` against its network alone.

    Before each of the sampler's calls the network is called with the same tokens and classes, for all cells and with
    all K + 1 logits, as the original does; the ratio is that of the sampler's time to the sum of these calls.
    """
    network = _network("tiny")
    conditioner, _ = numbered_classes(1000)
    prior = _masked.build_prior(network, "halton-maskgit", conditioner, {})
    forward, alone, passes = network.forward, 0.0, 0

    def paired(x_t: Tensor, t: Tensor, condition: object = None, cells: Tensor | None = None) -> Tensor:
        nonlocal alone, passes
        start = time.process_time()
        network.predict_all(x_t, condition)  # type: ignore[arg-type]
        alone += time.process_time() - start
        passes += len(x_t)
        return forward(x_t, t, condition, cells)  # type: ignore[arg-type]

    network.forward = paired  # type: ignore[method-assign]
    count = sum(value.numel() for value in network.parameters())
    for labels in (["1"], ["1", "207"]):
        condition = conditioner.encode(labels)
        for steps in (2, STEPS):
            alone, passes, start = 0.0, 0, time.process_time()
            vqtool.sample(prior, len(labels), sampler="halton", steps=steps, condition=condition, cfg_scale=SCALE)
            whole = time.process_time() - start - alone
        yield (
            f"`sample` of {len(labels)} of Halton tiny ({count / 1e6:.0f} M), 256 tokens, {STEPS} steps, guidance, "
            "over its network",
            f"{whole / alone:.2f}x ({whole:.1f} and {alone:.1f} s, {passes} passes)",
        )


def importing(folder: Path, num: int) -> Iterator[Row]:
    """Peak memory of `vqtool import` of Halton base in a process of its own, over the weights' bytes.

    What an import of tiny needs beyond its own weights, which is PyTorch, is also taken off.
    """
    peaks, sizes = [], []
    for size in ("tiny", "base"):
        state = _network(size).state_dict()
        layers = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        names = {**TOP}
        for number in range(layers):
            names |= {f"blocks.{number}.{ours}": f"transformer.layers.{number}.{its}" for ours, its in BLOCK.items()}
        torch.save({"model_state_dict": {names[name]: value for name, value in state.items()}}, folder / f"{size}.pth")
        sizes.append(sum(value.nbytes for value in state.values()) / 2**20)
        peaks.append(peak_megabytes("import", f"{size}.pth", "-o", f"{size}.safetensors", folder=folder))
    bare = peaks[0] - sizes[0]
    name = f"peak memory of `import` of Halton base, {sizes[1]:.0f} MB"
    yield name, f"{peaks[1]:.0f} MB, {peaks[1] / sizes[1]:.2f}x"
    yield f"{name}, less {bare:.0f} MB for the libraries", f"{(peaks[1] - bare) / sizes[1]:.2f}x"


@torch.no_grad()
def decoding(folder: Path, num: int) -> Iterator[Row]:
    """One image of 16x16 tokens: LlamaGen's tokenizer against taming's f16 VQGAN, and as taming runs it."""
    torch.manual_seed(0)
    theirs, ours = (Tokenizer(config).eval().requires_grad_(False) for config in (VqganConfig(), LLAMAGEN))
    plain = taming.contiguous(ours)
    grid = torch.randint(1024, (1, 16, 16))
    turns = (lambda: ours.decode(grid), lambda: theirs.decode(grid), lambda: taming.decode(plain, grid))
    mine, imported, written = race(*turns, repeats=2, clock=time.process_time)
    name = "decode of LlamaGen's f16 VQGAN at 256 px"
    yield f"{name} over that of an imported taming VQGAN", f"{mine / imported:.2f}x ({mine:.1f} and {imported:.1f} s)"
    yield f"{name} over the layout of taming-transformers", f"{mine / written:.2f}x ({written:.1f} s)"
