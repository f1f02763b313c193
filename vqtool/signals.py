"""Signals that ask a run to end, and may be told to save first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A polite kill, a terminal that is gone, and what SLURM sends ahead of the end.
_POLITE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to end; the text says what is kept.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, *kept: str) -> None:
        super().__init__(*kept)
        self.number = number


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that ends what is under way as Ctrl-C does."""
    raise Interrupted(number)


@contextmanager
def caught(handler: Callable[[int, FrameType | None], None], *, interrupt: bool = False) -> Iterator[None]:
    """Have these signals call a handler while the block lasts; in threads other than the main one nothing changes.

    Args:
        handler: is given the signal's number and the frame.
        interrupt: Ctrl-C, too.
    """
    main = threading.current_thread() is threading.main_thread()
    # Whoever starts a process may have it ignore a signal, as nohup does.
    heeded = [number for number in _POLITE if signal.getsignal(number) is not signal.SIG_IGN] if main else []
    numbers = [*heeded, signal.SIGINT] if interrupt and main else heeded
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
