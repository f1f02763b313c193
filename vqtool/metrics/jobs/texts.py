"""The job of captions: how well images fit theirs."""

from vqtool.metrics.jobs import Request
from vqtool.metrics.report import Report
from vqtool.metrics.text import load_encoder, measure_texts


def run(request: Request) -> Report:
    """Text score and retrieval ranks by CLIP or a dual encoder."""
    options = request.images
    if options.text is None:
        raise ValueError("`text` is not given")
    return measure_texts(
        request.find("images", "some"),
        load_encoder(options.text, request.device, request.computation),
        size=request.size,
        fit=request.source_options.fit,
        max_images=options.max_images,
        seed=request.seed,
        on_error=request.on_error,
        progress=request.progress,
    )
