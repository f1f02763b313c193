"""The job of pairs: images against originals of the same ids."""

from vqtool.metrics.jobs import Request
from vqtool.metrics.jobs.images import load_network
from vqtool.metrics.pairs import compare_pairs
from vqtool.metrics.report import Report
from vqtool.training.perceptual import load_perceptual


def run(request: Request) -> Report:
    """PSNR, SSIM and what else is asked for of equal names."""
    options = request.images
    return compare_pairs(
        request.find("images"),
        request.find("reference"),
        size=request.size,
        fit=request.source_options.fit,
        exhibits=request.exhibits,
        perceptual=None if options.perceptual is None else load_perceptual(options.perceptual),
        network=load_network(request) if options.with_features else None,
        seed=request.seed,
        on_error=request.on_error,
        progress=request.progress,
        **request.of_metrics,
    )
