"""Images that a tokenizer learns from: which they are, and where they are kept once they are decoded.

Nothing is decoded before the first step but what the preview shows. The images are told from others by the names and
lengths of all of them, and by the first bytes of some, so that a run goes on with those that it began with.
"""

import glob
import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqtool import distributed
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.images import ImageItem, OnError, SourceOptions, choose_fit, find_images, read_images
from vqtool.images.reader import read_bytes
from vqtool.images.stream import DiskStore, ImageStream, MemoryStore, Store
from vqtool.options import Checked, option
from vqtool.outputs import side_file
from vqtool.progress import Progress
from vqtool.training._identity import read_identity
from vqtool.training.data import digest
from vqtool.training.runs import RunFiles

LOOKED_INTO = 1000  # images whose first bytes count in the digest
HEAD = 1 << 16  # bytes
SHOWN = 16  # images of the preview
SHARE = 0.5  # of the memory that is free, that decoded images may take where nobody asks for it


@dataclass(frozen=True, kw_only=True)
class CacheOptions(Checked):
    """What becomes of decoded images."""

    cache: str | None = option(
        None,
        "Keep decoded images in memory, or on disk beside the output until the run is over, or decode each time.",
        shown="memory if they fit, else none",
        choices=("memory", "disk", "none"),
        advanced=True,
    )
    workers: int | None = option(
        None, "Threads that decode images.", shown="one for each core, 16 at most", minimum=1, advanced=True
    )


@dataclass(frozen=True)
class Pictures:
    """What a run learns from.

    Attributes:
        stream: of the images.
        fit: how they are brought to their size.
        digest: 16 hexadecimal digits over what they are.
        identity: the digest as the run's state has it.
        shown: (n, 3, h, w) uint8, some of them from everywhere, for previews.
        kept: where they are kept, for people.
    """

    stream: ImageStream
    fit: str
    digest: str
    identity: str
    shown: NDArray[np.uint8]
    kept: str

    def tell_all(self) -> None:
        """Tell of images that only other processes wanted and could not read; all processes come here together."""
        for own in distributed.gather_objects(dict(self.stream.left_out)):
            for index in sorted(own.keys() - self.stream.left_out.keys()):
                self.stream.leave_out(index, FormatError(own[index]))


@contextmanager
def open_pictures(
    images: str | Path | Sequence[str | Path],
    size: tuple[int, int],
    files: RunFiles,
    *,
    source: SourceOptions,
    cache: CacheOptions,
    factor: int,
    on_error: OnError | None,
    progress: Progress,
) -> Iterator[Pictures]:
    """The images of a run, from finding them to letting go of them.

    Args:
        images: folders, image files, tar shards or HDF5 files.
        size: (h, w) pixels that they are brought to.
        files: of the run.
        source: which are taken, and how they are brought to the size.
        cache: where decoded ones are kept.
        factor: of the tokenizer, for proposals of another size.
        on_error: told of a bad image, which is left out; None raises.
        progress: shows images that are read, of a run that an earlier version began.

    Raises:
        VqtoolError: there are none, none of those looked at can be read, or they are not those that the run began with.
    """
    sources = [images] if isinstance(images, str | Path) else images
    items = find_images(sources, source, words="none", on_error=on_error)
    fit = choose_fit(items, size, source.fit, factor=factor)
    begun = read_identity(files.state).data.get("images", "") if files.resume else None
    if begun is not None and "," not in begun:
        read = read_images(items, size, options=replace(source, fit=fit), on_error=on_error, progress=progress)
        known = identity = digest(read.images)
        kept = "all decoded before the first step, as by the version of vqtool that began the run"
        stream = ImageStream.of(read.images)
    else:
        known = describe(items, fit)
        identity = f"{len(items)} images, {known}"
        if begun is not None:
            _check_same(begun, identity, files.state)
        store, kept = choose_store(cache.cache, (len(items), 3, *size), files.output, known)
        stream = ImageStream(items, size, fit=fit, store=store, workers=cache.workers, on_error=on_error)
    with closing(stream):
        shown = stream.take(np.unique(np.linspace(0, len(stream) - 1, min(SHOWN, len(stream))).astype(np.int64)))
        yield Pictures(stream, fit, known, identity, shown, kept)


def describe(items: Sequence[ImageItem], fit: str) -> str:
    """16 hexadecimal digits over what images are: names and lengths of all, and the first 64 KB of 1,000 of them."""
    result = hashlib.sha256(f"{fit}\n".encode())
    for item in items:
        result.update(f"{item.id}\n{_measure(item)}\n".encode())
    for place in np.unique(np.linspace(0, len(items) - 1, min(LOOKED_INTO, len(items))).astype(np.int64)):
        result.update(hashlib.sha256(read_bytes(items[place], HEAD)).digest())
    return result.hexdigest()[:16]


def choose_store(
    asked: str | None, shape: tuple[int, int, int, int], output: Path, known: str
) -> tuple[Store | None, str]:
    """Where images (N, 3, h, w) are kept, and what is said of it; files of other images beside the output are removed.

    Args:
        asked: "memory", "disk" or "none"; None: memory if they fit into half of what is free, else none.
        shape: (N, 3, h, w).
        output: of the run.
        known: digest of the images.

    Raises:
        VqtoolError: there is no room for them on the disk, or the file cannot be written.
    """
    path = side_file(output, f".images-{known}-{shape[2]}x{shape[3]}.cache")
    if distributed.is_main_process():
        remove_stores(output, but=path)
    num_bytes = math.prod(shape)
    fits = num_bytes * _processes_here() <= SHARE * distributed.free_memory()
    chosen = asked or ("memory" if fits else "none")
    if chosen == "memory":
        return MemoryStore(np.empty(shape, np.uint8)), f"kept in memory once they are decoded ({_shown(num_bytes)})"
    if chosen == "none":
        reason = f": {_shown(num_bytes)} are more than half of the free memory; `cache` disk keeps them there"
        return None, f"decoded each time that they are wanted{'' if asked else reason}"
    there = path.stat().st_size if path.exists() else 0
    free = shutil.disk_usage(output.absolute().parent).free
    if num_bytes - there > free:
        raise VqtoolError(
            f"{path}: the decoded images take {_shown(num_bytes)}, and {_shown(free)} are free there: `cache` none "
            "keeps none of them"
        )
    store = DiskStore(path, shape[1:])
    return store, f"kept in {path} once they are decoded ({_shown(num_bytes)}) until the run is over"


def remove_stores(output: Path, *, but: Path | None = None) -> None:
    """Remove what `choose_store` keeps on disk beside an output."""
    found = side_file(output, ".images-0.cache")
    for path in found.parent.glob(glob.escape(found.name).replace("-0.", "-*.")):
        if path != but:
            path.unlink()


def _check_same(begun: str, identity: str, state: Path) -> None:
    """Raise MismatchError unless the images are those that a run began with, before any is decoded."""
    if begun != identity:
        before, now = (text.partition(" ")[0] for text in (begun, identity))
        numbers = f": there were {before}, and now there are {now}" if before != now else ""
        raise MismatchError(
            f"{state}: not the images that the run began with{numbers}; resume with those of the start, or start anew "
            "without `resume`"
        )


def _measure(item: ImageItem) -> int | None:
    """Bytes of an encoded image, where that is known without reading it."""
    try:
        return item.origin.num_bytes
    except OSError:
        return None  # told when it is read


def _processes_here() -> int:
    """How many processes of the run share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
