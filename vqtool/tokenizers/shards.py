"""Token grids of many shards of images, a file each, by any number of processes that know nothing of each other.

`encode_shard` makes one file of one shard: whatever shares work out (ranks, members of a SLURM array, tasks of Ray)
calls it, here or anywhere. `encode_shards` does the part of the shards that is this process's: see `vqtool.shards`.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vqtool import distributed
from vqtool.errors import VqtoolError, VqtoolWarning
from vqtool.images import ImageItem, SourceOptions, find_images
from vqtool.images.sources.options import DEFAULTS
from vqtool.inputs import expand, input_name, locate
from vqtool.outputs import is_stream, is_there
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.shards import MadeShards, Sharing, refuse_streams
from vqtool.tokenizers import BUILTIN, Tokenizer
from vqtool.tokenizers._machine import MachineOptions
from vqtool.tokenizers._shard import Source, encode_one
from vqtool.tokenizers.batches import OnError
from vqtool.tokenizers.encoding import Encoder, prepare_encoder
from vqtool.urls import Fetched, url_of


def encode_shard(
    source: Source,
    tokenizer: Tokenizer | str | Path = BUILTIN,
    output: str | Path = "tok.h5",
    *,
    options: SourceOptions = DEFAULTS,
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    on_error: OnError | None = None,
    progress: Progress = silent,
    **machine: Any,
) -> int:
    """Write the token grids of one shard to one file: by this process alone, whatever others there are.

    Called once more it does what is left to do, so that a task can be repeated on any machine.

    Args:
        source: a tar, folder, zip, HDF5 or the like; or images that were found.
        tokenizer: one on the device to use, or the name of one, which is loaded once for many calls.
        output: a path.
        options: which images are taken, and so on. Give `fit`: else each shard goes by the shapes of its own images.
        image_size: (height, width) pixels that images are brought to; None for the tokenizer's only size, else 64.
        device: of a tokenizer that is named.
        resume: leave the file if it is complete, else go on with what there is.
        force: overwrite it.
        on_error: told of an image that cannot be read, which is left out; None raises.
        progress: shows how many images are done.
        **machine: of `MachineOptions`, by name: see `encode`.

    Returns:
        How many grids the file has.

    Raises:
        FormatError: the shard cannot be read, or none of its images.
        MismatchError: the file, or what is kept of it, was made of other images or with other settings.
        VqtoolError: the output is there or cannot be written.
    """
    encode = _Encode(tokenizer, image_size, device, MachineOptions(**machine), options, resume, force)
    with distributed.alone():
        return encode(source, output, on_error=on_error, progress=progress)[0]


def encode_shards(
    sources: Sequence[str | Path],
    output: str | Path = "tok-{shard:05d}.h5",
    tokenizer: Tokenizer | str | Path = BUILTIN,
    *,
    per_file: int | None = None,
    partial: str | None = None,
    engine: str = "local",
    options: SourceOptions = DEFAULTS,
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    on_error: OnError | None = None,
    notify: Notify = ignore,
    progress: Progress = silent,
    **machine: Any,
) -> MadeShards:
    """Write the token grids of many shards, a file each: those of this process's part, see `distributed.own_part`.

    Grids are those that `encode` makes of all sources together, whatever the parts. A shard that cannot be read is told
    to `on_error` and left out, others go on.

    Args:
        sources: tars and the like, each a shard; globs, and ranges such as x-{000..999}.tar.
        output: names of files, with {shard} or {shard:05d} for the number of the shard, from 0 on.
        tokenizer: one on the device to use, or the name of one.
        per_file: a shard is so many images of all sources together.
        partial: such as "3/8", in place of what the environment says.
        engine: "local": this process; "ray": tasks of a Ray cluster, the one at hand or one of this machine's cores.
        options: which images are taken, and so on. Without `fit` the first shard decides for all.
        image_size: (height, width) pixels that images are brought to; None for the tokenizer's only size, else 64.
        device: of a tokenizer that is named.
        resume: pass over files that are complete, and go on with what is kept of others.
        force: overwrite files.
        on_error: told of an image or shard that cannot be read, which is left out; None raises.
        notify: told which shards this process does.
        progress: shows how many of them are done.
        **machine: of `MachineOptions`, by name: see `encode`.

    Raises:
        VqtoolError: no name for each shard, or an output is there, or cannot be written.
    """
    if per_file is not None and per_file < 1:
        raise VqtoolError(f"`per_file` {per_file}: how many images go into a file is expected, 1 or more")
    sharing = Sharing(output=str(output), partial=partial, engine=engine, resume=resume, force=force)
    how = (tokenizer, image_size, device, MachineOptions(**machine))
    encoder = _prepare(_mark(tokenizer), *how)
    named = expand(sources)
    if engine == "ray":
        refuse_streams(named)
    shards: Sequence[Source] = named
    decides = shards[0] if shards else ()  # how images are brought to the size
    if per_file is not None:
        decides = items = _find_all(sources, named, engine, options, on_error)
        shards = [items[start : start + per_file] for start in range(0, len(items), per_file)]
    outputs = sharing.own(len(shards), notify)
    if outputs and not (len(shards) == 1 and is_stream(str(sources[0]))):  # of a pipe alone its own shapes decide
        options = _with_fit(options, encoder, decides)
    work = [(shards[number], path) for number, path in outputs.items()]
    return sharing.make(
        _Encode(*how, options, sharing.goes_on, force),
        work,
        name="encode",
        on_error=on_error,
        progress=progress,
        before=lambda number: _prefetch(work[number + 1 : number + 2], resume=resume),
    )


@dataclass(frozen=True)
class _Encode:
    """Makes the file of a shard, by any process: the arguments of `encode_shard` but for those of one shard."""

    tokenizer: Tokenizer | str | Path
    image_size: tuple[int, int] | None
    device: str
    machine: MachineOptions
    options: SourceOptions
    resume: bool
    force: bool

    def __call__(
        self, source: Source, output: str | Path, *, on_error: OnError | None, progress: Progress = silent
    ) -> tuple[int, bool]:
        """The number of grids, and whether the file was complete before."""
        encoder = _prepare(_mark(self.tokenizer), self.tokenizer, self.image_size, self.device, self.machine)
        return encode_one(
            source,
            output,
            encoder,
            self.options,
            resume=self.resume,
            force=self.force,
            on_error=on_error,
            progress=progress,
        )


@lru_cache(maxsize=1)
def _prepare(mark: object, *how: Any) -> Encoder:
    """An encoder, loaded once for many shards."""
    return prepare_encoder(*how)


def _mark(tokenizer: Tokenizer | str | Path) -> object:
    """What tells a tokenizer's file from a later one of the same name."""
    if isinstance(tokenizer, Tokenizer) or not os.path.isfile(tokenizer):
        return None
    status = os.stat(tokenizer)
    return status.st_mtime_ns, status.st_size


def _find_all(
    sources: Sequence[str | Path],
    named: Sequence[str],
    engine: str,
    options: SourceOptions,
    on_error: OnError | None,
) -> Sequence[ImageItem]:
    """The images of all sources, to be cut into shards.

    Raises:
        VqtoolError: some are behind a URL, or tasks elsewhere would have to be told of single images.
    """
    if remote := [source for source in named if url_of(source)]:
        raise VqtoolError(f"{remote[0]}: `per_file` needs all images at hand: of URLs, each source is a shard")
    if engine != "local":
        raise VqtoolError(f"`per_file` is for `engine` local; of {engine}, each source is a shard")
    return find_images(sources, options, on_error=_only_told(on_error))


def _prefetch(following: Sequence[tuple[Source, str]], *, resume: bool) -> None:
    """Begin to fetch the shard that comes next, while another one is in the network."""
    for source, output in following:
        path = locate(source) if isinstance(source, str | Path) else None
        if isinstance(path, Fetched) and not (resume and is_there(output)):
            path.prefetch()


def _with_fit(options: SourceOptions, encoder: Encoder, first: Source) -> SourceOptions:
    """Options that say how images are brought to the size: one way for all shards.

    Raises:
        VqtoolError: a pipe, which is read once, would have to be read for that.
    """
    if options.fit is None and isinstance(first, str | Path) and is_stream(first):
        raise VqtoolError(
            f"{input_name(first)}: is read once, so that its shapes cannot decide for all shards: say `fit`"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VqtoolWarning)  # told in its turn, as is that it cannot be read
            items = find_images([first], options, words="none") if isinstance(first, str | Path) else first
    except VqtoolError:
        items = []
    return replace(options, fit=encoder.choose_fit(items, options.fit))


def _only_told(on_error: OnError | None) -> OnError | None:
    """What is told of bad images as `on_error` is, but, unlike a `Tally`, of no good ones."""
    if on_error is None:
        return None

    def tell(item: ImageItem, error: VqtoolError) -> None:
        on_error(item, error)

    return tell
