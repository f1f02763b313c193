"""What an input holds, by how it begins: what is piped into standard input stays there to be read."""

import sys
from pathlib import Path

from vqtool.images.sources.arrays import HDF5_SIGNATURE
from vqtool.images.sources.tars import STANDARD_INPUT
from vqtool.inputs import locate


def holds_grids(source: str | Path) -> bool:
    """Whether an input is token grids rather than images: an HDF5 file without images, or a pipe that begins as one.

    Of standard input ("-") the first bytes are looked at and stay there to be read.
    """
    import h5py

    if str(source) == STANDARD_INPUT:
        return HDF5_SIGNATURE.startswith(_peek_input(len(HDF5_SIGNATURE)))
    path = locate(source)
    if not path.is_file():
        return path.exists() and not path.is_dir()
    with path.open("rb") as stream:
        if stream.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            return False
    try:
        with h5py.File(path, "r") as file:
            return "images" not in file
    except (OSError, RuntimeError):
        return True  # damaged: reading says how


def pipes_images(source: str | Path) -> bool:
    """Whether an input is standard input ("-") and begins as a tar, in which images come through pipes."""
    return str(source) == STANDARD_INPUT and _peek_input(512)[257:262] == b"ustar"


def _peek_input(num: int) -> bytes:
    """The first bytes of standard input, which stay there to be read; none of a terminal."""
    stream = sys.stdin
    if stream is None or stream.isatty() or not hasattr(stream.buffer, "peek"):
        return b""
    return bytes(stream.buffer.peek(num)[:num])
