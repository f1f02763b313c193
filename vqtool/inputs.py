"""Where data comes from, and what messages call it: files, standard input and pipes."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vqtool.errors import VqtoolError

_SIGNATURES = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file (WebP?)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip file (or a PyTorch checkpoint)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF file"),
)


def describe_bytes(start: bytes) -> str:
    """What a file that begins with these bytes seems to be, in a few words."""
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    if start[8:10] == b'{"':
        return "a safetensors file (a tokenizer or a prior?)"
    try:
        text = start[:24].decode("ascii")
    except UnicodeDecodeError:
        return f"bytes {start[:8].hex(' ')}"
    if "\0" in text:
        return f"bytes {start[:8].hex(' ')}"
    return f"text that begins with {text!r}"


def input_name(source: str | Path) -> str:
    """What messages call an input."""
    return "standard input" if str(source) == "-" else str(source)


@contextmanager
def open_input(source: str | Path) -> Iterator[tuple[BinaryIO, str]]:
    """Open a file, a pipe, or standard input ("-") for reading bytes.

    Yields:
        The stream and its name for messages.

    Raises:
        VqtoolError: it cannot be read, or is a terminal.
    """
    if str(source) == "-":
        if sys.stdin.isatty():
            raise VqtoolError("standard input is a terminal: name a file, or pipe one in")
        yield sys.stdin.buffer, input_name(source)
        return
    try:
        stream = Path(source).open("rb")  # noqa: SIM115 (closed below; only the opening may fail here)
    except OSError as error:
        raise VqtoolError(f"{source}: cannot be read: {error.strerror}") from error
    with stream:
        yield stream, str(source)


def is_file(stream: BinaryIO) -> bool:
    """Whether an input is a file on disk that was opened by name, so that it can be opened again."""
    return stream is not sys.stdin.buffer and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
