"""Where data comes from, and what messages call it: files, standard input and pipes."""

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO

from vqtool.errors import VqtoolError
from vqtool.urls import Fetched, fetched, find_urls, url_of

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


def expand(sources: Iterable[str | Path]) -> list[str]:
    """The names that are meant: x-{00..99}.tar are a hundred, {a,b}.tar two, and globs what fits them, sorted.

    A name that leads somewhere as it stands is that, and one that nothing fits is left as it is. Of URLs * is taken.

    Raises:
        VqtoolError: the server of a URL does not say what fits.
    """
    return [name for source in sources for each in _unbrace(str(source)) for name in _fitting(each)]


def _unbrace(text: str) -> list[str]:
    """Text with its braces written out: {08..11} or {a,b}, as shells do."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if match is None or os.path.exists(text):
        return [text]
    if match[3] is None:
        width = max(len(end) for end in match.group(1, 2)) if any(end[0] == "0" for end in match.group(1, 2)) else 0
        middles = [f"{number:0{width}d}" for number in range(int(match[1]), int(match[2]) + 1)]
    else:
        middles = match[3].split(",")
    return [each for middle in middles for each in _unbrace(text[: match.start()] + middle + text[match.end() :])]


def locate(source: str | Path) -> Path:
    """The path of a source; of a URL that of a copy, which is fetched when it is opened: see `vqtool.urls`."""
    if isinstance(source, Fetched):
        return source
    url = url_of(source)
    return Path(source) if url is None else fetched(url)


def _fitting(name: str) -> list[str]:
    url = url_of(name)
    if url is not None:
        return find_urls(url)
    if not has_magic(name) or os.path.exists(name):
        return [name]
    return sorted(glob(name)) or [name]


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
        stream = locate(source).open("rb")
    except OSError as error:
        raise VqtoolError(f"{source}: cannot be read: {error.strerror}") from error
    with stream:
        yield stream, str(source)


def is_file(stream: BinaryIO) -> bool:
    """Whether an input is a file on disk that was opened by name, so that it can be opened again."""
    return stream is not sys.stdin.buffer and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
