"""Where results go, and what messages call it: files, standard output, pipes and devices."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vqtool.errors import VqtoolError

STANDARD_OUTPUT = ("-", "/dev/stdout")  # the second would otherwise be replaced by a file


def is_stream(output: str | Path) -> bool:
    """Whether an output is standard output, a pipe or a device rather than a file on disk."""
    if str(output) in STANDARD_OUTPUT:
        return True
    path = Path(output)
    return path.exists() and not path.is_dir() and not path.is_file()


def output_name(output: str | Path) -> str:
    """What messages call an output."""
    return "standard output" if str(output) in STANDARD_OUTPUT else str(output)


@contextmanager
def explained(output: str | Path) -> Iterator[None]:
    """Say which output could not be written; a closed pipe is nobody's fault and passes.

    Raises:
        VqtoolError: in place of an OSError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise VqtoolError(f"{output_name(output)}: cannot be written: {error.strerror or error}") from error


@contextmanager
def open_output(output: str | Path) -> Iterator[BinaryIO]:
    """Open standard output, a named pipe or a device for writing bytes.

    Raises:
        VqtoolError: it is a terminal.
    """
    refuse_terminal(output)
    if str(output) in STANDARD_OUTPUT:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    pipe = Path(output).open("wb")  # noqa: SIM115 (closed below: what it still holds may fail to go a second time)
    try:
        yield pipe
    except BaseException:
        with suppress(OSError):
            pipe.close()
        raise
    pipe.close()


def refuse_terminal(output: str | Path) -> None:
    """Raise if bytes written to this output would end up on a terminal.

    Raises:
        VqtoolError: they would.
    """
    if str(output) in STANDARD_OUTPUT and sys.stdout.isatty():
        raise VqtoolError("binary data does not go to a terminal: name a file with -o, or pipe or redirect the output")
