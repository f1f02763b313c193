"""vqtool compare: what the table, the JSON and the picture say of each sampler, and going on with a comparison."""

import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import build_tokenizer, error_lines, write_pictures
from support.exact import random_prior
from support.features import MeanColour, use_mean_colour

from vqtool.images import find_images, read_batches, to_uint8
from vqtool.metrics import frechet_distance, kernel_distance
from vqtool.metrics.compare import trials
from vqtool.metrics.compare.file import Row
from vqtool.metrics.plots import plot_front
from vqtool.priors import GridSpec, load_prior
from vqtool.samplers import sample, sample_batches
from vqtool.tokenizers import load_tokenizer, save_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a prior that takes labels, its tokenizer, and 12 pictures."""
    monkeypatch.chdir(tmp_path)
    use_mean_colour(monkeypatch)
    save_tokenizer("tokenizer.safetensors", build_tokenizer())
    write_prior("prior.safetensors", kind="class")
    write_pictures(tmp_path / "imgs", 12, size=(32, 48))
    return tmp_path


def write_prior(path, *arguments, **options):
    tokenizer = load_tokenizer("tokenizer.safetensors")
    prior = random_prior(*arguments, codebook_size=16, **options)
    grid_spec = GridSpec(tokenizer.fingerprint, "tokenizer.safetensors", (4, 6), (32, 48), "crop")
    replace(prior, grid_spec=grid_spec).save(path)


SMALL = ("-n", 6, "--seeds", "0,5", "--steps", "2,3", "--sampler", "ancestral", "--sampler", "halton")


def test_every_value_is_that_of_pictures_sampled_decoded_and_scored_by_hand(folder, vqtool):
    result = vqtool("compare", *SMALL, "--cfg-scale", 2, "--ref", "imgs", "--plot", "front.png")
    record = json.loads(result.out)
    assert [(row["sampler"], row["steps"]) for row in record["rows"]] == [
        ("ancestral", 2), ("ancestral", 3), ("halton", 2), ("halton", 3),
    ]  # fmt: skip
    prior, tokenizer = load_prior("prior.safetensors"), load_tokenizer("tokenizer.safetensors")
    condition = prior.conditioner.encode(["ant", "bee", "cat"] * 2)
    (batch,) = read_batches(find_images([folder / "imgs"]), (32, 48), 12)
    row = record["rows"][3]
    by_hand = {"KID-MeanColour": [], "FD-MeanColour": [], "usage": []}
    for seed in (0, 5):
        grids = sample(prior, 6, sampler="halton", steps=3, condition=condition, cfg_scale=2.0, seed=seed)
        features = to_uint8(tokenizer.decode(grids)).mean(axis=(2, 3))
        by_hand["KID-MeanColour"].append(kernel_distance(batch.images.mean(axis=(2, 3)), features).mean)
        by_hand["FD-MeanColour"].append(frechet_distance(batch.images.mean(axis=(2, 3)), features))
        by_hand["usage"].append(len(grids.unique()) / 16)
    for name, (first, second) in by_hand.items():
        assert row["by_seed"]["5"][name] == pytest.approx(second, rel=1e-4, abs=1e-4)
        assert row["values"][name] == pytest.approx((first + second) / 2, rel=1e-4, abs=1e-4)
        assert row["standard_errors"][name] == pytest.approx(abs(first - second) / 2, rel=1e-3, abs=1e-4)
    assert row["values"]["calls"] == 6  # guidance asks twice
    assert 0 < row["values"]["network_seconds"] < row["values"]["seconds"]
    assert row["values"]["cpu_seconds"] > 0
    assert row["runtime"] == "torch"
    assert record["prior"] == prior.fingerprint
    for text in ("sampler", "KID", "FD", "halton", "± ", "the prior's own 3 labels, in turn", "wrote front.png"):
        assert text in result.err
    with Image.open("front.png") as image:
        assert image.format == "PNG"


def test_without_a_reference_there_are_calls_seconds_and_usage_alone(folder, vqtool):
    write_prior("plain.safetensors")
    result = vqtool("compare", "plain.safetensors", "-n", 2, "--seeds", 0, "--steps", 4, "--cfg-scale", 2)
    record = json.loads(result.out)
    rows = {row["sampler"]: row for row in record["rows"]}
    assert set(rows["purity"]["values"]) == {
        "calls",
        "seconds",
        "cpu_seconds",
        "network_seconds",
        "usage",
        "perplexity",
    }
    assert "first-hitting" not in rows
    assert "left out: sampler first-hitting needs an absorbing kernel" in result.err
    assert "--cfg-scale 2 has nothing to guide" in result.err
    assert {name: row["steps"] for name, row in rows.items() if row["steps"] != 4} == {"entropy": None}
    calls = {name: row["values"]["calls"] for name, row in rows.items() if row["steps"] == 4}
    assert calls == {name: 7 if name == "gibbs" else 4 for name in rows if name != "entropy"}


def test_options_are_varied_for_the_samplers_that_have_them(folder, vqtool):
    arguments = ["--sampler", "purity", "--sampler", "fewer", "--steps", 2, "-n", 2, "--seeds", 0]
    result = vqtool("compare", *arguments, "--option", "purity-weight=0,2.5", "--option", "temperature=0.5")
    assert [(row["sampler"], row["options"]) for row in json.loads(result.out)["rows"]] == [
        ("purity", {"purity_weight": 0, "temperature": 0.5}),
        ("purity", {"purity_weight": 2.5, "temperature": 0.5}),
        ("fewer", {"temperature": 0.5}),
    ]
    assert "purity purity_weight=2.5 temperature=0.5" in result.err


def test_steps_that_a_sampler_cannot_take_are_named_and_the_rest_is_measured(folder, vqtool):
    result = vqtool("compare", "--sampler", "ancestral", "--sampler", "fewer", "--steps", "21", "-n", 2, "--seeds", 0)
    assert result.code == 0
    assert [row["sampler"] for row in json.loads(result.out)["rows"]] == ["fewer"]
    assert "left out: ancestral, 21 steps: --steps 21: this sampler takes 1 to 20 steps here" in result.err


def test_labels_and_guidance_hold_for_all_and_are_those_of_sampling(folder, vqtool):
    write_prior("weak.safetensors", kind="class", scale=0.2)
    guidance = ["--label", "bee", "--cfg-scale", 2, "--cfg-schedule", "linear", "--cfg-interval", "0.2,0.8"]
    base = ["--sampler", "ancestral", "--sampler", "psi", "--steps", 5, "-n", 4, "--seeds", 3]
    prior = load_prior("prior.safetensors")
    condition, weak = prior.conditioner.encode(["bee"]), load_prior("weak.safetensors")
    settings = {"condition": condition, "cfg_scale": 2.0, "cfg_schedule": "linear", "cfg_interval": (0.2, 0.8)}
    for flags, second in (
        (["--null", "zero-shot"], {"null": "zero-shot"}),
        (["--guide-with", "weak.safetensors"], {"guide_with": weak}),
    ):
        record = json.loads(vqtool("compare", *base, *guidance, *flags).out)
        assert record["cfg_interval"] == [0.2, 0.8]
        assert record.get("guide_with") == (weak.fingerprint if "guide_with" in second else None)
        for row in record["rows"]:
            (batch,) = sample_batches(prior, 4, sampler=row["sampler"], steps=5, seed=3, **settings, **second)
            assert row["values"]["usage"] == len(batch.grids.unique()) / 16
            assert row["values"]["perplexity"] == pytest.approx(perplexity_of(batch.grids))
            assert row["values"]["calls"] == batch.num_calls == 9  # 5, and once more at 0.2, 0.4, 0.6 and 0.8
    alone = next(iter(sample_batches(prior, 4, steps=5, seed=3, **settings)))
    assert perplexity_of(alone.grids) != pytest.approx(record["rows"][0]["values"]["perplexity"])


def perplexity_of(grids):
    shares = grids.flatten().bincount() / grids.numel()
    return float(torch.special.entr(shares.double()).sum().exp())


def test_the_seconds_of_a_second_prior_are_seconds_of_the_network(folder, vqtool, monkeypatch):
    write_prior("weak.safetensors", kind="class", scale=0.2)
    timed, honest = [], trials.time_network
    monkeypatch.setattr(trials, "time_network", lambda *networks: timed.append(networks) or honest(*networks))
    base = ["--sampler", "fewer", "--steps", 2, "-n", 2, "--seeds", 0, "--cfg-scale", 2]
    vqtool("compare", *base)
    vqtool("compare", *base, "--guide-with", "weak.safetensors")
    assert [len(set(networks)) for networks in timed] == [1, 2]


@pytest.mark.parametrize("option", ["cache=0,2", "temperature=1,0", "purity-weight=1,-1"])
def test_a_value_that_its_option_does_not_take_is_refused_before_any_work(folder, vqtool, option):
    name, _, values = option.partition("=")
    wrong = min(values.split(","), key=float)
    result = vqtool("compare", "--sampler", "purity", "--steps", 2, "-n", 2, "--seeds", 0, "--option", option)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"error: --option {name}: ")
    assert f" {wrong}: must be" in result.err


def test_a_fixed_setting_goes_with_a_varied_scale_and_what_cannot_be_is_left_out(folder, vqtool):
    base = ["--sampler", "fewer", "--steps", 5, "-n", 2, "--seeds", 0, "--cfg-interval", "0.2,0.5"]
    result = vqtool("compare", *base, "--option", "cfg-scale=1,3")
    (row,) = json.loads(result.out)["rows"]
    assert (row["options"], result.code) == ({"cfg_scale": 3}, 0)
    assert 5 < row["values"]["calls"] < 10
    assert "left out: fewer cfg_scale=1, 5 steps: --cfg-interval is about guidance" in result.err


def test_what_a_prior_is_published_with_is_told_and_recorded_and_what_is_asked_for_goes_first(folder, vqtool):
    prior = load_prior("prior.safetensors")
    theirs = {"sampler": "purity", "steps": 4, "cfg_scale": 3.0, "temperature": 0.6}
    replace(prior, sampling=theirs).save("published.safetensors")
    base = ["published.safetensors", "--sampler", "fewer", "--steps", 3, "-n", 2, "--seeds", 0]
    result = vqtool("compare", *base)
    record = json.loads(result.out)
    assert "as published for this prior: cfg_scale 3, temperature 0.6" in result.err
    assert (record["cfg_scale"], record["temperature"]) == (3, 0.6)
    assert record["rows"][0]["values"]["calls"] == 6  # guidance asks twice
    record = json.loads(vqtool("compare", *base, "--cfg-scale", 1, "--option", "temperature=1").out)
    assert (record["cfg_scale"], "temperature" in record, record["rows"][0]["values"]["calls"]) == (1, False, 3)


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        (["--cfg-interval", "0.2,0.8"], ["--cfg-interval", "0.2,0.9"], "--cfg-interval 0.2,0.8, but now it is 0.2,0.9"),
        ([], ["--cfg-schedule", "cosine"], "--cfg-schedule not given, but now it is cosine"),
        (["--null", "zero-shot"], [], "--null zero-shot, but now it is not given"),
        ([], ["--guide-with", "weak.safetensors"], "--guide-with"),
        ([], ["--label", "bee"], "other captions or labels"),
        ([], ["--cfg-scale", "3"], "--cfg-scale 2.0, but now it is 3.0"),
    ],
)
def test_a_comparison_is_not_gone_on_with_under_other_guidance(folder, vqtool, before, now, name):
    write_prior("weak.safetensors", kind="class", scale=0.2)
    base = ["--sampler", "fewer", "-n", 2, "--seeds", 0, "--steps", 2, "--cfg-scale", 2, "-o", "c.json"]
    assert vqtool("compare", *base, *before).code == 0
    assert vqtool("compare", *base, *before, "--resume").code == 0
    result = vqtool("compare", *base, *now, "--resume")
    assert result.code == 1
    assert f"c.json: a comparison with {name}" in error_lines(result.err)[0]


def test_an_interrupted_comparison_is_gone_on_with_and_measures_nothing_twice(folder, vqtool, monkeypatch):
    measured, honest = [], trials.measure_trial

    def count(prior, trial, *arguments, **options):
        if len(measured) == 2 and "stop" not in measured:
            measured.append("stop")
            raise KeyboardInterrupt
        measured.append((trial.sampler, trial.steps))
        return honest(prior, trial, *arguments, **options)

    monkeypatch.setattr(trials, "measure_trial", count)
    result = vqtool("compare", *SMALL, "-o", "c.json")
    assert result.code == 130
    assert "interrupted: 2 trials are kept in c.json; --resume goes on with them" in result.err
    before = json.loads((folder / "c.json").read_text())
    assert len(before["rows"]) == 2
    refused = vqtool("compare", *SMALL, "-o", "c.json")
    assert refused.code == 1
    assert "exists" in refused.err
    result = vqtool("compare", *SMALL, "--steps", "2,3,4", "--sampler", "entropy", "-o", "c.json", "--resume")
    assert (result.code, result.out) == (0, "")
    assert "2 trials were measured before" in result.err
    after = json.loads((folder / "c.json").read_text())
    assert after["rows"][:2] == before["rows"]
    assert {**after, "rows": 0} == {**before, "rows": 0}
    ancestral, halton = ([(name, steps) for steps in (2, 3, 4)] for name in ("ancestral", "halton"))
    assert measured == [*ancestral[:2], "stop", ancestral[2], *halton, ("entropy", None)]


def test_resume_auto_begins_or_goes_on(folder, vqtool):
    line = ["-n", 2, "--seeds", 0, "--sampler", "fewer", "-o", "c.json", "--resume", "auto"]
    for steps in ("2", "2,3"):
        assert vqtool("compare", *line, "--steps", steps).code == 0
    assert [row["steps"] for row in json.loads((folder / "c.json").read_text())["rows"]] == [2, 3]


def test_a_full_disk_ends_a_comparison_and_leaves_the_rows_before(folder, vqtool, monkeypatch):
    assert vqtool("compare", *SMALL[:-2], "-o", "c.json").code == 0
    before = (folder / "c.json").read_bytes()

    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    result = vqtool("compare", *SMALL, "-o", "c.json", "--resume")
    assert (result.code, error_lines(result.err)) == (1, ["error: c.json: cannot be written: No space left on device"])
    assert (folder / "c.json").read_bytes() == before


def test_one_seed_gives_the_errors_that_the_metrics_know(folder, vqtool):
    arguments = ["--sampler", "fewer", "--steps", 2, "-n", 6, "--seeds", 0]
    (row,) = json.loads(vqtool("compare", *arguments, "--ref", "imgs").out)["rows"]
    known = ("KID", "MIND", "precision", "recall", "density", "coverage")
    assert set(row["standard_errors"]) == {f"{name}-MeanColour" for name in known}


def test_features_of_a_file_score_as_the_images_they_are_of(folder, vqtool):
    (batch,) = read_batches(find_images([folder / "imgs"]), (32, 48), 12)
    np.save("features.npy", MeanColour()(batch.images).pooled)
    assert vqtool("eval", "stats", "imgs", "--size", "32x48", "--keep-features", "-o", "features.npz").code == 0
    first, *others = (
        json.loads(vqtool("compare", *SMALL, "--ref", path).out)["rows"][0]["values"]
        for path in ("imgs", "features.npy", "features.npz")
    )
    for other in others:
        assert first["FD-MeanColour"] == other["FD-MeanColour"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors"], "no such file"),
        (["--sampler", "magic"], "unknown sampler 'magic'"),
        (["--sampler", "first-hitting"], "sampler first-hitting needs an absorbing kernel"),
        (["--steps", "4,x"], "--steps 4,x: numbers with commas between them"),
        (["--steps", "0"], "--steps 0: at most 64 numbers from 1 on"),
        (["--seeds", "-1"], "--seeds -1"),
        (["--option", "purity-weight"], "--option purity-weight: NAME=VALUE,VALUE"),
        (["--sampler", "halton", "--option", "kappa=0.5"], "`kappa` is not an option of sampler halton; of psi it is"),
        (["--sampler", "ancestral", "--steps", "21"], "no trial could be measured; the last one: --steps 21"),
        (["--include", "*"], "--include is for images of --ref, which is not given"),
        (["--ref", "flat.npy", "--split", "train"], "--split is for images, but flat.npy holds features"),
        (["--ref", "imgs", "--exclude", "*"], "imgs: --include and --exclude leave no image"),
        (["--plot", "x.png"], "--plot draws scores, and without --ref there are none"),
        (["--resume"], "--resume goes on with a file"),
        (["--resume", "-o", "x.json"], "x.json: no earlier comparison is there"),
        (["--resume", "-o", "bad.json"], "bad.json: not a JSON object of names and values"),
        (["--resume", "-o", "half.json"], "half.json: damaged: row 0 of the comparison: steps is missing"),
        (["--resume", "-o", "other.json"], "a comparison with --num 7, but now it is 2"),
        (["-o", "nowhere/x.json"], "the folder nowhere does not exist"),
        (["--ref", "missing"], "missing: no such file or folder"),
        (["--ref", "one"], "1 image as reference: at least 2"),
        (["--ref", "bad.npy"], "bad.npy: not a .npy file of numbers"),
        (["--ref", "flat.npy"], "flat.npy: features (N, D) of at least 2 images"),
        (["--ref", "stats.npz"], "stats.npz: statistics alone"),
        (["--ref", "imgs", "--features", "none"], "--features none: unknown; known are"),
        (["--ref", "wide.npy"], "wide.npy: 4 features an image, but MeanColour gives 3"),
        (["--ref", "imgs", "--tokenizer", "other.safetensors"], "other.safetensors"),
        (["--captions", "missing.txt"], "missing.txt"),
        (["--label", "be"], "unknown label 'be': did you mean 'bee'?"),
        (["--caption", "a bee"], "--caption does not go with this prior, which takes labels: use --label"),
        (["--label", "bee", "--captions", "missing.txt"], "--label and --captions are given"),
        (["--cfg-interval", "0.2,0.8"], "--cfg-interval is about guidance, and there is none: give --cfg-scale"),
        (["--cfg-scale", "2", "--cfg-interval", "0.2,x"], "--cfg-interval 0.2,x: numbers with commas"),
        (["--cfg-scale", "2", "--cfg-schedule", "steep"], "--cfg-schedule steep: unknown; known are"),
        (["--cfg-scale", "2", "--null", "empty"], "--null empty: unknown; known are"),
        (
            ["--cfg-scale", "2", "--null", "learned", "--guide-with", "prior.safetensors"],
            "--null and --guide-with both",
        ),
        (["--cfg-scale", "2", "--guide-with", "gone.safetensors"], "gone.safetensors: no such file"),
        (["--cfg-scale", "2", "--option", "cfg-scale=1,3"], "--cfg-scale and --option cfg-scale both say it"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(folder, vqtool, arguments, message):
    write_pictures(folder / "one", 1)
    save_tokenizer("other.safetensors", build_tokenizer(seed=1))
    (folder / "bad.npy").write_bytes(b"not numbers")
    np.save("flat.npy", np.zeros(3))
    np.save("wide.npy", np.zeros((3, 4)))
    np.savez("stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    base = ["-n", 2, "--seeds", 0] + ([] if "--steps" in arguments else ["--steps", 2])
    (folder / "bad.json").write_text("[]")
    if "half.json" in arguments or "other.json" in arguments:
        vqtool("compare", *base, "-n", 2 if "half.json" in arguments else 7, "--sampler", "fewer", "-o", arguments[-1])
    if "half.json" in arguments:
        record = json.loads((folder / "half.json").read_text())
        (folder / "half.json").write_text(json.dumps({**record, "rows": [{"sampler": "fewer"}]}))
    result = vqtool("compare", *base, *arguments)
    assert (result.code, result.out) == (1, "")
    (line,) = error_lines(result.err)
    assert message in line


def test_the_same_numbers_give_the_same_picture_and_points_on_the_front_are_beaten_by_none(tmp_path):
    noise = np.random.default_rng(0)
    points = [(float(calls), float(score)) for calls in (1, 2, 2, 3, 5) for score in noise.random(4).round(1)]
    beaten = [any(c <= calls and s <= score and (c, s) != (calls, score) for c, s in points) for calls, score in points]
    front = trials.find_front(points)
    assert {points[index] for index in front} == {
        point for point, is_beaten in zip(points, beaten, strict=True) if not is_beaten
    }
    assert [points[index][0] for index in front] == sorted({points[index][0] for index in front})
    assert trials.find_front([(calls, -score) for calls, score in points], better="higher") == front
    rest = dict.fromkeys(("seconds", "network_seconds", "usage", "perplexity"), 1.0)
    rows = [
        Row("fewer", None, {}, {**rest, "calls": calls, "KID-x": score, "FD-x": 100 * score}, {"KID-x": 0.1}, {}, {})
        for calls, score in points
    ]
    for name in ("a.png", "b.png"):
        plot_front(rows, {"KID-x": "lower", "FD-x": "lower"}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_seconds_of_the_network_are_those_it_is_busy():
    class Slow(torch.nn.Linear):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    network = Slow(2, 2)
    begin = time.perf_counter()
    with trials.time_network(network) as seconds:
        for _ in range(3):
            network(torch.zeros(1, 2))
            time.sleep(0.02)
    network(torch.zeros(1, 2))  # is not counted any more
    assert 0.06 <= seconds() <= time.perf_counter() - begin - 0.06


def test_flags_choose_images_of_the_reference_and_stand_in_the_record(folder, vqtool):
    line = ["compare", *SMALL[:2], "--steps", 2, "--sampler", "halton", "--ref", "imgs"]
    first = sorted(path.name for path in (folder / "imgs").iterdir())[0]
    result = vqtool(*line, "--exclude", first, "-o", "c.json")
    num = len(list((folder / "imgs").iterdir()))
    assert result.err.splitlines()[-1] == f"{num - 1} pictures"
    assert json.loads((folder / "c.json").read_text())["exclude"] == first
    assert "exclude" not in json.loads(vqtool(*line).out)
    assert vqtool(*line, "-o", "c.json", "--resume").code == 1
