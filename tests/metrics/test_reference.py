"""Reports: equal numbers of images on both sides, equal sizes, and what they say of themselves."""

import json

import numpy as np
import pytest
from PIL import Image
from support.features import MeanColour

from vqtool.errors import MismatchError, VqtoolError
from vqtool.images import common_size, find_images
from vqtool.metrics import Report, Score, compare_images, compare_pairs, frechet, frechet_distance, kernel, mind, prdc
from vqtool.metrics.report import choose
from vqtool.metrics.saved import load


def write_colours(folder, num, size=(8, 8), *, seed=0, low=0, high=256):
    """Single-coloured PNG files; returns the colours (num, 3)."""
    folder.mkdir()
    colours = np.random.default_rng(seed).integers(low, high, (num, 3)).astype(np.uint8)
    for i, colour in enumerate(colours):
        Image.new("RGB", size[::-1], tuple(map(int, colour))).save(folder / f"{i:03d}.png")
    return colours


def values(report):
    return {score.name: score.value for score in report.scores}


def test_scores_are_those_of_the_features_and_bear_the_name_of_the_network(tmp_path):
    colours = [write_colours(tmp_path / name, 12, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    report = compare_images(find_images([tmp_path / "a"]), find_images([tmp_path / "b"]), MeanColour())
    expected = [
        score for metric in (frechet, kernel, prdc, mind) for score in metric.measure(colours[1], colours[0], seed=0)
    ]
    assert values(report) == pytest.approx({f"{score.name}-MeanColour": score.value for score in expected})
    assert list(values(report))[:3] == ["FD-MeanColour", "KID-MeanColour", "precision-MeanColour"]
    assert report.about["num_images"] == 12


def test_the_larger_side_is_subsampled_by_seed(tmp_path):
    few, many = write_colours(tmp_path / "few", 6), write_colours(tmp_path / "many", 15, seed=1)
    a, b = find_images([tmp_path / "few"]), find_images([tmp_path / "many"])
    for seed in (0, 5):
        report = compare_images(a, b, MeanColour(), seed=seed)
        rows = choose(15, 6, seed)
        assert values(report)["FD-MeanColour"] == pytest.approx(frechet_distance(few, many[rows]), rel=1e-5)
        assert report.about["num_given"] == {"images": 6, "reference": 15}
    assert compare_images(a, b, MeanColour(), max_images=4).about["num_images"] == 4


def test_choice_is_ascending_distinct_reproducible_and_all_where_all_are_wanted():
    rows = choose(50, 20, 3)
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < 50
    np.testing.assert_array_equal(rows, choose(50, 20, 3))
    assert (rows != choose(50, 20, 4)).any()
    np.testing.assert_array_equal(choose(7, 7, 0), range(7))


def test_both_sides_are_brought_to_the_size_of_the_scored_images(tmp_path):
    write_colours(tmp_path / "a", 3, (12, 8))
    write_colours(tmp_path / "b", 3, (30, 30))
    network = MeanColour()
    report = compare_images(find_images([tmp_path / "a"]), find_images([tmp_path / "b"]), network)
    assert network.sizes == {(12, 8)}
    assert report.about["size"] == "12x8"


def test_common_size_is_reduced_when_large_and_none_when_sizes_differ(tmp_path):
    write_colours(tmp_path / "large", 2, (512, 1024))
    write_colours(tmp_path / "mixed", 2, (9, 9))
    Image.new("RGB", (5, 9)).save(tmp_path / "mixed" / "other.png")
    (tmp_path / "mixed" / "000.png").write_bytes(b"not a picture")
    assert common_size(find_images([tmp_path / "large"])) == (256, 512)
    assert common_size(find_images([tmp_path / "mixed"])) is None


def test_sides_stay_equal_when_a_picture_cannot_be_read(tmp_path):
    write_colours(tmp_path / "a", 9)
    write_colours(tmp_path / "b", 9, seed=1)
    (tmp_path / "b" / "004.png").write_bytes(b"not a picture")
    failed = []
    report = compare_images(
        find_images([tmp_path / "a"]),
        find_images([tmp_path / "b"]),
        MeanColour(),
        on_error=lambda item, error: failed.append(item.id),
    )
    assert failed == ["004"]
    assert report.about["num_images"] == 8


def test_fewer_images_than_features_give_a_warning_and_enough_do_not(tmp_path):
    write_colours(tmp_path / "a", 5)
    write_colours(tmp_path / "b", 5, seed=1)
    items, others = find_images([tmp_path / "a"]), find_images([tmp_path / "b"])
    assert "2 images a side are fewer than the 3 features" in compare_images(items[:2], items, MeanColour()).warnings[0]
    assert compare_images(items, others, MeanColour()).warnings == []


def test_a_single_image_is_refused(tmp_path):
    write_colours(tmp_path / "a", 5)
    items = find_images([tmp_path / "a"])
    with pytest.raises(VqtoolError, match="1 image on one side: at least 2"):
        compare_images(items[:1], items, MeanColour())


def test_pairs_are_matched_by_id_whatever_the_order_and_unreadable_ones_left_out(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    for i in range(6):
        Image.new("RGB", (4, 4), (100, 100, 100)).save(tmp_path / "a" / f"{i}.png")
        Image.new("RGB", (4, 4), (100, 100, 100 + i)).save(tmp_path / "b" / f"{i}.bmp")
    (tmp_path / "a" / "0.png").unlink()
    (tmp_path / "a" / "2.png").write_bytes(b"not a picture")
    (tmp_path / "b" / "5.bmp").write_bytes(b"not a picture")
    failed = []
    report = compare_pairs(
        find_images([tmp_path / "a"])[::-1],
        find_images([tmp_path / "b"]),
        on_error=lambda item, error: failed.append(item.location),
    )
    assert len(failed) == 2
    assert (report.about["num_images"], report.about["num_unpaired"]) == (3, 1)
    pooled = np.mean([i**2 / 3 for i in (1, 3, 4)])
    assert values(report)["PSNR-pooled"] == pytest.approx(10 * np.log10(255**2 / pooled))
    assert "1 picture without a counterpart on the other side was left out" in report.warnings[0]


def test_a_report_is_json_without_infinities():
    report = Report("", [Score("PSNR", np.inf, standard_error=np.nan), Score("usage", 0.5)], {"kind": "pairs"})
    parsed = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert parsed["scores"] == {"PSNR": None, "usage": 0.5}
    assert parsed["standard_errors"] == {"PSNR": None}


def test_features_that_do_not_say_whose_they_are_have_a_name_that_says_so_and_no_size(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2, 9, 3))
    for name, its in zip("ab", rows, strict=True):
        np.save(tmp_path / f"{name}.npy", its)
    a, b = (load(tmp_path / f"{name}.npy") for name in "ab")
    report = compare_images(a, b, None)
    assert values(report)["FD-unnamed"] == pytest.approx(frechet_distance(*rows), rel=1e-6)
    assert report.headline == "9 images a side, of 9 and 9 (seed 0); features of an unknown network"
    assert (report.card.features, report.card.size) == ("unnamed", "")
    assert [text for text in report.warnings if "a.npy does not say which features it holds: they are taken" in text]
    write_colours(tmp_path / "c", 9)
    known = compare_images(find_images([tmp_path / "c"]), a, MeanColour())
    assert "FD-MeanColour" in values(known)
    assert "taken for those of MeanColour" in known.warnings[0]
    of_statistics = compare_images(a, b.statistics().renamed({"name": "Own", "digest": "", "resize": ""}), None)
    assert values(of_statistics)["FD-Own"] == pytest.approx(frechet_distance(*rows), rel=1e-6)
    np.save(tmp_path / "wide.npy", np.zeros((9, 4)))
    with pytest.raises(MismatchError, match=r"a\.npy: 3 and 4 features an image"):
        compare_images(a, load(tmp_path / "wide.npy"), None)
