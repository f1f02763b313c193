"""One shard: its images, what tells it from a changed one, and its file, unless that is complete."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vqtool import urls
from vqtool.errors import FormatError, VqtoolError, warn
from vqtool.grids import GridHeader, open_grids
from vqtool.grids.batch import SHARD_CONTENT
from vqtool.grids.resume import check_same_run, partial_paths
from vqtool.grids.whole import find_whole, unfinished
from vqtool.images import ImageItem, SourceOptions, find_images
from vqtool.images.sources.options import given
from vqtool.locks import claims
from vqtool.progress import Progress
from vqtool.tally import Tally
from vqtool.tokenizers._content import Content
from vqtool.tokenizers.batches import OnError, check_lengths
from vqtool.tokenizers.encoding import Encoder, encode_items
from vqtool.urls import url_of

Source = str | Path | Sequence[ImageItem]

_OWN_TABLES = (None, "none", "folder")  # captions and labels that lie in no file beside the source


@claims()
def encode_one(
    source: Source,
    output: str | Path,
    encoder: Encoder,
    options: SourceOptions,
    *,
    resume: bool,
    force: bool,
    on_error: OnError | None,
    progress: Progress,
) -> tuple[int, bool]:
    """The number of grids of a shard's file, and whether it was complete before."""
    kept = find_whole(output, resume=resume, force=force)
    stamp = _stamp(source, options)
    said = {"options": {name: value for name, value in given(options).items() if name != "fit"}}
    if kept is not None and stamp is not None and options.fit is not None:
        old = kept.header.history[-1] if kept.header.history else {}
        if old.get("stamp") == stamp:
            unread = {name: old.get(name) for name in ("num", "images", SHARD_CONTENT)}
            new = encoder.header([], 0, options.fit, **said)
            check_same_run(output, kept.header, replace(new, history=({**new.history[-1], **unread},)))
            return kept.num_grids, True
    items, num = _find(source, options, on_error)
    fit = options.fit or encoder.choose_fit(items, None)

    def header(content: str | None) -> GridHeader:
        return encoder.header(items, num, fit, stamp=stamp, **said, **{SHARD_CONTENT: content})

    if kept is not None:
        check_same_run(output, kept.header, header(_digest(items)))
        return kept.num_grids, True
    with unfinished(output, resume=resume, force=force) as (path, goes_on, replaces):
        stale = goes_on and stamp is not None and _stamp_of_journal(path) not in (stamp, None)
        if stale:
            warn(f"{output}: what is kept of it is of {source} before that was changed or copied: it is made anew")
        content = None if stamp is None else Content()  # without a stamp nothing else tells of a change in between
        num = encode_items(
            items,
            path,
            encoder,
            header(_digest(items) if content is None else None),
            fit=fit,
            resume=goes_on and not stale,
            force=replaces or stale,
            on_error=on_error,
            progress=progress,
            content=content,
        )
    return num, False


def _stamp_of_journal(path: Path) -> str | None:
    """What the shard was known by when what is kept was made; None where that does not say."""
    with suppress(FormatError), open_grids(partial_paths(path)[0]) as reader:
        return next((record.get("stamp") for record in reader.header.history[-1:]), None)
    return None


def _find(source: Source, options: SourceOptions, on_error: OnError | None) -> tuple[Sequence[ImageItem], int]:
    """The images of a shard, and how many there were."""
    if not isinstance(source, str | Path):
        if isinstance(on_error, Tally):
            on_error.found(source, with_words=True)
        return source, len(source)
    left_out = 0

    def skip(item: ImageItem, error: VqtoolError) -> None:
        nonlocal left_out
        left_out += 1
        if on_error is not None:
            on_error(item, error)

    try:
        items = find_images([source], options, on_error=None if on_error is None else skip)
        check_lengths(items)
    except VqtoolError as error:
        raise FormatError(str(error)) from error
    if isinstance(on_error, Tally):
        on_error.found(items, with_words=True)
    return items, len(items) + left_out


def _stamp(source: Source, options: SourceOptions) -> str | None:
    """What is another one, most likely, when a file has been changed: its size and time; None where that is not all."""
    if not isinstance(source, str | Path) or (url_of(source) is None and not os.path.isfile(source)):
        return None
    if options.captions not in _OWN_TABLES or options.labels not in _OWN_TABLES:
        return None
    if url := url_of(source):
        return urls.stamp(url)
    status = os.stat(source)
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


def _digest(items: Sequence[ImageItem]) -> str:
    """A digest of the bytes of images, in their order."""
    content = Content()
    content.read(items)
    return content.digest()
