"""Every command that writes: one writer an output, links, names of other kinds of files, what killed runs left."""

import contextlib
import errno
import io
import os
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
from support.commands import error_lines
from support.writers import CASES, SMALL, make_inputs

from vqtool.cli import main as cli
from vqtool.cli.main import COMMANDS, FOLDERS
from vqtool.locks import _acquire, lock_path
from vqtool.tokenizers import SIZES

SIDE_FILES = (".log.jsonl", ".state.safetensors", ".preview.png")  # of an output that is locked
OTHER_KINDS = ("out.jpg", "out.zip", "out.tar.gz", "out.mp4", "sub/")
every_writer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.line.split(" -o ")[0].replace(" ", "_"))


class Full(io.StringIO):
    """As /dev/full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def run(line):
    sys.argv = ["vqtool", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        make_inputs(run)
    return folder


@pytest.fixture
def work(inputs, tmp_path, monkeypatch):
    """A folder with the inputs of all commands, to work in."""
    folder = tmp_path / "work"
    shutil.copytree(inputs, folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(SIZES, "vqvae-f8", type(SIZES["vqvae-f8"])(**{**vars(SIZES["vqvae-f8"]), **SMALL}))
    return folder


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_every_command_that_takes_an_output_is_among_them(vqtool):
    written = {re.match(r"eval (merge|compare)|\S+", case.line)[0] for case in CASES} | {"eval stats"}
    assert written == {name for name in COMMANDS if "--output" in vqtool(name, "--help").out} | {"codebook"}


@every_writer
def test_what_another_process_writes_is_refused_by_its_name_and_left_alone(work, vqtool, case):
    outputs = [Path(name) for name in case.outputs if not name.endswith(SIDE_FILES)]
    for output in outputs[:1] if case.in_turn else outputs:
        descriptor = _acquire(lock_path(output), str(output))
        before = names(work)
        for force in ([], ["--force"]):
            result = vqtool(*case.line.split(), *force)
            assert result.code == 1
            assert result.data == b""
            (line,) = error_lines(result.err)
            holder = rf"process {os.getpid()} on {re.escape(socket.gethostname())} is writing it"
            assert re.match(rf"error: {re.escape(str(output))}: {holder}", line)
            assert names(work) == before
        lock_path(output).unlink()
        os.close(descriptor)


@every_writer
@pytest.mark.parametrize("name", OTHER_KINDS)
def test_a_name_of_another_kind_of_file_or_a_folder_is_refused_and_nothing_is_made(work, vqtool, case, name):
    output, before = case.outputs[0], names(work)
    flag = next((flag for flag in ("--plot", "--report") if f"{flag} {output}" in case.line), "-o")
    if name.endswith("/") and case.line.split()[0] in FOLDERS:
        pytest.skip("writes folders")
    if case.in_turn:
        pytest.skip("is given a pattern: tests/tokenizers/test_shards.py")
    result = vqtool(*case.line.replace(f"{flag} {output}", f"{flag} {name}").split())
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert line.startswith(f"error: {name}: ")
    assert names(work) == before


@every_writer
def test_a_link_is_written_through_and_what_killed_runs_left_is_removed(work, vqtool, case):
    """Each output that is locked leads elsewhere; beside what it leads to lies a torn file of a run that was killed."""
    disk = work / "disk"
    disk.mkdir()
    links = [Path(name) for name in case.outputs if not name.endswith(SIDE_FILES)]
    for link in links:
        link.symlink_to(f"disk/other.{link.name}")
        if link.suffix:
            (disk / f".other.{link.name}.0123abcd.tmp").write_text("torn")
        else:
            (disk / f"other.{link.name}").mkdir()
    before = names(work)
    result = vqtool(*case.line.split())
    assert result.code == 0, result.err
    assert [path.name for path in sorted(disk.iterdir())] == [f"other.{link.name}" for link in sorted(links)]
    assert all(link.is_symlink() for link in links)
    for link in links:
        files = [path for path in link.rglob("*") if path.is_file()] if link.is_dir() else [link]
        assert files
        assert all(path.stat().st_size > 0 for path in files)
    new = {name for name in set(names(work)) - set(before) if "/" not in name}
    assert new <= {name for name in case.outputs if name.endswith(SIDE_FILES)}


@every_writer
def test_what_went_to_a_file_is_done_though_no_message_can_be_read(work, monkeypatch, case):
    """Standard output and error are full; only `codebook usage` has data for standard output."""
    monkeypatch.setattr(sys, "argv", ["vqtool", *case.line.split()])
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", Full())
    with pytest.raises(SystemExit) as stop:
        cli.main()
    monkeypatch.undo()
    assert (stop.value.code or 0) == ("codebook usage" in case.line)
    assert all((work / name).exists() for name in case.outputs)
