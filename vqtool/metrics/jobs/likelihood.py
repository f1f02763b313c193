"""The job of priors: bits per token of grids."""

from dataclasses import replace

from vqtool.images.sources.options import refuse_for_grids
from vqtool.metrics.galleries import show_bits
from vqtool.metrics.jobs import Request
from vqtool.metrics.likelihood import DEFAULT_TIMES, measure_likelihood
from vqtool.metrics.plots import check_matplotlib, plot_curve
from vqtool.metrics.report import Report
from vqtool.outputs import refuse_existing
from vqtool.priors import Prior, find_prior, load_prior
from vqtool.samplers._machine import use_runtime


def run(request: Request) -> Report:
    """The bound, and with `plot` its curve as a file."""
    options = request.likelihood
    refuse_for_grids(request.source_options, request.sources[0])
    if options.plot is not None:
        refuse_existing(options.plot, force=request.force, kind="a PNG image")
        check_matplotlib()
    prior = options.prior
    if not isinstance(prior, Prior):
        prior = load_prior(find_prior(prior, notify=request.notify))
    prior, _ = use_runtime(prior.to(request.device), request.images.runtime)
    report = measure_likelihood(
        replace(prior, denoiser=request.computation.of(prior.denoiser)),
        request.sources,
        times=DEFAULT_TIMES if options.times is None else options.times,
        conditional=not options.unconditional,
        seed=request.seed,
        progress=request.progress,
    )
    if options.plot is not None:
        plot_curve(report.about["curve"], options.plot, force=request.force)
    return replace(report, exhibits=[show_bits(report.about["curve"])]) if request.exhibits else report
