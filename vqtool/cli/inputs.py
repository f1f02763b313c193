"""What several commands do with their inputs: skip and count bad ones."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from vqtool.cli.console import echo, warn
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.images import ImageItem


@dataclass
class Skipped:
    """Bad inputs among good ones: each is named and left out; at the end the command exits with 1."""

    strict: bool = False
    count: int = field(default=0, init=False)

    @property
    def on_error(self) -> "Callable[[ImageItem, VqtoolError], None] | None":
        """What to hand to `read_batches`; None, that is raise, under --strict."""
        return None if self.strict else self.skip

    def skip(self, item: "ImageItem", error: VqtoolError) -> None:
        """Name one bad input and count it."""
        self.count += 1
        warn(f"skipped {error}")

    def finish(self) -> None:
        """Exit with 1 if anything was skipped."""
        if self.count:
            echo(f"error: {self.count} bad {'input' if self.count == 1 else 'inputs'} skipped; the rest is done")
            raise typer.Exit(1)
