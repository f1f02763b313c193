"""The job of pairs: images against originals of the same ids."""

from vqtool.images import parse_size
from vqtool.metrics.jobs import Request
from vqtool.metrics.pairs import compare_pairs
from vqtool.metrics.report import Report


def run(request: Request) -> Report:
    """PSNR of equal names."""
    options = request.images
    return compare_pairs(
        request.find("images"),
        request.find("reference"),
        size=None if options.size is None else parse_size(str(options.size), "`size`"),
        fit=request.source_options.fit,
        exhibits=request.exhibits,
        on_error=request.on_error,
        progress=request.progress,
    )
