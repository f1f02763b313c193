"""Warnings of the library, and text from files that must not control a terminal."""

import pytest

from vqtool.errors import VqtoolWarning, printable, warn


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
