"""One writer per output: what a lock keeps out, who is told what, and that dead processes hold nothing."""

import errno
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from vqtool.errors import VqtoolError
from vqtool.locks import claim, claims, is_held, lock_path, locked
from vqtool.outputs import atomic_path

HOLDER = """
import sys, time
from vqtool.locks import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of x.h5."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "x.h5")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def enter(path):
    with locked(path):
        pass


def test_the_second_is_refused_with_process_and_host_of_the_first(tmp_path, holder):
    path = tmp_path / "x.h5"
    with pytest.raises(VqtoolError, match=rf"x\.h5: process {holder.pid} on {socket.gethostname()} is writing it"):
        enter(path)
    enter(tmp_path / "y.h5")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_frees_its_lock_and_the_next_removes_the_file(tmp_path, holder, number):
    holder.send_signal(number)
    holder.wait()
    assert lock_path(tmp_path / "x.h5").exists()
    enter(tmp_path / "x.h5")
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_one_process_nest_and_a_folder_stands_for_its_files(tmp_path):
    with locked(tmp_path / "x"):
        enter(tmp_path / "x")
        assert is_held(tmp_path / "x")
        assert is_held(tmp_path / "x" / "00.png")
        assert not is_held(tmp_path / "y")
    assert not is_held(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_link_and_its_target_are_one_output(tmp_path, holder):
    (tmp_path / "link.h5").symlink_to("x.h5")
    with pytest.raises(VqtoolError, match=r"link\.h5: process"):
        enter(tmp_path / "link.h5")


def test_claims_last_to_the_end_of_their_block(tmp_path):
    assert not claim(tmp_path / "x")
    assert not is_held(tmp_path / "x")
    with claims():
        assert claim(tmp_path / "x")
        assert not claim(tmp_path / "x")
        assert is_held(tmp_path / "x")
    assert not is_held(tmp_path / "x")


@pytest.mark.parametrize("there", [False, True])
def test_an_interruption_says_what_became_of_each_output(tmp_path, there):
    def interrupted(write):
        with claims():
            claim(path)
            if write:
                with atomic_path(path, force=True) as temporary:
                    temporary.write_text("new")
            raise KeyboardInterrupt

    path = tmp_path / "x.h5"
    if there:
        path.write_text("old")
    for write, what in ((False, "is as it was" if there else "was not written"), (True, "was written")):
        with pytest.raises(KeyboardInterrupt, match=rf"x\.h5 {what}$"):
            interrupted(write)


def test_a_lock_file_that_is_removed_while_it_is_opened_is_made_again(tmp_path, monkeypatch):
    """The holder removes its file before it lets go: who opened it in between has to notice."""
    import vqtool.locks

    lock, opened = vqtool.locks._lock, []

    def slow(descriptor):
        lock(descriptor)
        if not opened:
            lock_path(tmp_path / "x").unlink()
        opened.append(descriptor)

    monkeypatch.setattr(vqtool.locks, "_lock", slow)
    with locked(tmp_path / "x"):
        assert lock_path(tmp_path / "x").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert len(opened) == 2


WINDOWS = """
import fcntl, sys, types

def locking(descriptor, mode, count):  # locks so many bytes from where the file stands
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, 1)

sys.modules["fcntl"], sys.modules["msvcrt"] = None, types.SimpleNamespace(locking=locking, LK_NBLCK=2)
"""


def test_without_fcntl_a_byte_is_locked_and_the_name_can_be_read(tmp_path):
    """With a stand-in for the C library of Windows."""
    path = tmp_path / "x.h5"
    command = [sys.executable, "-c", WINDOWS + HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"locked\n"
        second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert f"x.h5: process {first.pid} on {socket.gethostname()} is writing it" in second.stderr
        first.kill()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as third:
        assert third.stdout.readline() == b"locked\n"
        third.kill()


def test_where_there_are_no_locks_it_says_so_and_goes_on(tmp_path, monkeypatch):
    import vqtool.locks

    def fail(descriptor):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(vqtool.locks, "_lock", fail)
    with pytest.warns(UserWarning, match="no lock can be had here"), ExitStack() as stack:
        stack.enter_context(locked(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_takes_the_name_from_a_lock_but_not_the_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with locked(tmp_path / "out.h5"):
        monkeypatch.undo()
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "out.h5")]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "another process is writing it" in run.stderr
