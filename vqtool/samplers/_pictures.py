"""Pictures to edit, from files: token grids, or images as the token grids of the prior's tokenizer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError, size_text
from vqtool.grids import GridBatch, GridHeader, open_grids
from vqtool.images import ImageItem, SourceOptions, find_images, parse_size, read_batches
from vqtool.images.sources import holds_grids
from vqtool.images.sources.options import refuse_for_grids
from vqtool.priors import Prior
from vqtool.progress import Notify
from vqtool.tally import Tally
from vqtool.tokenizers import Tokenizer, tokenizer_of
from vqtool.tokenizers.batches import check_lengths, encode_batch, grid_header

Images = NDArray[np.uint8]  # (B, 3, height, width)
OnError = Callable[[ImageItem, VqtoolError], None]


@dataclass(frozen=True)
class Pictures:
    """What is to be edited.

    Attributes:
        name: of the source, for messages.
        header: of the grids.
        columns: of "class" and "caption" those that some picture has.
        labels: of all images, each once; none of grids, whose labels are not known yet.
        total: how many there are; None if unknown.
        num_images: how many images were given, with those that could not be found out about; None of grids.
        digests: what stands in the history of what is made of them.
        read: read(count) yields so many at a time: grids, and the images they were encoded from if they were.
        tokenizer: finds what the grids decode with, on the prior's device.
    """

    name: str
    header: GridHeader
    columns: frozenset[str]
    labels: tuple[str, ...]
    total: int | None
    num_images: int | None
    digests: dict[str, str]
    read: Callable[[int], Iterator[tuple[GridBatch, Images | None]]]
    tokenizer: Callable[[], Tokenizer]


@contextmanager
def open_pictures(
    sources: Sequence[str | Path],
    prior: Prior,
    *,
    masked: bool,
    size: str | None,
    options: SourceOptions,
    tokenizer: str | Path | None,
    on_error: OnError | None,
    notify: Notify,
) -> Iterator[Pictures]:
    """Open grids, or images.

    Args:
        sources: a grid file ("-" is standard input), or images as for `find_images`.
        prior: that edits them.
        masked: whether they have to be masked grids.
        size: pixels that images are brought to, such as "64" or "48x80"; None for those of the prior's training.
        options: which images are taken, and where their captions and labels come from.
        tokenizer: a file or "builtin"; None for the one that the grids or the prior name.
        on_error: told of a bad image, which is left out; None raises.
        notify: is told what was found.

    Raises:
        VqtoolError: several grid files, a size for grids, or something cannot be read.
    """
    paths = [Path(source) for source in sources]
    source = paths[0]
    if not masked and not holds_grids(source):
        yield _open_images(paths, prior, size, options, tokenizer, on_error, notify)
        return
    if len(paths) > 1:
        raise VqtoolError("one grid file at a time; `vqtool cat a.h5 b.h5` joins several in a pipe")
    refuse_for_grids(options, source)
    if size is not None:
        raise VqtoolError(f"`size` is for images, but {source} holds token grids")
    with open_grids(source, masked=masked) as reader:
        yield Pictures(
            name=reader.name,
            header=reader.header,
            columns=frozenset({"label": "class"}.get(column, column) for column in reader.columns),
            labels=(),
            total=reader.num_grids,
            num_images=None,
            digests={reader.name: reader.digest} if reader.digest else {},
            read=lambda count: ((batch, None) for batch in reader.batches(count)),
            tokenizer=cache(lambda: tokenizer_of(reader.header, source, given=tokenizer).to(prior.device)),
        )


def _open_images(
    sources: Sequence[Path],
    prior: Prior,
    size: str | None,
    options: SourceOptions,
    tokenizer: str | Path | None,
    on_error: OnError | None,
    notify: Notify,
) -> Pictures:
    model = tokenizer_of(prior.grid_spec, prior.location or None, given=tokenizer).to(prior.device)
    pixels = prior.grid_spec.image_size if size is None else parse_size(size)
    header = replace(grid_header(model, pixels, {}), history=())
    skipped = len(on_error.skipped) if isinstance(on_error, Tally) else 0
    items = find_images(sources, options=options, on_error=on_error)
    skipped = len(on_error.skipped) - skipped if isinstance(on_error, Tally) else 0
    check_lengths(items)
    notify(f"{len(items)} images at {size_text(pixels)} -> grids of {size_text(header.grid_size)} tokens")

    def read(count: int) -> Iterator[tuple[GridBatch, Images | None]]:
        for found in read_batches(items, pixels, count, on_error=on_error):
            yield encode_batch(found, model), found.images

    known = {"class": any(item.label for item in items), "caption": any(item.caption for item in items)}
    return Pictures(
        name=str(sources[0]),
        header=header,
        columns=frozenset(kind for kind, is_known in known.items() if is_known),
        labels=tuple(dict.fromkeys(item.label for item in items if item.label)),
        total=len(items),
        num_images=len(items) + skipped,
        digests={"tokenizer": model.fingerprint},
        read=read,
        tokenizer=lambda: model,
    )
