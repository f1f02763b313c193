"""PSNR by hand."""

import numpy as np
import pytest
from support.features import MeanColour

from vqtool.errors import VqtoolError
from vqtool.metrics import frechet_distance, mean_squared_errors, psnr, reconstruction, ssim
from vqtool.metrics.reconstruction import PairScores
from vqtool.training.perceptual import Perceptual


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


class Blackness(Perceptual):
    """A distance that can be worked out by hand: of the first pixels' red."""

    name = "weights/blackness.pth"

    def distances(self, images, rebuilt):
        return (images - rebuilt)[:, 0, 0, 0].abs()


def test_pairs_are_scored_by_every_measure_in_batches_as_at_once():
    draws = np.random.default_rng(0)
    images, others = (draws.integers(0, 256, (6, 3, 40, 48)).astype(np.uint8) for _ in range(2))
    whole, parts = (PairScores(Blackness(), MeanColour()) for _ in range(2))
    np.testing.assert_array_equal(whole.add(images, others), mean_squared_errors(images, others))
    for start in (0, 2, 5):
        stop = {0: 2, 2: 5, 5: 6}[start]
        parts.add(images[start:stop], others[start:stop])
    assert len(whole) == len(parts) == 6
    found = {score.name: score for score in whole.scores()}
    for score in parts.scores():
        assert score.value == pytest.approx(found[score.name].value, rel=1e-5)
    assert [*found][:5] == ["PSNR", "PSNR-pooled", "SSIM", "MS-SSIM-2", "perceptual-blackness"]
    each = ssim(images, others)
    assert found["SSIM"].value == each.mean()
    assert found["SSIM"].standard_error == pytest.approx(each.std(ddof=1) / 6**0.5)
    gap = np.abs(images[:, 0, 0, 0].astype(float) - others[:, 0, 0, 0]).mean() / 127.5
    assert found["perceptual-blackness"].value == pytest.approx(gap, rel=1e-5)
    expected = frechet_distance(others.mean((2, 3)), images.mean((2, 3)))
    assert found["FD-MeanColour"].value == pytest.approx(expected, rel=1e-4)


def test_pictures_below_a_window_have_no_ssim_and_no_perceptual_distance():
    small = np.zeros((2, 3, 8, 8), np.uint8)
    pairs = PairScores()
    pairs.add(small, small + 1)
    assert [score.name for score in pairs.scores()] == ["PSNR", "PSNR-pooled"]
    with pytest.raises(VqtoolError, match="images of 8x8 are too small for a perceptual network"):
        PairScores(Blackness()).add(small, small)
