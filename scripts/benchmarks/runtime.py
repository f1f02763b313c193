"""Networks run by ONNX Runtime against PyTorch, on free cores and beside another process that takes one of them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks import Row, alternate, race
from vqtool import denoisers
from vqtool.denoisers import EncodedCondition, _onnx
from vqtool.metrics import load_features
from vqtool.tokenizers import SIZES, Tokenizer, load_tokenizer
from vqtool.tokenizers._onnx import run_by_onnx

CELLS, TOKENS, STEPS, FEW = 256, 1024, 100, 8  # FEW: cells a grid that a step asks for
DENOISERS = (("transformer", "tiny"), ("transformer", "small"), ("transformer", "base"), ("vq-diffusion", "small"))


@contextmanager
def _one_core_taken() -> Iterator[None]:
    """A process that computes all the time, on one of this process's cores."""
    core = max(os.sched_getaffinity(0))
    other = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def _denoiser(name: str, size: str, side: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A call of as many grids as pass a network together in sampling: by PyTorch, and by ONNX Runtime."""
    torch.manual_seed(0)
    config = {
        "codebook_size": TOKENS,
        "grid_size": (side, side),
        "num_steps": STEPS,
        **denoisers.module(name).SIZES[size],
    }
    network = denoisers.build(name, config).eval().requires_grad_(False)
    other = _onnx.run_by_onnx(network, EncodedCondition(), size)
    num = CELLS // side**2
    x_t, t = torch.randint(TOKENS + 1, (num, side, side)), torch.full((num,), STEPS // 2)
    cells = torch.rand(num, side**2).argsort(1)[:, :FEW].contiguous()
    return lambda: network(x_t, t, None, cells), lambda: other(x_t, t, None, cells)


def _cases() -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    for name, size in DENOISERS:
        for side in (8, 16):
            yield f"{name} {size}, {CELLS // side**2} grids of {side}x{side}", *_denoiser(name, size, side)
    for name, tokenizer, num, pixels in (
        ("built-in tokenizer", load_tokenizer(), 32, 64),
        ("VQGAN of factor 16", Tokenizer(SIZES["vqgan-f16"]).eval(), 1, 256),
    ):
        other = run_by_onnx(tokenizer.requires_grad_(False))
        images = torch.rand(num, 3, pixels, pixels) * 2 - 1
        grid = tokenizer.encode(images)
        about = f"{num} images of {pixels}x{pixels}"
        yield (
            f"{name}, encoding {about}",
            lambda t=tokenizer, x=images: t.encode(x),
            lambda t=other, x=images: t.encode(x),
        )  # type: ignore[misc]
        yield f"{name}, decoding {about}", lambda t=tokenizer, x=grid: t.decode(x), lambda t=other, x=grid: t.decode(x)  # type: ignore[misc]
    pictures = np.random.default_rng(0).integers(0, 256, (16, 3, 64, 64)).astype(np.uint8)
    networks = [load_features(runtime=runtime) for runtime in ("torch", "onnx")]
    yield "features of 16 images of 64x64", lambda: networks[0](pictures), lambda: networks[1](pictures)


@torch.inference_mode()
def runtime(folder: Path, num: int) -> Iterator[Row]:
    """PyTorch over ONNX Runtime, medians of calls in turn, with quartiles.

    Denoisers have as many grids as sampling on a CPU passes together, and few cells wanted, random weights, K = 1024.
    """
    yield from _race("with all cores")


@torch.inference_mode()
def beside(folder: Path, num: int) -> Iterator[Row]:
    """The same beside a process that computes all the time on one of the cores."""
    with _one_core_taken():
        yield from _race("beside other work on one core")


def _race(where: str) -> Iterator[Row]:
    for what, eager, graph in _cases():
        yield f"{what}, PyTorch over ONNX Runtime {where}", str(alternate(eager, graph))


@torch.inference_mode()
def threads(folder: Path, num: int) -> Iterator[Row]:
    """PyTorch with all threads and with one fewer, beside a process on one core, over all threads on free cores.

    With two cores a loss of 2 is the core that is taken.
    """
    most = torch.get_num_threads()

    def told(function: Callable[[], object], count: int) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(count)
            function()

        return run

    for name, size in DENOISERS:
        torch.manual_seed(0)
        eager, _ = _denoiser(name, size, 16)
        torch.set_num_threads(most)
        free = race(eager, repeats=15)[0]
        with _one_core_taken():
            both = alternate(told(eager, most), told(eager, most - 1))
        losses = (each / free for each in both.seconds)
        yield (
            f"{name} {size}, a grid of 16x16, beside a process on one core, {most} and {most - 1} threads, over free",
            " and ".join(f"{loss:.2f}x" for loss in losses),
        )
    torch.set_num_threads(most)
