"""Sides: statistics batch by batch and part by part are those of all rows, and a set's id is that of its pictures."""

import numpy as np
import pytest
from support.sets import SixNumbers, features_of, write_noise

from vqtool.errors import MismatchError, VqtoolError
from vqtool.images import find_images
from vqtool.metrics import merge_statistics
from vqtool.metrics.pictures import ImageFiles
from vqtool.metrics.sides import About, accumulate, count_copies, facts_of, set_id


@pytest.fixture
def folder(tmp_path):
    write_noise(tmp_path / "a", 40)
    return tmp_path / "a"


def test_statistics_that_are_read_batch_by_batch_are_mean_and_covariance(folder):
    rows = features_of(folder).features
    pictures = ImageFiles(find_images([folder]))
    about = About(size=(8, 8), fit="crop")
    found = accumulate(pictures, np.arange(40), SixNumbers(), about).result()
    for kind in ("pooled", "spatial"):
        x = rows.arrays()[kind].astype(np.float64)
        np.testing.assert_allclose(found.statistics[kind].mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.statistics[kind].covariance, np.cov(x.T), rtol=1e-10)
    assert len(found) == 40
    assert set_id(found) == set_id(features_of(folder))


def test_merged_statistics_are_those_of_all_rows(folder):
    whole = features_of(folder)
    parts = [whole[np.arange(*ends)].statistics().statistics["pooled"] for ends in ((0, 7), (7, 39), (37, 40))]
    merged = merge_statistics([merge_statistics(parts[:2]), parts[2]])
    x = whole.features.pooled.astype(np.float64)
    x = np.concatenate([x[:39], x[37:]])
    assert merged.num_samples == 42
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-10)


def test_the_id_of_a_set_names_its_pictures_whatever_their_order(folder):
    whole = features_of(folder)
    assert set_id(whole[np.arange(40)[::-1]]) == set_id(whole)
    assert set_id(whole[np.arange(39)]) != set_id(whole)


def test_equal_pictures_and_copies_are_counted(folder):
    whole = features_of(folder)
    twice = whole[np.array([0, 1, 1, 1, 2])]
    assert facts_of(twice).side.duplicates == 2
    assert count_copies(twice.digests, whole[np.array([1, 5])].digests) == 3
    assert count_copies(twice.digests, np.empty(0, np.uint64)) is None


def test_one_picture_has_no_statistics(folder):
    with pytest.raises(VqtoolError, match="statistics of 1 image: at least 2"):
        features_of(folder)[np.array([0])].statistics()


def test_pictures_that_were_read_otherwise_make_no_set():
    with pytest.raises(MismatchError, match="size 8x8 and 16x16"):
        About(size=(8, 8)).merged(About(size=(16, 16)))


def test_parts_add_up_to_a_whole_and_what_is_missing_is_named():
    about = About(parts=("1/3",))
    assert about.missing() == ["2/3", "3/3"]
    both = about.merged(About(parts=("3/3",)))
    assert both.missing() == ["2/3"]
    assert both.merged(About(parts=("2/3",))) == About()
    twice = both.merged(about).merged(About(parts=("2/3",)))  # of two folders, one of which is complete
    assert (twice.parts, twice.missing()) == (("1/3",), ["2/3", "3/3"])
    assert about.merged(About()).missing() == ["2/3", "3/3"]
