"""GIQA's quality and diversity scores, which Improved VQ-Diffusion reports: likelihoods under mixtures of Gaussians.

What it does: quality is how likely generated pictures are under a mixture fitted to the real ones; diversity is how
likely real pictures are under a mixture fitted to the generated ones.
When to use it: to tell pictures that look wrong from kinds that are missing, on some thousand pictures; on request
(`giqa_kernels`). Values compare only for one reference, one network and one number of Gaussians.
Equation: principal components that keep 95 % of the variance of the real side, then K Gaussians of full covariances
of one side by EM; the mean log-likelihood of the other side, in nats. The components are those of the real side for
both scores, so that diversity is a density of the same numbers whatever was generated.
Cost: K O(N d^2) a step of EM, d the number of components kept.
Source: Gu et al. 2020 (arXiv:2003.08932) and github.com/cientgu/GIQA, GMM-GIQA with `--pca_rate 0.95`; the author's
answer in github.com/cientgu/VQ-Diffusion/issues/17: DS is QS with training and testing exchanged. Whether the tables of
arXiv:2205.16007 rescale likelihoods, and their K, was not established: compare with your own runs, not with theirs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from vqtool.errors import VqtoolError, count_text
from vqtool.metrics.score import Score, check_features, check_pair
from vqtool.options import Checked, option

VARIANCE = 0.95  # that the components keep


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Whether, and with how many Gaussians."""

    giqa_kernels: int = option(
        0, "Also GIQA's quality and diversity, by so many Gaussians; GIQA's code takes 5.", minimum=0, advanced=True
    )


DEFAULTS = Options()


def log_likelihoods(
    fitted: ArrayLike, scored: ArrayLike, num_kernels: int, *, components_of: ArrayLike | None = None, seed: int = 0
) -> NDArray[np.float64]:
    """How likely rows are under a mixture of Gaussians that is fitted to others.

    Args:
        fitted: (N, D) features; N above num_kernels.
        scored: (M, D) features.
        num_kernels: Gaussians.
        components_of: (L, D) features whose principal components are taken; None: `fitted`.
        seed: of their start.

    Returns:
        (M,) nats.

    Raises:
        ValueError: the shapes do not fit, or there are too few rows.
    """
    x, y = check_pair(fitted, scored)
    if not 1 <= num_kernels < len(x):
        raise ValueError(f"{num_kernels} Gaussians of {len(x)} rows")
    base = x if components_of is None else check_features(components_of)
    components = PCA(VARIANCE, svd_solver="full").fit(base.astype(np.float64))
    mixture = GaussianMixture(num_kernels, covariance_type="full", random_state=seed, max_iter=1000)
    mixture.fit(components.transform(x.astype(np.float64)))
    found: NDArray[np.float64] = mixture.score_samples(components.transform(y.astype(np.float64)))
    return found


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The scores "GIQA-quality" and "GIQA-diversity" on request, else none.

    Raises:
        VqtoolError: there are not more images than Gaussians.
    """
    x, y = check_pair(reference, generated)
    num = options.giqa_kernels
    if num >= min(len(x), len(y)):
        raise VqtoolError(
            f"`giqa_kernels` {num}: there are {count_text(min(len(x), len(y)), 'image')} on a side, too few for them"
        )
    scores = []
    for name, fitted, scored in (("quality", x, y), ("diversity", y, x)) if num else ():
        each = log_likelihoods(fitted, scored, num, components_of=x, seed=seed)
        error = float(each.std(ddof=1) / len(each) ** 0.5)
        settings = {"giqa_kernels": num}
        scores.append(Score(f"GIQA-{name}", float(each.mean()), "higher", "nats", error, settings))
    return scores
