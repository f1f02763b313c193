"""Shards: files as in one piece bit for bit, whoever makes them; killed, resumed and changed ones; bad patterns."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from support.commands import error_lines, write_pictures
from support.sources import make_tar
from support.two import run_in_two

import vqtool as vqtool_package
from vqtool import artifacts, distributed
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.grids import concatenate, read_grids
from vqtool.grids.batch import SHARD_CONTENT
from vqtool.grids.resume import Journal
from vqtool.images import SourceOptions, find_images, read_images
from vqtool.images.sources import tars
from vqtool.locks import lock_path
from vqtool.tally import Tally
from vqtool.tokenizers import _shard
from vqtool.tokenizers.shards import encode_shard, encode_shards

CROP = SourceOptions(fit="crop")
VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_ARRAY_TASK_ID")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A current folder with s0.tar to s4.tar of 3 pictures each, with captions; nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for shard in range(5):
        write_shard(shard)
    return tmp_path


def write_shard(shard, *, seed=None, name=None):
    folder = write_pictures(Path(f"p{shard}-{seed}"), 3, seed=shard if seed is None else seed)
    files = {f"{shard}-{each.stem}.png": each.read_bytes() for each in sorted(folder.iterdir())}
    texts = {f"{Path(each).stem}.txt": f"number {each}" for each in files}
    return make_tar(Path(name or f"s{shard}.tar"), files | texts)


@pytest.fixture
def encode(work, tokenizer_path):
    """Run `encode_shards` of the five tars with the tiny tokenizer."""

    def run(sources=("s*.tar",), output="tok-{shard:03d}.h5", **how):
        return encode_shards(list(sources), output, tokenizer_path, image_size=(16, 16), **how)

    return run


def rows(paths):
    batches = [read_grids(path)[1] for path in sorted(paths)]
    return [
        (each.tokens[row].tolist(), each.ids[row], each.captions[row]) for each in batches for row in range(len(each))
    ]


def whole(tokenizer_path):
    vqtool_package.encode([f"s{n}.tar" for n in range(5)], "whole.h5", tokenizer_path, image_size=(16, 16))
    return rows([Path("whole.h5")])


def made(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("tok*.h5")}


@pytest.mark.parametrize("num", [1, 2, 3, 7])
def test_the_files_of_all_parts_are_the_encoding_in_one_piece(encode, work, tokenizer_path, num):
    done = [encode(partial=f"{number}/{num}", batch_size=number) for number in range(1, num + 1)]
    assert sum(each.num_shards for each in done) == 5
    assert sum(each.num_grids for each in done) == 15
    assert [path.name for path in sorted(work.glob("tok*"))] == [f"tok-{number:03d}.h5" for number in range(5)]
    assert rows(work.glob("tok*")) == whole(tokenizer_path)


@pytest.mark.parametrize(("per_file", "sizes"), [(4, [4, 4, 4, 3]), (15, [15]), (100, [15])])
def test_so_many_images_a_file_are_the_encoding_in_one_piece(encode, work, tokenizer_path, per_file, sizes):
    for part in ("2/2", "1/2"):
        encode(partial=part, per_file=per_file)
    assert [len(read_grids(path)[1]) for path in sorted(work.glob("tok*"))] == sizes
    assert rows(work.glob("tok*")) == whole(tokenizer_path)


def test_a_run_that_goes_on_makes_what_is_missing_and_leaves_what_is_complete(encode, work, tokenizer_path):
    encode(partial="1/2")
    before = made(work)
    again = encode(resume=True)
    assert (again.num_shards, again.num_before, again.num_failed, again.num_grids) == (5, 2, 0, 15)
    assert before.items() <= made(work).items()
    assert rows(work.glob("tok*")) == whole(tokenizer_path)
    assert encode(resume=True).num_before == 5


def test_complete_files_are_known_by_the_stamp_of_their_shard_without_reading_it(encode, monkeypatch):
    encode()
    monkeypatch.setattr(_shard, "_find", None)
    assert encode(resume=True).num_before == 5


def test_what_a_killed_process_left_beside_a_complete_file_is_removed(encode, work):
    encode(partial="1/5")
    for name in (".tok-000.h5.lock", ".tok-000.h5.0123abcd.tmp", ".tok-000.partial.h5.lock", "tok-000.partial.h5"):
        Path(name).write_text("process 1 on another")
    assert encode(partial="1/5", resume=True).num_before == 1
    assert [path.name for path in work.glob("*tok*")] == ["tok-000.h5"]


def test_a_shard_from_a_pipe_is_that_on_disk(encode, work, monkeypatch):
    encode(["s0.tar"], "disk-{shard}.h5")
    for more in ({}, {"options": CROP}):
        with Path("s0.tar").open(errors="replace") as pipe, monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", pipe)
            encode(["-"], "tok-{shard}.h5", force=True, **more)
        assert rows([Path("tok-0.h5")]) == rows([Path("disk-0.h5")])
    with pytest.raises(VqtoolError, match=r"standard input: is read once, .* say `fit`"):
        encode(["-", "s1.tar"], "both-{shard}.h5")


@pytest.mark.parametrize("name", ["pipe.tar", "pipe"])
def test_a_named_pipe_is_a_shard_or_a_source_like_the_file_on_disk(encode, work, tokenizer_path, name):
    encode(["s0.tar"], "disk-{shard}.h5")
    os.mkfifo(name)
    for output, make in (
        ("tok-0.h5", lambda: encode([name], "tok-{shard}.h5")),
        ("tok.h5", lambda: vqtool_package.encode([name], "tok.h5", tokenizer_path, image_size=(16, 16))),
    ):
        with subprocess.Popen(["cp", "s0.tar", name]) as writer:
            make()
        assert writer.returncode == 0
        assert rows([Path(output)]) == rows([Path("disk-0.h5")])
    with subprocess.Popen(["cp", tokenizer_path, name]), pytest.raises(FormatError, match=f"{name}: not a whole tar"):
        vqtool_package.encode([name], "tok.h5", tokenizer_path, image_size=(16, 16), force=True)


def test_a_copy_of_a_shard_is_known_by_its_content(encode, work):
    encode()
    before = made(work)
    os.utime("s3.tar", (1, 1))
    assert encode(resume=True).num_before == 5
    assert made(work) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: write_shard(3, seed=9), "tok-003.h5: a run with other bytes of images"),
        (lambda: write_shard(7, seed=3, name="s3.tar"), "tok-003.h5: a run with other `images`"),
        (lambda: Path("s3.tar").write_bytes(b""), "s3.tar: "),
        (lambda: Path("s3.tar").write_bytes(Path("s3.tar").read_bytes()[:2000]), "s3.tar: "),
    ],
)
def test_a_shard_that_was_changed_or_damaged_is_told_and_the_others_go_on(encode, work, change, message):
    encode(partial="4/5")
    encode(partial="1/5")
    before = read_grids("tok-003.h5")[1].tokens
    change()
    told = []
    found = encode(resume=True, on_error=lambda item, error: told.append(str(error)))
    assert (found.num_before, found.num_failed, found.num_grids) == (1, 1, 12)
    assert len(told) == 1
    assert told[0].startswith(message)
    assert np.array_equal(read_grids("tok-003.h5")[1].tokens, before)
    with pytest.raises((MismatchError, FormatError), match=r"tok-003|s3\.tar"):
        encode(resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": SourceOptions(captions="none", fit="crop")}, "a run with `options`"),
        ({"options": SourceOptions(fit="stretch")}, "a run with `preprocessing`"),
        ({"image_size": (24, 24)}, "a run with images of 16x16, but now it is 24x24"),
    ],
)
def test_files_of_other_settings_are_not_taken(work, tokenizer_path, settings, message):
    usual = {"image_size": (16, 16), "options": CROP}
    encode_shard("s1.tar", tokenizer_path, "tok.h5", **usual)
    with pytest.raises(MismatchError, match=message):
        encode_shard("s1.tar", tokenizer_path, "tok.h5", **usual | settings, resume=True)


def test_files_of_another_version_or_of_a_tokenizer_that_was_moved_are_complete(
    encode, work, tokenizer_path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "__version__", "0.1.9")
        encode(partial="1/2")
    assert read_grids("tok-001.h5")[0].history[-1]["version"] == "0.1.9"
    before = made(work)
    shutil.copyfile(tokenizer_path, "moved.safetensors")
    how = {"image_size": (16, 16), "resume": True}
    for stamp in (True, False):
        if not stamp:
            os.utime("s0.tar", (1, 1))  # its bytes are compared
        assert (
            encode_shards(["s*.tar"], "tok-{shard:03d}.h5", "moved.safetensors", partial="1/2", **how).num_before == 2
        )
    assert made(work) == before
    monkeypatch.setattr(artifacts, "TOKENS", 2)  # a version that makes others
    with pytest.raises(MismatchError, match=r"tok-000\.h5: a run with `tokens` not given, but now it is 2"):
        encode(partial="1/2", resume=True)


def test_a_damaged_file_is_made_anew(encode, work, tokenizer_path):
    encode()
    Path("tok-002.h5").write_bytes(Path("tok-002.h5").read_bytes()[:3000])
    with pytest.warns(match="tok-002.h5: truncated: .*; it is made anew"):
        assert encode(resume=True).num_before == 4
    assert rows(work.glob("tok*")) == whole(tokenizer_path)


def test_a_killed_process_loses_no_complete_shard_and_goes_on_in_the_middle_of_one(work, tokenizer_path):
    line = ["encode", "s*.tar", "--size", 16, "-t", tokenizer_path, "-o", "tok-{shard:03d}.h5", "-b", 1]
    code = (
        "import os, sys, vqtool.grids.resume as resume\n"
        "resume.HOLD_SECONDS = (0.0, 0.0)\n"
        "send, num = resume.Journal.write, []\n"
        "def write(self, batch):\n"
        "    send(self, batch)\n"
        "    num.append(1)\n"
        "    if len(num) == 5:\n"
        "        os.kill(os.getpid(), 9)\n"
        "resume.Journal.write = write\n"
        "from vqtool.cli.main import main\n"
        "main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *map(str, line)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in work.glob("tok*")) == ["tok-000.h5", "tok-001.partial.h5"]
    assert len(read_journal_rows(work / "tok-001.partial.h5")) == 2
    before = made(work)["tok-000.h5"]
    again = encode_shards(["s*.tar"], line[7], tokenizer_path, image_size=(16, 16), resume=True)
    assert (again.num_before, again.num_grids) == (1, 15)
    assert made(work)["tok-000.h5"] == before
    assert sorted(path.name for path in work.glob("*tok*")) == [f"tok-{number:03d}.h5" for number in range(5)]
    assert rows(work.glob("tok*")) == whole(tokenizer_path)


def kill_at(monkeypatch, num):
    """Let the journal end after so many batches, each of which is there."""
    write, written = Journal.write, []

    def killed(self, batch):
        if len(written) == num:
            raise SystemExit(9)
        written.append(batch)
        write(self, batch)
        self.flush()

    monkeypatch.setattr(Journal, "write", killed)


@pytest.mark.parametrize("changed", [False, True])
def test_a_shard_that_was_killed_half_way_is_gone_on_with_unless_it_was_changed(encode, work, monkeypatch, changed):
    with monkeypatch.context() as patched:
        kill_at(patched, 2)
        with pytest.raises(SystemExit):
            encode(["s0.tar"], batch_size=1)
    assert [path.name for path in work.glob("tok*")] == ["tok-000.partial.h5"]
    written, write = [], Journal.write
    monkeypatch.setattr(Journal, "write", lambda self, batch: (written.extend(batch.ids), write(self, batch)))
    if changed:
        write_shard(0, seed=9)
    with pytest.warns(match="before that was changed") if changed else nullcontext():
        encode(["s0.tar"], resume=True, batch_size=1)
    assert written == (["0-00", "0-01", "0-02"] if changed else ["0-02"])
    encode(["s0.tar"], "fresh-{shard:03d}.h5")
    assert rows([Path("tok-000.h5")]) == rows([Path("fresh-000.h5")])
    said = [read_grids(path)[0].history[-1][SHARD_CONTENT] for path in ("tok-000.h5", "fresh-000.h5")]
    assert said[0] == said[1] == digest_of(item.origin.open().read() for item in find_images(["s0.tar"]))


def digest_of(images):
    total = hashlib.sha256()
    for data in images:
        total.update(len(data).to_bytes(8, "little") + data)
    return f"sha256:{total.hexdigest()}"


def test_each_picture_is_read_once_and_the_digest_is_of_all_bytes(encode, work, tokenizer_path, monkeypatch):
    good = {f"{n}.png": (Path("p0-None") / f"0{n}.png").read_bytes() for n in range(3)}
    make_tar(Path("x.tar"), {"0.png": good["0.png"], "1.png": b"no picture", "2.png": good["2.png"]})
    read, read_span = [], tars.TarFile.read
    monkeypatch.setattr(tars.TarFile, "read", lambda self, span: (read.append(span), read_span(self, span))[1])
    tally = Tally()
    encode_shard("x.tar", tokenizer_path, "tok-000.h5", image_size=(16, 16), on_error=tally, options=CROP)
    assert len(read) == len(set(read)) == 3
    assert (tally.num_images, len(tally.skipped)) == (2, 1)
    expected = digest_of([good["0.png"], b"no picture", good["2.png"]])
    assert read_grids("tok-000.h5")[0].history[-1][SHARD_CONTENT] == expected
    os.utime("x.tar", (1, 1))
    assert encode(["x.tar"], on_error=Tally(), options=CROP, resume=True).num_before == 1
    pixels = read_images("p0-None").images.transpose(0, 2, 3, 1)
    np.save("x.npy", pixels)
    encode(["x.npy"], "array-{shard:03d}.h5", options=CROP)
    assert read_grids("array-000.h5")[0].history[-1][SHARD_CONTENT] == digest_of(map(np.ndarray.tobytes, pixels))


def read_journal_rows(path):
    from vqtool.grids.writer import read_journal

    with path.open("rb") as file:
        return list(chain.from_iterable(batch.ids for batch, _ in read_journal(file, "journal")))


def test_ranks_share_the_shards_without_waiting_for_each_other(vqtool, work, tokenizer_path):
    said = []
    for rank in ("1", "0"):  # one after the other: whoever waits for the other waits for ever
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("WORLD_SIZE", "2")
            environment.setenv("RANK", rank)
            result = vqtool("encode", "s{0..4}.tar", "--size", "16", "-t", tokenizer_path, "-o", "tok-{shard}.h5")
        assert result.code == 0
        said.append(result.err)
    assert "shards 2 to 4 of 5, part 2/2" in said[0]
    assert "shards 0 to 1 of 5, part 1/2" in said[1]
    assert rows(work.glob("tok*")) == whole(tokenizer_path)


def test_two_processes_at_once_share_the_shards(work, tokenizer_path):
    line = ("encode", "s*.tar", "--size", 16, "-t", tokenizer_path, "-o", "tok-{shard}.h5")
    result = run_in_two("vqtool", *line)
    assert result.returncode == 0, result.stderr
    assert rows(work.glob("tok*")) == whole(tokenizer_path)


def test_another_process_that_writes_the_same_shard_stops_the_run(encode, work):
    told = []
    with lock_path("tok-001.h5").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on another")
        lock.flush()
        with pytest.raises(VqtoolError, match=r"tok-001\.h5: process 1 on another is writing it"):
            encode(on_error=lambda item, error: told.append(error))
    assert not told


@pytest.mark.parametrize(
    ("environment", "partial", "part"),
    [
        ({}, None, "1/1"),
        ({}, "3/8", "3/8"),
        ({"RANK": "2", "WORLD_SIZE": "4"}, None, "3/4"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "2/3", "4/6"),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, None, "3/4"),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, "1/2", "1/2"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None, "1/1"),  # the batch script itself, not a step
        ({"SLURM_ARRAY_TASK_ID": "7", "MIN": "1", "MAX": "9", "COUNT": "5", "STEP": "2"}, None, "4/5"),
        ({"SLURM_ARRAY_TASK_ID": "0", "MIN": "0", "MAX": "1", "COUNT": "2", "STEP": "1", "RANK": "1", "WORLD_SIZE": "3"}
        , None, "2/6"),
    ],
)  # fmt: skip
def test_the_part_of_a_process_is_what_its_launcher_says(monkeypatch, work, environment, partial, part):
    for name, value in environment.items():
        short = name in ("MIN", "MAX", "COUNT", "STEP")
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}" if short else name, value)
    assert str(distributed.own_part(partial)) == part


def test_the_parts_of_parts_cover_all_once():
    inner = [distributed.Part(n, 3).of(distributed.Part(m, 4)) for n in (1, 2, 3) for m in (1, 2, 3, 4)]
    assert sorted(number for part in inner for number in part.range(50)) == list(range(50))


def test_an_array_with_gaps_is_refused(monkeypatch, encode):
    numbers = {"ID": "3", "MIN": "3", "MAX": "7", "COUNT": "2", "STEP": "1"}
    for name, value in numbers.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(VqtoolError, match="the SLURM array has 2 members from 3 to 7"):
        encode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "tok.h5", "--per-file", "4"), "--output tok.h5: one name for each shard is expected, with {shard}"),
        (("-o", "tok.h5", "--partial", "1/2"), "--output tok.h5: one name for each shard"),
        (("-o", "tok-{number}.h5"), "--output tok-{number}.h5: one name for each shard"),
        (("-o", "tok-{shard:x}.h5"), "--output tok-{shard:x}.h5: one name for each shard"),
        (("-o", "tok-{shard}-{shard.h5"), "--output tok-{shard}-{shard.h5: one name for each shard"),
        (("-o", "tok-{shard}.h5", "--per-file", "0"), "--per-file 0: how many images go into a file is expected"),
        (("-o", "tok-{shard}.h5", "--partial", "0/2"), "--partial 0/2: the number of the part"),
        (("-o", "tok-{shard}.h5", "--partial", "3/2"), "--partial 3/2: the number of the part"),
        (("-o", "nowhere/tok-{shard}.h5"), "nowhere/tok-0.h5: the folder nowhere does not exist"),
        (("-o", "tok-{shard}.tar"), "tok-0.tar: token grids would be written there"),
    ],
)
def test_bad_patterns_are_one_clear_line(vqtool, work, tokenizer_path, arguments, message):
    result = vqtool("encode", "s*.tar", "--size", "16", "-t", tokenizer_path, *arguments)
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert line.startswith(f"error: {message}")
    assert not list(work.glob("tok*"))


def test_existing_files_are_kept_without_force_and_nothing_is_read(encode, work, monkeypatch):
    encode(partial="5/5")
    monkeypatch.setattr(_shard, "_find", None)
    with pytest.raises(VqtoolError, match=r"tok-004\.h5: exists; `resume` goes on"):
        encode()


def test_one_shard_is_not_written_over_a_file_without_force(work, tokenizer_path):
    Path("tok.h5").write_text("mine")
    with pytest.raises(VqtoolError, match=r"tok\.h5: exists; use `force`"):
        encode_shard("s1.tar", tokenizer_path, "tok.h5", image_size=(16, 16))
    assert Path("tok.h5").read_text() == "mine"
    assert encode_shard("s1.tar", tokenizer_path, "tok.h5", image_size=(16, 16), force=True) == 3


def test_the_command_says_what_was_done_and_exits_with_1_if_a_shard_is_bad(vqtool, work, tokenizer_path):
    Path("s2.tar").write_bytes(b"no tar at all" * 100)
    line = ("encode", "s*.tar", "--size", "16", "-t", tokenizer_path, "-o", "tok-{shard}.h5")
    result = vqtool(*line)
    assert result.code == 1
    assert "shards 0 to 4 of 5, part 1/1" in result.err
    assert "warning: skipped s2.tar: not a whole tar archive" in result.err
    assert "wrote 4 files; 1 shard left out: 12 grids in all" in result.err
    assert "12 pictures: captions for 12, no labels; 1 file skipped (names above)" in result.err
    assert error_lines(result.err) == ["error: 1 bad input skipped; the rest is done"]
    write_shard(2)
    result = vqtool(*line, "--resume")
    assert result.code == 0
    assert "wrote 1 file; 4 files complete before: 15 grids in all" in result.err
    assert rows(work.glob("tok*")) == whole(tokenizer_path)


def test_one_fit_is_that_of_all_shards(work, tokenizer_path):
    make_tar(Path("s0.tar"), {"0.png": (write_pictures(Path("wide"), 1, size=(16, 64)) / "00.png").read_bytes()})
    with pytest.warns(match="white borders"):
        encode_shards(["s*.tar"], "tok-{shard}.h5", tokenizer_path, image_size=(16, 16))
    assert len({read_grids(path)[0].preprocessing for path in work.glob("tok*")}) == 1
    assert "white" in read_grids("tok-4.h5")[0].preprocessing


def test_a_folder_of_images_is_a_shard_and_what_is_said_of_it_counts(work, tokenizer_path):
    folder = write_pictures(Path("imgs"), 2)
    how = {"image_size": (16, 16), "options": CROP, "resume": True}
    assert encode_shard(folder, tokenizer_path, "tok.h5", **how) == 2
    assert encode_shard(folder, tokenizer_path, "tok.h5", **how) == 2
    (folder / "00.txt").write_text("a caption")
    with pytest.raises(MismatchError, match="other `images`"):
        encode_shard(folder, tokenizer_path, "tok.h5", **how)


def test_the_history_of_many_shards_is_one_record(encode, work):
    encode()
    with concatenate([str(path) for path in sorted(work.glob("tok*"))]) as joined:
        (record,) = joined.header.history
        assert (record["num"], record["shards"]) == (15, 5)
        twice = replace(joined.header, history=(record, record))
        assert json.loads(json.dumps(record)) == record
    with concatenate(["tok-000.h5", "tok-000.h5"]) as same:
        assert same.header.history == read_grids("tok-000.h5")[0].history
    assert twice.history[0] == record


def test_more_tars_are_read_than_may_be_open(work, monkeypatch):
    monkeypatch.setattr(tars, "MOST_OPEN", 2)
    items = find_images([f"s{number}.tar" for number in range(5)])
    opened = [
        each for each in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{each}").endswith(".tar")
    ]
    assert len(opened) == 2
    expected = {
        f"{shard}-0{n}": (Path(f"p{shard}-None") / f"0{n}.png").read_bytes() for shard in range(5) for n in range(3)
    }
    for order in (items, items[::-1], [*items[::3], *items[1::3]]):
        for item in order:
            assert item.origin.open().read() == expected[item.id]


def test_braces_and_globs_are_written_out(tmp_path, monkeypatch):
    from vqtool.inputs import expand

    monkeypatch.chdir(tmp_path)
    for name in ("b2", "b1", "{0..1}"):
        Path(name).touch()
    assert expand(["x-{08..11}.tar"]) == [f"x-{number:02d}.tar" for number in range(8, 12)]
    assert expand(["{a,b}{1..2}", "-"]) == ["a1", "a2", "b1", "b2", "-"]
    assert expand(["b*", "c*", Path("{0..1}"), "{,}"]) == ["b1", "b2", "c*", "{0..1}", "", ""]
