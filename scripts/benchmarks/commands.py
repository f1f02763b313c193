"""The commands: how fast they start, how fast they encode, how much memory they take."""

import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import Row, race, seconds
from vqtool.images import find_images, read_batches, to_float
from vqtool.tokenizers import load_tokenizer

VQTOOL = [sys.executable, "-m", "vqtool"]


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run vqtool in a folder."""
    command = [*VQTOOL, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True)


def peak_megabytes(*arguments: object, folder: Path) -> float:
    """Peak resident memory of a vqtool command, by the operating system's account of the finished process."""
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, *VQTOOL, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True)
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return int(done.stdout) / scale


def draw_pictures(folder: Path, num: int, side: int = 128) -> None:
    """PNG files with smooth shapes: as much work to decode as drawings are."""
    folder.mkdir()
    y, x = np.mgrid[:side, :side] / side
    for i in range(num):
        noise = np.random.default_rng(i)
        waves = [np.sin(6 * (x * noise.normal() + y * noise.normal()) + noise.uniform(0, 6)) for _ in range(3)]
        pixels = ((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)
        Image.fromarray(pixels // 32 * 32).save(folder / f"{i:06}.png")


def startup(folder: Path, num: int) -> Iterator[Row]:
    """Whole processes: --help, against the libraries of every command line of this kind, and info of a grid file."""
    draw_pictures(folder / "few", 4)
    run("encode", "few", "-o", "few.h5", folder=folder)
    libraries = [sys.executable, "-c", "import typer, rich"]
    ours, bare = race(lambda: run("--help", folder=folder), lambda: subprocess.run(libraries, check=True), repeats=15)
    yield "`vqtool --help`", f"{ours:.2f} s"
    yield "the same over `python -c 'import typer, rich'`", f"{ours / bare:.2f}x"
    yield "`vqtool info tok.h5`", f"{seconds(lambda: run('info', 'few.h5', folder=folder)):.2f} s"


def encode(folder: Path, num: int) -> Iterator[Row]:
    """The images per second of `vqtool encode` on PNG files, against the network alone on the same images in memory."""
    draw_pictures(folder / "imgs", num)
    tokenizer = load_tokenizer()
    batches = [to_float(batch.images) for batch in read_batches(find_images([folder / "imgs"]), (64, 64), 32)]

    def network() -> None:
        for batch in batches:
            tokenizer.encode(batch)

    alone = num / seconds(network, 3)

    def command() -> float:
        done = run("encode", "imgs", "-o", "tok.h5", "--force", folder=folder)
        found = re.search(r"encode: .*?\(([\d.]+) images/s\)", done.stderr.decode())
        if found is None:
            raise RuntimeError(done.stderr.decode())
        return float(found[1])

    whole = statistics.median(command() for _ in range(3))
    yield "`vqtool encode` of 128-pixel PNG files to 64 pixels", f"{whole:.0f} images/s"
    yield "the same, share of the network's own throughput", f"{whole / alone:.0%}"

    plain = load_tokenizer().to(memory_format=torch.contiguous_format)
    first = batches[0]
    with torch.inference_mode():
        plain_seconds = seconds(lambda: plain.encoder(first.contiguous()))
        last_seconds = seconds(lambda: tokenizer.encoder(first.to(memory_format=torch.channels_last)))
    yield "encoder in channels_last against contiguous", f"{plain_seconds / last_seconds:.2f}x"


def memory(folder: Path, num: int) -> Iterator[Row]:
    """Peak memory with all images against a quarter of them: flat is 1.0."""
    draw_pictures(folder / "all", num)
    draw_pictures(folder / "quarter", num // 4)
    for name in ("quarter", "all"):
        run("encode", name, "-o", f"{name}.h5", folder=folder)
    for command, of in (
        ("encode", lambda name: ("encode", name, "-o", f"{name}-again.h5")),
        ("decode", lambda name: ("decode", f"{name}.h5", "-o", f"{name}-decoded")),
    ):
        low, high = (peak_megabytes(*of(name), folder=folder) for name in ("quarter", "all"))
        yield f"peak memory of `{command}`, {num // 4} -> {num} images", f"{low:.0f} -> {high:.0f} MB"
    run("train-prior", "quarter.h5", "--steps", 2, "--size", "tiny", "--preview-every", 0, folder=folder)
    low, high = (
        peak_megabytes("sample", "-n", n, "--steps", 4, "-o", f"{n}.h5", folder=folder) for n in (num // 4, num)
    )
    yield f"peak memory of `sample`, {num // 4} -> {num} grids", f"{low:.0f} -> {high:.0f} MB"
