"""One writer per output: a lock beside it.

The operating system holds the lock and frees it when the process ends, however it ends. Its file, .x.h5.lock, says
which process on which host has it. Commands take the lock of every output before any work is done (`claims`, `claim`);
what writes a file takes it at least while it writes (`locked`).

Not by the package filelock: it keeps no name of who has the lock, so that this, the removal of the file, the folders
and the claims of a command would stay here; it could take over `_lock` and `_is_there`, some 20 lines. Linux and macOS
have flock, which Linux passes on to NFS servers; Windows locks a byte of the file (tried with a stand-in for its C
library alone). Where neither works a warning says so.
"""

import importlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from vqtool.distributed import is_main_process
from vqtool.errors import VqtoolError, warn

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_FAR = 1 << 20  # the byte that is locked on Windows, behind the text: nobody else can read a locked one

_held: set[Path] = set()  # the lock files of this process
_claims: ContextVar["_Claims | None"] = ContextVar("claims", default=None)


def lock_path(output: str | Path) -> Path:
    """The lock file of an output; where that is a symbolic link, of what it leads to."""
    path = Path(os.path.realpath(output))
    return path.parent / f".{path.name}.lock"


def is_held(output: str | Path) -> bool:
    """Whether this process has locked an output, or a folder that it is in."""
    lock = lock_path(output)
    return lock in _held or any(lock_path(folder) in _held for folder in lock.parents)


@contextmanager
def locked(output: str | Path) -> Iterator[None]:
    """Keep other processes from writing an output while the block lasts; blocks of one process may nest.

    Raises:
        VqtoolError: another process is writing it, or nothing can be written there.
    """
    lock = lock_path(output)
    if is_held(output):
        yield
        return
    descriptor = _acquire(lock, str(output))
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        if descriptor is not None:
            _release(descriptor, lock)


@contextmanager
def unshared(folder: Path) -> Iterator[None]:
    """Take no locks for what is written in a folder while the block lasts: no other process knows of it."""
    lock = lock_path(folder)
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)


class _Claims(ExitStack):
    """Locks of outputs, what these were called, and which files were there."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, tuple[int, int] | None] = {}


@contextmanager
def claims() -> Iterator[None]:
    """Hold the locks that `claim` takes inside the block until it ends; Ctrl-C says what became of the outputs."""
    with _Claims() as stack:
        token = _claims.set(stack)
        try:
            yield
        except KeyboardInterrupt as interruption:
            if stack.outputs and not interruption.args:
                interruption.args = ("; ".join(map(_describe_kept, *zip(*stack.outputs.items(), strict=True))),)
            raise
        finally:
            _claims.reset(token)


def _describe_kept(output: str, before: tuple[int, int] | None) -> str:
    """What an interrupted run leaves of an output: files are written as a whole or not at all."""
    path = Path(output)
    if path.is_dir():
        return f"{path} keeps what was written so far"
    if _mark(path) != before:
        return f"{path} was written"
    return f"{path} {'is as it was' if before else 'was not written'}"


def _mark(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that has replaced it; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def claim(output: str | Path) -> bool:
    """Lock an output until the end of the enclosing `claims`; says whether it is locked by this call.

    Outside of such a block nothing happens, nor in a process that is not the main one: that speaks for all.

    Raises:
        VqtoolError: as `locked`.
    """
    stack = _claims.get()
    if stack is None or not is_main_process() or is_held(output):
        return False
    stack.enter_context(locked(output))
    stack.outputs[str(output)] = _mark(Path(output))
    return True


def _acquire(lock: Path, output: str) -> int | None:
    """The descriptor of a lock file that this process has locked; None where the file system has no locks."""
    while True:
        try:
            descriptor = os.open(lock, _FLAGS, 0o666)
        except OSError as error:
            raise VqtoolError(f"{output}: cannot be written: {error.strerror}") from error
        try:
            _lock(descriptor)
            if _is_there(descriptor, lock):
                text = f"process {os.getpid()} on {socket.gethostname()}".encode()
                with suppress(OSError):  # a full disk: the lock is held, whatever its file says
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, text)
                return descriptor
        except BlockingIOError as error:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise VqtoolError(f"{output}: {holder} is writing it: wait for its end, or write elsewhere") from error
        except (OSError, ImportError) as error:
            os.close(descriptor)
            with suppress(OSError):
                lock.unlink()
            warn(f"{output}: no lock can be had here ({error}): see to it that nobody else writes it")
            return None
        os.close(descriptor)


def _read_holder(descriptor: int) -> str:
    """Who has the lock, as its file says; it has just been made, perhaps, and is written a moment later."""
    for _ in range(50):
        os.lseek(descriptor, 0, os.SEEK_SET)
        if text := os.read(descriptor, 300):
            return text.decode(errors="replace")
        time.sleep(0.01)
    return "another process"


def _lock(descriptor: int) -> None:
    """Lock an open file for this process; raises BlockingIOError if another one has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        _lock_byte(descriptor)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_byte(descriptor: int) -> None:
    msvcrt: Any = importlib.import_module("msvcrt")
    os.lseek(descriptor, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(error.errno, error.strerror) from error


def _release(descriptor: int, lock: Path) -> None:
    """Remove a lock file first: whoever opened it before has then locked a file that is gone, and sees it."""
    with suppress(OSError):
        lock.unlink()
    os.close(descriptor)
    if os.name == "nt":  # it removes no open file, nor one that another process has opened since
        with suppress(OSError):
            lock.unlink()


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name: the process that had the lock removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
