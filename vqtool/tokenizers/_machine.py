"""How a machine encodes and decodes: in which precision, compiled or not, and with how many images at once."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqtool.errors import VqtoolError, count_text, warn
from vqtool.products import PRECISIONS, compiled, refuse_without_gpu
from vqtool.registry import check_known
from vqtool.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """How the machine encodes or decodes; histories of what was encoded say what is not the usual.

    Attributes:
        batch_size: images in the network at once.
        precision: of the network on a GPU: "fp32", "tf32", "bf16", with which some tokens are others, or "auto",
            float32 whose convolutions may be TF32.
        runtime: of the network on a CPU: "torch", "onnx" or "auto", see `vqtool.runtimes`.
        compile: whether PyTorch compiles the network, on a GPU.
    """

    batch_size: int = 32
    precision: str = "auto"
    runtime: str = "torch"
    compile: bool = False


def prepare(tokenizer: Tokenizer, machine: MachineOptions, part: str) -> Tokenizer:
    """The same tokenizer with a part of it compiled, if that is asked for; the one given stays as it is.

    Raises:
        VqtoolError: an unknown precision, or something for GPUs without one.
    """
    check_known("precision", machine.precision, PRECISIONS)
    refuse_without_gpu(machine.precision, tokenizer.device, compile=machine.compile)
    return with_parts(tokenizer, compiled, [part]) if machine.compile else tokenizer


def with_parts(tokenizer: Tokenizer, change: Callable[[nn.Module], nn.Module], parts: Sequence[str]) -> Tokenizer:
    """The same tokenizer with some of its networks changed; the one given stays as it is."""
    other = copy(tokenizer)
    other._modules = {**tokenizer._modules, **{part: change(tokenizer.get_submodule(part)) for part in parts}}
    return other


def record(precision: str, device: torch.device, *, compile: bool) -> dict[str, str | bool]:
    """What a history says of it: nothing, where that is what every machine does."""
    chosen = {} if precision == "auto" or device.type == "cpu" else {"precision": precision}
    return {**chosen, **({"compile": True} if compile else {})}


def by_parts(call: Callable[[Tensor], Tensor], rows: Tensor, tokenizer: Tokenizer) -> Tensor:
    """What a network makes of rows (B, ...), each for itself; where memory runs out, of half as many from then on.

    Raises:
        VqtoolError: a single one is too much.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    while True:
        num = max(1, len(rows))
        at_once = min(num, tokenizer.most_at_once or num)
        try:
            return torch.cat([call(rows[start : start + at_once]) for start in range(0, num, at_once)])
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if at_once == 1:
                raise VqtoolError("out of memory with one image in the network: take smaller ones, or a CPU") from error
        tokenizer.most_at_once = at_once // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warn(f"out of memory with {count_text(at_once, 'image')} in the network at once: going on with {at_once // 2}")
