"""`vqtool.evaluate`: what the command does, from Python."""

import numpy as np
import pytest
from PIL import Image
from support.exact import random_prior
from support.features import use_mean_colour

import vqtool
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.metrics import frechet_distance, measure_likelihood


@pytest.fixture(autouse=True)
def network(monkeypatch, tmp_path):
    use_mean_colour(monkeypatch)
    monkeypatch.chdir(tmp_path)


def write_colours(folder, num, seed):
    folder.mkdir()
    colours = np.random.default_rng(seed).integers(0, 256, (num, 3)).astype(np.uint8)
    for i, colour in enumerate(colours):
        Image.new("RGB", (8, 8), tuple(map(int, colour))).save(folder / f"{i:03d}.png")
    return colours


def write_grids(path):
    tokens = np.random.default_rng(0).integers(0, 8, (4, 4, 6)).astype(np.uint8)
    header = GridHeader(8, (4, 6), (32, 48), "0123456789abcdef", "builtin", "test")
    with GridWriter(path, header) as writer:
        writer.write(GridBatch(tokens, [str(i) for i in range(len(tokens))]))


def test_images_are_named_by_a_path_or_several_and_bad_ones_are_counted(tmp_path):
    ours, theirs = write_colours(tmp_path / "a", 9, 0), write_colours(tmp_path / "b", 9, 1)
    report = vqtool.evaluate(tmp_path / "a", ref=[tmp_path / "b"], nearest_k=2)
    scores = {score.name: score for score in report.scores}
    assert scores["FD-MeanColour"].value == pytest.approx(frechet_distance(ours, theirs), rel=1e-5)
    assert scores["recall-MeanColour"].settings == {"nearest_k": 2}
    assert (report.about["inputs"], report.about["num_skipped"]) == ([str(tmp_path / "a")], 0)
    (tmp_path / "a" / "000.png").write_bytes(b"not a picture")
    bad = []
    report = vqtool.evaluate(tmp_path / "a", ref=tmp_path / "b", on_error=lambda item, error: bad.append(item.id))
    assert (bad, report.about["num_skipped"]) == (["000"], 1)
    with pytest.raises(vqtool.FormatError, match=r"000\.png"):
        vqtool.evaluate(tmp_path / "a", ref=tmp_path / "b")


def test_a_prior_in_memory_scores_as_its_file(tmp_path):
    prior = random_prior(codebook_size=8)
    prior.save(tmp_path / "p.safetensors")
    write_grids(tmp_path / "tok.h5")
    one, other = (
        vqtool.evaluate(tmp_path / "tok.h5", likelihood=True, prior=given, times=3)
        for given in (prior, tmp_path / "p.safetensors")
    )
    assert one.scores == other.scores == measure_likelihood(prior, [tmp_path / "tok.h5"], times=3).scores


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"times": 3}, "`times` is for `likelihood`, which is not given"),
        ({"max_images": 1}, "`max_images` 1: must be 2 or more"),
        ({"paired": True}, "`paired` is for images, but tok"),
        ({"likelihood": True, "ref": "tok.h5"}, "leave `ref` out"),
    ],
)
def test_parameters_that_do_not_go_together_are_named(tmp_path, parameters, message):
    write_grids(tmp_path / "tok.h5")
    with pytest.raises(vqtool.VqtoolError, match=message):
        vqtool.evaluate("tok.h5", **parameters)


def test_pairs_and_reconstructions_are_scored_by_features_on_request_alone(tmp_path):
    write_colours(tmp_path / "a", 5, 0)
    write_colours(tmp_path / "b", 5, 1)
    plain = vqtool.evaluate(tmp_path / "a", ref=tmp_path / "b", paired=True)
    assert [score.name for score in plain.scores] == ["PSNR", "PSNR-pooled"]
    more = vqtool.evaluate(tmp_path / "a", ref=tmp_path / "b", paired=True, with_features=True, nearest_k=2)
    assert {"FD-MeanColour", "recall-MeanColour"} <= {score.name for score in more.scores}
    for arguments, message in (
        ({"paired": True, "nearest_k": 2}, "`nearest_k` is about scores of features, which nothing asks for"),
        ({"with_features": True}, "`with_features` is for pairs: add `paired`"),
        ({"perceptual": "efficientnet-lite0"}, "`perceptual` is for pairs"),
        ({"paired": True, "perceptual": "efficientnet-lite0"}, "images of 8x8 are too small for a perceptual network"),
    ):
        with pytest.raises(vqtool.VqtoolError, match=message):
            vqtool.evaluate(tmp_path / "a", ref=tmp_path / "b", **arguments)
