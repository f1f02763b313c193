"""Fréchet distance: golden numbers, closed forms, invariances."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from safetensors import safe_open

from vqtool.metrics import Statistics, frechet, frechet_distance, frechet_distance_of_statistics, statistics

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "io.safetensors"


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["meta"])


def draw(n, d, seed=0, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + shift


def test_distance_mean_and_covariance_agree_with_torch_fidelity(golden):
    tensors, _ = golden
    real, fake = tensors["features_real"], tensors["features_fake"]
    stats = statistics(real)
    np.testing.assert_allclose(stats.mean, tensors["mu_real"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(stats.covariance, tensors["sigma_real"], atol=1e-6, rtol=0)
    assert frechet_distance(real, fake) == pytest.approx(tensors["fid"].item(), abs=1e-5)
    assert frechet_distance_of_statistics(stats, statistics(fake)) == pytest.approx(tensors["fid"].item(), abs=1e-5)


def test_distance_of_gaussians_with_commuting_covariances_has_its_closed_form():
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    s, t = np.array([4.0, 1, 0.25, 9, 0, 1]), np.array([1.0, 1, 4, 0, 0, 16])
    a = Statistics(np.arange(6.0), rotation @ np.diag(s) @ rotation.T, 0)
    b = Statistics(np.ones(6), rotation @ np.diag(t) @ rotation.T, 0)
    expected = ((np.arange(6) - 1.0) ** 2).sum() + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum()
    assert frechet_distance_of_statistics(a, b) == pytest.approx(expected, rel=1e-7)


def test_distance_equals_the_formula_with_a_matrix_square_root():
    a, b = draw(200, 12), draw(150, 12, seed=1, shift=0.5)
    s, t = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(s @ t).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features_give_the_same_as_the_covariance_does():
    a, b = draw(20, 50), draw(30, 50, seed=1)
    expected = frechet_distance_of_statistics(statistics(a), statistics(b))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_two_images_a_side_have_the_distance_of_two_segments():
    # Rank-one covariances u u^T / 2 and v v^T / 2 with u at right angles to v: the cross term vanishes.
    a, b = np.array([[0.0, 0, 0], [2, 0, 0]]), np.array([[1.0, 1, 0], [1, -1, 0]])
    assert frechet_distance(a, b) == pytest.approx(0 + 2 + 2, rel=1e-12)


def test_a_set_has_distance_zero_to_itself_in_any_order():
    for n in (10, 300):
        a = draw(n, 40).astype(np.float32)
        scale = np.cov(a.T).trace()
        assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-7 * scale)


def test_distance_is_symmetric_and_grows_by_the_square_of_a_shift():
    a, b = draw(90, 8), draw(80, 8, seed=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a, a + 3) == pytest.approx(8 * 9, rel=1e-6)


def test_chunks_do_not_change_the_statistics(monkeypatch):
    a = draw(101, 7)
    whole = statistics(a)
    monkeypatch.setattr(frechet, "CHUNK_ROWS", 10)
    np.testing.assert_allclose(statistics(a).covariance, whole.covariance, rtol=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "N >= 2"),
        (np.zeros(3), np.zeros((5, 3)), "N >= 2"),
        (np.zeros((5, 2)), np.zeros((5, 3)), "2 and 3 dimensions"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "nan"),
    ],
)
def test_features_that_do_not_fit_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)
