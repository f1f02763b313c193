"""Images or grids -> numbers.

A metric of features is one file with a function

    def measure(reference: (N, D), generated: (M, D), *, seed: int) -> list[Score]

whose module stands in FEATURE_METRICS (compare.py): that is the registration, it feeds `vqtool eval`. Metrics of
tokens and of pixels have functions of their own input. What `vqtool eval` calls takes images or token grids and gives
a `Report`: `compare_images`, `compare_pairs`, `measure_reconstruction`, `measure_grids`, `measure_likelihood`.
"""

from vqtool.metrics.compare.scores import ImageScores
from vqtool.metrics.compare.trials import Cell, measure_cell, plan
from vqtool.metrics.features import EfficientNetLite0, FeatureNetwork, extract
from vqtool.metrics.frechet import Statistics, frechet_distance, frechet_distance_of_statistics, statistics
from vqtool.metrics.kernel import KernelDistance, kernel_distance, kernel_distances
from vqtool.metrics.likelihood import DEFAULT_TIMES, Likelihood, measure_likelihood
from vqtool.metrics.prdc import NeighbourScores, neighbour_scores
from vqtool.metrics.reconstruction import mean_squared_errors, measure_reconstruction, psnr
from vqtool.metrics.reference import FEATURE_METRICS, compare_images, compare_pairs, measure_features
from vqtool.metrics.report import Report
from vqtool.metrics.score import Score
from vqtool.metrics.tokens import count_tokens, measure_grids, perplexity, total_variation, usage

__all__ = [
    "DEFAULT_TIMES",
    "FEATURE_METRICS",
    "Cell",
    "EfficientNetLite0",
    "FeatureNetwork",
    "ImageScores",
    "KernelDistance",
    "Likelihood",
    "NeighbourScores",
    "Report",
    "Score",
    "Statistics",
    "compare_images",
    "compare_pairs",
    "count_tokens",
    "extract",
    "frechet_distance",
    "frechet_distance_of_statistics",
    "kernel_distance",
    "kernel_distances",
    "mean_squared_errors",
    "measure_cell",
    "measure_features",
    "measure_grids",
    "measure_likelihood",
    "measure_reconstruction",
    "neighbour_scores",
    "perplexity",
    "plan",
    "psnr",
    "statistics",
    "total_variation",
    "usage",
]
