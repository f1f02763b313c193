"""Matrix products: on CPUs, where PyTorch has two libraries for them and asks the slower one, and how GPUs round them.

A linear layer goes to MKL, which takes other makers' processors for old ones: 200 Gflop/s on two cores of an AMD EPYC
with AVX-512, 100 on one. oneDNN comes to 430 and 220, by the operator that PyTorch's compiler uses for it, which knows
no gradients; with them, by a convolution of 1 x 1, which is the same product, to 330 on two. A GELU by tanh takes as
long as the product before it, and no time inside of it. Few rows are no faster so.

Attention of few cells is faster as two products and a softmax than fused, as long as no gradient is wanted: 0.7 ms
against 1.1 for 32 grids of 8 x 8 cells and 4 heads.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.errors import VqtoolError

M = TypeVar("M", bound=nn.Module)
Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # keys and values that were made -> all that are attended to

PRECISIONS = ("auto", "fp32", "tf32", "bf16")
LEAST_ROWS = 128  # of a product that is worth a convolution
FEW_ROWS = 8  # of one that is worth oneDNN, from here on
MOST_CELLS = 64  # whose attention is worth two products
_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_product: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _HAS_ONEDNN else None


class Linear(nn.Linear):
    """`nn.Linear`, by whichever library is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., k) times the rows of weight (n, k), plus bias (n,): (..., n)."""
    if _goes_to_onednn(x):
        return _product(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    if not _is_plain(x) or x.numel() < LEAST_ROWS * x.shape[-1] or not _HAS_ONEDNN:
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, k, rows, 1), channels last: no copy
    made = F.conv2d(rows, weight[:, :, None, None], bias)
    return made.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The GELU, by tanh, of ``linear``."""
    if _goes_to_onednn(x):
        return _product(x, weight, bias, "gelu", [], "tanh")  # type: ignore[no-any-return]
    return F.gelu(linear(x, weight, bias), approximate="tanh")


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries (B, heads, n, D) to keys and values (B, heads, N, D): (B, heads, n, D)."""
    if torch.is_grad_enabled() or not _is_plain(q) or k.shape[-2] > MOST_CELLS:
        return F.scaled_dot_product_attention(q, k, v)
    queries, keys, values = (part.flatten(0, 1) for part in (q * q.shape[-1] ** -0.5, k, v))
    return torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(-1), values).view(q.shape)


@contextmanager
def rounded(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Let a GPU multiply float32 numbers with 10 of their 23 bits (TF32), convolutions as matrices, or with all.

    PyTorch's own setting is TF32 in convolutions and float32 in other products.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in a precision: fp32, tf32 (its products rounded), bf16, or auto, which is float32 as PyTorch has it."""
    if precision == "auto":
        yield
        return
    bf16 = precision == "bf16"
    with (
        rounded(device, tf32=precision != "fp32"),
        torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext(),
    ):
        yield


def compiled(network: M) -> M:
    """The same network, which PyTorch compiles when it is first called; the one given stays as it is."""
    other = copy(network)
    other.compile()
    return other


@dataclass(frozen=True)
class Computation:
    """How networks that measure something compute: scores of one are not scores of another."""

    precision: str = "fp32"  # of PRECISIONS, but never auto
    compile: bool = False

    @classmethod
    def choose(cls, precision: str, device: torch.device, *, compile: bool) -> "Computation":
        """What is asked for on a device; auto is bf16 on a GPU.

        Raises:
            VqtoolError: something for GPUs without one.
        """
        refuse_without_gpu(precision, device, compile=compile)
        usual = "fp32" if device.type == "cpu" else "bf16"
        return cls(usual if precision == "auto" else precision, compile)

    def __str__(self) -> str:
        return f"{self.precision}, compiled" if self.compile else self.precision

    def on(self, device: torch.device) -> AbstractContextManager[None]:
        """Where a network computes so."""
        return computing(device, self.precision)

    def of(self, network: M) -> M:
        """The same network, computing so and giving float32; the one given stays as it is."""
        inner = compiled(network) if self.compile else network
        outer = copy(network)

        def forward(x: Tensor, *more: Any, **named: Any) -> Tensor:
            with self.on(x.device):
                found: Tensor = inner(x, *more, **named)
            return found.float()

        outer.forward = forward
        return outer


def refuse_without_gpu(precision: str, device: torch.device, *, compile: bool = False) -> None:
    """Raise VqtoolError if a CPU is to do what only GPUs gain from."""
    if device.type != "cpu":
        return
    if precision in ("bf16", "tf32"):
        raise VqtoolError(f"`precision` {precision} is for GPUs: on a CPU it gains next to nothing; leave it out")
    if compile:
        raise VqtoolError("`compile` is for GPUs: on a CPU `runtime` onnx gains more, and not every machine compiles")


def _goes_to_onednn(x: Tensor) -> bool:
    """Whether a product of x is worth oneDNN's own operator, and wants no gradient."""
    wanted = _product is not None and not torch.is_grad_enabled() and x.ndim > 1
    return wanted and x.numel() >= FEW_ROWS * x.shape[-1] > 0 and _is_plain(x)


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor is of float32 on a CPU, and the program runs rather than being traced or compiled."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return torch._C._get_tracing_state() is None and not torch.compiler.is_compiling()
