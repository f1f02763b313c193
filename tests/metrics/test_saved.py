"""Saved statistics and features: what is written comes back, parts merge into the whole, other files are understood."""

import numpy as np
import pytest
from support.sets import SixNumbers, features_of, write_noise

from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.metrics import frechet_distance
from vqtool.metrics.saved import is_saved, kind_of, load, merge, save
from vqtool.metrics.score import measure_features, measure_statistics
from vqtool.metrics.sides import FeatureSet, StatisticsSet, set_id


@pytest.fixture
def folder(tmp_path):
    write_noise(tmp_path / "a", 30)
    return tmp_path / "a"


class Other(SixNumbers):
    name = "Other"


def saved(found, path):
    save(found, path)
    return load(path)


def test_features_come_back_as_they_were(folder, tmp_path):
    found = features_of(folder)
    back = saved(found, tmp_path / "x.npz")
    assert isinstance(back, FeatureSet)
    for kind, array in found.features.arrays().items():
        np.testing.assert_array_equal(back.features.arrays()[kind], array)
    assert (back.ids, back.labels, back.about) == (found.ids, found.labels, found.about)
    assert (back.features.name, back.features.digest, set_id(back)) == ("SixNumbers", "0123456789abcdef", set_id(found))


def test_statistics_come_back_and_other_programs_find_theirs(folder, tmp_path):
    found = features_of(folder)
    back = saved(found.statistics(), tmp_path / "x.npz")
    assert isinstance(back, StatisticsSet)
    assert (len(back), back.name, set_id(back)) == (30, "SixNumbers", set_id(found))
    with np.load(tmp_path / "x.npz") as archive:  # as pytorch-fid and ADM do it
        np.testing.assert_allclose(archive["mu"][:], found.features.pooled.mean(0), rtol=1e-6)
        np.testing.assert_allclose(archive["sigma"][:], np.cov(found.features.pooled.T.astype(float)), rtol=1e-9)
        assert archive["mu_s"].shape == (2,)


def test_parts_with_features_merge_into_the_whole_bit_for_bit(folder, tmp_path):
    whole = features_of(folder)
    ends = [(0, 11), (11, 12), (12, 30)]
    parts = [saved(features_of(folder, rows=slice(*each)), tmp_path / f"{each[0]}.npz") for each in ends]
    merged = merge(parts, ["a", "b", "c"])
    np.testing.assert_array_equal(merged.features.pooled, whole.features.pooled)
    assert (merged.ids, merged.about.num_given, set_id(merged)) == (whole.ids, 30, set_id(whole))
    other = features_of(folder)[np.arange(0, 30, 2)]
    options = {"seed": 3, "num_subsets": 5}
    assert measure_features(other.features, merged.features, **options) == measure_features(
        other.features, whole.features, **options
    )


def test_parts_with_statistics_merge_into_the_whole_but_for_rounding(folder, tmp_path):
    whole = features_of(folder).statistics()
    parts = [features_of(folder, rows=slice(*ends)) for ends in ((0, 11), (11, 30))]
    merged = merge([saved(parts[0].statistics(), tmp_path / "s.npz"), parts[1]], ["s", "f"])
    for kind, its in whole.statistics.items():
        assert merged.statistics[kind].num_samples == 30
        np.testing.assert_allclose(merged.statistics[kind].mean, its.mean, rtol=1e-9)
        np.testing.assert_allclose(merged.statistics[kind].covariance, its.covariance, rtol=1e-9)
    assert set_id(merged) == set_id(whole)


def test_files_of_other_programs_say_neither_features_nor_how_many(folder, tmp_path):
    x = features_of(folder).features.pooled.astype(np.float64)
    np.savez(tmp_path / "fid.npz", mu=x.mean(0), sigma=np.cov(x.T))
    found = load(tmp_path / "fid.npz")
    assert (found.name, len(found), found.about.held) == ("", 0, "statistics")
    with pytest.raises(VqtoolError, match=r"fid: does not say how many pictures"):
        merge([found, found], ["fid", "other"])


def test_an_adm_batch_with_images_counts_as_images_and_one_without_as_statistics(tmp_path):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    numbers = {"mu": np.zeros(6), "sigma": np.eye(6), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "batch.npz", arr_0=images, **numbers)
    np.savez(tmp_path / "stats.npz", **numbers)
    assert [kind_of(tmp_path / name) for name in ("batch.npz", "stats.npz")] == ["images", "saved"]
    assert set(load(tmp_path / "stats.npz").statistics) == {"pooled", "spatial"}
    assert not is_saved(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "'sigma' is missing beside 'mu'"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"'sigma' of shape \(2, 2\) beside a mean of 3"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "'mu': holds nan or infinity"),
        ({"features": np.zeros((2, 3, 1))}, "numbers with 2 axes are expected"),
        ({"features": np.full((2, 3), np.inf)}, "'features': holds nan or infinity"),
        ({"features": np.zeros((2, 3)), "probabilities": np.zeros((1, 2))}, "probabilities of shape"),
        ({"features": np.zeros((2, 3)), "ids": np.array(["a"])}, "not as many ids"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("[]")}, "not a JSON object"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("{}")}, "does not say of which features"),
        ({"spatial": np.zeros((2, 2))}, "neither features nor statistics"),
        (
            {"arr_0": np.zeros((2, 3)), "b": np.zeros((2, 3))},
            "several arrays of numbers, arr_0, b: call one 'features'",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(FormatError, match=f"x.npz.*{message}"):
        load(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(FormatError, match=r"x\.npz: not a whole file of statistics"):
        load(tmp_path / "x.npz")


def test_statistics_of_other_features_do_not_merge(folder):
    found = features_of(folder).statistics()
    other = features_of(folder, Other())
    with pytest.raises(MismatchError, match="a and b: features of name 'SixNumbers' and 'Other'"):
        merge([found, other.statistics()], ["a", "b"])


def test_the_distance_of_saved_statistics_is_that_of_their_features(folder, tmp_path):
    whole = features_of(folder)
    halves = [whole[np.arange(0, 15)], whole[np.arange(15, 30)]]
    sides = [saved(half.statistics(), tmp_path / f"{i}.npz").statistics for i, half in enumerate(halves)]
    scores, left_out = measure_statistics(sides[0], sides[1], "SixNumbers")
    expected = frechet_distance(halves[0].features.pooled, halves[1].features.pooled)
    assert scores[0].name == "FD-SixNumbers"
    assert scores[0].value == pytest.approx(expected, rel=1e-9)
    assert {"kernel", "prdc"} <= {*left_out}


def test_one_array_of_numbers_in_an_npz_is_features_whatever_its_name(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 3))
    np.savez(tmp_path / "arr.npz", rows)
    np.savez(tmp_path / "named.npz", mine=rows, note=np.zeros(3, np.int64))
    np.save(tmp_path / "x.npy", rows)
    for name in ("arr.npz", "named.npz", "x.npy"):
        assert kind_of(tmp_path / name) == "saved"
        np.testing.assert_array_equal(load(tmp_path / name).features.pooled, rows)
    np.savez(tmp_path / "pixels.npz", np.zeros((5, 4, 4, 3)))
    assert kind_of(tmp_path / "pixels.npz") == "images"
