"""Ctrl-C in a run: it ends between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vqtool import distributed


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C (or a polite kill) end a loop between two steps, on all processes at the same step.

    Yields:
        interrupted(): whether to stop; all processes have to call it equally often.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C does not wait. But launchers of several processes repeat what the terminal has sent already.
        if caught and distributed.world_size() == 1:
            raise KeyboardInterrupt
        caught.append(number)

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield lambda: distributed.broadcast(bool(caught))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
