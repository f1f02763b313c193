"""HDF5 files on disk whose writing can fail without harm.

HDF5 (2.0.0 and before) does not survive a write that fails: with a full disk the error is swallowed when a dataset is
closed, and the process crashes when it exits. So it writes to a file object that never fails: the first error is kept,
what comes after it goes to memory, and the error is raised once HDF5 has let go.
"""

import io
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

# v110: superblock 3, checksummed metadata; readable by every HDF5 since 1.10 (2016).
LIBVER = ("v110", "v110")


class _OutputFile:
    """The file object that HDF5 writes to: what h5py's "fileobj" driver needs, and the first error."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._position = 0
        self._lost: list[tuple[int, bytes]] = []  # (offset, what could not be written), oldest first
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += max([self._raw.seek(0, io.SEEK_END), *(start + len(data) for start, data in self._lost)])
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def write(self, data: memoryview) -> int:
        done = 0
        if self.error is None:
            try:
                self._raw.seek(self._position)
                while done < len(data):
                    done += self._raw.write(data[done:]) or 0
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._lost.append((self._position, bytes(data)))
        self._position += len(data)
        return len(data)

    def readinto(self, buffer: memoryview) -> int:
        buffer[:] = self.read(len(buffer))
        return len(buffer)

    def read(self, size: int) -> bytes:
        self._raw.seek(self._position)
        content = bytearray((self._raw.read(size) or b"").ljust(size, b"\0"))
        for start, data in self._lost:
            low, high = max(start, self._position), min(start + len(data), self._position + size)
            if low < high:
                content[low - self._position : high - self._position] = data[low - start : high - start]
        self._position += size
        return bytes(content)

    def truncate(self, size: int) -> int:
        if self.error is None:
            try:
                self._raw.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""


class HDF5Output:
    """An HDF5 file that is being written to disk; made by `create_hdf5`."""

    def __init__(self, file: h5py.File, output: _OutputFile) -> None:
        self.file = file
        self._output = output

    def check(self) -> None:
        """Raise what went wrong in writing so far.

        Raises:
            OSError: the disk is full, or whatever else made a write fail.
        """
        if self._output.error is not None:
            raise self._output.error


@contextmanager
def create_hdf5(path: Path) -> Iterator[HDF5Output]:
    """Create an HDF5 file; when the block ends well the file is whole.

    Raises:
        OSError: it cannot be created, or some write failed.
    """
    with io.FileIO(path, "w+") as raw:
        output = _OutputFile(raw)
        file = None
        try:
            with uninterrupted():  # Ctrl-C comes out of it when the file is there, and has to be closed
                file = h5py.File(output, "w", libver=LIBVER)
            result = HDF5Output(file, output)
            yield result
        finally:
            if file is not None:
                with uninterrupted():
                    file.close()
        result.check()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block ends: an exception inside a callback of HDF5 is a failed write to it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if pending:
            signal.raise_signal(signal.SIGINT)
