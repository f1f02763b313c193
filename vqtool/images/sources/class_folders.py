"""Class folders, and the folders train/, val/ and test/ above them."""

from collections.abc import Sequence
from dataclasses import dataclass

from vqtool.errors import VqtoolError, warn
from vqtool.images.sources.items import shown_names

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Folders:
    """What the folders of images say: the class of each, and its split."""

    classes: list[str | None]
    splits: list[str | None]  # as the folder is called

    @property
    def num_outside(self) -> int:
        """How many images lie in no class folder."""
        return self.classes.count(None)


def split_of(name: str) -> str | None:
    """The split that a folder is by its name, such as Train, val or train2017; None if it is none."""
    return _SPLITS.get(name.casefold().rstrip("0123456789").rstrip("_-"))


def read_folders(images: Sequence[str]) -> Folders:
    """Find class folders, below folders that all images share and below train/, val/, test/.

    Args:
        images: relative posix paths.
    """
    known: dict[str, list[str]] = {}
    folders = (image.rpartition("/")[0] for image in images)
    parts = [known.setdefault(folder, folder.split("/") if folder else []) for folder in folders]
    depth = 0
    while _share_one(parts, depth) and sum(len(part) > depth + 1 for part in parts) * 2 > len(parts):
        depth += 1
    names = {part[depth] for part in parts if len(part) > depth}
    splits: list[str | None] = [None] * len(parts)
    if names and all(map(split_of, names)):
        splits = [part[depth] if len(part) > depth else None for part in parts]
        depth += 1
    return Folders([part[depth] if len(part) > depth else None for part in parts], splits)


def _share_one(parts: Sequence[Sequence[str]], depth: int) -> bool:
    """Whether all images lie in one folder, which is no split."""
    names = {part[depth] if len(part) > depth else "" for part in parts}
    return len(names) == 1 and "" not in names and not any(map(split_of, names))


def choose_split(images: Sequence[str], split: str | None, place: str, *, told: bool = True) -> Sequence[int]:
    """The numbers of the images of a split, or of all; tells of splits that nobody chose.

    Raises:
        VqtoolError: there is no such split.
    """
    if split is None and not told:
        return range(len(images))
    splits = read_folders(images).splits
    known = sorted({name for name in splits if name is not None})
    if split is None:
        if len(known) > 1 and told:
            listed = ", ".join(f"{name}/" for name in known)
            warn(f"{place}: {listed} are splits, not classes: all are taken; `split` {known[-1]} takes one of them")
        return range(len(images))
    wanted = split_of(split)
    chosen = [row for row, name in enumerate(splits) if name and split_of(name) == wanted]
    if not chosen:
        there = (
            f"there are {', '.join(known)}" if known else "there are no folders train, val or test above its classes"
        )
        raise VqtoolError(f"{place}: `split` {split}: {there}")
    return chosen


def tell_passed_over(images: Sequence[str], labels: Sequence[str | None], place: str) -> None:
    """Tell of images in class folders that have no label, since others have one that is written somewhere."""
    classes = read_folders(images).classes
    without = [image for image, label, name in zip(images, labels, classes, strict=True) if not label and name]
    if without and len(set(classes) - {None}) > 1:
        warn(
            f"{place}: {len(without):,} of {len(images):,} images have no label, since class folders are not taken "
            f"where some labels are written; `labels` folder takes them: {shown_names(without, len(without))}"
        )


def class_labels(images: Sequence[str], place: str, *, forced: bool = False) -> list[str | None]:
    """Labels from class folders; what keeps folders from being classes is told.

    Args:
        images: relative posix paths.
        place: the source, for messages.
        forced: take them whatever they look like.
    """
    folders = read_folders(images)
    classes = sorted({name for name in folders.classes if name is not None})
    none: list[str | None] = [None] * len(images)
    if not classes:
        return none
    outside = folders.num_outside
    listed = shown_names((f"{name}/" for name in classes), len(classes))
    beside = f"{outside:,} of {len(images):,} images lie beside {listed}"
    if not forced and len(classes) == 1 and outside * 2 >= len(images):
        return none
    if not forced and len(classes) == 1:
        warn(f"{place}: no labels: {classes[0]}/ is the only folder, which makes no classes; `labels` folder takes it")
        return none
    if not forced and outside * 2 >= len(images):
        warn(f"{place}: no labels: {beside}, which are not taken for class folders; `labels` folder takes them")
        return none
    if outside:
        stray = (image for image, name in zip(images, folders.classes, strict=True) if name is None)
        warn(f"{place}: {beside} and have no label: {shown_names(stray, outside)}")
    return folders.classes
