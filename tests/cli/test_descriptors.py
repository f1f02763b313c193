"""Standard input, output and error closed or full: no message in the data, no traceback, and finished work counts."""

import sys
from pathlib import Path

import pytest
from support.commands import error_lines, shell, write_pictures

from vqtool.cli import main as cli
from vqtool.cli.main import COMMANDS


@pytest.fixture(scope="module")
def work(tmp_path_factory, tokenizer_path):
    """A folder with imgs/ and tok.h5, 4 grids."""
    folder = tmp_path_factory.mktemp("work")
    write_pictures(folder / "imgs", 4)
    result = shell("$vqtool encode imgs -t $t --size 16 -o tok.h5", folder, t=tokenizer_path)
    assert result.code == 0, result.err
    return folder


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$vqtool cat tok.h5 -o $o >&-", 0),
        ("$vqtool cat tok.h5 -o $o <&-", 0),
        ("$vqtool cat tok.h5 -o $o 2>&-", 0),
        ("$vqtool cat tok.h5 -o $o >&- 2>&- <&-", 0),
        ("$vqtool cat tok.h5 -o $o 2>/dev/full", 0),
        ("$vqtool encode imgs -t $t --size 16 -o $o 2>&-", 0),
        ("$vqtool info tok.h5 >&-", 1),
        ("$vqtool info tok.h5 2>&-", 0),
        ("$vqtool cat tok.h5 -o - >&-", 1),
        ("$vqtool info tok.h5 >/dev/full", 1),
        ("$vqtool --version >&-", 1),
        ("$vqtool --help >&-", 1),
        ("$vqtool --help >/dev/full", 1),
        ("$vqtool sample --help >/dev/full", 1),
        ("$vqtool info none.h5 2>/dev/full", 1),
    ],
)
def test_a_closed_or_full_descriptor_fails_what_needs_it_and_nothing_else(work, tmp_path, tokenizer_path, line, code):
    output = tmp_path / "out.h5"
    result = shell(line, work, o=output, t=tokenizer_path)
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert "Exception ignored" not in result.err
    if code and "2>" not in line:
        (error,) = error_lines(result.err)
        assert error.startswith("error: standard output: cannot be written: ")
    assert not ("$o" in line and code == 0) or output.read_bytes()[:8] == b"\x89HDF\r\n\x1a\n"


GROUP = ("apply-map", "finetune", "prune", "refit", "remap", "transplant", "usage")


@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"codebook {name}" for name in GROUP)])
def test_help_that_cannot_be_written_is_one_line(monkeypatch, capsysbinary, command):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "argv", ["vqtool", *command.split(), "--help"])
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 1
    assert capsysbinary.readouterr().err == b"error: standard output: cannot be written: No space left on device\n"


def test_no_message_reaches_the_data_when_stderr_is_closed(work):
    result = shell("$vqtool head -n 2 tok.h5 2>&- | $vqtool info - | grep -c 'grids *2 of'", work)
    assert (result.code, result.out) == (0, "1\n")


def test_help_into_a_closed_pipe_is_quiet(work):
    result = shell("$vqtool --help | true; $vqtool sample --help | head -1", work)
    assert result.err == ""


def test_a_flag_of_an_earlier_version_works_and_is_told(vqtool, tmp_path):
    result = vqtool("inpaint", tmp_path / "none.h5", "--mask", "left-half", "--holes", "-o", tmp_path / "x.h5")
    assert "warning: --holes is called --masked now" in result.err
    assert "No such option" not in result.err


def test_a_late_or_early_ctrl_c_shows_no_traceback(work):
    line = "for t in .4 .5 .6; do timeout -s INT $t $vqtool cat tok.h5 -o /dev/null; done"
    assert "Traceback" not in shell(line, work).err
