"""vqtool eval stats: what it writes stands for the pictures, whole and part by part."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.commands import error_lines
from support.sets import SixNumbers, features_of, write_noise
from support.sources import make_tar

from vqtool import cluster
from vqtool.metrics import features, saving
from vqtool.metrics.saved import save


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, with pictures a/ and b/, scored by six numbers."""
    monkeypatch.setattr(features, "load_features", lambda *_, **__: SixNumbers())
    for seed, name in enumerate("ab"):
        write_noise(tmp_path / name, 24, seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(result):
    assert result.code == 0, result.err
    return json.loads(result.out)["scores"]


def test_statistics_stand_for_the_pictures_and_say_what_cannot_be_computed(work, vqtool):
    whole = vqtool("eval", "a", "--ref", "b")
    made = vqtool("eval", "stats", "b", "-o", "b.npz")
    assert (made.code, made.out) == (0, "")
    assert "24 images: statistics of features of SixNumbers" in made.err
    found = vqtool("eval", "a", "--ref", "b.npz")
    assert scores(found)["FD-SixNumbers"] == pytest.approx(scores(whole)["FD-SixNumbers"], rel=1e-9)
    assert scores(found)["sFD-SixNumbers"] == pytest.approx(scores(whole)["sFD-SixNumbers"], rel=1e-6)
    assert scores(found)["IS-SixNumbers"] == scores(whole)["IS-SixNumbers"]
    assert "KID-SixNumbers" not in scores(found)
    assert "warning: from statistics alone" in found.err
    assert "kernel" in found.err
    cards = [json.loads(each.out)["card"] for each in (whole, found)]
    assert cards[0]["reference"]["id"] == cards[1]["reference"]["id"]
    assert cards[1]["reference"]["held"] == "statistics"


def test_saved_features_stand_for_the_pictures_in_every_metric(work, vqtool):
    assert vqtool("eval", "stats", "a", "--keep-features", "-o", "a.npz").code == 0
    assert vqtool("eval", "stats", "b", "--keep-features", "-o", "b.npz").code == 0
    shutil.move("a", "gone")  # no pictures are needed
    expected = scores(vqtool("eval", "gone", "--ref", "b"))
    assert scores(vqtool("eval", "a.npz", "--ref", "b.npz")) == expected
    assert scores(vqtool("eval", "gone", "--ref", "b.npz")) == expected
    page = vqtool("eval", "a.npz", "--ref", "b.npz", "--report", "r.html")
    assert page.code == 0
    assert "not at hand" in (work / "r.html").read_text()


def test_parts_in_several_processes_merge_into_the_whole(work, vqtool):
    assert vqtool("eval", "stats", "b", "--keep-features", "-o", "whole.npz").code == 0
    for part in (1, 2, 3):
        assert vqtool("eval", "stats", "b", "--keep-features", "--partial", f"{part}/3", "-o", f"{part}.npz").code == 0
    merged = vqtool("eval", "merge", "1.npz", "2.npz", "3.npz", "-o", "merged.npz")
    assert (merged.code, merged.out) == (0, "")
    assert scores(vqtool("eval", "a", "--ref", "merged.npz")) == scores(vqtool("eval", "a", "--ref", "whole.npz"))
    with np.load("merged.npz") as ours, np.load("whole.npz") as theirs:
        assert ours["about"] == theirs["about"]
        np.testing.assert_array_equal(ours["sigma"], theirs["sigma"])


@pytest.fixture
def tasks(monkeypatch):
    """Stand-ins for the tasks of Ray, which end in another order, and what they are sent and send has been pickled."""
    done = []

    def run(function, calls):
        for number, call in reversed(list(enumerate(calls))):
            sent = pickle.loads(pickle.dumps((function, number, call, os.getcwd())))
            done.append(call)
            yield pickle.loads(pickle.dumps(cluster._task(*sent)))

    monkeypatch.setattr(saving, "run_by_ray", run)
    return done


@pytest.mark.parametrize("keep", [["--keep-features"], []])
@pytest.mark.parametrize(
    ("sources", "num"), [(["b"], 32), (["c-{0..2}.tar", "a"], 4), (["c-*.tar", "--size", "8", "--fit", "crop"], 3)]
)
def test_tasks_of_a_cluster_make_what_one_process_makes(work, vqtool, tasks, keep, sources, num):
    for shard in range(3):
        write_noise(work / "c", 3 * shard + 1, seed=shard, label=f"{shard}")
        make_tar(Path(f"c-{shard}.tar"), {each.name: each.read_bytes() for each in (work / "c" / f"{shard}").iterdir()})
    (work / "b" / "003.png").write_bytes(b"no picture")
    code = int(sources == ["b"])
    whole = vqtool("eval", "stats", *sources, *keep, "-o", "whole.npz")
    found = vqtool("eval", "stats", *sources, *keep, "--engine", "ray", "-o", "by-ray.npz")
    assert (whole.code, found.code, len(tasks)) == (code, code, num), found.err
    said = [[line for line in each.err.splitlines() if line[:9] != "features:"] for each in (whole, found)]
    assert [line.replace("by-ray", "whole") for line in said[1]] == said[0]
    with np.load("whole.npz") as theirs, np.load("by-ray.npz") as ours:
        assert ours.files == theirs.files
        for name in ours.files:
            if ours[name].dtype.kind == "f" and not keep:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12, atol=1e-12)
            else:
                np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_bad_picture_is_named_left_out_and_counted(work, vqtool):
    (work / "b" / "003.png").write_bytes(b"no picture")
    result = vqtool("eval", "stats", "b", "-o", "b.npz")
    assert result.code == 1
    assert "003.png" in result.err
    assert "1 bad input skipped" in result.err
    assert json.loads(vqtool("eval", "a", "--ref", "b.npz").out)["card"]["reference"]["unreadable"] == 1


def test_a_folder_called_stats_is_typed_with_its_path(work, vqtool):
    shutil.move("b", "stats")
    result = vqtool("eval", "stats", "a", "-o", "a.npz")
    assert result.code == 0
    assert "warning: eval stats is a command; type ./stats for what is called so here" in result.err
    for name in ("./stats", "stats/"):
        assert vqtool("eval", name, "--ref", "a").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b", "--partial", "0/3"], "--partial 0/3: the number of the part and how many there are is expected"),
        (["b", "--partial", "4/3"], "--partial 4/3"),
        (["b", "--partial", "x"], "as in 1/4"),
        (["b", "--partial", "1/24"], "statistics of 1 image: at least 2"),
        (["b", "--partial", "1/2", "--engine", "ray"], "--partial shares pictures among processes, --engine ray among"),
        (["-", "--engine", "ray"], "standard input: can be read here alone, not by --engine ray"),
        (["b", "--engine", "slurm"], "--engine slurm: unknown; known are local, ray"),
        (["b", "-o", "x.json"], "x.json: saved statistics would be written there; name it x.npz"),
        (["b", "-o", "there.npz"], "exists; use --force"),
        (["there.npz"], "there.npz: holds saved features already"),
        (["none"], "none: no such file or folder"),
    ],
)
def test_what_cannot_be_saved_is_one_clear_line(work, vqtool, arguments, message):
    np.savez("there.npz", mu=np.zeros(6), sigma=np.eye(6))
    result = vqtool("eval", "stats", *arguments)
    assert (result.code, result.out) == (1, "")
    (error,) = error_lines(result.err)
    assert message in error


class Other(SixNumbers):
    name = "Other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--ref", "wide.npz"], "wide.npz: statistics of 9 features an image, but SixNumbers gives 6"),
        (["a", "--ref", "nan.npz"], "nan.npz: 'mu': holds nan or infinity"),
        (["a", "--ref", "nan-features.npz"], "nan-features.npz: 'features': holds nan or infinity"),
        (["a", "--ref", "other.npz"], "other.npz: statistics of features of name 'Other', not 'SixNumbers'"),
        (["a", "--ref", "other-features.npz"], "other-features.npz: features of name 'SixNumbers' and 'Other'"),
        (["wide.npz", "--ref", "other.npz"], "statistics of 9 and of 6 features an image"),
        (["a", "--ref", "other.npz", "--size", "16"], "8x8 pixels do not compare with ones of 16x16"),
        (["a", "--ref", "one.npz"], "1 image on one side: at least 2 on each"),
        (["other.npz"], "other.npz: saved features alone have no score: add --ref"),
        (["other.npz", "other.npz", "--ref", "a"], "vqtool eval merge` makes one file of several"),
        (["a", "other.npz", "--ref", "a"], "a holds images, other.npz saved features: one kind on a side"),
        (["other.npz", "--ref", "other-features.npz", "--size", "16"], "--size is about pictures, but both sides are"),
        (["other.npz", "--ref", "other-features.npz", "--features", "inception"], "--features is about pictures"),
        (["a", "--ref", "b", "--num-splits", "13"], "--num-splits 13: there are 24 images, so 12 at most"),
        (["a", "--ref", "b", "--nearest-k", "24"], "--nearest-k 24: there are 24 images on a side, so 23 at most"),
        (["a", "--ref", "b", "--per-class"], "--per-class: what is scored has no labels"),
        (["a", "--ref", "other.npz", "--paired"], "--paired is for images, but other.npz holds saved features"),
        (["a", "--ref", "b", "--report", "nowhere/r.html"], "the folder nowhere does not exist"),
        (["a", "--ref", "b", "--features", "none"], "--features none: unknown; known are efficientnet-lite0"),
    ],
)
def test_what_does_not_compare_is_one_clear_line(work, vqtool, arguments, message):
    np.savez("wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    np.savez("nan.npz", mu=np.full(6, np.nan), sigma=np.eye(6))
    np.savez("nan-features.npz", features=np.full((9, 6), np.nan, np.float32))
    np.savez("one.npz", features=np.zeros((1, 6), np.float32))
    save(features_of(work / "b", Other()).statistics(), "other.npz")
    save(features_of(work / "b", Other()), "other-features.npz")
    result = vqtool("eval", *arguments)
    assert (result.code, result.out) == (1, "")
    (error,) = error_lines(result.err)
    assert message in error
    assert "Traceback" not in result.err


def test_few_and_equal_pictures_are_scored_and_told(work, vqtool):
    for name, num in (("two", 2), ("three", 3)):
        write_noise(work / name, num)
    few = vqtool("eval", "two", "--ref", "three")  # fewer than k + 1 = 4 and 6
    assert few.code == 0
    assert "warning: 2 images a side are fewer than the 6 features" in few.err
    asked = vqtool("eval", "two", "--ref", "three", "--nearest-k", "2")
    (error,) = error_lines(asked.err)
    assert "--nearest-k 2: there are 2 images on a side, so 1 at most" in error
    same = vqtool("eval", "a", "--ref", "a")
    assert same.code == 0
    assert "warning: both sides are the same pictures: the scores are those of a perfect copy" in same.err
    assert scores(same)["FD-SixNumbers"] == pytest.approx(0, abs=1e-6)
    for side in ("a", "b"):
        (work / side / "003.png").write_bytes(b"no picture")
    bad = vqtool("eval", "a", "--ref", "b")
    assert bad.code == 1
    assert "2 bad inputs skipped" in bad.err
    card = json.loads(bad.out)["card"]
    assert (card["generated"]["unreadable"], card["reference"]["unreadable"]) == (1, 1)


def test_each_class_is_scored_and_an_empty_one_is_one_line(work, vqtool):
    for seed, (side, label) in enumerate([("x", "cat"), ("x", "dog"), ("y", "cat"), ("y", "dog"), ("y", "owl")]):
        write_noise(work / side, 6, seed=seed, label=label)
    write_noise(work / "x", 1, seed=9, label="owl")
    result = vqtool("eval", "x", "--ref", "y", "--per-class")
    found = json.loads(result.out)["per_class"]
    assert result.code == 0
    assert {label: its["num_images"] for label, its in found.items()} == {"cat": 6, "dog": 6}
    expected = scores(vqtool("eval", "x/dog", "--ref", "y/dog"))
    assert found["dog"]["scores"] == pytest.approx(expected)
    assert "warning: class 'owl': 1 image against 6 of the reference: not scored" in result.err
    assert "│ dog" in result.err
