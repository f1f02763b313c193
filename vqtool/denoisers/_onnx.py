"""Denoisers run by ONNX Runtime: see `vqtool.runtimes`."""

from copy import copy

import torch
from torch import Tensor, nn

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.runtimes import Axes, Graphs, is_replaced, replace_forward

AXES: Axes = {
    "x_t": ("batch",),
    "t": ("batch",),
    "cells": ("batch", "cells"),
    **dict.fromkeys(EncodedCondition._fields, ("batch",)),
}
STRETCHED = {"x_t": ("batch", "height", "width")}  # where the denoiser takes grids of other sizes


class _Tensors(nn.Module):
    """A denoiser whose encoded condition comes part by part."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.eval()

    def forward(self, x_t: Tensor, t: Tensor, cells: Tensor, **condition: Tensor) -> Tensor:
        """Logits (B, n, K) at the cells (B, n)."""
        return self.denoiser(x_t, t, EncodedCondition(**condition), cells)  # type: ignore[no-any-return]


class Graph:
    """A denoiser as a graph, called as the denoiser is."""

    def __init__(self, denoiser: Denoiser, name: str) -> None:
        self._denoiser = denoiser
        self._axes: Axes = {**AXES, **(STRETCHED if denoiser.stretches else {})}
        kind = f"{type(denoiser).__module__} {denoiser.config!r}"
        self._graphs = Graphs(_Tensors(denoiser), self._axes, kind, name=name)

    def inputs(
        self, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None, cells: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The tensors that go into the graph; all cells where none are named."""
        if isinstance(condition, Tensor):
            condition = self._denoiser.encode_condition(condition)
        if cells is None:
            cells = torch.arange(x_t.shape[1] * x_t.shape[2]).expand(len(x_t), -1)
        parts = {} if condition is None else condition._asdict()
        return {"x_t": x_t, "t": t, "cells": cells, **{name: part for name, part in parts.items() if part is not None}}

    def prepare(self, example: EncodedCondition) -> None:
        """Make the graph now, for conditions such as one (1, ...).

        Raises:
            VqtoolError: it cannot be exported.
        """
        self._graphs.prepare(**self._example(example))

    def export(self, example: EncodedCondition) -> tuple[bytes, dict[str, Tensor], Axes]:
        """An .onnx file for conditions such as one (1, ...), inputs of it, and their axes."""
        inputs = self._example(example)
        return self._graphs.export(inputs), inputs, self._axes

    def _example(self, condition: EncodedCondition) -> dict[str, Tensor]:
        config = self._denoiser.config
        x_t = torch.arange(config.grid_size[0] * config.grid_size[1]).remainder(config.codebook_size)
        return self.inputs(x_t.view(1, *config.grid_size), torch.ones(1, dtype=torch.int64), condition)

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Logits, as of `Denoiser.forward`."""
        logits: Tensor = self._graphs.run(**self.inputs(x_t, t, condition, cells))
        return logits if cells is not None else logits.view(*x_t.shape, -1)


def run_by_onnx(denoiser: Denoiser, example: EncodedCondition, name: str) -> Denoiser:
    """The same denoiser, run by ONNX Runtime.

    Args:
        denoiser: on the CPU, in eval mode.
        example: of its conditions, (1, ...).
        name: what messages call it.

    Raises:
        VqtoolError: it cannot be exported.
    """
    if is_replaced(denoiser):
        return denoiser
    graph = Graph(copy(denoiser), name)
    graph.prepare(example)
    return replace_forward(denoiser, graph)
