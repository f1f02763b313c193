"""Captions: ranks by brute force, pictures whose vectors are known, what is left out and refused."""

import numpy as np
import pytest
import torch
from PIL import Image

import vqtool
from vqtool.errors import VqtoolError
from vqtool.images import find_images
from vqtool.metrics import text
from vqtool.metrics.jobs import texts
from vqtool.metrics.text import measure_texts, ranks, score_texts


def unit(num, seed, dim=6):
    found = torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(found, dim=1)


def test_ranks_are_those_of_sorting_whatever_the_block_and_ties_count_against_a_picture(monkeypatch):
    pictures, captions = unit(30, 0), unit(9, 1)
    own = torch.arange(30) % 9
    expected = [
        1 + sum(float(p @ c) > float(p @ captions[o]) for c in captions) for p, o in zip(pictures, own, strict=True)
    ]
    for block in (4, 1024):
        monkeypatch.setattr(text, "BLOCK", block)
        assert ranks(pictures, captions, own).tolist() == expected
    same = captions[:1].expand(5, -1)
    assert ranks(pictures[:2], same, torch.tensor([0, 3])).tolist() == [5, 5]


def test_scores_of_pictures_that_point_at_their_captions_are_those_of_perfect_retrieval():
    captions = torch.eye(8, dtype=torch.float64)
    own = torch.arange(16) % 8
    found = {score.name: score for score in score_texts(captions[own], captions, own)}
    assert {name: score.value for name, score in found.items()} == {
        "text-score": 1, "R@1": 1, "R@5": 1, "median-rank": 1,
    }  # fmt: skip
    assert found["text-score"].settings == {"num_captions": 8, "others": 0.0}


class Colours:
    """Red, green and blue: pictures by their mean colour, captions by the word."""

    name, digest = "Colours", "0"

    def pictures(self, images):
        return torch.nn.functional.normalize(torch.from_numpy(images.mean((2, 3))), dim=1)

    def texts(self, captions):
        return torch.eye(3, dtype=torch.float64)[[["red", "green", "blue"].index(each) for each in captions]]


@pytest.fixture
def folder(tmp_path):
    for i, (colour, caption) in enumerate(
        [((255, 0, 0), "red"), ((0, 255, 0), "green"), ((0, 0, 255), "blue"), ((0, 255, 0), "red")]
    ):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    return tmp_path


def test_pictures_are_scored_with_their_captions_and_those_without_are_left_out(folder):
    (folder / "2.txt").unlink()
    report = measure_texts(find_images([folder]), Colours())
    found = {score.name: score for score in report.scores}
    assert found["text-score-Colours"].value == pytest.approx(2 / 3)
    assert found["R@1-Colours"].value == pytest.approx(2 / 3)
    assert found["R@1-Colours"].settings["num_captions"] == 2
    assert report.about["num_images"] == 3
    assert report.warnings == ["1 image without a caption was left out"]
    assert (report.card.features, report.card.measure) == ("Colours", "texts")


def test_evaluate_scores_captions_by_a_folder_of_clip_alone(folder, monkeypatch):
    monkeypatch.setattr(texts, "load_encoder", lambda given, device, computation: Colours())
    report = vqtool.evaluate(folder, text="clip/")
    assert report.scores[0].value == pytest.approx(3 / 4)
    with pytest.raises(VqtoolError, match="`text` scores images by their captions alone"):
        vqtool.evaluate(folder, ref=folder, text="clip/")
    monkeypatch.undo()
    with pytest.raises(VqtoolError, match=r"`text` clip: no such folder; a CLIP model needs a folder of transformers"):
        vqtool.evaluate(folder, text="clip/")


def test_pictures_without_captions_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(VqtoolError, match="none of the 1 image has a caption"):
        measure_texts(find_images([tmp_path]), Colours())
