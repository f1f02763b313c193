"""Encoding into shards: what it costs beside the network alone, and two processes against one.

Tars of JPEG pictures of 256x256. Each figure comes twice, in turn: other programs disturb all of them alike.
"""

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import Row
from vqtool.tokenizers import Tokenizer, load_tokenizer
from vqtool.tokenizers.shards import encode_shards

SHARDS, PIXELS, BATCH, ROUNDS = 4, 64, 32, 2


def shards(folder: Path, num: int) -> Iterator[Row]:
    """`encode_shards` of `num` pictures in four tars with the built-in tokenizer, at 64 pixels."""
    num = max(num, BATCH * SHARDS)
    packed = sum(_write_tar(folder / f"s{shard}.tar", num // SHARDS, shard) for shard in range(SHARDS))
    tokenizer = load_tokenizer("builtin")
    alone, whole, one, two = [], [], [], []
    for number in range(ROUNDS):
        alone.append(_network(tokenizer, num))
        begun = time.process_time()
        encode_shards(
            [str(folder / "s*.tar")], folder / f"a{number}-{{shard}}.h5", tokenizer, image_size=(PIXELS, PIXELS)
        )
        whole.append((time.process_time() - begun) / num)
        one.append(_processes(folder / f"b{number}", 1))
        two.append(_processes(folder / f"c{number}", 2))
    written = sum(path.stat().st_size for path in folder.glob("a0-*.h5"))
    yield "bytes of JPEG a picture, and of its grid with its id", f"{packed / num:,.0f}, {written / num:.0f}"
    yield "processor's time a picture, the network alone", f"{1e3 * min(alone):.2f} ms"
    yield "the same of encode_shards: reading, digests, writing", f"{1e3 * min(whole):.2f} ms"
    yield "core-hours for a million pictures", f"{min(whole) * 1e6 / 3600:.1f}"
    yield "time of two processes against one, with start", f"{min(two) / min(one):.2f}"


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


def _network(tokenizer: Tokenizer, num: int) -> float:
    """Seconds of a processor a picture."""
    images = torch.rand(BATCH, 3, PIXELS, PIXELS) * 2 - 1
    tokenizer.encode(images)
    begun, batches = time.process_time(), max(1, num // BATCH)
    for _ in range(batches):
        tokenizer.encode(images)
    return (time.process_time() - begun) / (batches * BATCH)


def _processes(output: Path, num: int) -> float:
    """Seconds until all of `num` processes have ended."""
    line = [sys.executable, "-m", "vqtool", "encode", str(output.parent / "s*.tar"), "--size", str(PIXELS)]
    line += ["-o", f"{output}-{{shard}}.h5"]
    begun = time.perf_counter()
    running = [
        subprocess.Popen([*line, "--partial", f"{part}/{num}"], env=os.environ, stderr=subprocess.DEVNULL)
        for part in range(1, num + 1)
    ]
    if any(process.wait() for process in running):
        raise RuntimeError("a process failed")
    return time.perf_counter() - begun
