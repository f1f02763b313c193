"""Flags made of options: their help, their values, and the names of flags in messages."""

from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from vqtool.cli import flags
from vqtool.cli.flags import FlagGroup, flag_of, name_flags
from vqtool.cli.main import command
from vqtool.errors import VqtoolError
from vqtool.options import Option

STEPS = Option(default=None, help="Denoiser calls.", shown="64", name="steps", type="int | None")
WEIGHT = Option(default=1.0, help="How much.", name="purity_weight", type="float")
TIMES = Option(default=None, help="When.", name="times", type="tuple[int, ...] | None")
ROLL = Option(default=False, help="Roll.", name="roll", type="bool")


@pytest.fixture
def run(monkeypatch):
    strategies = {"one": (STEPS, WEIGHT), "two": (Option(**{**vars(STEPS), "shown": "16"}), TIMES, ROLL)}
    monkeypatch.setattr(flags, "read_registered", lambda package: strategies)
    group = FlagGroup.of_registered("samplers", what="Sampler")
    seen: dict[str, Any] = {}

    @command
    def sample(*, options: Annotated[dict[str, Any], group], fail: bool = False) -> None:
        """Sample."""
        seen.update(options)
        if fail:
            raise VqtoolError("`purity_weight` -1: must be 0 or more; `other` stays")

    app = typer.Typer()
    app.command()(sample)

    def run(*arguments):
        seen.clear()
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"}), dict(seen)

    return run


def test_only_flags_that_are_given_reach_the_command_lists_as_numbers(run):
    result, options = run("--purity-weight", "2.5", "--times", "100,30", "--no-roll")
    assert result.exit_code == 0, result.output
    assert options == {"purity_weight": 2.5, "times": (100, 30), "roll": False}


def test_the_help_says_whose_option_it_is_and_every_default(run):
    text = run("--help")[0].output
    assert "Denoiser calls. Default: 64 (one), 16 (two)." in text
    assert "one: How much. Default: 1." in text
    assert "Sampler one" in text
    assert "Samplers in general" in text


def test_messages_of_the_library_name_the_flags(run):
    result, _ = run("--fail")
    assert result.exit_code == 1
    assert "error: --purity-weight -1: must be 0 or more; `other` stays" in result.output


def test_a_list_that_is_none_is_refused(run):
    result, _ = run("--times", "1,x")
    assert "error: --times 1,x: numbers with commas between them are expected" in result.output


def test_flags_are_called_as_their_parameters():
    assert flag_of("cfg_scale") == "--cfg-scale"
    assert name_flags("`from_` is missing", {"from_": flag_of("from_")}) == "--from is missing"
