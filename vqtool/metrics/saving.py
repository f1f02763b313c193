"""Statistics and features of pictures in a file, whole or part by part: the work of `eval stats` and `eval merge`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqtool.distributed import choose_device, parse_part
from vqtool.errors import VqtoolError, warn
from vqtool.images import OnError, SourceOptions
from vqtool.metrics.card import split_of
from vqtool.metrics.features.options import ComputationOptions, FeatureOptions
from vqtool.metrics.jobs import ImageOptions, LikelihoodOptions, Request
from vqtool.metrics.jobs.images import load_network, open_side
from vqtool.metrics.pictures import Pictures
from vqtool.metrics.reference import MIXED_SIZE
from vqtool.metrics.saved import kind_of, load, merge, save
from vqtool.metrics.sides import About, FeatureSet, StatisticsSet, read_features, read_statistics
from vqtool.options import distribute, option
from vqtool.outputs import refuse_existing
from vqtool.progress import Progress, ignore, silent
from vqtool.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions(FeatureOptions, ComputationOptions):
    """What is saved of pictures."""

    keep_features: bool = option(False, "Keep the features too, for every metric.")
    partial: str | None = option(None, "This part of the pictures only, as in 1/4.")
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
    kinds = [kind_of(path) for path in paths]
    if "saved" in kinds:
        raise VqtoolError(
            f"{paths[kinds.index('saved')]}: holds saved features already; `vqtool eval merge` joins several"
        )
    device = choose_device(device)
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
        device=device,
        computation=options.choose(torch.device(device)),
        exhibits=False,
        force=force,
        on_error=on_error,
        notify=ignore,
        progress=progress,
    )
    pictures = open_side(request, "images", paths, request.kind)
    if not isinstance(pictures, Pictures):
        raise ValueError(f"{paths} are no pictures")
    size = request.size or pictures.common_size() or MIXED_SIZE
    total = len(pictures.ids)
    own = part.range(total)
    rows = np.arange(own.start, own.stop)
    if part.number > 1:
        pictures.left_out = ()  # those belong to the first part
    about = About(
        size=size,
        fit=pictures.choose_fit(size, source_options.fit),
        num_given=len(rows),
        split=split_of(paths, source_options.split),
        parts=() if options.partial is None else (str(part),),
    )
    read = read_features if options.keep_features else read_statistics
    with progress("features", len(rows)) as advance:
        found = read(pictures, rows, load_network(request), about, on_error=on_error, advance=advance)
    save(found, output, force=force)
    return found


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
