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
from vqtool.grids import GridBatch, GridHeader, GridWriter, cat
from vqtool.grids.found import find_grids
from vqtool.priors import GridSpec
from vqtool.training.data import build_data, read_data, sample_texts

FILES, BATCH, STEPS = 100, 256, 2000
MANY, FEW_GRIDS = 10_000, 60  # files, and grids in each
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
how = {"from_": "none", "size": "tiny", "steps": 1000, "batch_size": 4}
train_prior(sys.argv[1], "p.safetensors", force=True, report=report, **how)
"""


def grids(folder: Path, num: int) -> Iterator[Row]:
    """`train_prior` up to its first step, in a process of its own, on up to ten million grids; then reading alone."""
    for size in SIZES:
        yield _first_step(folder / str(size), size)
    yield _rate(folder / str(SIZES[-1]), "none")


def conditions_of_grids(folder: Path, num: int) -> Iterator[Row]:
    """The same with 1,000 classes, and with a caption each, on one and ten million grids."""
    for kind in ("class", "caption"):
        for size in SIZES[2:]:
            yield _first_step(folder / f"{kind}-{size}", size, kind)
            if size == SIZES[-1]:
                yield _rate(folder / f"{kind}-{size}", kind)
            shutil.rmtree(folder / f"{kind}-{size}")


def files(folder: Path, num: int) -> Iterator[Row]:
    """The same on 10,000 files of 60 grids with classes, by a glob and by an index, in turn; and the index alone."""
    place = folder / "files"
    _write(place, MANY * FEW_GRIDS, "class", MANY)
    start = time.process_time()
    cat([place / "tok-*.h5"], place / "tok.index", index=True)
    took = time.process_time() - start
    yield f"`cat --index` of {MANY:,} files of {FEW_GRIDS} grids", f"{took:.1f} s of a processor"
    start = time.process_time()
    find_grids(place / "tok.index")
    took, size = time.process_time() - start, (place / "tok.index").stat().st_size
    yield f"that index read, its files looked at; it has {size / 1e3:.0f} kB", f"{took:.2f} s of a processor"
    for source in ("tok-*.h5", "tok.index") * 2:
        yield f"up to the first step on {source}, {MANY:,} files of {FEW_GRIDS} grids", _train(place, source)
    yield _rate(place / "tok.index", "class")


def _first_step(folder: Path, num: int, kind: str = "none") -> Row:
    _write(folder, num, kind, FILES)
    return f"up to the first step on {num:,} grids in {FILES} files, condition {kind}", _train(folder, "tok-*.h5")


def _rate(source: Path, kind: str) -> Row:
    header, batch = read_data(source)
    few = sample_texts(batch)
    conditioner = conditions.build(kind, few.labels, few.captions)
    data, _ = build_data(batch, conditioner, GridSpec.of(header)).split(0)
    placed, start = data.place("cpu"), time.process_time()
    for step in range(STEPS):
        placed.rows(torch.from_numpy(data.order(step, len(data), BATCH, 0)[0]))
    rate = STEPS * BATCH / (time.process_time() - start)
    return f"grids a second of a processor that {STEPS} steps of {BATCH} read, condition {kind}", f"{rate:,.0f}"


def _train(folder: Path, source: str) -> str:
    command = [sys.executable, "-c", FIRST_STEP, source]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wall, processor, peak = json.loads(done.stdout)
    return f"{wall:.1f} s, {processor:.1f} s of a processor, at most {peak:.0f} MB"


def _write(folder: Path, num: int, kind: str, num_files: int) -> None:
    folder.mkdir()
    count = num // num_files
    tokens = np.random.default_rng(0).integers(0, HEADER.codebook_size, (count, *HEADER.grid_size)).astype(np.uint16)
    with GridWriter(folder / "tok-000.h5", HEADER) as writer:
        for first in range(0, count, 4096):
            part = tokens[first : first + 4096]
            ids = [str(first + row) for row in range(len(part))]
            labels = [f"class {row % 1000}" for row in range(first, first + len(part))] if kind == "class" else None
            captions = [_caption(row) for row in range(first, first + len(part))] if kind == "caption" else None
            writer.write(GridBatch(part, ids, labels, captions))
    for number in range(1, num_files):
        shutil.copyfile(folder / "tok-000.h5", folder / f"tok-{number:03}.h5")


def _caption(row: int) -> str:
    words = [f"{start}{row * prime % 97}" for start, prime in (("colour", 7), ("animal", 31), ("place", 57))]
    return f"a picture of a {words[0]} {words[1]} that stands in {words[2]}, seen from the {row % 5} side"
