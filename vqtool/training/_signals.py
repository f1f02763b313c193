"""Signals in a run: it ends between two steps, with its state saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vqtool import distributed

# Ctrl-C, a polite kill, a terminal that is gone, and what SLURM sends ahead of the end.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C (or another signal that asks for it) end a loop between two steps, on all processes at the same step.

    Yields:
        interrupted(): whether to stop; all processes have to call it equally often.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C does not wait. But launchers of several processes repeat what the terminal has sent already.
        if caught and distributed.world_size() == 1:
            raise KeyboardInterrupt
        caught.append(number)

    main = threading.current_thread() is threading.main_thread()
    signals = [number for number in _SIGNALS if main and (number == signal.SIGINT or not _is_ignored(number))]
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield lambda: distributed.broadcast(bool(caught))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored(number: int) -> bool:
    """Whether whoever started this process has it ignore a signal, as nohup does."""
    return signal.getsignal(number) is signal.SIG_IGN
