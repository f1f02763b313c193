"""Statistics and features of pictures in a file, whole or part by part: the work of `eval stats` and `eval merge`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqtool.cluster import run_by_ray
from vqtool.distributed import Part, choose_device, parse_part
from vqtool.errors import VqtoolError, warn
from vqtool.images import ImageItem, OnError, SourceOptions
from vqtool.inputs import expand
from vqtool.metrics.card import split_of
from vqtool.metrics.features import concatenate
from vqtool.metrics.features.options import ComputationOptions, FeatureOptions
from vqtool.metrics.jobs import ImageOptions, LikelihoodOptions, Request
from vqtool.metrics.jobs.images import load_network, open_side
from vqtool.metrics.pictures import ImageFiles, Pictures
from vqtool.metrics.reference import MIXED_SIZE
from vqtool.metrics.saved import kind_of, load, merge, save
from vqtool.metrics.sides import About, Accumulator, FeatureSet, StatisticsSet, accumulate, read_features
from vqtool.options import distribute, option
from vqtool.outputs import refuse_existing
from vqtool.progress import Progress, ignore, silent
from vqtool.shards import refuse_streams, retell
from vqtool.tally import Tally
from vqtool.tokenizers import Tokenizer

PARTS = 32  # tasks that share the pictures, at most: each lists the sources of its part


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions(FeatureOptions, ComputationOptions):
    """What is saved of pictures."""

    keep_features: bool = option(False, "Keep the features too, for every metric.")
    partial: str | None = option(None, "This part of the pictures only, as in 1/4.")
    engine: str = option(
        "local", "What reads pictures: this process, or a Ray cluster.", choices="shards.py:ENGINES", advanced=True
    )
    size: str | None = option(None, "Pixels, 64 or 48x80.", shown="their own")
    tokenizer: str | Path | Tokenizer | None = option(None, "Decodes token grids.", flag="-t", shown="what they name")
    cache: bool = option(True, "Keep features in ~/.cache/vqtool.", advanced=True)


def save_statistics(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    device: str = "auto",
    force: bool = False,
    on_error: OnError | None = None,
    progress: Progress = silent,
    **chosen: Any,
) -> FeatureSet | StatisticsSet:
    """Write the statistics of images, or of token grids as they are decoded, to a file that `evaluate` takes as `ref`.

    Args:
        sources: as for `evaluate`.
        output: the file, .npz: see `saved`.
        device: "cpu", "cuda", or "auto" for a CUDA GPU if there is one.
        force: overwrite what is there.
        on_error: called for each image that cannot be read, which is then left out; None: raise.
        progress: shows how far it is.
        chosen: fields of `StatisticsOptions` and `SourceOptions`.

    Returns:
        What was written. Without `keep_features` memory grows with the names of the pictures alone.

    Raises:
        VqtoolError: fewer than two images, a part that is none, or an output that exists.
    """
    options, source_options = distribute(chosen, StatisticsOptions, SourceOptions)
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    refuse_existing(output, force=force, kind="saved statistics")
    part = parse_part(options.partial or "1/1")
    by_ray = options.engine == "ray"
    if by_ray and options.partial is not None:
        raise VqtoolError("`partial` shares pictures among processes, `engine` ray among tasks: leave one out")
    if by_ray:
        refuse_streams(paths)
    kinds = [kind_of(path) for path in paths]
    if "saved" in kinds:
        raise VqtoolError(
            f"{paths[kinds.index('saved')]}: holds saved features already; `vqtool eval merge` joins several"
        )
    here = "cpu" if by_ray else choose_device(device)  # tasks choose theirs
    computing = ComputationOptions() if by_ray else options
    request = Request(
        sources=paths,
        ref=(),
        kinds=kinds,
        images=ImageOptions(
            features=options.features,
            runtime=options.runtime,
            weights=options.weights,
            resize=options.resize,
            size=options.size,
            tokenizer=options.tokenizer,
            per_class=options.keep_features,  # so that labels are kept too
            cache=options.cache,
        ),
        likelihood=LikelihoodOptions(),
        source_options=source_options,
        of_metrics={},
        seed=0,
        device=here,
        computation=computing.choose(torch.device(here)),
        exhibits=False,
        force=force,
        on_error=on_error,
        notify=ignore,
        progress=progress,
    )
    about = About(split=split_of(paths, source_options.split), parts=() if options.partial is None else (str(part),))
    reading = _Reading(request, part, about, options)
    found = reading.by_ray(device) if by_ray else reading.read(on_error)
    result = found if isinstance(found, FeatureSet) else found.result()
    save(result, output, force=force)
    return result


@dataclass(frozen=True)
class _Reading:
    """Reads the features of a part of the pictures that a request is for."""

    request: Request
    part: Part
    about: About  # without a size, what the pictures themselves say
    options: StatisticsOptions

    def read(self, on_error: OnError | None) -> FeatureSet | Accumulator:
        """Features, or what their statistics are made of.

        Args:
            on_error: told of images that cannot be read; the request's own is told of those that cannot be found.
        """
        request = self.request
        pictures, about = self._open(request)
        own = self.part.range(len(pictures.ids))
        rows = np.arange(own.start, own.stop)
        if self.part.number > 1:
            pictures.left_out = ()  # those belong to the first part
        if isinstance(on_error, Tally) and isinstance(pictures, ImageFiles) and request.on_error is not on_error:
            on_error.found(pictures.items[own.start : own.stop], with_words=request.images.per_class)
        about = replace(about, num_given=len(rows))
        read = read_features if self.options.keep_features else accumulate
        with request.progress("features", len(rows)) as advance:
            return read(pictures, rows, load_network(request), about, on_error=on_error, advance=advance)

    def _open(self, request: Request) -> tuple[Pictures, About]:
        """All pictures, and how they are read."""
        pictures = open_side(request, "images", request.sources, request.kind)
        if not isinstance(pictures, Pictures):
            raise ValueError(f"{request.sources} are no pictures")
        if self.about.size:
            return pictures, self.about
        size = request.size or pictures.common_size() or MIXED_SIZE
        fit = pictures.choose_fit(size, request.source_options.fit)
        return pictures, replace(self.about, size=size, fit=fit)

    def by_ray(self, device: str) -> FeatureSet | Accumulator:
        """The same by tasks of a Ray cluster: each reads some of the sources, or some pictures of a single one.

        Size and fit are those of all pictures, which are listed here for that unless both are given.

        Raises:
            VqtoolError: what one process would raise, or Ray fails.
        """
        request, about, fit = self.request, self.about, self.request.source_options.fit
        sources = expand(request.sources)
        if request.size is not None and fit is not None:
            about = replace(about, size=request.size, fit=fit)
        else:
            quiet = None if request.on_error is None else Tally()
            about = self._open(replace(request, on_error=quiet))[1]
        sent = replace(request, on_error=None, progress=silent, kinds=[request.kind], left_out={})
        num = min(len(sources), PARTS)
        groups = [Part(number + 1, num).range(len(sources)) for number in range(num)]
        calls = [(sources[each.start : each.stop], Part(1, 1)) for each in groups]
        if len(sources) == 1:
            calls = [(sources, Part(number + 1, PARTS)) for number in range(PARTS)]
        found: dict[int, FeatureSet | Accumulator] = {}
        task = partial(_read_part, replace(self, request=sent, about=about), device)
        with request.progress("features", len(calls), "parts") as advance:
            for ended in run_by_ray(task, calls):
                retell(ended, request.on_error, str(calls[ended.number][0][0]))
                if ended.error is not None or ended.value is None:
                    raise ended.error or ValueError(f"part {ended.number} has no value")
                found[ended.number] = ended.value
                advance(1)
        return _joined([found[number] for number in range(len(calls))])


def _read_part(
    reading: _Reading, device: str, sources: Sequence[str], part: Part, *, on_error: OnError
) -> FeatureSet | Accumulator:
    """A part of some sources, on any machine."""

    def tell(item: ImageItem, error: VqtoolError) -> None:
        if part.number == 1:  # the other parts of these sources do not find it either
            on_error(item, error)

    device = choose_device(device)
    computation = reading.options.choose(torch.device(device))
    request = replace(reading.request, sources=sources, device=device, computation=computation, on_error=tell)
    found = replace(reading, request=request, part=part).read(on_error)
    return replace(found, pictures=None, rows=None) if isinstance(found, FeatureSet) else found


def _joined(parts: Sequence[FeatureSet | Accumulator]) -> FeatureSet | Accumulator:
    """Parts, in order, as one."""
    sums = [part for part in parts if isinstance(part, Accumulator)]
    if sums:
        for part in sums[1:]:
            sums[0].join(part)
        return sums[0]
    sets = [part for part in parts if isinstance(part, FeatureSet)]
    about = reduce(About.merged, (each.about for each in sets))
    sets = [each for each in sets if len(each)] or sets[:1]  # features of no pictures do not know whose they are
    return FeatureSet(
        concatenate([each.features for each in sets]),
        about,
        np.concatenate([each.digests for each in sets]),
        [id for each in sets for id in each.ids],
        [label for each in sets for label in each.labels],
    )


def merge_saved(files: Sequence[str | Path], output: str | Path, *, force: bool = False) -> FeatureSet | StatisticsSet:
    """Write several saved files as one: equal to what all their pictures together would have given.

    Features are joined in the order of the files where all have them, so that every metric is the same bit for bit;
    statistics are the same but for rounding.

    Args:
        files: of `save_statistics`.
        output: the file, .npz.
        force: overwrite what is there.

    Raises:
        FormatError: a file is damaged.
        MismatchError: they are of different features or sizes.
    """
    refuse_existing(output, force=force, kind="saved statistics")
    found = merge([load(path) for path in files], list(map(str, files)))
    if missing := found.about.missing():
        warn(f"{output}: lacks part{'s' * (len(missing) > 1)} {', '.join(missing)} of its pictures")
    save(found, output, force=force)
    return found
