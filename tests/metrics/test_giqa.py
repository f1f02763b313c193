"""GIQA: the closed form of one Gaussian, and what quality and diversity tell apart."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from vqtool.errors import VqtoolError
from vqtool.metrics import giqa


def test_one_gaussian_of_all_components_has_its_closed_form():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(500, 3)), generator.normal(size=(20, 3)) + 0.5
    law = multivariate_normal(x.mean(0), np.cov(x.T, bias=True))
    np.testing.assert_allclose(giqa.log_likelihoods(x, y, 1), law.logpdf(y), rtol=1e-4)


def test_directions_without_variance_are_left_out():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 2))
    wide = np.concatenate([x, 1e-4 * generator.normal(size=(300, 5))], axis=1)
    law = multivariate_normal(x.mean(0), np.cov(x.T, bias=True))
    np.testing.assert_allclose(giqa.log_likelihoods(wide, wide, 1), law.logpdf(x), atol=1e-2)


def test_noise_costs_quality_and_missing_kinds_cost_diversity():
    generator = np.random.default_rng(0)
    kinds = 8 * generator.normal(size=(4, 6))
    real = kinds[generator.integers(0, 4, 400)] + generator.normal(size=(400, 6))

    def score(generated):
        return [each.value for each in giqa.measure(real, generated, giqa.Options(giqa_kernels=4), seed=1)]

    good = score(kinds[generator.integers(0, 4, 400)] + generator.normal(size=(400, 6)))
    noisy = score(kinds[generator.integers(0, 4, 400)] + 4 * generator.normal(size=(400, 6)))
    few = score(kinds[generator.integers(0, 2, 400)] + generator.normal(size=(400, 6)))
    assert noisy[0] < good[0] - 5
    assert few[1] < good[1] - 5
    assert abs(few[0] - good[0]) < 1


def test_it_is_measured_on_request_alone_and_needs_more_images_than_gaussians():
    rows = np.random.default_rng(0).normal(size=(6, 2))
    assert giqa.measure(rows, rows) == []
    with pytest.raises(VqtoolError, match="`giqa_kernels` 6: there are 6 images on a side, too few"):
        giqa.measure(rows, rows, giqa.Options(giqa_kernels=6))
    with pytest.raises(ValueError, match="6 Gaussians of 6 rows"):
        giqa.log_likelihoods(rows, rows, 6)
