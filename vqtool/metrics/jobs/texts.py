"""The job of captions: how well images fit theirs."""

from pathlib import Path

from vqtool.metrics.jobs import Request
from vqtool.metrics.report import Report
from vqtool.metrics.text import Clip, measure_texts


def run(request: Request) -> Report:
    """Text score and retrieval ranks by the CLIP of a folder."""
    options = request.images
    if options.text is None:
        raise ValueError("`text` is not given")
    return measure_texts(
        request.find("images", "some"),
        Clip(Path(options.text), request.device),
        size=request.size,
        fit=request.source_options.fit,
        max_images=options.max_images,
        seed=request.seed,
        on_error=request.on_error,
        progress=request.progress,
    )
