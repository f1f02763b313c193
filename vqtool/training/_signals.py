"""Signals in a run: it ends between two steps, with its state saved."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vqtool import distributed, signals


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Let Ctrl-C (or another signal that asks for it) end a loop between two steps, on all processes at the same step.

    Yields:
        interrupted(): the number of the signal that asks to stop, else 0; all processes have to call it equally often.
    """
    numbers: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C does not wait. But launchers of several processes repeat what the terminal has sent already.
        if numbers and distributed.world_size() == 1:
            raise signals.Interrupted(number)
        numbers.append(number)

    with signals.caught(note, interrupt=True):
        yield lambda: distributed.broadcast(numbers[0] if numbers else 0)
