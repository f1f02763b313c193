"""What several commands do with their inputs: skip and count bad ones, choose a device, resolve a tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vqtool.cli.console import echo, progress, shape, warn
from vqtool.errors import MismatchError, VqtoolError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vqtool.grids import GridHeader
    from vqtool.images import ImageItem
    from vqtool.tokenizers import Tokenizer


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


def choose_device(name: str) -> str:
    """The device that `--device` means: "auto" is a CUDA GPU, each process's own under `accelerate`, or else the CPU.

    It is never "mps": Apple's GPUs have no float64, in which noise and kernels are.
    """
    import torch

    from vqtool import distributed

    if name == "auto":
        if torch.cuda.is_available():
            return f"cuda:{distributed.rank() % torch.cuda.device_count()}"
        return "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise VqtoolError(f"--device {name}: cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def load_training_images(
    sources: Sequence[Path], size: tuple[int, int], skipped: Skipped, *, factor: int, room: float = 1.0
) -> "NDArray[np.uint8]":
    """All images of some sources as one array (N, 3, h, w), read with progress; `room` times as large as `size`.

    Raises:
        VqtoolError: the size is no multiple of the tokenizer's factor, or no image could be read.
    """
    from vqtool.images import find_images
    from vqtool.training.data import load_images

    if size[0] % factor or size[1] % factor:
        raise VqtoolError(f"--size {size[0]}x{size[1]}: both sides must be multiples of the factor {factor}")
    items = find_images(sources)
    with progress("read", len(items)) as advance:
        larger = round(size[0] * room), round(size[1] * room)
        pixels = load_images(items, larger, on_error=skipped.on_error, advance=advance)
    if not len(pixels):
        raise VqtoolError(f"none of the {len(items)} images could be read")
    return pixels


def tokenizer_of(header: "GridHeader", source: Path, given: str | None) -> "Tokenizer":
    """The tokenizer that grids were made with: the one given, or the one they name.

    Raises:
        MismatchError: it is another one, or its codebook size or factor are not those of the grids.
    """
    from vqtool.tokenizers import find_named_tokenizer

    near = None if str(source) == "-" else source.parent
    model = find_named_tokenizer(header.tokenizer_fingerprint, header.tokenizer_location, given=given, near=near)
    if (header.codebook_size, header.grid_size) != (model.codebook_size, model.grid_size(header.image_size)):
        raise MismatchError(
            f"{source}: grids of {shape(header.grid_size)} tokens below {header.codebook_size} for images of "
            f"{shape(header.image_size)} do not fit the tokenizer they name, {model.location}, which has "
            f"{model.codebook_size} codes and factor {model.factor}: encode the images again"
        )
    return model
