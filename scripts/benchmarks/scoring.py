"""Metrics of 10,000 features of 2,048 numbers a side, beside other programs on the same rows.

Seconds are those of the processor, over the number of threads: what they take on two free cores.
"""

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import Row, peak_memory, race

NUM, DIM = 10_000, 2_048
MANY, FEW = 50_000, 2_500  # rows a side of `many`, and those that tell beforehand how long it takes


def _clock() -> float:
    return time.process_time() / torch.get_num_threads()


def _features(seed: int, num: int = NUM) -> np.ndarray:
    """Correlated rows, as features are; other seeds have another mean and scale."""
    generator = np.random.default_rng(0)
    mix = (generator.normal(size=(DIM, DIM)) / DIM**0.5 * np.linspace(3, 0.01, DIM)).astype(np.float32)
    rows = np.random.default_rng(seed).standard_normal((num, DIM), np.float32) @ mix
    return rows * np.float32(1 + 0.1 * seed) + np.float32(0.05 * seed)


def plain_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The form to compare with: Cholesky of one covariance, eigvalsh of L^T C L, in float64."""
    x, y = torch.from_numpy(a).double(), torch.from_numpy(b).double()
    apart, s, t = x.mean(0) - y.mean(0), torch.cov(x.T), torch.cov(y.T)
    factor = torch.linalg.cholesky(s)
    cross = torch.linalg.eigvalsh(factor.T @ t @ factor).clamp(min=0).sqrt().sum()
    return float((apart**2).sum() + s.trace() + t.trace() - 2 * cross)


def frechet(folder: Path, num_images: int) -> Iterator[Row]:
    """Fréchet distance against the plain form, and of a covariance that is singular."""
    from vqtool.metrics import frechet_distance

    a, b = _features(0), _features(1)
    singular = b.copy()
    singular[:, : DIM // 4] = singular[:, -(DIM // 4) :]
    found: dict[str, float] = {}
    ours, plain, third = race(
        lambda: found.update(ours=frechet_distance(a, b)),
        lambda: found.update(plain=plain_frechet(a, b)),
        lambda: frechet_distance(a, singular),
        repeats=2,
        clock=_clock,
    )
    yield "Fréchet distance of 10,000 x 2,048 against the plain form", f"{ours:.1f} s, {ours / plain:.2f} x"
    yield "the same with a singular covariance", f"{third:.1f} s, {third / plain:.2f} x"
    yield "relative difference of the values", f"{abs(found['ours'] / found['plain'] - 1):.0e}"


def _neighbours(num: int = NUM) -> Callable[[], object]:
    from vqtool.metrics import neighbour_scores

    a, b = _features(0, num), _features(1, num)
    return lambda: neighbour_scores(a, b)


def neighbours(folder: Path, num_images: int) -> Iterator[Row]:
    """Precision, recall, density and coverage against the package prdc, which is in the extra dev."""
    from prdc import compute_prdc

    from vqtool.metrics import neighbour_scores

    a, b = _features(0), _features(1)
    start = _clock()
    ours = neighbour_scores(a, b)
    middle = _clock()
    theirs = compute_prdc(real_features=a, fake_features=b, nearest_k=5)
    seconds, others = middle - start, _clock() - middle
    yield "PRDC of 10,000 x 2,048 a side against prdc", f"{seconds:.1f} s, {seconds / others:.2f} x"
    gap = max(abs(getattr(ours, name) - float(value)) for name, value in theirs.items())
    yield "largest difference of the values", f"{gap:.0e}"
    yield "memory of it, beside the features", f"{peak_memory(_neighbours) / 1e6:.0f} MB"


def many(folder: Path, num_images: int) -> Iterator[Row]:
    """The same of 50,000 rows a side, ours alone, once; first what it will take, by 2,500 rows and the squares."""
    few = _neighbours(FEW)
    few()
    start = _clock()
    few()
    yield "PRDC of 50,000 x 2,048 a side, extrapolated", f"{(_clock() - start) * (MANY / FEW) ** 2:.0f} s"
    whole = _neighbours(MANY)
    start = _clock()
    whole()
    yield "PRDC of 50,000 x 2,048 a side", f"{_clock() - start:.0f} s"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield "memory of the whole process, with 820 MB of features", f"{peak / 1e6:.0f} MB"
