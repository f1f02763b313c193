"""How library functions say how far they are: whoever calls them may show it.

A progress is called with what is being done and how many units there are (None: unknown), and gives a context manager
that yields `advance(n)`: n more units are done. `vqtool.cli.console.progress` is one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


def silent(description: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """A progress that shows nothing."""
    return nullcontext(lambda n: None)
