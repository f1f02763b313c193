"""Priors and tokenizers as .onnx files, those that `--runtime onnx` runs, with a README of inputs and outputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.denoisers._onnx import Graph
from vqtool.priors import Prior
from vqtool.runtimes import OPSET, Graphs
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers._onnx import PARTS, graph_of

_MEANINGS = {
    "x_t": "tokens of noisy grids, K where masked",
    "t": "the step of each grid in 0..T, T the noisiest",
    "cells": "which cells are wanted, in reading order",
    "embedding": "of the condition",
    "keys_values": "of the condition",
    "mask": "of the condition: where there is text",
}
_LOGITS = {
    "evidence": "predict a cell from the other cells. Where x_t is not masked, log q(x_t | x_0 = x_t) - "
    "log q(x_t | x_0 = k), of the schedule, is to be added to the logit of x_t before the softmax",
    "direct": "are log p(x_0 | x_t) before the softmax",
    "residual": "need 1 added to the logit of an unmasked x_t before the softmax",
}


class _Condition(nn.Module):
    """What a denoiser makes of conditions, the parts that there are, as one graph."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.eval()

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """The parts of `EncodedCondition` that are not None."""
        return tuple(part for part in self.denoiser.encode_condition(condition) if part is not None)


def export_prior(prior: Prior, folder: Path) -> list[str]:
    """Write denoiser.onnx, condition.onnx if it takes a condition, and README.md.

    Raises:
        VqtoolError: an operator is missing in ONNX.
    """
    denoiser, name = prior.denoiser, f"the denoiser {prior.denoiser_name}"
    given = prior.read_texts(prior.conditioner.null(1))
    with torch.no_grad():
        encoded = denoiser.encode_condition(given)
    graph, inputs, axes = Graph(denoiser, name).export(encoded)
    folder.joinpath("denoiser.onnx").write_bytes(graph)
    kernel = prior.kernel
    outputs = {
        "output": f"(batch, cells, {kernel.codebook_size}) float32: logits, which {_LOGITS[prior.parameterisation]}"
    }
    lines = [
        f"# The prior {prior.fingerprint}\n",
        f"Kernel {kernel.name}, schedule {kernel.schedule}, K = {kernel.codebook_size} codes, T = {kernel.num_steps} "
        f"steps; trained on grids of {prior.cells[0]}x{prior.cells[1]} cells of the tokenizer "
        f"{prior.grid_spec.tokenizer_fingerprint}.\n",
        *_table("denoiser.onnx", inputs, axes, outputs),
    ]
    if given.numel():
        own = {"condition": ("batch",)}
        parts = [part for part in EncodedCondition._fields if getattr(encoded, part) is not None]
        made = Graphs(_Condition(denoiser), own, denoiser.config, name=name).export({"condition": given}, parts)
        folder.joinpath("condition.onnx").write_bytes(made)
        shapes = {part: f"{_shape(getattr(encoded, part), ('batch',))}: goes into denoiser.onnx" for part in parts}
        lines += _table("condition.onnx, once a sample", {"condition": given}, own, shapes)
    folder.joinpath("README.md").write_text("\n".join(lines), encoding="utf-8")
    return []


def export_tokenizer(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write encoder.onnx, decoder.onnx, codebook.npy and README.md.

    Raises:
        VqtoolError: an operator is missing in ONNX.
    """
    lines = [
        f"# The tokenizer {tokenizer.identity}\n",
        f"Factor {tokenizer.factor}, K = {tokenizer.codebook_size} codes of D = {tokenizer.config.code_dim} numbers, "
        f'codebook.npy (K, D). A token is found in the latents by the lookup "{tokenizer.lookup}".\n',
    ]
    size = tokenizer.config.code_dim
    for part in PARTS:
        graph, inputs, axes = graph_of(tokenizer, part)
        folder.joinpath(f"{part}.onnx").write_bytes(graph)
        made = {
            "encoder": f"(batch, {size}, rows, columns) float32: latents, before the lookup",
            "decoder": "(batch, 3, height, width) float32: images, about [-1, 1]",
        }
        lines += _table(f"{part}.onnx", inputs, axes, {"output": made[part]})
    np.save(folder / "codebook.npy", tokenizer.codebook.numpy())
    folder.joinpath("README.md").write_text("\n".join(lines), encoding="utf-8")
    return []


def _table(
    title: str, inputs: Mapping[str, Tensor], axes: Mapping[str, Sequence[str]], outputs: Mapping[str, str]
) -> list[str]:
    """The lines of a README on one file."""
    meanings = {
        **_MEANINGS,
        "images": "in [-1, 1]",
        "codes": "rows of the codebook",
        "condition": "numbers of classes or tokens of captions, or features of texts",
    }
    rows = [f"| in: {name} | {_shape(each, axes[name])}: {meanings[name]} |" for name, each in inputs.items()]
    rows += [f"| out: {name} | {text} |" for name, text in outputs.items()]
    note = f"ONNX, opset {OPSET}. An input that makes no difference may be missing from the file."
    return [f"## {title}\n", note + "\n", "| tensor | shape, type, meaning |", "|---|---|", *rows, ""]


def _shape(tensor: Tensor, axes: Sequence[str]) -> str:
    named = [*axes, *[""] * (tensor.ndim - len(axes))]
    sides = [axis or str(length) for axis, length in zip(named, tensor.shape, strict=True)]
    return f"({', '.join(sides)}) {str(tensor.dtype).removeprefix('torch.')}"
