"""KID: golden numbers, brute force, and what its standard error promises."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from vqtool.metrics import kernel, kernel_distance, kernel_distances

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "io.safetensors"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


def brute_force(x, y):
    def k(u, v):
        return (float(u @ v) / len(u) + 1) ** 3

    m = len(x)
    pairs = [(i, j) for i in range(m) for j in range(m)]
    within = sum(k(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (m * (m - 1))
    return within - 2 * sum(k(x[i], y[j]) for i, j in pairs) / m**2


@pytest.fixture(params=["at once", "one by one"])
def way(request, monkeypatch):
    """Both ways in which the subsets are computed: on few rows and on many."""
    if request.param == "one by one":
        monkeypatch.setattr(kernel, "WHOLE_ROWS", 0)


@pytest.mark.usefixtures("way")
def test_every_subset_agrees_with_torch_fidelity(golden):
    values = kernel_distances(
        golden["features_real"],
        golden["features_fake"],
        golden["kid_subset_index_real"],
        golden["kid_subset_index_fake"],
    )
    np.testing.assert_allclose(values, golden["kid_per_subset"], atol=2e-6, rtol=0)
    assert values.mean() == pytest.approx(golden["kid_mean"].item(), abs=2e-6)
    assert values.std() == pytest.approx(golden["kid_std"].item(), abs=2e-6)


@pytest.mark.usefixtures("way")
def test_distance_of_small_sets_equals_brute_force():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(6, 3)), generator.normal(size=(7, 3)) + 1
    index_a, index_b = np.array([[0, 2, 5, 3], [1, 0, 4, 2]]), np.array([[6, 1, 2, 3], [0, 5, 4, 1]])
    expected = [brute_force(a[i], b[j]) for i, j in zip(index_a, index_b, strict=True)]
    np.testing.assert_allclose(kernel_distances(a, b, index_a, index_b), expected, rtol=1e-12)


def test_subsets_of_all_rows_do_not_depend_on_the_seed_and_have_no_standard_error():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(12, 3)), generator.normal(size=(12, 3)) + 1
    first, second = (kernel_distance(a, b, num_subsets=3, subset_size=12, seed=seed) for seed in (0, 1))
    assert first.mean == pytest.approx(second.mean, rel=1e-12)
    assert first.mean == pytest.approx(brute_force(a, b), rel=1e-12)
    assert np.isnan(first.standard_error)


def test_the_same_seed_draws_the_same_subsets_and_another_seed_others():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(50, 4)), generator.normal(size=(40, 4))
    assert kernel_distance(a, b, seed=3) == kernel_distance(a, b, seed=3)
    assert kernel_distance(a, b, seed=3).mean != kernel_distance(a, b, seed=4).mean
    assert kernel_distance(a, b).subset_size == 20


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_distance_is_unbiased_and_its_standard_error_is_the_spread_over_repeated_draws(shift):
    generator = np.random.default_rng(0)
    results = [
        kernel_distance(generator.normal(size=(60, 4)), generator.normal(size=(60, 4)) + shift, num_subsets=40)
        for _ in range(150)
    ]
    values = np.array([result.mean for result in results])
    spread, promised = values.std(ddof=1), np.mean([result.standard_error for result in results])
    x, y = generator.normal(size=(4000, 4)), generator.normal(size=(4000, 4)) + shift
    everything = np.arange(4000)[None]
    truth = kernel_distances(x, y, everything, everything)[0]
    # Fixed seeds, so this cannot fail by chance; over seeds, the bounds of 4 sigma fail once in 10^4.
    assert values.mean() == pytest.approx(truth, abs=4 * spread / np.sqrt(150) + 0.05 * shift)
    assert 0.85 * spread < promised < 2.0 * spread


@pytest.mark.parametrize("size", [1, 9, 0])
def test_subsets_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match=f"subsets of {size} from 8 and 20 rows"):
        kernel_distance(np.zeros((8, 2)), np.zeros((20, 2)), subset_size=size)


def test_features_of_different_dimensions_are_refused():
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        kernel_distance(np.zeros((8, 2)), np.zeros((8, 3)))
    with pytest.raises(ValueError, match="expected twice"):
        kernel_distances(np.zeros((8, 2)), np.zeros((8, 2)), np.zeros((1, 3), int), np.zeros((1, 4), int))
