"""Token grids of many shards of images, a file each, by any number of processes that know nothing of each other.

`encode_shard` makes one file of one shard: whatever shares work out (ranks, members of a SLURM array, tasks of Ray)
calls it, here or anywhere. `encode_shards` calls it for the part of the shards that is this process's. A file appears
under its name when it is whole; what a killed process has left of one is gone on with. The history of each file says
what it was made of, so that a run which is resumed passes over what is complete, and tells where input has changed.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vqtool import distributed, urls
from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning, warn
from vqtool.grids import GridHeader, open_grids
from vqtool.grids.batch import SHARD_CONTENT
from vqtool.grids.resume import check_resumable, check_same_run, partial_paths
from vqtool.images import ImageItem, SourceOptions, find_images
from vqtool.images.sources.items import FileOrigin, counted
from vqtool.images.sources.options import DEFAULTS, given
from vqtool.inputs import expand, locate
from vqtool.locks import claims
from vqtool.outputs import check_pattern, delivered, is_there, shard_path
from vqtool.progress import Notify, Progress, call, ignore, silent
from vqtool.tally import Tally
from vqtool.tokenizers import BUILTIN, Tokenizer
from vqtool.tokenizers.batches import OnError, check_lengths
from vqtool.tokenizers.encoding import Encoder, encode_items, prepare_encoder
from vqtool.urls import Fetched, url_of

Source = str | Path | Sequence[ImageItem]

_OWN_TABLES = (None, "none", "folder")  # captions and labels that lie in no file beside the source


@dataclass(frozen=True)
class EncodedShards:
    """What `encode_shards` did in this process."""

    num_shards: int  # of this process
    num_before: int  # of them, those that were complete
    num_failed: int  # of them, those that could not be read, or were made of something else
    num_grids: int  # in the others

    @property
    def line(self) -> str:
        """All in one line."""
        num = self.num_shards - self.num_before - self.num_failed
        before = f"; {counted(self.num_before, 'file')} complete before" if self.num_before else ""
        failed = f"; {counted(self.num_failed, 'shard')} left out" if self.num_failed else ""
        return f"wrote {counted(num, 'file')}{before}{failed}: {counted(self.num_grids, 'grid')} in all"


def encode_shard(
    source: Source,
    tokenizer: Tokenizer | str | Path = BUILTIN,
    output: str | Path = "tok.h5",
    *,
    options: SourceOptions = DEFAULTS,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "torch",
    compile: bool = False,
    resume: bool = False,
    force: bool = False,
    on_error: OnError | None = None,
    progress: Progress = silent,
) -> int:
    """Write the token grids of one shard to one file: by this process alone, whatever others there are.

    Called once more it does what is left to do, so that a task can be repeated on any machine.

    Args:
        source: a tar, folder, zip, HDF5 or the like; or images that were found.
        tokenizer: one on the device to use, or the name of one, which is loaded once for many calls.
        output: a path.
        options: which images are taken, and so on. Give `fit`: else each shard goes by the shapes of its own images.
        image_size: (height, width) pixels that images are brought to; None for the tokenizer's only size, else 64.
        batch_size: images in the network at once.
        device: of a tokenizer that is named.
        precision: see `encode`.
        runtime: see `encode`.
        compile: see `encode`.
        resume: leave the file if it is complete, else go on with what there is.
        force: overwrite it.
        on_error: told of an image that cannot be read, which is left out; None raises.
        progress: shows how many images are done.

    Returns:
        How many grids the file has.

    Raises:
        FormatError: the shard cannot be read, or none of its images.
        MismatchError: the file, or what is kept of it, was made of other images or with other settings.
        VqtoolError: the output is there or cannot be written.
    """
    encoder = _prepare(
        tokenizer,
        _mark(tokenizer),
        image_size,
        batch_size=batch_size,
        device=device,
        precision=precision,
        runtime=runtime,
        compile=compile,
    )
    with distributed.alone():
        return _encode_one(
            source, output, encoder, options, resume=resume, force=force, on_error=on_error, progress=progress
        )[0]


def encode_shards(
    sources: Sequence[str | Path],
    output: str | Path = "tok-{shard:05d}.h5",
    tokenizer: Tokenizer | str | Path = BUILTIN,
    *,
    per_file: int | None = None,
    partial: str | None = None,
    options: SourceOptions = DEFAULTS,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "torch",
    compile: bool = False,
    resume: bool = False,
    force: bool = False,
    on_error: OnError | None = None,
    notify: Notify = ignore,
    progress: Progress = silent,
) -> EncodedShards:
    """Write the token grids of many shards, a file each: those of this process's part, see `distributed.own_part`.

    Grids are those that `encode` makes of all sources together, whatever the parts. A shard that cannot be read is told
    to `on_error` and left out, others go on.

    Args:
        sources: tars and the like, each a shard; globs, and ranges such as x-{000..999}.tar.
        output: names of files, with {shard} or {shard:05d} for the number of the shard, from 0 on.
        tokenizer: one on the device to use, or the name of one.
        per_file: a shard is so many images of all sources together.
        partial: such as "3/8", in place of what the environment says.
        options: which images are taken, and so on. Without `fit` the first shard decides for all.
        image_size: (height, width) pixels that images are brought to; None for the tokenizer's only size, else 64.
        batch_size: images in the network at once.
        device: of a tokenizer that is named.
        precision: see `encode`.
        runtime: see `encode`.
        compile: see `encode`.
        resume: pass over files that are complete, and go on with what is kept of others.
        force: overwrite files.
        on_error: told of an image or shard that cannot be read, which is left out; None raises.
        notify: told which shards this process does.
        progress: shows how many of them are done.

    Raises:
        VqtoolError: no name for each shard, or an output is there, or cannot be written.
    """
    check_pattern(output)
    if per_file is not None and per_file < 1:
        raise VqtoolError(f"`per_file` {per_file}: how many images go into a file is expected, 1 or more")
    part = distributed.own_part(partial)
    encoder = prepare_encoder(
        tokenizer, image_size, batch_size=batch_size, device=device, precision=precision, runtime=runtime,
        compile=compile,
    )  # fmt: skip
    shards: Sequence[Source] = expand(sources)
    if per_file is not None:
        if remote := [source for source in shards if url_of(str(source))]:
            raise VqtoolError(f"{remote[0]}: `per_file` needs all images at hand: of URLs, each source is a shard")
        items = find_images(sources, options, on_error=_only_told(on_error))
        shards = [items[start : start + per_file] for start in range(0, len(items), per_file)]
    own = part.range(len(shards))
    outputs = {number: shard_path(output, number) for number in own}
    if not (resume or force):
        _refuse_any(list(outputs.values()))
    with distributed.alone():
        notify(f"{f'shards {own[0]} to {own[-1]}' if own else 'no shards'} of {len(shards):,}, part {part}")
    if own:
        options = _with_fit(options, encoder, shards[0] if per_file is None else items)
    done = dict.fromkeys(("num_before", "num_failed", "num_grids"), 0)
    images = 0

    def count(reached: int, _: int | None) -> None:
        nonlocal images
        images = before + reached

    shown = progress("encode", len(own), "shards", detail=lambda: f"{images} images")  # by the main process
    with shown as advance, distributed.alone():
        for number in own:
            before = images
            if number + 1 in own and not (resume and is_there(outputs[number + 1])):
                _prefetch(shards[number + 1])
            try:
                num, was_there = _encode_one(
                    shards[number],
                    outputs[number],
                    encoder,
                    options,
                    resume=resume,
                    force=force,
                    on_error=on_error,
                    progress=call(count),
                )
                done["num_grids"] += num
                done["num_before"] += was_there
            except (FormatError, MismatchError) as error:
                if on_error is None:
                    raise
                done["num_failed"] += 1
                on_error(ImageItem(str(outputs[number]), None, None, FileOrigin(outputs[number])), error)
            if isinstance(on_error, Tally):
                on_error.settle()
            advance(1)
    return EncodedShards(len(own), **done)


@lru_cache(maxsize=1)
def _prepare(tokenizer: Tokenizer | str | Path, mark: object, image_size: Any, **how: Any) -> Encoder:
    return prepare_encoder(tokenizer, image_size, **how)


def _mark(tokenizer: Tokenizer | str | Path) -> object:
    """What tells a tokenizer's file from a later one of the same name."""
    if isinstance(tokenizer, Tokenizer) or not os.path.isfile(tokenizer):
        return None
    status = os.stat(tokenizer)
    return status.st_mtime_ns, status.st_size


def _refuse_any(outputs: Sequence[str]) -> None:
    for path in outputs:
        if is_there(path):
            raise VqtoolError(f"{path}: exists; `resume` goes on with what is left to do, `force` overwrites it")


def _prefetch(source: Source) -> None:
    """Begin to fetch a shard, while another one is in the network."""
    path = locate(source) if isinstance(source, str | Path) else None
    if isinstance(path, Fetched):
        path.prefetch()


def _with_fit(options: SourceOptions, encoder: Encoder, first: Source) -> SourceOptions:
    """Options that say how images are brought to the size: one way for all shards."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VqtoolWarning)  # told in its turn, as is that it cannot be read
            items = find_images([first], options, words="none") if isinstance(first, str | Path) else first
    except VqtoolError:
        items = []
    return replace(options, fit=encoder.choose_fit(items, options.fit))


@claims()
def _encode_one(
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
    there = not force and is_there(output)
    kept = _read_complete(output) if resume and there else None
    stamp = _stamp(source, options)
    said = {"options": {name: value for name, value in given(options).items() if name != "fit"}}
    if kept is not None and stamp is not None and options.fit is not None:
        old = kept[0].history[-1] if kept[0].history else {}
        if old.get("stamp") == stamp:
            unread = {name: old.get(name) for name in ("num", "images", SHARD_CONTENT)}
            new = encoder.header([], 0, options.fit, **said)
            check_same_run(output, kept[0], replace(new, history=({**new.history[-1], **unread},)))
            return kept[1], True
    items, num = _find(source, options, on_error)
    fit = options.fit or encoder.choose_fit(items, None)
    header = encoder.header(items, num, fit, stamp=stamp, **said, **{SHARD_CONTENT: _digest(items)})
    if kept is not None:
        check_same_run(output, kept[0], header)
        return kept[1], True
    with delivered(output, force=force or (resume and there)) as path:
        goes_on = check_resumable(path, resume=resume and partial_paths(path)[0].exists(), force=force or there)
        num = encode_items(
            items,
            path,
            encoder,
            header,
            fit=fit,
            resume=goes_on,
            force=force or there,
            on_error=on_error,
            progress=progress,
        )
    return num, False


def _only_told(on_error: OnError | None) -> OnError | None:
    """What is told of bad images as `on_error` is, but, unlike a `Tally`, of no good ones."""
    if on_error is None:
        return None
    told = on_error

    def tell(item: ImageItem, error: VqtoolError) -> None:
        told(item, error)

    return tell


def _read_complete(path: str | Path) -> tuple[GridHeader, int] | None:
    """The header of a file and its number of grids, all of which are compared with its digest; None if it is damaged.

    Warns:
        VqtoolWarning: it is damaged.
    """
    try:
        with open_grids(path) as reader:
            return reader.header, sum(map(len, reader.batches()))
    except FormatError as error:
        warn(f"{error}; it is made anew")
        return None


def _find(source: Source, options: SourceOptions, on_error: OnError | None) -> tuple[list[ImageItem], int]:
    """The images of a shard, and how many there were."""
    if not isinstance(source, str | Path):
        if isinstance(on_error, Tally):
            on_error.found(source, with_words=True)
        return list(source), len(source)
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
    total = hashlib.sha256()
    for data in map(_content, items):
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return f"sha256:{total.hexdigest()}"


def _content(item: ImageItem) -> bytes:
    try:
        raw = item.origin.open()
        if isinstance(raw, np.ndarray):
            return raw.tobytes()
        with raw:
            return raw.read()
    except (VqtoolError, OSError):  # it is named when it is encoded
        return b""
