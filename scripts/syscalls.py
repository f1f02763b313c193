"""Run a function in a forked process that stops before each system call that changes files; Linux on x86-64 only.

A seccomp filter lets all other calls pass at full speed; ptrace shows the rest to the parent, which lets a call happen
or kills the process before it does.
"""

import ctypes
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"

# Calls on x86-64 by what says which file they are about.
BY_DESCRIPTOR = {
    1: "write",
    18: "pwrite64",
    20: "writev",
    296: "pwritev",
    77: "ftruncate",
    74: "fsync",
    75: "fdatasync",
}
BY_PATH = {
    82: "rename", 264: "renameat", 316: "renameat2", 86: "link", 265: "linkat", 87: "unlink", 263: "unlinkat",
    76: "truncate", 83: "mkdir", 258: "mkdirat", 84: "rmdir", 88: "symlink", 266: "symlinkat",
}  # fmt: skip
OPEN, OPENAT = 2, 257  # traced only if they may write
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_TRACEME, _CONT, _GETREGS, _SETOPTIONS = 0, 7, 12, 0x4200
_OPTIONS = 1 | 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # sysgood, fork, vfork, clone, seccomp, kill with the tracer
_SECCOMP_EVENT = 7
_libc = ctypes.CDLL(None, use_errno=True) if AVAILABLE else None
if _libc is not None:
    _libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    _libc.ptrace.restype = ctypes.c_long


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("true", ctypes.c_ubyte), ("false", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.POINTER(_Instruction)))


def fork(function: Callable[[], int], folder: Path, *, traced: bool = False) -> int:
    """Start a function in a forked process, which ends with the exit code that it returns.

    Args:
        function: what it does.
        folder: its current folder; stdout and stderr go to files beside it.
        traced: whether it is to be followed.

    Returns:
        The process; a traced one waits for `follow`.
    """
    process = os.fork()
    if process:
        if traced:
            os.waitpid(process, 0)
        return process
    code = 1
    try:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"../{folder.name}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if traced:
            _libc.ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            _install_filter()
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def follow(process: int, folder: Path, kill_at: int | None = None) -> tuple[int, list[str]]:
    """Let a traced process go on to its end, or to just before a call.

    Args:
        process: from `fork`.
        folder: only calls about files in it count.
        kill_at: the number of the call, from 0 on; None kills nothing.

    Returns:
        Its exit code (negative: the signal), and the names of the calls.
    """
    _libc.ptrace(_SETOPTIONS, process, None, _OPTIONS)
    _libc.ptrace(_CONT, process, None, None)
    calls: list[str] = []
    registers = (ctypes.c_ulonglong * 27)()
    while True:
        stopped, status = os.waitpid(-1, 0x40000000)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if stopped == process:
                return os.waitstatus_to_exitcode(status), calls
            continue
        number, event = os.WSTOPSIG(status), status >> 16
        if event == _SECCOMP_EVENT:
            _libc.ptrace(_GETREGS, stopped, None, ctypes.byref(registers))
            name = _name(stopped, registers, folder)
            if name:
                calls.append(name)
                if len(calls) - 1 == kill_at:
                    os.kill(process, signal.SIGKILL)
                    continue
        _libc.ptrace(_CONT, stopped, None, 0 if event or number in (signal.SIGTRAP, signal.SIGSTOP) else number)


def _name(process: int, registers: "ctypes.Array[ctypes.c_ulonglong]", folder: Path) -> str:
    """The name of a call if it is about a file in the folder, or names one by a path; else empty."""
    number, first = registers[15], registers[14]
    if number in BY_DESCRIPTOR:
        try:
            path = os.readlink(f"/proc/{process}/fd/{first}")
        except OSError:
            return ""
        return BY_DESCRIPTOR[number] if path.startswith(f"{folder}/") else ""
    return BY_PATH.get(number) or ("open" if number in (OPEN, OPENAT) else "")


def _install_filter() -> None:
    """Trace the calls of the tables, and those that open a file to write."""
    load, equal, any_bit, end = 0x20, 0x15, 0x45, 0x06
    allow, trace = 0x7FFF0000, 0x7FF00000
    listed = [*BY_DESCRIPTOR, *BY_PATH]
    rest = [
        (equal, 2, 0, OPEN),
        (equal, 3, 0, OPENAT),
        (end, 0, 0, allow),
        (load, 0, 0, 24),  # flags of open
        (any_bit, 3, 2, WRITING),
        (load, 0, 0, 32),  # flags of openat
        (any_bit, 1, 0, WRITING),
        (end, 0, 0, allow),
        (end, 0, 0, trace),
    ]
    table = [(equal, len(listed) - place + len(rest) - 2, 0, number) for place, number in enumerate(listed)]
    code = [(load, 0, 0, 0), *table, *rest]
    array = (_Instruction * len(code))(*(_Instruction(*each) for each in code))
    program = _Program(len(code), array)
    if _libc.prctl(38, 1, 0, 0, 0) or _libc.prctl(22, 2, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
