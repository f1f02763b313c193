"""Training data that stays on disk: memory and time up to the first step, and how fast steps read.

Files of random tokens of 16x16, K = 1024: one is made, the others are copies of it.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import Row
from vqtool import conditions
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.priors import GridSpec
from vqtool.training.data import build_data, read_data

FILES, BATCH = 100, 256
SIZES = (1_000, 100_000, 1_000_000, 10_000_000)
HEADER = GridHeader(1024, (16, 16), (128, 128), "0" * 16, "nowhere.safetensors", "")
FIRST_STEP = """
import json, os, resource, sys, time
start = time.perf_counter()
from vqtool.training.prior import train_prior
def report(step, metrics):
    used = [time.perf_counter() - start, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
    print(json.dumps(used), flush=True)
    os._exit(0)
train_prior("tok-*.h5", "p.safetensors", from_="none", size="tiny", steps=1000, batch_size=4, force=True, report=report)
"""


def grids(folder: Path, num: int) -> Iterator[Row]:
    """`train_prior` up to its first step, in a process of its own, on up to ten million grids; then reading alone."""
    for size in SIZES:
        place = folder / str(size)
        _write(place, size)
        done = subprocess.run(
            [sys.executable, "-c", FIRST_STEP], cwd=place, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        wall, processor, peak = json.loads(done.stdout)
        figure = f"{wall:.1f} s, {processor:.1f} s of a processor, at most {peak:.0f} MB"
        yield f"up to the first step on {size:,} grids in {FILES} files", figure
    header, batch = read_data(folder / str(SIZES[-1]))
    data, _ = build_data(batch, conditions.build("none"), GridSpec.of(header)).split(0)
    placed, steps, start = data.place("cpu"), 2000, time.process_time()
    for step in range(steps):
        placed.rows(torch.from_numpy(data.order(step, len(data), BATCH, 0)[0]))
    rate = steps * BATCH / (time.process_time() - start)
    yield f"grids a second that {steps} steps of {BATCH} read, by a processor's seconds", f"{rate:,.0f}"


def _write(folder: Path, num: int) -> None:
    folder.mkdir()
    count = num // FILES
    tokens = np.random.default_rng(0).integers(0, HEADER.codebook_size, (count, *HEADER.grid_size)).astype(np.uint16)
    with GridWriter(folder / "tok-000.h5", HEADER) as writer:
        for first in range(0, count, 4096):
            part = tokens[first : first + 4096]
            writer.write(GridBatch(part, [str(first + row) for row in range(len(part))]))
    for number in range(1, FILES):
        shutil.copyfile(folder / "tok-000.h5", folder / f"tok-{number:03}.h5")
