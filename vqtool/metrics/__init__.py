"""Images or grids -> numbers.

A metric of features is a file `vqtool/metrics/NAME.py` with

    Options                                                a dataclass of its options, which become flags; may be empty
    measure(reference (N, D), generated (M, D), options, *, seed) -> list[Score]
    NEEDS                                                  the array of `Features` it measures; without it "pooled"
    measure_statistics(reference, generated)               where it can do with `frechet.Statistics` of both
    measure_alone(generated (M, D), options, *, seed)      where it needs no reference

and a name in NAMES: that is the registration, `vqtool eval` and `vqtool compare` both use every metric there. What
measures tokens or pixels has functions of its own input. What `vqtool eval` calls takes images or token grids and
gives a `Report`: `evaluate` chooses one of `jobs`; one by one they are `compare_images`, `compare_pairs`,
`measure_reconstruction`, `text.measure_texts`, `measure_grids`, `measure_likelihood`. `save_statistics` keeps what a
reference needs, and `compare_results` puts reports side by side.
"""

from vqtool.metrics.card import Card
from vqtool.metrics.compare.comparison import compare
from vqtool.metrics.compare.file import Comparison, Row, Trial
from vqtool.metrics.compare.scores import ImageScores
from vqtool.metrics.compare.trials import measure_trial, plan
from vqtool.metrics.evaluation import evaluate
from vqtool.metrics.features import FeatureNetwork, Features, extract, load_features
from vqtool.metrics.features.efficientnet_lite0 import EfficientNetLite0
from vqtool.metrics.frechet import (
    Extrapolated,
    Statistics,
    extrapolated_distance,
    frechet_distance,
    frechet_distance_of_statistics,
    merge_statistics,
    statistics,
)
from vqtool.metrics.inception_score import inception_scores
from vqtool.metrics.kernel import KernelDistance, kernel_distance, kernel_distances
from vqtool.metrics.likelihood import DEFAULT_TIMES, Likelihood, measure_likelihood
from vqtool.metrics.mind import sliced_distances
from vqtool.metrics.pairs import compare_pairs
from vqtool.metrics.prdc import NeighbourScores, neighbour_scores
from vqtool.metrics.reconstruction import mean_squared_errors, measure_reconstruction, psnr
from vqtool.metrics.reference import compare_images
from vqtool.metrics.report import Report
from vqtool.metrics.results import compare_results
from vqtool.metrics.saving import merge_saved, save_statistics
from vqtool.metrics.score import Score, measure_features
from vqtool.metrics.similarity import ms_ssim, ssim
from vqtool.metrics.tokens import count_tokens, measure_grids, neighbour_divergence, perplexity, total_variation, usage

NAMES = ("frechet", "kernel", "prdc", "inception-score", "spatial", "mind", "giqa")  # of the metrics of features

__all__ = [
    "DEFAULT_TIMES",
    "NAMES",
    "Card",
    "Comparison",
    "EfficientNetLite0",
    "Extrapolated",
    "FeatureNetwork",
    "Features",
    "ImageScores",
    "KernelDistance",
    "Likelihood",
    "NeighbourScores",
    "Report",
    "Row",
    "Score",
    "Statistics",
    "Trial",
    "compare",
    "compare_images",
    "compare_pairs",
    "compare_results",
    "count_tokens",
    "evaluate",
    "extract",
    "extrapolated_distance",
    "frechet_distance",
    "frechet_distance_of_statistics",
    "inception_scores",
    "kernel_distance",
    "kernel_distances",
    "load_features",
    "mean_squared_errors",
    "measure_features",
    "measure_grids",
    "measure_likelihood",
    "measure_reconstruction",
    "measure_trial",
    "merge_saved",
    "merge_statistics",
    "ms_ssim",
    "neighbour_divergence",
    "neighbour_scores",
    "perplexity",
    "plan",
    "psnr",
    "save_statistics",
    "sliced_distances",
    "ssim",
    "statistics",
    "total_variation",
    "usage",
]
