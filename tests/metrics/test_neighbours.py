"""Nearest rows, grids and outliers against brute force."""

import numpy as np

from vqtool.metrics.neighbours import nearest, nearest_grids, outside, thumbnails


def test_the_nearest_rows_are_those_of_all_distances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(40, 5))
    found = nearest(x, y, 3)
    distances = np.linalg.norm(x[:, None] - y[None], axis=2)
    np.testing.assert_array_equal(found.rows, np.argsort(distances, axis=1)[:, :3])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :3], rtol=1e-5)


def test_equal_rows_are_at_no_distance_and_a_row_is_not_its_own_neighbour():
    x = np.random.default_rng(0).normal(100, 1, (20, 50))
    assert nearest(x[:5], x).distances.max() == 0
    others = nearest(x, x, 1, skip_self=True)
    assert (others.rows[:, 0] != np.arange(20)).all()
    assert others.distances.min() > 1


def test_the_nearest_grid_has_most_equal_tokens():
    y = np.arange(3 * 4).reshape(3, 2, 2)
    x = np.stack([y[1], y[2]])
    x[1, 0, 0] = 99
    found = nearest_grids(x, y)
    assert found.rows[:, 0].tolist() == [1, 2]
    assert found.distances[:, 0].tolist() == [0, 0.25]


def test_what_lies_outside_of_all_balls_is_told_in_radii():
    y = np.array([[0.0], [1.0], [2.0]])
    np.testing.assert_allclose(outside(np.array([[0.5], [5.0]]), y, 1), [0.5, 3.0], rtol=1e-5)


def test_thumbnails_are_means_of_squares_of_pixels():
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64)).astype(np.uint8)
    expected = image.reshape(2, 3, 16, 4, 16, 4).mean((3, 5)).reshape(2, -1)
    np.testing.assert_allclose(thumbnails(image), expected, rtol=1e-5)
