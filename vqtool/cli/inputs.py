"""What several commands do with their inputs: skip and count bad ones, read them for training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vqtool.cli.console import echo, progress, warn
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


def load_training_images(
    sources: Sequence[Path], size: tuple[int, int], skipped: Skipped, *, factor: int, room: float = 1.0
) -> "NDArray[np.uint8]":
    """All images of some sources as one array (N, 3, h, w), read with progress; `room` times as large as `size`.

    Raises:
        VqtoolError: the size is no multiple of the tokenizer's factor, or no image could be read.
    """
    from vqtool.images import read_images

    if size[0] % factor or size[1] % factor:
        raise VqtoolError(f"--size {size[0]}x{size[1]}: both sides must be multiples of the factor {factor}")
    larger = round(size[0] * room), round(size[1] * room)
    return read_images(sources, larger, on_error=skipped.on_error, progress=progress).images
