"""What was read of images: how many, with which words, and what was skipped; in a line that every reader ends with."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from vqtool.errors import VqtoolError


class Described(Protocol):
    """An image of which a label and captions may be known, such as an `ImageItem`."""

    @property
    def label(self) -> str | None:
        """Its class."""

    @property
    def captions(self) -> tuple[str, ...]:
        """Its captions."""


class Tally:
    """Counts images that are found and those that are skipped; give it as the `on_error` of a reader.

    Args:
        on_error: is told of each that is skipped too.

    Attributes:
        skipped: what was wrong with each image or folder that was left out, in order.
    """

    def __init__(self, on_error: Callable[[Any, VqtoolError], None] | None = None) -> None:
        self._on_error = on_error
        self.skipped: list[str] = []
        self._found: list[Sequence[Described]] = []
        self._left_out: set[Any] = set()
        self._with_words = False
        self._settled = (0, 0, 0, 0)  # images that are not held any more, those with captions, captions, labels
        self._classes: set[str] = set()  # of those

    def __call__(self, item: Any, error: VqtoolError) -> None:
        """An image or a folder is left out."""
        self.skipped.append(str(error))
        self._left_out.add(item)
        if self._on_error is not None:
            self._on_error(item, error)

    def found(self, items: Sequence[Described], *, with_words: bool) -> None:
        """Images are about to be read, with or without their captions and labels."""
        self._found.append(items)
        self._with_words |= with_words

    def settle(self) -> None:
        """Keep the numbers of the images so far, and let go of the images, and so of the files that they lie in."""
        self._settled, self._classes = self._counts()
        self._found.clear()
        self._left_out.clear()

    def add(self, other: "Tally") -> None:
        """Count what another one has settled, too; what was skipped is told by whoever told it there."""
        first, second = self._settled, other._settled
        self._settled = first[0] + second[0], first[1] + second[1], first[2] + second[2], first[3] + second[3]
        self._classes |= other._classes
        self._with_words |= other._with_words

    @property
    def num_images(self) -> int:
        """How many were found and not skipped."""
        return self._settled[0] + self._num_kept

    def _kept(self) -> Iterator[Described]:
        return (item for items in self._found for item in items if item not in self._left_out)

    @property
    def _num_kept(self) -> int:
        """How many images that are held were not left out: they are not looked at where none was."""
        return sum(1 for _ in self._kept()) if self._left_out else sum(map(len, self._found))

    @property
    def line(self) -> str:
        """All in one line: "1,000 pictures: captions for 998, labels for 1,000 in 12 classes; 3 files skipped"."""
        (num_images, captioned, captions, labelled), classes = self._counts()
        line = f"{num_images:,} {'picture' if num_images == 1 else 'pictures'}"
        if self._with_words:
            line += f": {describe_words(captioned, captions, labelled, len(classes))}"
        num = len(self.skipped)
        return line + (f"; {num:,} {'file' if num == 1 else 'files'} skipped" if num else "")

    def _counts(self) -> tuple[tuple[int, int, int, int], set[str]]:
        """Images, those with captions, captions and labels; and the classes."""
        images, captioned, captions, labelled = self._settled
        classes = set(self._classes)
        if not self._with_words:
            return (images + self._num_kept, captioned, captions, labelled), classes
        for item in self._kept():
            num, label = len(item.captions), item.label
            images, captioned, captions = images + 1, captioned + (num > 0), captions + num
            if label:
                labelled += 1
                classes.add(label)
        return (images, captioned, captions, labelled), classes


def describe_words(num_captioned: int, num_captions: int, num_labelled: int, num_classes: int) -> str:
    """How many images have captions and labels: "captions for 998, labels for 1,000 in 12 classes".

    Args:
        num_captioned: images with a caption.
        num_captions: captions of all of them.
        num_labelled: images with a label.
        num_classes: labels that differ.
    """
    captions = f"captions for {num_captioned:,}" if num_captioned else "no captions"
    if num_captions > num_captioned:
        captions += f" ({num_captions:,} in all)"
    classes = f"{num_classes:,} {'class' if num_classes == 1 else 'classes'}"
    return f"{captions}, {f'labels for {num_labelled:,} in {classes}' if num_labelled else 'no labels'}"
