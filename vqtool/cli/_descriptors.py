"""Standard input, output and error as a command can rely on them, whatever it was started with."""

import os
import sys
from typing import Any, TextIO

from vqtool.outputs import explained

# How a closed descriptor is taken up. Writing to a closed standard output stays an error, as data would be lost.
_STANDARD = (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))


class _Lossy:
    """A standard error that may be full or gone: messages that nobody can read are lost, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose, a text."""
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Send what is buffered, or lose it."""
        try:
            self._stream.flush()
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Named:
    """A standard output whose errors say what could not be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or raise VqtoolError."""
        with explained("-"):
            return self._stream.write(text)

    def flush(self) -> None:
        """Send what is buffered, or raise VqtoolError."""
        with explained("-"):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare() -> None:
    """Take up closed descriptors, so that no file is opened under their numbers, and keep messages from failing."""
    for number, (name, mode, flags) in enumerate(_STANDARD):
        if getattr(sys, name) is None:
            _take_up(number, flags)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if not isinstance(sys.stdout, _Named):
        sys.stdout = _Named(sys.stdout)
    if not isinstance(sys.stderr, _Lossy):
        sys.stderr = _Lossy(sys.stderr)


def _take_up(number: int, flags: int) -> None:
    """Open the null device under a descriptor, unless something is open there."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, flags)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
