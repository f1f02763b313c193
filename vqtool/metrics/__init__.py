"""Images or grids -> numbers.

A metric of features is one file with a function

    def measure(reference: (N, D), generated: (M, D), *, seed: int) -> list[Score]

whose name stands in FEATURE_METRICS: that is the registration, it feeds `vqtool eval`. Metrics of tokens and of pixels
have functions of their own input. `report` has what `vqtool eval` calls: sources of images or grids in, a report out.
"""

from importlib import import_module

from numpy.typing import ArrayLike

from vqtool.metrics.features import EfficientNetLite0, FeatureNetwork, extract
from vqtool.metrics.frechet import Statistics, frechet_distance, frechet_distance_of_statistics, statistics
from vqtool.metrics.kernel import KernelDistance, kernel_distance, kernel_distances
from vqtool.metrics.prdc import NeighbourScores, neighbour_scores
from vqtool.metrics.reconstruction import mean_squared_errors, psnr
from vqtool.metrics.score import Score, rename
from vqtool.metrics.tokens import count_tokens, perplexity, total_variation, usage

FEATURE_METRICS = ("frechet", "kernel", "prdc")

__all__ = [
    "FEATURE_METRICS",
    "EfficientNetLite0",
    "FeatureNetwork",
    "KernelDistance",
    "NeighbourScores",
    "Score",
    "Statistics",
    "count_tokens",
    "extract",
    "frechet_distance",
    "frechet_distance_of_statistics",
    "kernel_distance",
    "kernel_distances",
    "mean_squared_errors",
    "measure_features",
    "neighbour_scores",
    "perplexity",
    "psnr",
    "statistics",
    "total_variation",
    "usage",
]


def measure_features(reference: ArrayLike, generated: ArrayLike, network_name: str, *, seed: int = 0) -> list[Score]:
    """Every metric of FEATURE_METRICS, each score named after its network, e.g. "FD-EfficientNetLite0".

    Args:
        reference: (N, D) features of real images.
        generated: (M, D) features of generated images; M = N unless there is a reason.
        network_name: of the network that made both.
        seed: of the subsets that some metrics draw.

    Returns:
        The scores in the order of FEATURE_METRICS.
    """
    return [
        rename(score, f"{score.name}-{network_name}")
        for name in FEATURE_METRICS
        for score in import_module(f"vqtool.metrics.{name}").measure(reference, generated, seed=seed)
    ]
