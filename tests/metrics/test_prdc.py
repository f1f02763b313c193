"""Precision, recall, density, coverage: golden numbers, brute force, invariances, both conventions on the sphere."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from vqtool.metrics import _distances, neighbour_scores, prdc

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "io.safetensors"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


def brute_force(real, fake, k, closed):
    def inside(distance, radius):
        return distance <= radius if closed else distance < radius

    def radii(x):
        return [sorted(((x - row) ** 2).sum(axis=1))[k] for row in x]

    distances = [[((r - f) ** 2).sum() for f in fake] for r in real]
    in_real = [[inside(d, radius) for d in row] for row, radius in zip(distances, radii(real), strict=True)]
    in_fake = [[inside(d, radius) for d, radius in zip(row, radii(fake), strict=True)] for row in distances]
    columns = list(zip(*in_real, strict=True))
    return (
        np.mean([any(column) for column in columns]),
        np.mean([any(row) for row in in_fake]),
        np.mean([sum(column) / k for column in columns]),
        np.mean([any(row) for row in in_real]),
    )


def as_tuple(scores):
    return scores.precision, scores.recall, scores.density, scores.coverage


@pytest.mark.parametrize("k", [3, 5])
def test_scores_agree_with_prdc_and_torch_fidelity(golden, k):
    real, fake = golden["features_real"], golden["features_fake"]
    strict = neighbour_scores(real, fake, nearest_k=k)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(strict, name) == pytest.approx(golden[f"prdc_{name}_k{k}"].item(), abs=1e-9)
    closed = neighbour_scores(real, fake, nearest_k=k, closed=True)
    assert closed.precision == pytest.approx(golden[f"improved_precision_k{k}"].item(), abs=1e-6)
    assert closed.recall == pytest.approx(golden[f"improved_recall_k{k}"].item(), abs=1e-6)


@pytest.mark.parametrize("closed", [False, True])
def test_scores_equal_brute_force_on_a_lattice_where_rows_repeat_and_lie_on_spheres(closed):
    generator = np.random.default_rng(0)
    for k in (1, 2, 4):
        real, fake = generator.integers(0, 4, (25, 3)), generator.integers(0, 5, (19, 3))
        expected = brute_force(real, fake, k, closed)
        assert as_tuple(neighbour_scores(real, fake, nearest_k=k, closed=closed)) == pytest.approx(expected)


def test_equal_rows_are_at_distance_zero_in_spite_of_rounding():
    # Every row twice: with k = 1 all radii are 0, so nothing is strictly inside a ball and all is inside a closed one.
    x = np.repeat(np.random.default_rng(0).normal(size=(30, 1280)) * 100, 2, axis=0)
    assert as_tuple(neighbour_scores(x, x, nearest_k=1)) == (0, 0, 0, 0)
    assert as_tuple(neighbour_scores(x, x, nearest_k=1, closed=True)) == (1, 1, 2, 1)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_tiles_and_order_do_not_change_the_scores(rows, monkeypatch):
    generator = np.random.default_rng(1)
    real, fake = generator.normal(size=(64, 5)), generator.normal(size=(50, 5)) + 0.3
    expected = neighbour_scores(real, fake)
    monkeypatch.setattr(_distances, "TILE_ROWS", rows)
    shuffled = neighbour_scores(generator.permutation(real), generator.permutation(fake))
    assert shuffled == expected


def test_distances_are_held_a_chunk_at_a_time(monkeypatch):
    shapes = []
    original = _distances.tile

    def tile(*arguments):
        squared = original(*arguments)
        shapes.append(squared.shape)
        return squared

    monkeypatch.setattr(_distances, "TILE_ROWS", 30)
    monkeypatch.setattr(_distances, "tile", tile)
    monkeypatch.setattr(prdc, "tile", tile)
    generator = np.random.default_rng(1)
    neighbour_scores(generator.normal(size=(300, 2)), generator.normal(size=(200, 2)))
    assert max(max(shape) for shape in shapes) == 30


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_what_single_precision_cannot_tell_is_told_as_in_double(scale, monkeypatch):
    """Oracle: brute force in float64, of rows so close that float32 sees most distances of a cluster as one."""
    monkeypatch.setattr(_distances, "TILE_ROWS", 16)
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(4, 6)) * 100
    real, fake = (centres[generator.integers(0, 4, n)] + scale * generator.normal(size=(n, 6)) for n in (70, 60))
    for most in (40, 1 << 14):  # by whole tiles first, and one by one
        monkeypatch.setattr(_distances, "MOST_OPEN", most)
        for k in (2, 5):
            assert as_tuple(neighbour_scores(real, fake, nearest_k=k)) == pytest.approx(
                brute_force(real, fake, k, False)
            )


def test_rows_that_repeat_more_often_than_neighbours_are_kept_score_as_brute_force():
    generator = np.random.default_rng(3)
    real, fake = generator.integers(0, 2, (60, 3)), generator.integers(0, 2, (50, 3))
    assert as_tuple(neighbour_scores(real, fake, nearest_k=20, closed=True)) == pytest.approx(
        brute_force(real, fake, 20, True)
    )


def test_each_score_has_the_neighbourhood_of_its_paper():
    generator = np.random.default_rng(1)
    real, fake = generator.normal(size=(64, 5)), generator.normal(size=(50, 5)) + 0.3
    found = {score.name: score for score in prdc.measure(real, fake)}
    assert {name: score.settings["nearest_k"] for name, score in found.items()} == {
        "precision": 3, "recall": 3, "density": 5, "coverage": 5,
    }  # fmt: skip
    three, five = neighbour_scores(real, fake, nearest_k=3), neighbour_scores(real, fake, nearest_k=5)
    assert [score.value for score in found.values()] == [three.precision, three.recall, five.density, five.coverage]
    few = prdc.measure(real[:3], fake)
    assert {score.settings["nearest_k"] for score in few} == {2}


def test_scores_are_those_of_the_package_prdc():
    compute = pytest.importorskip("prdc").compute_prdc
    generator = np.random.default_rng(5)
    real, fake = generator.normal(size=(300, 20)), generator.normal(size=(250, 20)) * 1.1
    expected = compute(real_features=real, fake_features=fake, nearest_k=4)
    assert as_tuple(neighbour_scores(real, fake, nearest_k=4)) == pytest.approx(tuple(expected.values()))


def test_far_apart_sets_score_zero_and_a_set_against_itself_one():
    x = np.random.default_rng(0).normal(size=(40, 3))
    assert as_tuple(neighbour_scores(x, x + 1000)) == (0, 0, 0, 0)
    same = neighbour_scores(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_swapping_the_sets_swaps_precision_and_recall():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(60, 4)), 2 * generator.normal(size=(60, 4))
    assert neighbour_scores(a, b).precision == neighbour_scores(b, a).recall


@pytest.mark.parametrize("k", [0, 4])
def test_a_neighbour_that_does_not_exist_is_refused(k):
    with pytest.raises(ValueError, match=f"nearest_k is {k} with 4 and 9 rows"):
        neighbour_scores(np.zeros((4, 2)), np.zeros((9, 2)), nearest_k=k)


def test_standard_errors_are_those_of_means_over_rows():
    """Oracle: precision of rows of which a known share lies in the one ball of the reference; its error is binomial."""
    real = np.array([[0.0], [1.0], [0.5]])
    fake = np.concatenate([np.linspace(0.1, 0.9, 30), np.linspace(50, 60, 10)])[:, None]
    (found,) = [score for score in prdc.measure(real, fake, prdc.Options(nearest_k=1)) if score.name == "precision"]
    assert found.value == 0.75
    assert found.standard_error == pytest.approx((0.75 * 0.25 / 39) ** 0.5)
