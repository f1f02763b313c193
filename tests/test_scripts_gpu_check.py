"""scripts/gpu_check.py: every stage works without a GPU, and what it has is there when it is cut off."""

import importlib
import json
import sys
import time

import pytest

gpu_check = importlib.import_module("gpu_check")


def run(monkeypatch, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--tiny", "-o", str(folder), *arguments])
    return gpu_check.main()


def rows(folder):
    return json.loads((folder / "gpu-check.json").read_text())["rows"]


def test_every_stage_leaves_figures(monkeypatch, tmp_path):
    stages = ["ceiling", "train", "sample", "codec", "resume"]
    assert run(monkeypatch, tmp_path, "--stages", ",".join(stages)) == 0
    found = rows(tmp_path)
    assert list(dict.fromkeys(row["stage"] for row in found)) == stages
    positive = [value for row in found for name, value in row["figures"].items() if name.endswith("/s")]
    assert len(positive) >= 9
    assert min(positive) >= 0
    resumed = [row["figures"] for row in found if row["stage"] == "resume"]
    assert [figures["not equal bit for bit"] for figures in resumed] == [0, 0]
    table = (tmp_path / "gpu-check.md").read_text()
    assert all(row["measured"] in table for row in found)


def test_a_stage_that_breaks_or_takes_too_long_leaves_the_others_their_figures(monkeypatch, tmp_path):
    def broken(bench):
        yield "one", {"x": 1}
        raise RuntimeError("no memory")

    def slow(bench):
        yield "two", {"x": 2}
        time.sleep(0.05)
        bench.check()

    monkeypatch.setattr(gpu_check, "STAGES", {"train": broken, "sample": slow, "codec": gpu_check.measure_ceiling})
    monkeypatch.setattr(gpu_check, "MINUTES", {"train": 1.0, "sample": 0.0005, "codec": 1.0})
    assert run(monkeypatch, tmp_path) == 1
    found = [(row["stage"], row["measured"]) for row in rows(tmp_path)]
    assert found[:4] == [("train", "one"), ("train", "broken off"), ("sample", "two"), ("sample", "the rest")]
    assert len(found) == 7


def test_all_stages_together_take_nine_minutes_at_most():
    assert sum(gpu_check.MINUTES.values()) <= 9
    assert sum(gpu_check.BRIEF.values()) * 60 <= 75
    assert gpu_check.parse(["--device", "cpu", "--minutes-scale", "0.5"]).limits["tests"] == 60
    assert gpu_check.parse(["--device", "cpu", "--quick"]).limits == {"tests": 90}


@pytest.mark.parametrize(("arguments", "message"), [(["--stages", "tests,x"], "unknown stages: x"), ([], "no CUDA")])
def test_what_cannot_be_done_is_said_first(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.parse(arguments)
    assert message in capsys.readouterr().err
