"""Token grids of many shards of images, a file each, by any number of processes that know nothing of each other.

`encode_shard` makes one file of one shard: whatever shares work out (ranks, members of a SLURM array, tasks of Ray)
calls it, here or anywhere. `encode_shards` calls it for the part of the shards that is this process's. A file appears
under its name when it is whole; what a killed process has left of one is gone on with. The history of each file says
what it was made of, so that a run which is resumed passes over what is complete, and tells where input has changed.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vqtool import distributed
from vqtool.cluster import run_by_ray
from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning
from vqtool.images import ImageItem, SourceOptions, find_images
from vqtool.images.sources.items import FileOrigin, counted
from vqtool.images.sources.options import DEFAULTS
from vqtool.inputs import expand, input_name, locate
from vqtool.outputs import check_pattern, is_stream, is_there, shard_path
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.registry import check_known
from vqtool.tally import Tally
from vqtool.tokenizers import BUILTIN, Tokenizer
from vqtool.tokenizers._machine import MachineOptions
from vqtool.tokenizers._shard import Source, encode_one
from vqtool.tokenizers.batches import OnError
from vqtool.tokenizers.encoding import Encoder, prepare_encoder
from vqtool.urls import Fetched, url_of

ENGINES = ("local", "ray")  # what encodes


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
    encoder = _prepare(tokenizer, _mark(tokenizer), image_size, device, MachineOptions(**machine))
    with distributed.alone():
        return encode_one(
            source, output, encoder, options, resume=resume, force=force, on_error=on_error, progress=progress
        )[0]


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
    check_pattern(output)
    if per_file is not None and per_file < 1:
        raise VqtoolError(f"`per_file` {per_file}: how many images go into a file is expected, 1 or more")
    check_known("engine", engine, ENGINES)
    part = distributed.own_part(partial)
    encoder = prepare_encoder(tokenizer, image_size, device, MachineOptions(**machine))
    shards: Sequence[Source] = expand(sources)
    decides = shards[0] if shards else ()  # how images are brought to the size
    if per_file is not None:
        decides = items = _find_all(sources, shards, engine, options, on_error)
        shards = [items[start : start + per_file] for start in range(0, len(items), per_file)]
    own = part.range(len(shards))
    outputs = {number: shard_path(output, number) for number in own}
    if not (resume or force):
        _refuse_any(list(outputs.values()))
    with distributed.alone():
        notify(f"{f'shards {own[0]} to {own[-1]}' if own else 'no shards'} of {len(shards):,}, part {part}")
    if own and not (len(shards) == 1 and is_stream(str(sources[0]))):  # of a pipe alone its own shapes decide
        options = _with_fit(options, encoder, decides)
    shown = progress("encode", len(own), "shards", detail=lambda: f"{num_grids} grids")  # by the main process
    num_before = num_failed = num_grids = 0
    with shown as advance, distributed.alone():
        if engine == "ray":
            how = {"options": options, "image_size": image_size, "device": device, "force": force, **machine}
            calls = [(shards[number], outputs[number], tokenizer, how, os.getcwd()) for number in own]
            ended = _by_ray(calls, on_error)
        else:
            ended = _here(
                [(shards[number], outputs[number]) for number in own], encoder, options, resume, force, on_error
            )
        for each in ended:
            num_grids += each.num_grids
            num_before += each.was_there
            num_failed += each.error is not None
            if each.error is not None:
                if on_error is None:
                    raise each.error
                on_error(ImageItem(each.output, None, None, FileOrigin(each.output)), each.error)
            advance(1)
    return EncodedShards(len(own), num_before, num_failed, num_grids)


@dataclass(frozen=True)
class _Ended:
    """What became of a shard."""

    output: str
    num_grids: int = 0
    was_there: bool = False
    error: VqtoolError | None = None


def _here(
    work: Sequence[tuple[Source, str]],
    encoder: Encoder,
    options: SourceOptions,
    resume: bool,
    force: bool,
    on_error: OnError | None,
) -> Iterator[_Ended]:
    """Encode shards, one after the other, while the next one is fetched if it is behind a URL."""
    for number, (source, output) in enumerate(work):
        for following, its_output in work[number + 1 : number + 2]:
            if not (resume and is_there(its_output)):
                _prefetch(following)
        try:
            num, was_there = encode_one(
                source, output, encoder, options, resume=resume, force=force, on_error=on_error, progress=silent
            )
            yield _Ended(output, num, was_there)
        except (FormatError, MismatchError) as error:
            yield _Ended(output, error=error)
        if isinstance(on_error, Tally):
            on_error.settle()


def _by_ray(calls: Sequence[tuple[Any, ...]], on_error: OnError | None) -> Iterator[_Ended]:
    """Encode shards by tasks of a Ray cluster; what they told of images is told here.

    Raises:
        VqtoolError: an output cannot be written, or Ray gives a task up.
    """
    for ended, tally, fatal in run_by_ray(_task, calls):
        if fatal is not None:
            raise fatal
        if on_error is None and tally.skipped:
            raise FormatError(tally.skipped[0])
        if on_error is not None:
            for text in tally.skipped:
                on_error(ImageItem(ended.output, None, None, FileOrigin(ended.output)), FormatError(text))
        if isinstance(on_error, Tally):
            on_error.add(tally)
        yield ended


def _task(
    source: Source, output: str, tokenizer: Tokenizer | str | Path, how: dict[str, Any], folder: str
) -> tuple[_Ended, Tally, VqtoolError | None]:
    """One shard, on any machine of a cluster: whatever was lost with another one is done again.

    Returns:
        What became of it, the images that were read, and why no other shard can be written either.
    """
    if os.path.isdir(folder):  # of the driver: relative names are the same here
        os.chdir(folder)
    tally, fatal = Tally(), None
    before = is_there(output) and not how["force"]
    try:
        ended = _Ended(
            output, encode_shard(source, tokenizer, output, resume=not how["force"], on_error=tally, **how), before
        )
    except (FormatError, MismatchError) as error:
        ended = _Ended(output, error=error)
    except VqtoolError as error:
        ended, fatal = _Ended(output), error
    tally.settle()
    return ended, tally, fatal


@lru_cache(maxsize=1)
def _prepare(tokenizer: Tokenizer | str | Path, mark: object, *how: Any) -> Encoder:
    return prepare_encoder(tokenizer, *how)


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


def _find_all(
    sources: Sequence[str | Path],
    named: Sequence[Source],
    engine: str,
    options: SourceOptions,
    on_error: OnError | None,
) -> list[ImageItem]:
    """The images of all sources, to be cut into shards.

    Raises:
        VqtoolError: some are behind a URL, or tasks elsewhere would have to be told of single images.
    """
    if remote := [source for source in named if url_of(str(source))]:
        raise VqtoolError(f"{remote[0]}: `per_file` needs all images at hand: of URLs, each source is a shard")
    if engine != "local":
        raise VqtoolError(f"`per_file` is for `engine` local; of {engine}, each source is a shard")
    return find_images(sources, options, on_error=_only_told(on_error))


def _prefetch(source: Source) -> None:
    """Begin to fetch a shard, while another one is in the network."""
    path = locate(source) if isinstance(source, str | Path) else None
    if isinstance(path, Fetched):
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
    told = on_error

    def tell(item: ImageItem, error: VqtoolError) -> None:
        told(item, error)

    return tell
