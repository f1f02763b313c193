"""Tokenizers run by ONNX Runtime: see `vqtool.runtimes`."""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn

from vqtool import runtimes
from vqtool.runtimes import Axes
from vqtool.tokenizers import Tokenizer

PARTS = ("encoder", "decoder")
EXAMPLE = 2  # cells a side of what a graph is compared with the network on, where any size will do


def use_runtime(tokenizer: Tokenizer, runtime: str, parts: Sequence[str] = PARTS) -> tuple[Tokenizer, str]:
    """The same tokenizer with its networks run as asked, and what runs them, "torch" or "onnx".

    They are convolutions, which PyTorch computes as fast: on two free cores ONNX Runtime is .8 to .9 times as fast with
    the built-in tokenizer, 1.05 to 1.2 times with a VQGAN of factor 16.

    Args:
        tokenizer: on the device to use.
        runtime: one of `runtimes.RUNTIMES`; auto is torch here.
        parts: of PARTS, those that will be used.

    Raises:
        VqtoolError: as `runtimes.choose`; or it cannot be exported, and `runtime` is onnx.
    """
    runtime = "torch" if runtime == "auto" else runtime
    return runtimes.try_to_run(runtime, tokenizer.device, tokenizer, lambda: run_by_onnx(tokenizer, parts))


def run_by_onnx(tokenizer: Tokenizer, parts: Sequence[str] = PARTS) -> Tokenizer:
    """The same tokenizer, some of whose networks are run by ONNX Runtime.

    Raises:
        VqtoolError: one cannot be exported.
    """
    other = copy(tokenizer)
    other._modules = dict(tokenizer._modules)
    for part in parts:
        name, example, axes = example_of(tokenizer, part)
        network = tokenizer.get_submodule(part)
        run = runtimes.run_by_onnx(network, {name: axes}, tokenizer.config, name=f"the {part}", example=example)
        setattr(other, part, run)
    return other


def example_of(tokenizer: Tokenizer, part: str) -> tuple[str, Tensor, Sequence[str]]:
    """Name, values and axes of an input of a part: (1, 3, h, w) images, or (1, D, H, W) codes."""
    size = tokenizer.only_size or (EXAMPLE * tokenizer.factor,) * 2
    axes = ("batch",) if tokenizer.only_size else ("batch", "", "height", "width")
    if part == "encoder":
        return "images", torch.linspace(-1, 1, 3 * size[0] * size[1]).view(1, 3, *size), axes
    cells = tokenizer.grid_size(size)
    places = torch.arange(cells[0] * cells[1]).remainder(len(tokenizer.codebook)).view(1, *cells)
    return "codes", tokenizer.codebook[places].permute(0, 3, 1, 2), axes


def graph_of(tokenizer: Tokenizer, part: str) -> tuple[bytes, dict[str, Tensor], Axes]:
    """A part as an .onnx file, an input of it, and its axes.

    Raises:
        VqtoolError: it cannot be exported.
    """
    name, example, axes = example_of(tokenizer, part)
    network: nn.Module = tokenizer.get_submodule(part)
    graphs = runtimes.Graphs(network, {name: axes}, tokenizer.config, name=f"the {part}")
    return graphs.export({name: example}), {name: example}, {name: axes}
