"""Inception score (IS): how sure a classifier is of each picture, and how many classes it sees over all of them.

What it does: exp of the mean KL divergence of a picture's class probabilities from those of all pictures; 1 for
pictures that all look alike to the classifier, at most the number of classes. The reference's own score stands beside
it, in the settings.
When to use it: to compare with published numbers, with the features `inception`. It looks at no reference, misses
missing modes within a class, and means little for pictures of things that are none of the classes.
Equation: exp(mean_x sum_c p(c | x) log(p(c | x) / p(c))), p(c) the mean over the pictures of one of S splits; the value
is the mean over the splits, its standard error their standard deviation / sqrt(S).
Cost: O(N C).
Source: Salimans et al. 2016 (arXiv:1606.03498). Golden: torch-fidelity 0.4.0.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool import rng
from vqtool.errors import VqtoolError, count_text
from vqtool.metrics.score import Score, check_features, check_pair
from vqtool.options import Checked, option

NEEDS = "probabilities"
SPLITS = 10
FEWEST = 10  # images in a split


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Over how many splits it is averaged."""

    num_splits: int | None = option(
        None, "Splits of the inception score.", shown="10, fewer for few images", minimum=1, advanced=True
    )


DEFAULTS = Options()


def inception_scores(probabilities: ArrayLike, num_splits: int = 1) -> NDArray[np.float64]:
    """The score of each of some splits, in the order of the rows.

    Args:
        probabilities: (N, C) of classes; rows sum to 1.
        num_splits: S; rows are split as evenly as `torch-fidelity` does.

    Returns:
        (S,) each at least 1 and at most C.

    Raises:
        ValueError: not probabilities, or fewer rows than splits.
    """
    p = check_features(probabilities).astype(np.float64)
    if (p < 0).any() or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("probabilities: rows of numbers of 0 or more that sum to 1 are expected")
    if not 1 <= num_splits <= len(p):
        raise ValueError(f"{num_splits} splits of {len(p)} rows")
    bounds = [len(p) * i // num_splits for i in range(num_splits + 1)]
    return np.array([_score(p[start:stop]) for start, stop in pairwise(bounds)])


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The score "IS" of probabilities (M, C), with the reference's own in its settings; splits are drawn by the seed.

    Raises:
        ValueError: they are no probabilities, or of other classes than the reference's.
    """
    real, p = check_pair(reference, generated)
    (score,) = measure_alone(p, options, seed=seed)
    others = inception_scores(_shuffled(real, seed), min(score.settings["num_splits"], len(real)))
    return [replace(score, settings={**score.settings, "reference": float(others.mean())})]


def measure_alone(generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The score "IS" of probabilities (M, C), where no features of a reference are at hand.

    Raises:
        ValueError: they are no probabilities.
        VqtoolError: more splits are asked for than make two images each.
    """
    p = check_features(generated)
    num_splits = min(SPLITS, max(1, len(p) // FEWEST)) if options.num_splits is None else options.num_splits
    if num_splits > max(1, len(p) // 2):
        raise VqtoolError(
            f"`num_splits` {num_splits}: there are {count_text(len(p), 'image')}, so {max(1, len(p) // 2)} at most"
        )
    scores = inception_scores(_shuffled(p, seed), num_splits)
    error = float(scores.std(ddof=1) / num_splits**0.5) if num_splits > 1 else None
    settings = {"num_splits": num_splits, "std": float(scores.std())}
    return [Score("IS", float(scores.mean()), better="higher", standard_error=error, settings=settings)]


def _score(p: NDArray[np.float64]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(p.mean(axis=0))), 0)
    return float(np.exp(terms.sum(axis=1).mean()))


def _shuffled(p: NDArray[np.floating], seed: int) -> NDArray[np.floating]:
    return p[rng.generator(seed, 3, stream=rng.SELECTION).permutation(len(p))]
