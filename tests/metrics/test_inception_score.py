"""Inception score: golden numbers, closed forms, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from vqtool.errors import VqtoolError
from vqtool.metrics import inception_score, inception_scores

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "io.safetensors"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def probabilities(golden):
    logits = golden["logits"].astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("num", "name"), [(1, "splits1"), (10, "splits10")])
def test_scores_agree_with_torch_fidelity(golden, probabilities, num, name):
    scores = inception_scores(probabilities, num)
    assert scores.mean() == pytest.approx(golden[f"is_{name}_mean"].item(), abs=1e-6)
    assert scores.std() == pytest.approx(golden[f"is_{name}_std"].item(), abs=1e-6)


def test_shuffled_rows_agree_with_torch_fidelity(golden, probabilities):
    scores = inception_scores(probabilities[np.random.RandomState(2020).permutation(len(probabilities))], 10)
    assert scores.mean() == pytest.approx(golden["is_splits10_shuffled_mean"].item(), abs=1e-6)


def test_sure_pictures_of_all_classes_score_their_number_and_equal_ones_one():
    assert inception_scores(np.eye(7)[np.arange(70) % 7]) == pytest.approx([7])
    assert inception_scores(np.full((20, 5), 0.2)) == pytest.approx([1])
    assert inception_scores(np.eye(5)[np.zeros(20, int)], 4) == pytest.approx([1, 1, 1, 1])


def test_the_score_says_how_it_was_split_and_what_the_reference_has(probabilities):
    (score,) = inception_score.measure(np.eye(10)[np.arange(100) % 10], probabilities, seed=1)
    assert (score.name, score.better, score.settings["num_splits"]) == ("IS", "higher", 10)
    assert score.settings["reference"] > 5  # splits of 10 of the 10 classes in random order
    assert score.standard_error == pytest.approx(score.settings["std"] / 3)
    (few,) = inception_score.measure(probabilities, probabilities[:15])
    assert (few.settings["num_splits"], few.standard_error) == (1, None)
    with pytest.raises(VqtoolError, match="`num_splits` 40: there are 12 images, so 6 at most"):
        inception_score.measure_alone(probabilities[:12], inception_score.Options(num_splits=40))


@pytest.mark.parametrize("wrong", [np.full((4, 3), 0.5), np.array([[2.0, -1.0], [0.5, 0.5]])])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="sum to 1 are expected"):
        inception_scores(wrong)
    with pytest.raises(ValueError, match="5 splits of 4 rows"):
        inception_scores(np.full((4, 2), 0.5), 5)
