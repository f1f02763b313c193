"""Pictures that a tokenizer learns from while they are decoded: memory, time up to the first step, pictures a second.

1,000 JPEG files of 128 pixels are made; folders of more are links to them, and tars copies. Rates are
by a processor's seconds, since other programs run meanwhile.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks import Row
from vqtool.images import find_images
from vqtool.images.stream import DiskStore, ImageStream, MemoryStore, Store

DIFFERENT, SIDE, SIZE, BATCH = 1000, 128, 64, 32
NUMBERS = (10_000, 100_000)  # a million: see scale_million.py
KINDS = ("memory", "disk", "none")
STEPS = 12
RATE = "a second of a processor"
TRAIN = """
import json, os, resource, sys, time
from vqtool.training.tokenizer import train_tokenizer
start, used = time.perf_counter(), []
def report(step, metrics):
    used.append(time.process_time())
    if step == 1:
        first = time.perf_counter() - start
        print(first, end=" ")
    if step == int(sys.argv[3]):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(used[0], used[-1] - used[0], peak, flush=True)
        os._exit(0)
options = {"size": 64, "batch_size": 8, "steps": 1000, "preview_every": 0, "cache": sys.argv[2]}
train_tokenizer(sys.argv[1], sys.argv[4], force=True, report=report, **options)
"""


def pictures(folder: Path, num: int) -> Iterator[Row]:
    """A stream alone, by cache, on 2 x `num` pictures: the first epoch and the second; then training, turn by turn."""
    source = _write_folder(folder / "imgs", 2 * num)
    items = find_images([source], words="none")
    rates: dict[tuple[str, int], list[float]] = {}
    for turn in range(3):
        for kind in KINDS:
            stream = ImageStream(items, (SIZE, SIZE), store=_store(kind, folder / f"{turn}.cache", len(items)))
            for epoch in range(2):
                order = np.random.default_rng(epoch).permutation(len(items))
                start = time.process_time()
                for first in range(0, len(order), BATCH):
                    stream.take(order[first : first + BATCH])
                    stream.expect(order[first + BATCH : first + 2 * BATCH + stream.ahead])
                rates.setdefault((kind, epoch), []).append(len(order) / (time.process_time() - start))
            stream.close()
    for (kind, epoch), found in rates.items():
        yield f"a stream alone, `--cache {kind}`, epoch {epoch + 1}", f"{np.median(found):,.0f} {RATE}"
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(2):
        for kind in KINDS:
            speeds[kind].append(8 * (STEPS - 1) / train_to(source, kind, STEPS)[2])
    for kind, found in speeds.items():
        yield f"training vqvae-f8 at 64 pixels, `--cache {kind}`, first epoch", f"{np.median(found):,.0f} {RATE}"


def found(folder: Path, num: int) -> Iterator[Row]:
    """Training up to its second step from folders and tars of many pictures, nothing kept: time and memory."""
    for many in NUMBERS:
        for write, kind in ((_write_folder, "folder"), (_write_tar, "tar")):
            source = write(folder / f"{kind}-{many}.tar", many)
            first, processor, _, peak = train_to(source, "none", 2)
            figure = f"{first:.1f} s, {processor:.1f} s of a processor, at most {peak:.0f} MB"
            yield f"up to the first step from a {kind} of {many:,} pictures", figure


def train_to(source: str | Path, cache: str, steps: int) -> tuple[float, float, float, float]:
    """Seconds up to the first step, a processor's of these, a processor's of the steps after it, and megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", TRAIN, source, cache, str(steps), Path(folder) / "t.safetensors"]
        done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    first, processor, after, peak = map(float, done.stdout.split())
    return first, processor, after, peak


def _store(kind: str, path: Path, num: int) -> Store | None:
    if kind == "memory":
        return MemoryStore(np.empty((num, 3, SIZE, SIZE), np.uint8))
    return DiskStore(path, (3, SIZE, SIZE)) if kind == "disk" else None


def _encoded(num: int = DIFFERENT) -> list[bytes]:
    """JPEG files of blurred noise."""
    files = []
    for seed in range(num):
        noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def _write_folder(folder: Path, num: int) -> Path:
    """Folders of 1,000 names each, which are links to as many files."""
    made = []
    for number, content in enumerate(_encoded(min(num, DIFFERENT))):
        path = folder / "000000" / f"{number:08}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        made.append(path)
    for number in range(DIFFERENT, num):
        path = folder / f"{number // DIFFERENT:06}" / f"{number:08}.jpg"
        if number % DIFFERENT == 0:
            path.parent.mkdir()
        os.link(made[number % DIFFERENT], path)
    return folder


def _write_tar(path: Path, num: int) -> Path:
    encoded = _encoded()
    with tarfile.open(path, "w") as tar:
        for number in range(num):
            member = tarfile.TarInfo(f"{number:08}.jpg")
            member.size = len(encoded[number % DIFFERENT])
            tar.addfile(member, io.BytesIO(encoded[number % DIFFERENT]))
            tar.members.clear()
    return path
