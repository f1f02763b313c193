"""The job of tokenizers: images encoded and decoded again."""

from dataclasses import replace

from vqtool.metrics.jobs import Request
from vqtool.metrics.jobs.images import load_network
from vqtool.metrics.reconstruction import measure_reconstruction
from vqtool.metrics.report import Report
from vqtool.tokenizers import BUILTIN, Tokenizer, load_tokenizer
from vqtool.tokenizers._machine import with_parts
from vqtool.tokenizers._onnx import PARTS, use_runtime
from vqtool.training.perceptual import load_perceptual


def run(request: Request) -> Report:
    """PSNR, SSIM, usage, perplexity and what else is asked for."""
    options = request.images
    tokenizer = options.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(BUILTIN if tokenizer is None else tokenizer)
    size = request.size or tokenizer.usual_size
    tokenizer, runtime = use_runtime(tokenizer.to(request.device), options.runtime)
    report = measure_reconstruction(
        request.find("images"),
        with_parts(tokenizer, request.computation.of, PARTS),
        size=size,
        fit=request.source_options.fit,
        max_images=options.max_images,
        exhibits=request.exhibits,
        perceptual=None if options.perceptual is None else load_perceptual(options.perceptual),
        network=load_network(request) if options.with_features else None,
        seed=request.seed,
        on_error=request.on_error,
        progress=request.progress,
        **request.of_metrics,
    )
    return replace(report, about={**report.about, "runtime": runtime})
