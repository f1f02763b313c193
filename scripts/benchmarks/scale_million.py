"""A million pictures before the first step of `train-tokenizer`: seconds of a processor and memory, by source.

Pictures are small JPEG files of different bytes; what one costs is the memory beyond that of a thousand. What is made
takes up to 3 GB of the temporary folder (TMPDIR) at a time.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from benchmarks import Row
from benchmarks.scale_pictures import train_to

FEW, MANY, IN_ONE = 1_000, 1_000_000, 10_000  # pictures; in a tar, and rows that are written at once
DIFFERENT, SIDE = 500, 24
Write = Callable[[Path, int], object]


def million(folder: Path, num: int) -> Iterator[Row]:
    """Training up to its first step on 100 tars, a folder, an HDF5 file and, where pyarrow is there, a parquet file."""
    for kind, write, glob in (
        ("tars of 10,000", _write_tars, "*.tar"),
        ("folders of 10,000", _write_files, ""),
        ("rows of an HDF5 file with ids", _write_hdf5, "x.h5"),
        ("rows of a parquet file", _write_parquet, "x.parquet"),
    ):
        source = folder / "source"
        if write is _write_parquet and not _has_parquet():
            continue
        source.mkdir()
        write(source, FEW)
        least = train_to(str(source / glob), "none", 1)[3]
        shutil.rmtree(source)
        source.mkdir()
        write(source, MANY)
        for cache in ("none", "disk") if write is _write_tars else ("none",):
            wall, processor, _, peak = train_to(str(source / glob), cache, 1)
            each = 1e6 * (peak - least) / (MANY - FEW)
            figure = f"{processor:.1f} s of a processor ({wall:.1f} s), at most {peak:.0f} MB: {each:.0f} bytes each"
            yield f"up to the first step on {MANY:,} pictures, {kind}, `--cache {cache}`", figure
        shutil.rmtree(source)


def _encoded(num: int) -> Iterator[bytes]:
    """Files of different bytes: some pictures, each again and again with another number after its end."""
    files = []
    for seed in range(DIFFERENT):
        noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", quality=80)
        files.append(buffer.getvalue())
    return (files[number % DIFFERENT] + number.to_bytes(8, "little") for number in range(num))


def _write_tars(folder: Path, num: int) -> None:
    contents = enumerate(_encoded(num))
    for shard in range(-(-num // IN_ONE)):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number, content in (next(contents) for _ in range(min(num, IN_ONE))):
                member = tarfile.TarInfo(f"{number:09}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                tar.members.clear()  # type: ignore[attr-defined]


def _write_files(folder: Path, num: int) -> None:
    """Names of a few files: a million files of their own take most of an hour to be removed."""
    made: list[Path] = []
    for number, content in enumerate(_encoded(num)):
        path = folder / f"{number // IN_ONE:05}" / f"{number:09}.jpg"
        if number % IN_ONE == 0:
            path.parent.mkdir()
        if number < DIFFERENT:
            path.write_bytes(content)
            made.append(path)
        else:
            os.link(made[number % DIFFERENT], path)


def _write_hdf5(folder: Path, num: int) -> None:
    noise, rows = np.random.default_rng(0), min(num, IN_ONE)
    with h5py.File(folder / "x.h5", "w") as file:
        images = file.create_dataset("images", (num, SIDE, SIDE), np.uint8, chunks=(1, SIDE, SIDE))
        ids = file.create_dataset("id", (num,), h5py.string_dtype())
        for start in range(0, num, rows):
            images[start : start + rows] = noise.integers(0, 256, (rows, SIDE, SIDE), np.uint8)
            ids[start : start + rows] = [f"{number:09}" for number in range(start, start + rows)]


def _write_parquet(folder: Path, num: int) -> None:
    import pyarrow
    from pyarrow import parquet

    contents, rows = _encoded(num), min(num, IN_ONE)
    kind = pyarrow.schema([("image", pyarrow.struct([("bytes", pyarrow.binary())]))])
    with parquet.ParquetWriter(folder / "x.parquet", kind) as writer:
        for _ in range(0, num, rows):
            group = [{"bytes": next(contents)} for _ in range(rows)]
            writer.write_table(pyarrow.table({"image": group}, schema=kind), row_group_size=1000)


def _has_parquet() -> bool:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True
