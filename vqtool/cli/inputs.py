"""What several commands do with the images they read: skip and count bad ones, and say what was read."""

from pathlib import Path
from typing import Any

import typer

from vqtool.cli.console import echo, warn
from vqtool.errors import VqtoolError, printable
from vqtool.outputs import is_stream
from vqtool.tally import Tally

MOST_NAMED = 10  # skipped files that are named on the screen


class Skipped(Tally):
    """Images that a command reads: bad ones are named and left out; at the end it says what was read, and exits with 1.

    Args:
        strict: stop at the first bad one.
        output: what the command writes; the names of many bad ones go into a file beside it.
    """

    def __init__(self, strict: bool = False, output: Path | None = None) -> None:
        super().__init__()
        self.strict, self._output = strict, output

    @property
    def count(self) -> int:
        """How many were left out."""
        return len(self.skipped)

    @property
    def on_error(self) -> "Skipped":
        """What to hand to functions that find and read images."""
        return self

    def __call__(self, item: Any, error: VqtoolError) -> None:
        """Name one bad input and count it.

        Raises:
            VqtoolError: the error, if the command is strict.
        """
        if self.strict:
            raise error
        super().__call__(item, error)
        if self.count <= MOST_NAMED:
            warn(f"skipped {error}")

    def finish(self) -> None:
        """Say in one line what was read, and exit with 1 if anything was skipped."""
        path = self._names_path()
        if path is not None and self.count <= MOST_NAMED:
            path.unlink(missing_ok=True)  # an earlier run's
        if self.num_images or self.count:
            echo(f"{self.line}{f' ({self._place(path)})' if self.count else ''}")
        if self.count:
            echo(f"error: {self.count} bad {'input' if self.count == 1 else 'inputs'} skipped; the rest is done")
            raise typer.Exit(1)

    def _names_path(self) -> Path | None:
        """The file beside the output for the names of what was skipped; None where there is no output."""
        if self._output is None or is_stream(self._output):
            return None
        return self._output.with_name(f"{self._output.name}.skipped.txt")

    def _place(self, path: Path | None) -> str:
        """Where the names of what was skipped are; many of them are written to a file."""
        if self.count <= MOST_NAMED:
            return "names above"
        if path is None:
            return f"the first {MOST_NAMED} are named above"
        try:
            path.write_text("".join(f"{printable(text)}\n" for text in self.skipped), encoding="utf-8")
        except OSError as error:
            return f"the first {MOST_NAMED} are named above; {path} cannot be written: {error.strerror}"
        return f"names in {path}"
