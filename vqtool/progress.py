"""How library functions say how far they are: whoever calls them may show it.

A progress is called with what is being done, how many units there are (None: unknown), what they are called and how
many were done before; it gives a context manager that yields `advance(n)`: n more units are done.
`vqtool.cli.console.progress` is one; ``call`` makes one of a function of the numbers done and in all.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Notify = Callable[[str], None]  # is told, line by line, what is done


class Advance(Protocol):
    """Says that units are done."""

    def __call__(self, n: int, /, *, total: int | None = None) -> None:
        """N more are done; `total`: there are so many in all, where that has become another number."""


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
        reached, in_all = done, total

        def advance(n: int, /, *, total: int | None = None) -> None:
            nonlocal reached, in_all
            reached, in_all = reached + n, in_all if total is None else total
            report(reached, in_all)

        yield advance

    return progress


@contextmanager
def silent(
    description: str, total: int | None, unit: str = "images", /, *, done: int = 0, detail: Callable[[], str] = str
) -> Iterator[Advance]:
    """A progress that shows nothing."""
    yield lambda n, /, *, total=None: None


def ignore(message: str) -> None:
    """A notify that shows nothing."""
