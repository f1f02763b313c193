"""SSIM and MS-SSIM: the numbers of scikit-image, brute force, invariances."""

import numpy as np
import pytest

from vqtool.metrics import ms_ssim, ssim
from vqtool.metrics.similarity import C1, C2, POWERS, num_scales

GOLDEN = [0.952298792, -0.038491308, 0.640001363]


def pictures(size=(30, 41)):
    draws = np.random.RandomState(0)
    x = draws.randint(0, 256, (3, 3, *size)).astype(np.uint8)
    y = np.clip(x.astype(int) + draws.randint(-40, 41, x.shape), 0, 255).astype(np.uint8)
    y[1], y[2] = y[1][:, ::-1], x[2] // 2
    return x, y


def test_ssim_is_that_of_scikit_image():
    """Golden: scikit-image 0.26.0, gaussian_weights, sigma 1.5, use_sample_covariance=False, data_range 255."""
    np.testing.assert_allclose(ssim(*pictures()), GOLDEN, atol=1e-8)


def brute_force(x, y):
    """Means over channels and windows of SSIM and of its second factor, window by window."""
    place = np.arange(11) - 5
    weights = np.exp(-(place[:, None] ** 2 + place**2) / 4.5)
    weights /= weights.sum()
    whole, contrast = [], []
    for a, b in zip(x, y, strict=True):
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
                m, n = (weights * p).sum(), (weights * q).sum()
                v, w = (weights * (p - m) ** 2).sum(), (weights * (q - n) ** 2).sum()
                s = (weights * (p - m) * (q - n)).sum()
                contrast.append((2 * s + C2) / (v + w + C2))
                whole.append(contrast[-1] * (2 * m * n + C1) / (m * m + n * n + C1))
    return np.mean(whole), np.mean(contrast)


def test_ms_ssim_is_the_product_over_sizes_of_brute_force():
    x, y = (each[:1] for each in pictures((26, 24)))
    y[0, :, :13] = x[0, :, :13] // 2 + 40
    assert num_scales((26, 24)) == 2
    fine = brute_force(x[0].astype(float), y[0].astype(float))
    coarse = brute_force(*(each[0].reshape(3, 13, 2, 12, 2).mean(axis=(2, 4)) for each in (x, y)))
    total = POWERS[0] + POWERS[1]
    expected = fine[1] ** (POWERS[0] / total) * coarse[0] ** (POWERS[1] / total)
    assert ms_ssim(x, y) == pytest.approx(expected, rel=1e-9)
    assert ssim(x, y) == pytest.approx(fine[0], rel=1e-9)


def test_the_number_of_sizes_follows_from_that_of_the_pictures():
    sizes = [(10, 99), (11, 99), (22, 22), (64, 64), (175, 300), (176, 300), (999, 999)]
    assert [num_scales(size) for size in sizes] == [0, 1, 2, 3, 4, 5, 5]


def test_equal_pictures_score_one_order_does_not_matter_and_damage_lowers():
    x, y = pictures((48, 48))
    for measure in (ssim, ms_ssim):
        np.testing.assert_allclose(measure(x, x), 1)
        np.testing.assert_allclose(measure(x, y), measure(y, x))
        noise = np.random.RandomState(1).normal(size=x.shape)
        smooth = np.full_like(x, 128) + (40 * np.sin(np.arange(48) / 5)).astype(np.int8).astype(np.uint8)
        scores = [measure(smooth, (smooth + s * noise).clip(0, 255).astype(np.uint8)).mean() for s in (0, 4, 12, 36)]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > scores[-1]


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_pictures_that_do_not_fit_are_refused(measure):
    with pytest.raises(ValueError, match="sides of 11 pixels"):
        measure(np.zeros((1, 3, 10, 20), np.uint8), np.zeros((1, 3, 10, 20), np.uint8))
    with pytest.raises(ValueError, match="pictures of shape"):
        measure(np.zeros((1, 3, 20, 20), np.uint8), np.zeros((1, 3, 20, 21), np.uint8))
