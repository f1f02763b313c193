"""PSNR by hand."""

import numpy as np
import pytest

from vqtool.metrics import mean_squared_errors, psnr, reconstruction


def test_psnr_of_known_errors():
    black = np.zeros((3, 3, 4, 5), np.uint8)
    other = black.copy()
    other[0] = 255  # the largest error there is: 0 dB
    other[1, :, 0, 0] = 20  # one pixel of twenty is off by 20: MSE 400 / 20
    errors = mean_squared_errors(black, other)
    np.testing.assert_allclose(errors, [255**2, 20, 0])
    np.testing.assert_allclose(psnr(errors), [0, 10 * np.log10(255**2 / 20), np.inf])
    np.testing.assert_array_equal(mean_squared_errors(other, black), errors)


def test_scores_leave_pictures_out_that_equal_their_original_and_count_them():
    mean, pooled = reconstruction.measure([1.0, 100.0, 0.0])
    assert mean.value == pytest.approx((psnr(1) + psnr(100)) / 2)
    assert mean.settings == {"num_identical": 1}
    assert mean.standard_error == pytest.approx(10)  # two values 20 dB apart
    assert pooled.value == pytest.approx(psnr(101 / 3))
    assert reconstruction.measure([0.0])[0].value == np.inf


def test_pictures_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="pictures of shape"):
        mean_squared_errors(np.zeros((1, 3, 4, 4), np.uint8), np.zeros((1, 3, 4, 5), np.uint8))
