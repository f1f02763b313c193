"""Many grid files as one: an index is a small HDF5 file that says what they hold. docs/formats.md describes it.

Opening 10,000 files takes some 13 s of a processor, an index of them less than one. It names files by their paths,
relative to its own folder if they are in it, with length and time of each: one that is gone, cut or replaced is named
before any work.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, MismatchError, VqtoolError, count_text
from vqtool.grids.batch import TEXTS, GridHeader
from vqtool.grids.hdf5 import DIGEST, FILTERS, INDEX_FORMAT, LIBVER, MAX_COUNT, read_header, read_pattern, write_header
from vqtool.grids.labels import Labels
from vqtool.grids.listing import GridFile, Listing
from vqtool.grids.reader import open_grids
from vqtool.hdf5 import MAX_RATIO, find_dataset, open_hdf5, read_number, read_numbers, read_text, reading
from vqtool.outputs import atomic_path, explained, refuse_existing
from vqtool.urls import url_of

SUFFIX = ".index"
FORMAT_VERSION = 1
CHUNK_ROWS = 1 << 16
_FILES = {"path": "S", "num_grids": "i", "bytes": "i", "time": "i", "digest": "S", "columns": "i"}  # name -> kind


def is_index(path: str | Path) -> bool:
    """Whether a name is that of an index."""
    return str(path).endswith(SUFFIX)


def write_index(listing: Listing, output: str | Path, *, force: bool = False) -> None:
    """Write what is known of grid files to one small file.

    Args:
        listing: of the files, on this machine.
        output: a path that ends in .index.
        force: overwrite an existing file.

    Raises:
        VqtoolError: the output has another name, exists or cannot be written, or a file is a copy of what is behind a
            URL.
    """
    check_index_output(output, force=force)
    columns = _columns(listing, Path(output).absolute().parent)
    image = io.BytesIO()
    with h5py.File(image, "w", libver=LIBVER) as file:
        for name, column in columns.items():
            rows = {"chunks": (min(len(column), CHUNK_ROWS),), **FILTERS} if len(column) else {}
            file.create_dataset(name, data=column, **rows)
        write_header(file, listing.header, INDEX_FORMAT, FORMAT_VERSION, _digest(listing.header, columns))
        file.attrs["grid_size"] = listing.header.grid_size
    with explained(output), atomic_path(output, force=force) as path:
        path.write_bytes(image.getbuffer())


def check_index_output(output: str | Path, *, force: bool) -> None:
    """Raise if an index cannot go there; called early, before any work is done.

    Raises:
        VqtoolError: the name does not end in .index, or the file exists and `force` is off.
    """
    if not is_index(output) or url_of(output) is not None:
        raise VqtoolError(f"{output}: an index is a file on this machine whose name ends in {SUFFIX}")
    refuse_existing(output, force=force, kind="an index")


def read_index(path: Path) -> Listing:
    """What the files of an index hold, none of which is opened; all of them are there as they were.

    Files of another time but the same length are opened, and taken if they hold the same grids.

    Raises:
        FormatError: not an index, or damaged, or one of its files is cut.
        MismatchError: a file was replaced.
        VqtoolError: a file is missing, or the index cannot be read.
    """
    name = str(path)
    if url := url_of(path):
        raise VqtoolError(f"{url}: an index names files on its own machine, and is not read from a URL")
    if not path.is_file():
        raise VqtoolError(f"{name}: no such file: `vqtool cat --index FILES -o {name}` makes it")
    with open_hdf5(path, name) as file:
        with reading(name):
            if "format" not in file.attrs or read_text(file, "format", name) != INDEX_FORMAT:
                raise FormatError(f"{name}: an HDF5 file, but not an index of grid files")
        version = read_number(file, "format_version", name, 0, MAX_COUNT)
        if version > FORMAT_VERSION:
            raise FormatError(f"{name}: format version {version}, but this vqtool reads up to {FORMAT_VERSION}")
        grid_size = read_numbers(file, "grid_size", name, 2, 1, MAX_COUNT)
        header = read_header(file, name, (grid_size[0], grid_size[1]))
        columns = {column: _read_column(file, column, name, kind) for column, kind in _FILES.items()}
        if file.get("label", getlink=True) is not None:
            columns |= {"label": _read_column(file, "label", name, "u"), "name": _read_column(file, "name", name, "S")}
        if read_pattern(file, "digest", name, DIGEST) != _digest(header, columns):
            raise FormatError(f"{name}: damaged: its content does not match its digest")
    with reading(name):
        listing = Listing(header, tuple(_files_of(columns, path.parent)), _labels_of(columns))
    sizes = columns["bytes"].tolist()
    possible = all(0 <= file.num_grids <= size * MAX_RATIO for file, size in zip(listing.files, sizes, strict=True))
    if not (listing.files and possible and len(listing.labels or range(listing.num_grids)) == listing.num_grids):
        raise FormatError(f"{name}: damaged: what it says of {count_text(len(listing.files), 'file')} cannot be")
    _check_files(name, listing.files, sizes, columns["time"].tolist(), masked=header.masked)
    return listing


def _columns(listing: Listing, folder: Path) -> dict[str, NDArray[Any]]:
    """The datasets of an index in a folder."""
    for file in listing.files:
        if url_of(file.path) is not None:
            raise VqtoolError(f"{file.path}: an index names files on this machine, and no URLs")
    states = [file.path.stat() for file in listing.files]
    masks = [sum(1 << TEXTS.index(column) for column in file.columns) for file in listing.files]
    columns = {
        "path": np.array([os.fsencode(_short(file.path.absolute(), folder)) for file in listing.files]),
        "num_grids": np.array([file.num_grids for file in listing.files], np.int64),
        "bytes": np.array([state.st_size for state in states], np.int64),
        "time": np.array([state.st_mtime_ns for state in states], np.int64),
        "digest": np.array([file.digest.encode() for file in listing.files]),
        "columns": np.array(masks, np.int64),
    }
    if listing.labels is not None:
        names = [label.encode() for label in listing.labels.names]
        small = np.min_scalar_type(len(names))
        columns |= {
            "label": listing.labels.numbers.astype(small),
            "name": np.array(names, f"S{max([1, *map(len, names)])}"),
        }
    return columns


def _short(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _digest(header: GridHeader, columns: dict[str, NDArray[Any]]) -> str:
    """Of the content of an index, and of what the digest of a header leaves out."""
    (height, width), holes = header.grid_size, " holes" if header.masked else ""
    digest = hashlib.sha256(f"{INDEX_FORMAT} {height} {width}{holes}\n".encode())
    for name, column in sorted(columns.items()):
        kind = column.dtype.newbyteorder("<")
        digest.update(f"{name} {kind.str} {len(column)}\n".encode() + np.ascontiguousarray(column, kind).tobytes())
    return f"sha256:{digest.hexdigest()}"


def _read_column(file: h5py.File, column: str, name: str, kind: str) -> NDArray[Any]:
    found = find_dataset(file, column, name)
    if found is None or len(found.shape) != 1 or found.dtype.kind != kind:
        raise FormatError(f"{name}: damaged: its {column} is not there, or is none")
    return found.read(0, len(found))


def _files_of(columns: dict[str, NDArray[Any]], folder: Path) -> Iterator[GridFile]:
    rows = zip(*(columns[name].tolist() for name in ("path", "num_grids", "digest", "columns")), strict=True)
    for path, num_grids, digest, mask in rows:
        known = tuple(column for place, column in enumerate(TEXTS) if mask >> place & 1)
        yield GridFile(folder / os.fsdecode(path), num_grids, digest.decode(), known)


def _labels_of(columns: dict[str, NDArray[Any]]) -> Labels | None:
    if "label" not in columns:
        return None
    names, numbers = [label.decode() for label in columns["name"].tolist()], columns["label"]
    if len(numbers) and int(numbers.max()) >= len(names):
        raise ValueError("a label has no name")
    return Labels(names, numbers)


def _check_files(name: str, files: Sequence[GridFile], sizes: list[int], times: list[int], *, masked: bool) -> None:
    """Raise unless files are as they were when the index was made; the first that is not is named."""
    wrong: list[tuple[type[VqtoolError], str]] = []
    for file, size, time in zip(files, sizes, times, strict=True):
        try:
            state = os.stat(file.path)
        except OSError:
            wrong.append((VqtoolError, f"{file.path} is missing"))
            continue
        if not stat.S_ISREG(state.st_mode) or str(file.path) == "-":  # nobody waits at a pipe that a stranger names
            wrong.append((FormatError, f"{file.path} is no ordinary file"))
        elif state.st_size != size:
            what = "cut short" if state.st_size < size else "replaced"
            wrong.append((FormatError, f"{file.path} was {what}: {state.st_size} bytes, {size} when {name} was made"))
        elif state.st_mtime_ns != time and not _is_same(file, masked=masked):
            wrong.append((MismatchError, f"{file.path} was replaced: it holds other grids than when {name} was made"))
    if wrong:
        _refuse(name, wrong)


def _is_same(file: GridFile, *, masked: bool) -> bool:
    """Whether a file that may be a copy holds what it held."""
    with open_grids(file.path, masked=masked) as reader:
        return (reader.num_grids, reader.digest) == (file.num_grids, file.digest)


def _refuse(name: str, wrong: Sequence[tuple[type[VqtoolError], str]]) -> NoReturn:
    kind, what = wrong[0]
    others = f", and {len(wrong) - 1} more are not as they were" if len(wrong) > 1 else ""
    raise kind(f"{name}: {what}{others}: bring back the files, or make the index anew, by `vqtool cat --index`")
