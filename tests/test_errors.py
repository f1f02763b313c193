"""Warnings of the library, and text from files that must not control a terminal."""

import re

import pytest
from support.commands import write_pictures
from support.editing_run import save_prior

from vqtool.errors import VqtoolWarning, count_text, printable, warn


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain café 猫 🙂", "plain café 猫 🙂"),
        ("\x1b]0;owned\x07\x1b[31m.png", r"\x1b]0;owned\x07\x1b[31m.png"),
        ("a\nerror: b\r", r"a\nerror: b\r"),
        ("a\u202egnp.exe\u2028", r"a\u202egnp.exe\u2028"),
        ("\udce9\x9b", r"\udce9\x9b"),
        ("[red]x[/red]", "[red]x[/red]"),
    ],
)
def test_what_could_control_a_terminal_is_shown_escaped(text, shown):
    assert printable(text) == shown


def test_a_warning_is_one_line_whatever_the_names_in_it():
    with pytest.warns(VqtoolWarning) as caught:
        warn("x\n\x1b[2J.png: left out")
    assert str(caught[0].message) == r"x\n\x1b[2J.png: left out"


@pytest.mark.parametrize(
    ("num", "shown"),
    [(1, "1 grid"), ("1", "1 grid"), (0, "0 grids"), (2, "2 grids"), (1.5, "1.5 grids"), ("1 to 4", "1 to 4 grids")],
)
def test_one_thing_is_not_several(num, shown):
    assert count_text(num, "grid") == shown


def test_no_command_says_1_of_several(vqtool, tmp_path, monkeypatch, tokenizer_path):
    """All that commands tell of one picture, one grid and one call."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 1)
    save_prior("prior.safetensors", tokenizer_path, "absorbing", "class")
    told = []
    for line in (
        f"encode imgs --size 16 -t {tokenizer_path} -o tok.h5",
        "cat tok.h5 -o again.h5",
        "head tok.h5 -n 1 -o first.h5",
        "decode tok.h5 -o out",
        "show tok.h5 -o sheet.png",
        "sample -n 1 --steps 1 --label bee -o drawn.h5",
        "sample -n 1 --steps 1 --label bee --dry-run -o other.h5",
        "inpaint drawn.h5 --mask center --steps 1 -n 1 --label bee -o painted.h5",
        "eval drawn.h5",
        "eval --likelihood drawn.h5",
        "codebook usage drawn.h5",
        "compare --sampler fewer --steps 1 -n 2 --seeds 0",
        "distill --grids drawn.h5 --steps 1 --calls 1 -o student.safetensors",
    ):
        result = vqtool(*line.split())
        assert result.code == 0, (line, result.err)
        told += [f"{line}: {text}" for text in re.findall(r".*(?<![\d.,])1 (?:network )?[a-z]+s\b.*", result.err)]
    assert told == [], "\n".join(told)
