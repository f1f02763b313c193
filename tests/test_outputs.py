"""Where results go: nothing is replaced unasked, links are followed, and side files belong to one output."""

import errno
import os
from pathlib import Path

import pytest

from vqtool.errors import VqtoolError
from vqtool.locks import claims
from vqtool.outputs import atomic_path, refuse_existing, side_file


def write(path, text, **how):
    with atomic_path(path, **how) as temporary:
        temporary.write_text(text)


def write_late(path, **how):
    with atomic_path(path, **how) as temporary:
        temporary.write_text("ours")
        path.write_text("theirs")


def test_a_file_that_appears_meanwhile_is_kept_unless_forced(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(VqtoolError, match=r"x: appeared while it was being made, and is kept; use `force`"):
        write_late(path)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]
    write_late(path, force=True)
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_file_systems_without_links_get_files_too(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    write(tmp_path / "x", "ours")
    assert (tmp_path / "x").read_text() == "ours"


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/x")
    write(tmp_path / "link", "new")
    with pytest.raises(VqtoolError, match="link: exists"):
        write(tmp_path / "link", "newer")
    write(tmp_path / "link", "newer", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "x").read_text() == "newer"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["x"]
    (tmp_path / "astray").symlink_to("gone/x")
    with pytest.raises(VqtoolError, match=r"astray: the folder .*gone does not exist"):
        write(tmp_path / "astray", "new")


def test_what_killed_runs_left_of_an_output_is_removed_by_the_next_command_alone(tmp_path):
    names = [".x.0123abcd.tmp", ".y.0123abcd.tmp", ".x.tmp", ".xx.0123abcd.tmp"]
    for name in names:
        (tmp_path / name).write_text("torn")
    refuse_existing(tmp_path / "x", force=False)
    assert (tmp_path / names[0]).exists()
    with claims():
        refuse_existing(tmp_path / "x", force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("x.h5", "x.log"),
        ("x.safetensors", "x.log"),
        ("lr0.01", "lr0.01.log"),
        ("lr0.001", "lr0.001.log"),
        ("lr0.01.safetensors", "lr0.01.log"),
        ("x", "x.log"),
    ],
)
def test_side_files_carry_the_whole_name(output, name):
    assert side_file(Path("folder") / output, ".log") == Path("folder") / name


def test_side_files_of_earlier_versions_are_found(tmp_path):
    (tmp_path / "lr0.log").touch()
    assert side_file(tmp_path / "lr0.01", ".log") == tmp_path / "lr0.log"
    (tmp_path / "lr0.01.log").touch()
    assert side_file(tmp_path / "lr0.01", ".log") == tmp_path / "lr0.01.log"
