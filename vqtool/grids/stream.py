"""Streams of HDF5 files: complete files one after the other, in a pipe or in one file on disk.

Every HDF5 file begins with a signature and a superblock that says where the file ends, so a stream needs no framing of
its own: read the superblock, read up to the end address, open what was read, go on. Plain h5py opens the first one.

Source: HDF5 File Format Specification 3.0, section II.A (superblock versions 0 to 3); the checksum is lookup3 by
Bob Jenkins (2006).
"""

import io
import os
import stat
import struct
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import h5py

from vqtool.errors import FormatError
from vqtool.hdf5 import open_hdf5
from vqtool.inputs import describe_bytes, is_file

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_BYTES = 64  # enough to find the end address in every version; no HDF5 file is shorter
MEMORY_BYTES = 64 << 20  # a chunk above this goes through a temporary file
BLOCK_BYTES = 1 << 20
_MASK = 0xFFFFFFFF


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def lookup3(data: bytes) -> int:
    """The 32-bit checksum that HDF5 writes after a superblock of version 2 or 3."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    blocks = max(len(data) - 1, 0) // 12
    for i in range(blocks):
        x, y, z = struct.unpack_from("<III", data, 12 * i)
        a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
        for bits in (4, 6, 8, 16, 19, 4):
            a = (a - c) & _MASK ^ _rotate(c, bits)
            c = (c + b) & _MASK
            a, b, c = b, c, a
    x, y, z = struct.unpack("<III", data[12 * blocks :].ljust(12, b"\0"))
    a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotate(b, bits)) & _MASK
        a, b, c = b, c, a
    return int(b)


def end_address(start: bytes, name: str) -> int:
    """Where the HDF5 file that begins with these bytes says it ends.

    Args:
        start: its first bytes, SUPERBLOCK_BYTES of them if there are as many.
        name: of the source, for messages.

    Returns:
        Its length in bytes.

    Raises:
        FormatError: not an HDF5 file, cut short, or damaged.
    """
    if not SIGNATURE.startswith(start[:8]):
        raise FormatError(f"{name}: token grids (HDF5) were expected, found {describe_bytes(start)}")
    if len(start) < SUPERBLOCK_BYTES:
        raise FormatError(f"{name}: truncated: ends {len(start)} bytes into an HDF5 file")
    version = start[8]
    if version > 3:
        raise FormatError(f"{name}: HDF5 superblock version {version} is not known (0 to 3 are)")
    sizes = start[9] if version >= 2 else start[13]
    if sizes != 8:
        raise FormatError(f"{name}: damaged HDF5 file, or one with {sizes}-byte addresses (8 are expected)")
    if version >= 2 and lookup3(start[:44]) != int.from_bytes(start[44:48], "little"):
        raise FormatError(f"{name}: damaged: the checksum of the HDF5 superblock is wrong")
    base_at = (24, 28, 12, 12)[version]
    base, end = (int(word) for word in struct.unpack_from("<Q8xQ", start, base_at))
    if base != 0 or not SUPERBLOCK_BYTES <= end < 1 << 63:
        raise FormatError(f"{name}: damaged: the HDF5 superblock says that the file ends at byte {end}")
    return end


def _copy_file(stream: BinaryIO, start: bytes, size: int, output: BinaryIO, name: str) -> None:
    output.write(start)
    done = len(start)
    while done < size:
        block = stream.read(min(BLOCK_BYTES, size - done))
        if not block:
            raise FormatError(f"{name}: truncated: {done} of {size} bytes of an HDF5 file arrived")
        output.write(block)
        done += len(block)


def read_files(stream: BinaryIO, name: str) -> Generator[h5py.File, None, None]:
    """The HDF5 files that a stream is made of, each open until the next one is asked for.

    Memory holds one file; one above MEMORY_BYTES goes through a temporary file.

    Args:
        stream: whose `read(n)` gives n bytes unless it ends.
        name: of the source, for messages.

    Raises:
        FormatError: the stream ends inside a file, or holds something else.
    """
    while start := stream.read(SUPERBLOCK_BYTES):
        size = end_address(start, name)
        with ExitStack() as stack:
            if size <= MEMORY_BYTES:
                buffer = io.BytesIO()
                _copy_file(stream, start, size, buffer, name)
                yield stack.enter_context(open_hdf5(buffer.getvalue(), name))
            else:
                spool = stack.enter_context(tempfile.NamedTemporaryFile(prefix="vqtool-", suffix=".h5"))
                _copy_file(stream, start, size, spool, name)  # type: ignore[arg-type]
                spool.flush()
                yield stack.enter_context(open_hdf5(Path(spool.name), name))


def takes_one_file(output: BinaryIO) -> bool:
    """Whether an open output is a regular file at its beginning, not opened for appending.

    There one ordinary HDF5 file can stand; everywhere else (pipe, device, middle of a file) chunks follow each other.
    """
    import fcntl

    try:
        descriptor = output.fileno()
    except io.UnsupportedOperation:  # an object in memory stands in for standard output
        return False
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    return not appends and os.lseek(descriptor, 0, os.SEEK_CUR) == 0


def is_one_file(stream: BinaryIO, name: str) -> bool:
    """Whether an input at its beginning is a file on disk that is one HDF5 file from first byte to last.

    Raises:
        FormatError: it is not an HDF5 file, or is cut short.
    """
    if not is_file(stream):
        return False
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(SUPERBLOCK_BYTES)
    stream.seek(0)
    end = end_address(start, name) if start else 0
    if end > size:
        raise FormatError(f"{name}: truncated: {size} of {end} bytes")
    return 0 < end == size
