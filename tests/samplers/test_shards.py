"""Samples in shards: the grids of one file bit for bit, whoever draws them; killed, resumed and changed ones."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from support.commands import error_lines
from support.exact import random_prior

from vqtool import urls
from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import concatenate, read_grids
from vqtool.grids.resume import Journal
from vqtool.samplers import drawing
from vqtool.samplers.drawing import sample_to_file
from vqtool.samplers.shards import sample_shards

VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_ARRAY_TASK_ID")
HOW = {"seed": 3, "steps": 3}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A current folder; nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def prior():
    return random_prior("absorbing", "class")


def draw(prior, num=7, shards=3, output="tok-{shard:02d}.h5", **how):
    return sample_shards(prior, output, num, shards, **HOW | how)


def rows(paths):
    batches = [read_grids(path)[1] for path in sorted(paths)]
    return [
        (each.ids[row], each.labels[row], each.tokens[row].tolist()) for each in batches for row in range(len(each))
    ]


def whole(prior, num=7, **how):
    sample_to_file(prior, "whole.h5", num, force=True, **HOW | how)
    return rows([Path("whole.h5")])


def made(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("tok*.h5")}


@pytest.mark.parametrize(("shards", "num_parts"), [(1, 1), (3, 1), (3, 2), (7, 3), (2, 5)])
def test_the_files_of_all_parts_are_the_samples_of_one(work, prior, shards, num_parts):
    done = [draw(prior, shards=shards, partial=f"{n}/{num_parts}", start=5) for n in range(num_parts, 0, -1)]
    assert sum(each.num_shards for each in done) == shards
    assert sum(each.num_grids for each in done) == 7
    paths = sorted(work.glob("tok*"))
    assert [path.name for path in paths] == [f"tok-{number:02d}.h5" for number in range(shards)]
    assert {len(read_grids(path)[1]) for path in paths} <= {7 // shards, -(-7 // shards)}
    assert rows(paths) == whole(prior, start=5)


def test_ranks_share_the_shards_and_the_best_of_several_is_that_of_one_file(work, vqtool):
    random_prior().save("prior.safetensors")
    line = ("sample", "-n", 5, "--steps", 2, "--best", 2, "--judge-times", 2, "-o")
    for rank in ("1", "0"):  # one after the other: whoever waits for the other waits for ever
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("WORLD_SIZE", "2")
            environment.setenv("RANK", rank)
            result = vqtool(*line, "tok-{shard}.h5", "--shards", 3)
        assert result.code == 0, result.err
        assert ("shards 1 to 2 of 3, part 2/2" if rank == "1" else "shards 0 to 0 of 3, part 1/2") in result.err
    assert vqtool(*line, "whole.h5").code == 0
    parts = [read_grids(path)[1] for path in sorted(work.glob("tok*"))]
    assert np.array_equal(np.concatenate([part.tokens for part in parts]), read_grids("whole.h5")[1].tokens)
    assert [id for part in parts for id in part.ids] == read_grids("whole.h5")[1].ids


def test_a_run_that_goes_on_draws_what_is_missing_and_leaves_what_is_complete(work, prior, monkeypatch):
    draw(prior, partial="1/3")
    before = made(work)
    again = draw(prior, resume=True)
    assert (again.num_shards, again.num_before, again.num_failed, again.num_grids) == (3, 1, 0, 7)
    assert before.items() <= made(work).items()
    assert rows(work.glob("tok*")) == whole(prior)
    Path("tok-01.h5").write_bytes(Path("tok-01.h5").read_bytes()[:3000])
    with pytest.warns(match=r"tok-01.h5: truncated: .*; it is made anew"):
        assert draw(prior, resume=True).num_before == 2
    assert rows(work.glob("tok*")) == whole(prior)
    monkeypatch.setattr(drawing, "Run", None)  # nothing is left to draw
    assert draw(prior, resume=True).num_before == 3


def test_a_shard_that_was_killed_half_way_is_gone_on_with(work, prior, monkeypatch):
    write, written = Journal.write, []

    def killed(self, batch):
        if len(written) == 2:
            raise SystemExit(9)
        written.append(len(batch))
        write(self, batch)
        self.flush()

    monkeypatch.setattr(Journal, "write", killed)
    with pytest.raises(SystemExit):
        draw(prior, shards=1, batch_size=2)
    assert os.listdir() == ["tok-00.partial.h5"]
    drawn = []
    monkeypatch.setattr(Journal, "write", lambda self, batch: (drawn.append(len(batch)), write(self, batch)))
    assert draw(prior, shards=1, batch_size=2, resume=True).num_grids == 7
    assert (written, drawn) == ([2, 2], [2, 1])
    assert os.listdir() == ["tok-00.h5"]
    assert rows([Path("tok-00.h5")]) == whole(prior)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 4}, "a run with `seed` 3, but now it is 4"),
        ({"steps": 2}, "a run with `steps` 3, but now it is 2"),
        ({"num": 8}, "a run with `num` 2, but now it is 3"),
        ({"start": 1}, "a run with `start` 2, but now it is 3"),
        ({"labels": ["bee"]}, "a run with other `labels`"),
    ],
)
def test_files_that_were_drawn_in_another_way_are_not_taken(work, prior, changed, message):
    draw(prior)
    with pytest.raises(MismatchError, match=rf"tok-0\d\.h5: {message}"):
        draw(prior, partial="2/3", resume=True, **changed)


def test_the_history_of_neighbours_is_one_record_and_that_of_others_is_not(work, prior):
    draw(prior, shards=4)
    paths = [str(path) for path in sorted(work.glob("tok*"))]
    with concatenate(paths) as joined:
        record = joined.header.history[-1]
        assert len(joined.header.history) == len(read_grids(paths[0])[0].history)
        assert (record["num"], record["start"], record["shards"]) == (7, 0, 4)
    with concatenate([paths[0], paths[2]]) as apart:
        assert [record["start"] for record in apart.header.history[-2:]] == [0, 3]


def test_files_may_go_to_a_url(work, prior):
    import fsspec

    fsspec.filesystem("memory").store.clear()
    urls.fetched.cache_clear()
    draw(prior, output="memory://out/tok-{shard}.h5")
    assert draw(prior, output="memory://out/tok-{shard}.h5", resume=True).num_before == 3
    assert rows([f"memory://out/tok-{number}.h5" for number in range(3)]) == whole(prior)
    urls.fetched.cache_clear()


def test_a_dry_run_says_what_this_part_would_take(work, vqtool):
    random_prior().save("prior.safetensors")
    result = vqtool(
        "sample", "-n", 6, "--steps", 3, "--shards", 4, "--partial", "2/2", "--dry-run", "-o", "x-{shard}.h5"
    )
    assert result.code == 0
    assert "3 network calls a grid" in result.err
    assert re.search(r"about \S+ s for 3 grids; nothing is written", result.err)
    assert os.listdir() == ["prior.safetensors"]
    Path("x-0.h5").touch()  # is in nobody's way, since nothing is written
    again = vqtool(
        "sample", "-n", 6, "--steps", 3, "--shards", 4, "--partial", "1/2", "--dry-run", "-o", "x-{shard}.h5"
    )
    assert again.code == 0
    assert Path("x-0.h5").read_bytes() == b""


def test_a_dry_run_of_a_part_without_shards_says_that_there_are_none(work, prior):
    told = []
    done = draw(prior, shards=1, partial="1/2", dry_run=True, notify=told.append)
    assert done == draw(prior, shards=1, partial="1/2")
    assert told == ["no shards of 1, part 1/2"]
    assert made(work) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("-o", "x-{shard}.h5"),
            "--shards, how many files there are, is what --partial, --engine and {shard}",
        ),
        (("-o", "x.h5", "--partial", "1/2"), "--shards, how many files there are"),
        (("-o", "x.h5", "--engine", "ray"), "--shards, how many files there are"),
        (("--shards", "2"), "--output -: one name for each shard is expected, with {shard}"),
        (("-o", "x.h5", "--shards", "2"), "--output x.h5: one name for each shard is expected"),
        (("-o", "x-{shard}.h5", "--shards", "5"), "--shards 5: 1 to 4 files are expected, for 4 grids"),
        (("-n", "1", "-o", "x-{shard}.h5", "--shards", "2"), "--shards 2: 1 to 1 files are expected, for 1 grid"),
        (("-o", "x-{shard}.h5", "--shards", "0"), "--shards 0: 1 to 4 files are expected"),
        (("-o", "x-{shard}.h5", "--shards", "2", "--partial", "3/2"), "--partial 3/2: the number of the part"),
        (("-o", "x-{shard}.h5", "--shards", "2", "--engine", "slurm"), "unknown engine 'slurm': known are local, ray"),
        (("-o", "x-{shard}.h5", "--shards", "2", "--trajectory", "x.webp"), "--trajectory is of one file of grids"),
        (("-o", "x-{shard}.h5", "--shards", "2", "--engine", "ray", "--dry-run"), "--dry-run tries this machine"),
        (("-o", "x-{shard}.h5", "--shards", "2", "--start", "-1"), "--start -1: the numbers of the samples"),
        (("-o", "there-{shard}.h5", "--shards", "2"), "there-1.h5: exists; --resume goes on with what is left"),
        (("-o", "no/x-{shard}.h5", "--shards", "2"), "no/x-0.h5: the folder no does not exist"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(work, vqtool, arguments, message):
    random_prior().save("prior.safetensors")
    Path("there-1.h5").touch()
    result = vqtool("sample", "-n", 4, "--steps", 2, *arguments)
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert line.startswith(f"error: {message}")
    assert sorted(os.listdir()) == ["prior.safetensors", "there-1.h5"]


def test_numbers_of_shards_are_checked_in_python_too(work, prior):
    with pytest.raises(VqtoolError, match="`shards` 8: 1 to 7 files are expected"):
        draw(prior, shards=8)
