"""How library functions say how far they are: whoever calls them may show it.

A progress is called with what is being done, how many units there are (None: unknown), what they are called and how
many were done before; it gives a context manager that yields `advance(n)`: n more units are done.
`vqtool.cli.console.progress` is one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Shows how far a loop is."""

    def __call__(
        self, description: str, total: int | None, unit: str = "images", /, *, done: int = 0
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A context that yields `advance(n)`."""


def silent(
    description: str, total: int | None, unit: str = "images", *, done: int = 0
) -> AbstractContextManager[Callable[[int], None]]:
    """A progress that shows nothing."""
    return nullcontext(lambda n: None)
