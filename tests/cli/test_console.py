"""What commands say to people: rates, and the time that is left."""

import time

import pytest

from vqtool.cli import console


@pytest.mark.parametrize(
    ("seconds", "unit", "expected"),
    [
        (0.5, "images", ["encode: 2/4 images, 2.0 images/s, 1 s left", "encode: 4 images in 2.0 s (2.0 images/s)"]),
        (1.0, "steps", ["encode: 2/4 steps, 1.0 steps/s, 2 s left", "encode: 4 steps in 4.0 s (1.0 steps/s)"]),
        (12.5, "steps", ["encode: 2/4 steps, 12.5 s/step, 25 s left", "encode: 4 steps in 50.0 s (12.5 s/step)"]),
    ],
)
def test_what_takes_more_than_a_second_is_told_in_seconds(monkeypatch, capsys, seconds, unit, expected):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    with console.progress("encode", 4, unit) as advance:
        for _ in range(4):
            now[0] += seconds
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert [lines[1], lines[-1]] == expected


def test_a_loop_without_units_has_a_rate_of_nothing(capsys):
    with console.progress("encode", 0):
        pass
    assert capsys.readouterr().err.endswith("(0.0 images/s)\n")


def test_lines_of_a_command_name_flags_and_those_of_python_parameters(capsys):
    with console.shown_warnings(lambda text: text.replace("`cfg_scale`", "--cfg-scale")):
        console.echo("`cfg_scale` 3")
    console.echo("`cfg_scale` 3")
    assert capsys.readouterr().err == "--cfg-scale 3\n`cfg_scale` 3\n"
