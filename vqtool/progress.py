"""How library functions say how far they are: whoever calls them may show it.

A progress is called with what is being done, how many units there are (None: unknown), what they are called and how
many were done before; it gives a context manager that yields `advance(n)`: n more units are done.
`vqtool.cli.console.progress` is one; ``call`` makes one of a function of the numbers done and in all.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
Notify = Callable[[str], None]  # is told, line by line, what is done


class Progress(Protocol):
    """Shows how far a loop is."""

    def __call__(
        self,
        description: str,
        total: int | None,
        unit: str = "images",
        /,
        *,
        done: int = 0,
        detail: Callable[[], str] = str,
    ) -> AbstractContextManager[Advance]:
        """A context that yields `advance(n)`; `detail` says what else there is to say, each time."""


def call(report: Callable[[int, int | None], None]) -> Progress:
    """A progress that calls report(done, total) whenever units are done."""

    @contextmanager
    def progress(
        description: str,
        total: int | None,
        unit: str = "images",
        /,
        *,
        done: int = 0,
        detail: Callable[[], str] = str,
    ) -> Iterator[Advance]:
        reached = done

        def advance(n: int) -> None:
            nonlocal reached
            reached += n
            report(reached, total)

        yield advance

    return progress


silent = call(lambda done, total: None)


def ignore(message: str) -> None:
    """A notify that shows nothing."""
