"""A preview of images, or of token grids decoded: the work of `show`."""

from collections.abc import Sequence
from pathlib import Path

from vqtool.errors import VqtoolError, warn
from vqtool.grids import open_grids
from vqtool.images import OnError, SourceOptions, choose_fit, common_size, find_images, parse_size, read_batches
from vqtool.images.sources import holds_grids
from vqtool.images.sources.options import DEFAULTS, refuse_for_grids
from vqtool.images.writer import PREVIEW_IMAGES, PreviewWriter
from vqtool.tokenizers import tokenizer_of
from vqtool.tokenizers.batches import decode_batch

NUM_SHOWN = 64
MIXED_SIZE = (128, 128)  # of images of several sizes
_READ_BATCH = 64  # images


def draw_preview(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    num: int = NUM_SHOWN,
    columns: int | None = None,
    size: str | None = None,
    tokenizer: str | None = None,
    options: SourceOptions = DEFAULTS,
    on_error: OnError | None = None,
    force: bool = False,
) -> int:
    """Draw the first pictures of some sources on one PNG, with captions, or else labels or ids, under them.

    Args:
        sources: a grid file ("-" is standard input), or images as for `find_images`.
        output: the PNG file; "-" is standard output.
        num: at most so many pictures, up to 400.
        columns: pictures a row; None: a little wider than high.
        size: of images, "64" or "48x80"; None: their own, or 128 pixels if they differ.
        tokenizer: of grids, a file or "builtin"; None: the one that they name.
        options: which images are taken.
        on_error: called for each image that cannot be read, which is then left out; None: raise.
        force: overwrite what is there.

    Returns:
        How many pictures there are on it.

    Raises:
        VqtoolError: a parameter for the other kind of source, nothing to show, an output that exists.

    Warns:
        VqtoolWarning: there are more than are shown where `num` is not given.
    """
    is_grids = holds_grids(sources[0])
    if is_grids and size is not None:
        raise VqtoolError(f"`size` is for images, but {sources[0]} holds token grids")
    if is_grids:
        refuse_for_grids(options, sources[0])
    if not is_grids and tokenizer is not None:
        raise VqtoolError(f"`tokenizer` is for token grids, but {sources[0]} holds images")
    if is_grids and len(sources) > 1:
        raise VqtoolError("one grid file at a time; `vqtool cat a.h5 b.h5 | vqtool show -` joins several")
    most, seen = min(num, PREVIEW_IMAGES), 0
    with PreviewWriter(Path(output), columns=columns, force=force) as writer:
        if is_grids:
            with open_grids(sources[0]) as reader:
                model = tokenizer_of(reader.header, sources[0], given=tokenizer)
                for batch in reader.batches(_READ_BATCH, most=most + 1):
                    images = decode_batch(batch, model)[: most - seen]
                    writer.write(images, batch.ids, batch.labels, batch.captions)
                    seen += len(batch)
        else:
            items = find_images(sources, options, words="some", on_error=on_error)
            items, seen = items[:most], len(items)
            sides = parse_size(size) if size else common_size(items) or MIXED_SIZE
            fit = choose_fit(items, sides, options.fit or ("pad" if size is None else None))
            for found in read_batches(items, sides, _READ_BATCH, fit=fit, on_error=on_error):
                writer.write(found.images, found.ids, found.labels, found.captions)
    if seen > most and num == NUM_SHOWN:  # nobody has said how many
        warn(f"there are more pictures than the {most} shown: `num` shows others, too, up to {PREVIEW_IMAGES}")
    return writer.num_images
