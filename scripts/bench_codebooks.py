"""Measure what README.md claims of `vqtool codebook refit`: AFK-MC2 seeding beside scikit-learn's k-means++.

    python scripts/bench_codebooks.py                                # 1024 codes of 100,000 x 256 vectors, 3 minutes
    python scripts/bench_codebooks.py --vectors 10000 --codes 256    # seconds

Both seedings are of the same vectors in the same process, one after the other; then the same Lloyd iterations of
scikit-learn start from either. Run it on an otherwise idle machine; on a busy one compare the CPU seconds, with
OMP_NUM_THREADS=1.
"""

import argparse
import platform
import time
from datetime import date

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from vqtool.codebooks.seeding import SEEDINGS

CLUSTERS, INTRINSIC = 4000, 24  # encoders put images near a curved sheet of few dimensions, unevenly


def draw_vectors(num: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Stand-ins for encoder outputs: uneven clusters on a low-dimensional subspace, with a little noise off it."""
    noise = np.random.default_rng(seed)
    basis = noise.normal(size=(INTRINSIC, dim)) / np.sqrt(dim)
    centres = noise.normal(size=(CLUSTERS, INTRINSIC))
    weights = noise.pareto(1.5, CLUSTERS) + 0.1
    rows = noise.choice(CLUSTERS, num, p=weights / weights.sum())
    inside = centres[rows] + 0.5 * noise.normal(size=(num, INTRINSIC))
    return (inside @ basis + 0.02 * noise.normal(size=(num, dim))).astype(np.float32)


def main() -> None:
    """Time both seedings and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--iterations", type=int, default=20, help="of Lloyd after either seeding")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    vectors = draw_vectors(options.vectors, options.dim, options.seed)
    seconds, inertia = {}, {}
    for name in ("afk-mc2", "k-means++"):
        start = time.perf_counter(), time.process_time()
        seeds = SEEDINGS[name](vectors, options.codes, np.random.default_rng(options.seed))
        seconds[name] = time.perf_counter() - start[0], time.process_time() - start[1]
        lloyd = KMeans(options.codes, init=seeds, n_init=1, max_iter=options.iterations, tol=0)
        inertia[name] = lloyd.fit(vectors).inertia_
    print(f"{date.today()}, {platform.machine()}, {options.codes} codes of {options.vectors} x {options.dim} vectors\n")
    print(f"| seeding | seconds | CPU seconds | inertia after {options.iterations} iterations of Lloyd |")
    print("|---|---|---|---|")
    for name, (wall, cpu) in seconds.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {inertia[name]:.6g} |")
    wall, cpu = (seconds["k-means++"][i] / seconds["afk-mc2"][i] for i in range(2))
    print(f"\nAFK-MC2: {wall:.1f} times as fast ({cpu:.1f} times by CPU seconds), ", end="")
    print(f"inertia {inertia['afk-mc2'] / inertia['k-means++'] - 1:+.2%}")


if __name__ == "__main__":
    main()
