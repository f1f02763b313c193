"""Fréchet distance: golden numbers, closed forms, invariances."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors import safe_open

from vqtool.errors import VqtoolError
from vqtool.metrics import (
    Statistics,
    extrapolated_distance,
    frechet,
    frechet_distance,
    frechet_distance_of_statistics,
    kernel_distance,
    merge_statistics,
    statistics,
)

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


def test_statistics_of_parts_merge_to_those_of_the_whole():
    rows = draw(57, 9) + 1e3
    parts = [statistics(rows[:20]), statistics(rows[20:55]), statistics(rows[55:])]
    single = Statistics(rows[3], np.zeros((9, 9)), 1)
    whole = statistics(rows)
    for merged in (merge_statistics(parts), merge_statistics([merge_statistics(parts[:2]), parts[2]])):
        assert merged.num_samples == 57
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, whole.covariance, atol=1e-9)
    both = merge_statistics([statistics(rows[:3]), single])
    np.testing.assert_allclose(both.covariance, np.cov(rows[[0, 1, 2, 3]].T), atol=1e-9)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_statistics([parts[0], statistics(draw(5, 4))])
    with pytest.raises(ValueError, match="9 and 4 dimensions"):
        frechet_distance_of_statistics(parts[0], statistics(draw(5, 4)))


@pytest.mark.parametrize("rank", [1, 5, 29, 30])
def test_singular_covariances_have_the_distance_of_their_factors(rank):
    """Oracle: singular values of F_a F_b^T, with S = F^T F and no covariance formed."""
    generator = np.random.default_rng(rank)
    f, g = generator.normal(size=(rank, 30)), generator.normal(size=(30, 30))
    a, b = Statistics(np.zeros(30), f.T @ f, 99), Statistics(np.ones(30), g.T @ g, 99)
    expected = 30 + (f**2).sum() + (g**2).sum() - 2 * np.linalg.svd(f @ g.T, compute_uv=False).sum()
    assert frechet_distance_of_statistics(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_statistics(b, a) == pytest.approx(expected, rel=1e-9)


def test_extrapolation_takes_the_bias_out_and_its_error_covers_what_is_left():
    """Oracle: the closed form between two Gaussians. Fixed seeds; over seeds 4 standard errors fail once in 10^4."""
    d, num, runs = 20, 400, 12
    scales = np.linspace(0.5, 2, d)
    truth = ((scales - 1) ** 2).sum() + d * 0.1**2
    found = []
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        a, b = generator.normal(size=(num, d)), generator.normal(size=(num, d)) * scales + 0.1
        found.append(extrapolated_distance(a, b, seed=seed))
    values, errors = np.array([f.value for f in found]), np.array([f.standard_error for f in found])
    finite = np.array([f.finite for f in found])
    assert finite.mean() - truth > 0.3  # biased upwards
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / runs**0.5
    assert 0.5 * values.std(ddof=1) < errors.mean() < 2 * values.std(ddof=1)


def test_the_distance_beside_the_extrapolated_one_is_that_of_all_rows():
    a, b = draw(90, 8), draw(80, 8, seed=1)
    found = {score.name: score for score in frechet.measure(a, b, frechet.Options(extrapolate=True), seed=3)}
    assert found["FD"].value == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert found["FD-infinity"].value < found["FD"].value
    assert found["FD"].standard_error > 0
    assert [score.name for score in frechet.measure(a, b)] == ["FD"]
    with pytest.raises(VqtoolError, match="`extrapolate`: there are 39 images on a side, 40 are needed: twice"):
        frechet.measure(a[:39], b, frechet.Options(extrapolate=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`:UserWarning")
def test_distances_are_those_of_torchmetrics_with_the_same_features():
    """Oracle: torchmetrics' FID and KID, whose network passes the features on."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = (torch.from_numpy(draw(70, 6, seed, shift)).float() for seed, shift in ((0, 0.0), (1, 0.5)))

    class Same(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x[:, :, 0, 0]

    def score(metric):
        for rows, real in ((a, True), (b, False)):
            metric.update(rows[:, :, None, None], real=real)
        return metric.compute()

    found = score(fid.FrechetInceptionDistance(Same(), normalize=True, input_img_size=(6, 1, 1)))
    assert frechet_distance(a, b) == pytest.approx(float(found), rel=1e-4)
    mean, _ = score(kid.KernelInceptionDistance(Same(), subsets=1, subset_size=70, normalize=True))
    ours = kernel_distance(a, b, num_subsets=1, subset_size=70)
    assert ours.mean == pytest.approx(float(mean), rel=1e-4)
