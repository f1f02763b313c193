"""A folder of images: everything below it, with labels from its class folders and words from the files beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, normpath, splitext

from vqtool.errors import VqtoolError
from vqtool.images.sources.items import LOOKED_FOR, Entry, FileOrigin, class_folders, has_image_suffix, natural_key
from vqtool.images.sources.metadata import METADATA_NAMES, Words, clean, decode_text, read_metadata

_SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz", ".h5", ".hdf5")


def find_in_folder(folder: Path) -> list[Entry]:
    """All images below a folder, in natural order.

    Hidden files and folders are passed over; links to folders are followed, but no folder is entered twice.

    Raises:
        VqtoolError: no images, or a sub-folder that cannot be read.
        FormatError: a metadata file or caption beside the images is malformed.
    """
    names = list(_walk(folder))
    images = sorted((name for name in names if has_image_suffix(name)), key=natural_key)
    if not images:
        raise VqtoolError(f"{folder}: no images here; looked for {LOOKED_FOR}{_hint(names)}")
    metadata = _read_all_metadata(folder, names, images)
    texts = {name for name in names if name.endswith(".txt")}
    labels: list[str | None] = [metadata.get(image, Words()).label for image in images]
    if not any(labels):
        labels = class_folders(images)
    captions = [_find_caption(folder, image, metadata, texts) for image in images]
    return [
        Entry((splitext(image)[0], image), FileOrigin(folder / image), label, caption)
        for image, label, caption in zip(images, labels, captions, strict=True)
    ]


def describe_file(path: Path) -> Words:
    """What stands beside one file that was named by itself: its .txt."""
    text = path.with_suffix(".txt")
    if text == path or not text.is_file():
        return Words()
    return Words(caption=clean(decode_text(text.read_bytes(), str(text))))


def _walk(folder: Path) -> Iterator[str]:
    """Relative posix paths of the files below a folder; links wait until all real folders have been seen."""
    entered: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        prefix = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(folder / prefix)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder / prefix) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise VqtoolError(f"{folder / prefix}: cannot read this folder: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{prefix}{entry.name}"
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(f"{name}/")
            elif entry.is_symlink() or entry.is_file():  # a link that leads nowhere is an image that cannot be read
                yield name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _read_all_metadata(folder: Path, names: list[str], images: list[str]) -> dict[str, Words]:
    """Words by image path; where two metadata files speak of one image, the one nearer to it counts."""
    files = sorted(
        (name for name in names if name.rsplit("/", 1)[-1] in METADATA_NAMES), key=lambda name: name.count("/")
    )
    known = set(images)
    found: dict[str, Words] = {}
    for i, name in enumerate(files):
        if any(dirname(other) == dirname(name) for other in files[:i]):
            raise VqtoolError(f"{folder / dirname(name)}: has both {' and '.join(METADATA_NAMES)}; keep one of them")
        rows = {
            normpath(f"{dirname(name)}/{key}".lstrip("/")): words for key, words in read_metadata(folder / name).items()
        }
        matched = {path: words for path, words in rows.items() if path in known}
        if rows and not matched:
            example = next(iter(rows))
            raise VqtoolError(
                f"{folder / name}: none of its {len(rows)} file names is an image of this folder "
                f"(the first: {example!r}); file_name is relative to the metadata file"
            )
        found.update(matched)
    return found


def _find_caption(folder: Path, image: str, metadata: dict[str, Words], texts: set[str]) -> str | None:
    if image in metadata and metadata[image].caption is not None:
        return metadata[image].caption
    text = f"{splitext(image)[0]}.txt"
    if text not in texts:
        return None
    return clean(decode_text((folder / text).read_bytes(), str(folder / text)))


def _hint(names: list[str]) -> str:
    """What the user may have meant instead."""
    shards = [name for name in names if name.endswith(_SHARD_ENDINGS)]
    if shards:
        return f"; shards are given as files, for example {shards[0]!r}"
    return f"; of its {len(names)} files none is an image" if names else "; it is empty"
