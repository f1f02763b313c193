"""Monge Inception Distance: closed forms, brute force, sets of unequal sizes."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vqtool.metrics import mind, sliced_distances


def unit(*rows):
    rows = np.array(rows, float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_distance_along_a_line_is_that_of_the_best_assignment():
    generator = np.random.default_rng(0)
    a, b, lines = generator.normal(size=(9, 4)), generator.normal(size=(9, 4)), unit(*generator.normal(size=(3, 4)))
    expected = []
    for line in lines:
        costs = ((a @ line)[:, None] - b @ line) ** 2
        expected.append(3 * 4 * costs[linear_sum_assignment(costs)].mean())
    np.testing.assert_allclose(sliced_distances(a, b, lines), expected)


def test_a_shift_alone_has_the_squared_distance_of_the_means():
    """The mean over all directions: 3 D E (u.s)^2 = 3 |s|^2."""
    generator = np.random.default_rng(0)
    a, shift = generator.normal(size=(50, 6)), generator.normal(size=6)
    (score,) = mind.measure(a, a + shift, mind.Options(num_directions=4096), seed=1)
    assert score.value == pytest.approx(3 * (shift**2).sum(), abs=4 * score.standard_error)
    assert score.standard_error < 0.05 * score.value
    assert sliced_distances(a, a[::-1], unit([1] * 6)) == pytest.approx([0])


def test_rows_that_all_repeat_change_nothing_and_other_sizes_are_interpolated():
    generator = np.random.default_rng(0)
    a, line = generator.normal(size=(40, 3)), unit([1, 2, 3])
    assert sliced_distances(a, np.repeat(a, 3, axis=0), line) < 0.01 * sliced_distances(a, a + 1, line)
    uniform, finer = np.arange(10.0)[:, None] + 0.5, (np.arange(20.0)[:, None] + 0.5) / 2
    assert sliced_distances(uniform, finer, unit([1])) == pytest.approx([3 * 2 * 0.25**2 / 20])  # but for both ends


def test_more_directions_than_a_block_are_all_used(monkeypatch):
    generator = np.random.default_rng(0)
    a, b, lines = generator.normal(size=(9, 4)), generator.normal(size=(7, 4)), unit(*generator.normal(size=(5, 4)))
    whole = sliced_distances(a, b, lines)
    monkeypatch.setattr(mind, "BLOCK", 2)
    np.testing.assert_allclose(sliced_distances(a, b, lines), whole)
