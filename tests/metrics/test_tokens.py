"""Usage, perplexity, distance of histograms: by hand."""

import numpy as np
import pytest

from vqtool.errors import MismatchError
from vqtool.metrics import count_tokens, perplexity, tokens, total_variation, usage


def test_counts_add_over_batches_of_any_unsigned_type():
    batches = [np.array([[[0, 1], [1, 3]]], np.uint8), np.array([[[3, 3]]], np.uint16), np.empty((0, 2, 2), np.uint8)]
    np.testing.assert_array_equal(count_tokens(batches, 5), [1, 2, 0, 3, 0])


def test_usage_is_the_share_of_codes_with_enough_tokens():
    counts = [0, 1, 9, 10, 100, 0, 0, 0]
    assert usage(counts) == 4 / 8
    assert usage(counts, tokens.THRESHOLD) == 2 / 8


def test_perplexity_is_one_for_one_code_and_k_for_equal_ones():
    assert perplexity([0, 7, 0]) == 1
    assert perplexity([5] * 16) == pytest.approx(16)
    # p = 1/2, 1/4, 1/4: entropy 3/2 log 2.
    assert perplexity([2, 1, 1, 0]) == pytest.approx(2**1.5)


def test_total_variation_by_hand():
    assert total_variation([1, 1, 0], [10, 10, 0]) == 0
    assert total_variation([1, 0], [0, 5]) == 1
    assert total_variation([1, 1, 2], [1, 1, 0]) == pytest.approx(0.5)


def test_a_token_outside_the_codebook_is_named():
    with pytest.raises(MismatchError, match="token 8 is none of a codebook of 8 codes"):
        count_tokens([np.array([[0, 8]], np.uint8)], 8)
    with pytest.raises(MismatchError, match="token -1"):
        count_tokens([np.array([[0, -1]])], 8)


def test_an_empty_histogram_is_refused():
    with pytest.raises(ValueError, match="not all 0"):
        perplexity([0, 0, 0])
