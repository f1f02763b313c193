"""The job of features: images, decoded grids or saved features against a reference of any of these."""

from collections.abc import Sequence
from pathlib import Path

from vqtool.metrics.cache import remembering
from vqtool.metrics.card import split_of
from vqtool.metrics.features import FeatureNetwork
from vqtool.metrics.jobs import Request
from vqtool.metrics.pictures import DecodedGrids, ImageFiles, Pictures, read_tokens
from vqtool.metrics.reference import compare_images
from vqtool.metrics.report import Report
from vqtool.metrics.saved import load
from vqtool.metrics.sides import FeatureSet, StatisticsSet
from vqtool.tokenizers import Tokenizer, tokenizer_of
from vqtool.tokenizers._machine import with_parts
from vqtool.tokenizers._onnx import use_runtime


def run(request: Request) -> Report:
    """Every metric of features."""
    options = request.images
    sides = [
        open_side(request, side, request.sources if side == "images" else request.ref, kind)
        for side, kind in (("images", request.kind), ("reference", request.ref_kind))
    ]
    network = load_network(request) if any(isinstance(side, Pictures) for side in sides) else None
    return compare_images(
        sides[0],
        sides[1],
        network,
        size=request.size,
        fit=request.source_options.fit,
        max_images=options.max_images,
        per_class=options.per_class,
        exhibits=request.exhibits,
        splits=(split_of(request.sources), split_of(request.ref, request.source_options.split)),
        seed=request.seed,
        on_error=request.on_error,
        progress=request.progress,
        **request.of_metrics,
    )


def load_network(request: Request) -> FeatureNetwork:
    """The network of the request, which remembers what it has seen unless the request says otherwise."""
    options = request.images
    network = options.load(request.device, request.computation)
    return remembering(network, request.device, options.runtime) if options.cache else network


def open_side(
    request: Request, side: str, sources: Sequence[str | Path], kind: str
) -> Pictures | FeatureSet | StatisticsSet:
    """One side of a comparison: what is in its sources, of one kind."""
    if kind == "saved":
        return load(sources[0])
    if kind == "images":
        items = request.find(side, "some" if request.images.per_class else "none")
        return ImageFiles(items, request.left_out[side])
    header, batch = read_tokens(list(map(str, sources)), request.progress)
    given = request.images.tokenizer
    tokenizer = given if isinstance(given, Tokenizer) else tokenizer_of(header, sources[0], given=given)
    tokenizer, _ = use_runtime(tokenizer.to(request.device), request.images.runtime, ["decoder"])
    return DecodedGrids(header, batch, with_parts(tokenizer, request.computation.of, ["decoder"]))
