"""Resuming `vqtool sample`: what a killed run leaves, what goes on with it, and what is refused."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from support.commands import error_lines, start, write_pictures
from support.exact import random_prior
from support.two import run_in_two

from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader, read_grids
from vqtool.grids import resume as journals
from vqtool.grids.resume import Journal, resumable_writer

RUN = ["-n", 40, "--steps", 3, "--seed", 5, "--start", 7]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder that holds prior.safetensors, which takes captions."""
    monkeypatch.chdir(tmp_path)
    random_prior(kind="caption").save("prior.safetensors")
    return tmp_path


def datasets(path):
    """All that a grid file holds: name -> (dtype, bytes)."""
    with h5py.File(path, "r") as file:
        return {name: (file[name].dtype, file[name][:].tobytes()) for name in file}


def interrupt_when(process, path, num_bytes, number):
    """Send a signal to a process once a file is so large; False if it has ended before."""
    while process.poll() is None:
        if path.exists() and path.stat().st_size >= num_bytes:
            process.send_signal(number)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def test_a_run_killed_again_and_again_ends_in_the_same_file(folder, vqtool):
    assert vqtool("sample", *RUN, "-o", "whole.h5").code == 0
    kept, there, moment = folder / "x.partial.h5", 0, random.Random(0)
    for resume in ([], ["--resume"]):
        process = start("sample", *RUN, "-b", 1, "-o", "x.h5", *resume, stderr=subprocess.DEVNULL)
        assert interrupt_when(process, kept, there + moment.randrange(1, 5000), signal.SIGKILL)
        assert kept.stat().st_size >= there
        with kept.open("ab") as file:  # what a power cut leaves of a chunk
            file.write(kept.read_bytes()[: moment.randrange(1, 1000)])
        there = kept.stat().st_size
    assert vqtool("sample", *RUN, "-b", 3, "-o", "x.h5", "--resume").code == 0
    assert datasets("x.h5") == datasets("whole.h5")
    assert sorted(path.name for path in folder.iterdir()) == ["prior.safetensors", "whole.h5", "x.h5"]
    header, whole = read_grids("x.h5")[0], read_grids("whole.h5")[0]
    assert [record | {"time": 0, "command": 0} for record in header.history] == [
        record | {"time": 0, "command": 0} for record in whole.history
    ]


@pytest.mark.parametrize(
    ("cost", "chunks"),
    [(0.0, [1, 5, 5, 5, 4]), (0.01, [1, 10, 9]), (1.0, [1, 19])],
    ids=["at least", "dear", "at most"],
)
def test_batches_share_a_chunk_for_as_long_as_chunks_are_worth(tmp_path, monkeypatch, cost, chunks):
    now, sizes = [100.0], []

    def write(journal, batch):
        sizes.append(len(batch))
        now[0] += cost

    monkeypatch.setattr(journals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(journals.GridWriter, "write", write)
    header = GridHeader(16, (1, 1), (8, 8), "0" * 16, "", "crop")
    with journals.Journal(tmp_path / "x.partial.h5", header, hold=(1.0, 4.0)) as journal:
        for number in range(20):  # one each 0.2 s
            journal.write(GridBatch(np.zeros((1, 1, 1), np.uint64), [str(number)]))
            now[0] += 0.2001
    assert sizes == chunks


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(folder, vqtool):
    process = start("sample", *RUN, "-b", 1, "-o", "x.h5", stderr=subprocess.PIPE)
    assert interrupt_when(process, folder / "x.partial.h5", 1, signal.SIGINT)
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.returncode == 130
    kept = re.search(r"interrupted: (\d+) grids? (?:is|are) kept in x.partial.h5; --resume goes on with them", errors)
    num = int(kept[1])
    assert 0 < num < 40
    result = vqtool("sample", *RUN, "-o", "x.h5", "--resume")
    assert f"sample: {3 * (40 - num)} calls" in result.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_polite_signals_keep_what_is_done_and_resume_auto_goes_on(folder, vqtool, number):
    assert vqtool("sample", *RUN, "-o", "whole.h5").code == 0
    process = start("sample", *RUN, "-b", 1, "-o", "x.h5", "--resume", "auto", stderr=subprocess.PIPE)
    assert interrupt_when(process, folder / "x.partial.h5", 1, number)
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.returncode == 128 + number
    kept = re.search(r"interrupted: (\d+) grids? (?:is|are) kept in x.partial.h5; --resume goes on with them", errors)
    result = vqtool("sample", *RUN, "-o", "x.h5", "--resume", "auto")
    assert f"sample: {3 * (40 - int(kept[1]))} calls" in result.err
    assert datasets("x.h5") == datasets("whole.h5")
    again = vqtool("sample", *RUN, "-o", "x.h5", "--resume", "auto")
    assert again.code == 0
    assert "x.h5 is complete: nothing is left to do" in again.err
    assert "wrote" not in again.err
    other = vqtool("sample", *RUN, "--seed", 99, "-o", "x.h5", "--resume", "auto")
    assert other.code == 1
    assert "error: x.h5: a run with --seed" in other.err
    assert datasets("x.h5") == datasets("whole.h5")
    assert vqtool("sample", *RUN, "-o", "x.h5", "--resume", "auto", "-f").code == 0


def test_two_processes_count_and_name_together_what_they_skip(tmp_path, monkeypatch, tokenizer_path):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 6)
    for name in ("00", "04", "05"):
        (tmp_path / "imgs" / f"{name}.png").write_bytes(b"no picture")
    done = run_in_two("vqtool", "encode", "imgs", "--size", 32, "-t", tokenizer_path, "-o", "x.h5")
    errors = done.stderr.decode()
    assert done.returncode == 1
    assert "3 pictures: no captions, no labels; 3 files skipped (names above)" in errors
    assert [line.split(": ")[1] for line in errors.splitlines() if line.startswith("warning: skipped")] == [
        f"skipped imgs/{name}.png" for name in ("00", "04", "05")
    ]
    assert len(read_grids("x.h5")[1]) == 3


def test_of_two_runs_at_once_one_succeeds_and_the_other_names_it(tmp_path, monkeypatch, tokenizer_path):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 40)
    line = ["encode", "imgs", "--size", 32, "-t", tokenizer_path, "-o", "x.h5"]
    runs = [start(*line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(2)]
    errors = [run.communicate()[1].decode() for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) == [0, 1], errors
    (refusal,) = error_lines(errors[codes.index(1)])
    first = f"error: x.h5: process {runs[codes.index(0)].pid} on {socket.gethostname()} is writing it"
    assert refusal.startswith(first) or "x.h5: exists" in refusal  # where one was done before the other began
    assert len(read_grids("x.h5")[1]) == 40
    assert sorted(os.listdir()) == ["imgs", "x.h5"]


def test_a_killed_run_is_not_overwritten_unless_forced(folder, vqtool):
    leave_partial(vqtool)
    before = (folder / "x.partial.h5").read_bytes()
    result = vqtool("sample", *RUN, "-o", "x.h5")
    assert result.code == 1
    assert "x.partial.h5: an earlier run is there: --resume goes on with it, --force starts anew" in result.err
    assert (folder / "x.partial.h5").read_bytes() == before
    assert vqtool("sample", *RUN, "--seed", 6, "-o", "x.h5", "--force").code == 0
    assert read_grids("x.h5")[0].history[-1]["seed"] == 6
    assert not (folder / "x.partial.h5").exists()


def leave_partial(vqtool, *arguments):
    """Make x.partial.h5 as a killed run leaves it: all grids are there, the output is not."""
    vqtool("sample", *RUN, *arguments, "-o", "x.h5", "--force")
    header, batch = read_grids("x.h5")
    os.remove("x.h5")
    with Journal(Path("x.partial.h5"), header) as writer:
        writer.write(batch[:10])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "6"], "a run with --seed 5, but now it is 6"),
        (["--start", "8"], "a run with --start 7, but now it is 8"),
        (["-n", "41"], "a run with --num 40, but now it is 41"),
        (["--steps", "4"], "a run with --steps 3, but now it is 4"),
        (["--purity"], "a run with --sampler ancestral, but now it is purity"),
        (["--rule", "mixture"], "a run with --rule not given, but now it is mixture"),
        (["--temperature", "0.5"], "a run with --temperature 1.0, but now it is 0.5"),
        (["--caption", "a cat"], "a run with other --caption:"),
        (["other.safetensors"], "a run with other prior:"),
    ],
)
def test_a_run_of_other_settings_is_not_gone_on_with(folder, vqtool, arguments, message):
    leave_partial(vqtool)
    random_prior(kind="caption", scale=0.4).save("other.safetensors")
    before = (folder / "x.partial.h5").read_bytes()
    result = vqtool("sample", *RUN, *arguments, "-o", "x.h5", "--resume")
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert f"error: x.partial.h5: {message}" in line
    assert "start anew with --force" in line
    assert (folder / "x.partial.h5").read_bytes() == before
    assert not (folder / "x.h5").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("x.h5", "x.partial.h5: no earlier run is there to go on with: start without --resume"),
        ("-", "--resume goes on with a file"),
        ("bad.h5", "bad.partial.h5: token grids (HDF5) were expected"),
        ("two.h5", "two.partial-0-of-2.h5: a run of another number of processes is there"),
    ],
)
def test_what_cannot_be_gone_on_with_is_said_in_one_line(folder, vqtool, output, message):
    (folder / "bad.partial.h5").write_text("my notes")
    (folder / "two.partial-0-of-2.h5").write_bytes(b"")
    result = vqtool("sample", *RUN, "-o", output, "--resume")
    assert (result.code, result.data) == (1, b"")
    assert message in error_lines(result.err)[0]
    assert (folder / "bad.partial.h5").read_text() == "my notes"


def launch(*arguments):
    done = run_in_two("vqtool", "sample", *arguments)
    assert done.returncode == 0, done.stderr.decode()


def test_two_processes_go_on_with_what_each_has_kept(folder, vqtool):
    vqtool("sample", *RUN, "-o", "whole.h5")
    header, whole = read_grids("whole.h5")
    for rank, rows in ((0, slice(0, 20)), (1, slice(20, 27))):  # of 20 each
        with Journal(folder / f"x.partial-{rank}-of-2.h5", header) as writer:
            writer.write(whole[rows])
    launch(*RUN, "-o", "x.h5", "--resume")
    assert datasets("x.h5") == datasets("whole.h5")
    assert list(folder.glob("*partial*")) == []


HEADER = GridHeader(4, (1, 2), (8, 16), "0123456789abcdef", "builtin", "crop", ({"step": "sample", "seed": 1},))


def batch_of(*numbers):
    return GridBatch(np.array(numbers, np.uint8)[:, None].repeat(2, 1)[:, None], [str(n) for n in numbers])


@pytest.mark.parametrize("cut", [0, 1, 63, 500, 10**9])
def test_a_partial_file_cut_anywhere_is_gone_on_with_after_its_last_whole_chunk(tmp_path, cut):
    ends = []
    with Journal(tmp_path / "x.partial.h5", HEADER) as writer:
        for number in range(3):
            writer.write(batch_of(number, number))
            ends.append(os.path.getsize(tmp_path / "x.partial.h5"))
    os.truncate(tmp_path / "x.partial.h5", min(ends[1] + cut, ends[2]))
    with resumable_writer(tmp_path / "x.h5", HEADER, resume=True) as writer:
        assert writer.num_grids == (6 if cut > 10**6 else 4)
        for number in range(writer.num_grids // 2, 3):
            writer.write(batch_of(number, number))
    assert read_grids(tmp_path / "x.h5")[1].ids == ["0", "0", "1", "1", "2", "2"]


def test_a_partial_file_torn_in_its_first_chunk_is_begun_anew(tmp_path):
    with Journal(tmp_path / "x.partial.h5", HEADER) as writer:
        writer.write(batch_of(1))
    os.truncate(tmp_path / "x.partial.h5", 100)
    with resumable_writer(tmp_path / "x.h5", HEADER, resume=True) as writer:
        assert writer.num_grids == 0
        writer.write(batch_of(2, 3))
    assert read_grids(tmp_path / "x.h5")[1].ids == ["2", "3"]


def test_of_two_copies_started_at_once_one_succeeds_and_the_other_says_who_writes(folder):
    """Each of them may be first; the file is whole in any case."""
    for _ in range(3):
        copies = [start("sample", *RUN, "-o", "x.h5", "--force", stderr=subprocess.PIPE) for _ in range(2)]
        errors = [copy.communicate(timeout=120)[1].decode() for copy in copies]
        codes = sorted(copy.returncode for copy in copies)
        if codes == [0, 1]:
            (line,) = [line for text in errors for line in error_lines(text)]
            assert re.search(r"x\.h5: process \d+ on .* is writing it", line)
        else:
            assert codes == [0, 0]  # one had ended before the other began
        assert len(read_grids("x.h5")[1]) == 40
        assert sorted(path.name for path in folder.iterdir()) == ["prior.safetensors", "x.h5"]


def test_a_journal_that_somebody_removes_or_replaces_is_an_error(tmp_path):
    for what in ("removed", "replaced"):
        with pytest.raises(VqtoolError, match=r"x\.partial\.h5: is gone or another's"):
            lose_journal(tmp_path, what)
        assert not (tmp_path / "x.h5").exists()
        (tmp_path / "x.partial.h5").unlink(missing_ok=True)


def lose_journal(folder, what):
    with resumable_writer(folder / "x.h5", HEADER) as writer:
        writer.write(batch_of(1, 2))
        (folder / "x.partial.h5").unlink()
        if what == "replaced":
            (folder / "x.partial.h5").write_bytes(b"other")


def test_a_file_that_appears_during_a_run_is_kept_and_so_are_the_grids(tmp_path):
    def run(**how):
        with resumable_writer(tmp_path / "x.h5", HEADER, **how) as writer:
            if not writer.num_grids:
                writer.write(batch_of(1, 2))
                (tmp_path / "x.h5").write_bytes(b"theirs")

    with pytest.raises(VqtoolError, match=r"x\.h5: (exists|appeared)"):
        run()
    assert (tmp_path / "x.h5").read_bytes() == b"theirs"
    run(resume=True)
    assert read_grids(tmp_path / "x.h5")[1].ids == ["1", "2"]


def test_outputs_of_similar_names_have_journals_of_their_own(tmp_path):
    for name in ("lr0.01", "lr0.001"):
        with contextlib.suppress(KeyboardInterrupt), resumable_writer(tmp_path / name, HEADER) as writer:
            writer.write(batch_of(1))
            raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr0.001.partial.h5", "lr0.01.partial.h5"]


def test_an_output_that_is_a_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.h5").symlink_to("disk/real.h5")
    with resumable_writer(tmp_path / "x.h5", HEADER) as writer:
        writer.write(batch_of(1, 2))
    assert (tmp_path / "x.h5").is_symlink()
    assert read_grids(tmp_path / "disk" / "real.h5")[1].ids == ["1", "2"]


def test_a_journal_that_could_not_be_begun_leaves_nothing_to_go_on_with(tmp_path):
    path = tmp_path / "x.partial.h5"

    def begin():
        with Journal(path, HEADER):
            path.touch()  # what a full disk lets through
            raise VqtoolError("no room")

    with pytest.raises(VqtoolError, match="no room"):
        begin()
    assert not path.exists()
