"""The job of tokens: grids by themselves, or against others."""

from vqtool.images.sources.options import refuse_for_grids
from vqtool.metrics.jobs import Request
from vqtool.metrics.report import Report
from vqtool.metrics.tokens import measure_grids


def run(request: Request) -> Report:
    """Usage and perplexity; with a reference also how far tokens and grids are apart."""
    refuse_for_grids(request.source_options, request.sources[0])
    return measure_grids(request.sources, request.ref, exhibits=request.exhibits, progress=request.progress)
