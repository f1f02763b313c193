"""Encoding into shards: what it costs beside the network alone, with cores free and one busy, by one process and two.

Tars of JPEG pictures of 256x256. Figures are taken in turn, several times: other programs disturb all of them alike. Of
ratios the median is given.
"""

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks import Row
from vqtool.tokenizers import Tokenizer, load_tokenizer
from vqtool.tokenizers.shards import encode_shards

SHARDS, PIXELS, BATCH, ROUNDS = 4, 64, 32, 3
BUSY = "while True: pass"


def shards(folder: Path, num: int) -> Iterator[Row]:
    """`encode_shards` of `num` pictures in four tars with the built-in tokenizer, at 64 pixels."""
    num = max(num, BATCH * SHARDS) // SHARDS * SHARDS
    packed = sum(_write_tar(folder / f"s{shard}.tar", num // SHARDS, shard) for shard in range(SHARDS))
    yield "cores here", str(len(os.sched_getaffinity(0)))
    tokenizer, written = load_tokenizer("builtin"), 0
    for state, beside in (("cores free", nullcontext), ("one core busy", _busy_core)):
        network, whole, pairs = [], [], []
        for number in range(ROUNDS):
            place = folder / f"{state[:3]}{number}"
            with beside():
                network.append(_network(tokenizer, num))
                whole.append(_encode(tokenizer, folder, place, num))
                pairs.append([_processes(folder, place.with_suffix(f".{many}"), many) for many in (1, 2)])
            written = sum(path.stat().st_size for path in folder.glob(f"{place.name}-*.h5"))
        for name, found in (("the network alone", network), ("`encode_shards`, all of it", whole)):
            seconds, processor = (median(each) for each in zip(*found, strict=True))
            yield f"{state}: a picture, {name}", f"{1e3 * seconds:.2f} ms, {1e3 * processor:.2f} ms of a processor"
        ratios = [[a / b for a, b in zip(one, other, strict=True)] for one, other in zip(whole, network, strict=True)]
        seconds, processor = (median(each) for each in zip(*ratios, strict=True))
        yield f"{state}: `encode_shards` over the network alone", f"{seconds:.2f}x, {processor:.2f}x of a processor"
        yield f"{state}: core-hours for a million pictures", f"{median(p for _, p in whole) * 1e6 / 3600:.2f}"
        alone = median(one for one, _ in pairs)
        ratio = median(two / one for one, two in pairs)
        yield f"{state}: time of two processes over that of one ({alone:.1f} s), with their start", f"{ratio:.2f}x"
    yield "bytes of JPEG a picture, and of its grid with its id", f"{packed / num:,.0f}, {written / num:.0f}"


@contextmanager
def _busy_core() -> Iterator[None]:
    """Another program computes meanwhile."""
    other = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def _encode(tokenizer: Tokenizer, folder: Path, place: Path, num: int) -> tuple[float, float]:
    """Seconds a picture, by the clock and of a processor."""
    begun, used = time.perf_counter(), time.process_time()
    encode_shards([str(folder / "s*.tar")], f"{place}-{{shard}}.h5", tokenizer, image_size=(PIXELS, PIXELS))
    return (time.perf_counter() - begun) / num, (time.process_time() - used) / num


def _write_tar(path: Path, num: int, seed: int) -> int:
    """A tar of smooth pictures, as JPEG files of about the size of photographs; returns their bytes."""
    noise, total = np.random.default_rng(seed), 0
    with tarfile.open(path, "w") as tar:
        for number in range(num):
            small = Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            small.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{seed}-{number:06d}.jpg")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
            total += member.size
    return total


def _network(tokenizer: Tokenizer, num: int) -> tuple[float, float]:
    """Seconds a picture, by the clock and of a processor."""
    images = torch.rand(BATCH, 3, PIXELS, PIXELS) * 2 - 1
    tokenizer.encode(images)
    batches = max(1, num // BATCH)
    begun, used = time.perf_counter(), time.process_time()
    for _ in range(batches):
        tokenizer.encode(images)
    done = batches * BATCH
    return (time.perf_counter() - begun) / done, (time.process_time() - used) / done


def _processes(folder: Path, output: Path, num: int) -> float:
    """Seconds until all of `num` processes of one thread each have ended."""
    line = [sys.executable, "-m", "vqtool", "encode", str(folder / "s*.tar"), "--size", str(PIXELS)]
    line += ["-o", f"{output}-{{shard}}.h5"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    running = [
        subprocess.Popen([*line, "--partial", f"{part}/{num}"], env=one_thread, stderr=subprocess.DEVNULL)
        for part in range(1, num + 1)
    ]
    if any(map(subprocess.Popen.wait, running)):
        raise RuntimeError("a process failed")
    return time.perf_counter() - begun
