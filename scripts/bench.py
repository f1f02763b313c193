"""Measure what README.md claims of speed and memory: ratios within one run, medians of several.

    python scripts/bench.py                      # all, as a Markdown table on stdout
    python scripts/bench.py startup encode       # some
    python scripts/bench.py --num-images 2000

Run it on an otherwise idle machine. What is compared with what stands in each function's docstring.
"""

import argparse
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

VQTOOL = [sys.executable, "-m", "vqtool"]
Row = tuple[str, str]  # what was measured, the figure


def seconds_of(function: Callable[[], object], repeats: int = 5) -> float:
    """Median wall-clock seconds of a call, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


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


def measure_startup(folder: Path, num: int) -> Iterator[Row]:
    """Whole processes: --help, and info of a grid file; bound: 0.4 s for --help."""
    draw_pictures(folder / "few", 4)
    run("encode", "few", "-o", "few.h5", folder=folder)
    yield "`vqtool --help`", f"{seconds_of(lambda: run('--help', folder=folder)):.2f} s"
    yield "`vqtool info tok.h5`", f"{seconds_of(lambda: run('info', 'few.h5', folder=folder)):.2f} s"


def measure_encode(folder: Path, num: int) -> Iterator[Row]:
    """The images per second of `vqtool encode` on PNG files, against the network alone on the same images in memory."""
    import torch

    from vqtool.images import find_images, read_batches, to_float
    from vqtool.tokenizers import load_tokenizer

    draw_pictures(folder / "imgs", num)
    tokenizer = load_tokenizer()
    batches = [to_float(batch.images) for batch in read_batches(find_images([folder / "imgs"]), (64, 64), 32)]

    def network() -> None:
        for batch in batches:
            tokenizer.encode(batch)

    alone = num / seconds_of(network, 3)

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
        plain_seconds = seconds_of(lambda: plain.encoder(first.contiguous()))
        last_seconds = seconds_of(lambda: tokenizer.encoder(first.to(memory_format=torch.channels_last)))
    yield "encoder in channels_last against contiguous", f"{plain_seconds / last_seconds:.2f}x"


def measure_memory(folder: Path, num: int) -> Iterator[Row]:
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
    run("train-prior", "quarter.h5", "--steps", 2, "--size", "tiny", "--sheet-every", 0, folder=folder)
    low, high = (
        peak_megabytes("sample", "-n", n, "--steps", 4, "-o", f"{n}.h5", folder=folder) for n in (num // 4, num)
    )
    yield f"peak memory of `sample`, {num // 4} -> {num} grids", f"{low:.0f} -> {high:.0f} MB"


def measure_guidance(folder: Path, num: int) -> Iterator[Row]:
    """Both halves of guidance in one batch against two calls, 8 grids of 16x16, 6 layers of 192."""
    import torch

    from vqtool.denoisers.transformer import SIZES, Config, Transformer

    config = Config(1024, (16, 16), 100, **SIZES["small"], num_classes=10)
    network = Transformer(config).eval()
    x_t, t, label = torch.randint(1025, (8, 16, 16)), torch.full((8,), 50), torch.arange(8)
    null = torch.full((8,), 10)
    with torch.inference_mode():
        both = network.encode_condition(torch.cat([label, null]))
        one, other = network.encode_condition(label), network.encode_condition(null)
        batched = seconds_of(lambda: network(torch.cat([x_t, x_t]), torch.cat([t, t]), both))
        apart = seconds_of(lambda: (network(x_t, t, one), network(x_t, t, other)))
    yield "guidance in one batch against two calls", f"{apart / batched:.2f}x"


MEASURES = {
    "startup": measure_startup,
    "encode": measure_encode,
    "memory": measure_memory,
    "guidance": measure_guidance,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)}; default: all")
    parser.add_argument("--num-images", type=int, default=1000)
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASURES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(MEASURES)}")
    print(f"{date.today()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    print("| measured | figure |\n|---|---|")
    for name in options.names or MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            for what, figure in MEASURES[name](Path(folder), options.num_images):
                print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
