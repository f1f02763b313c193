"""How help is laid out: commands in groups and imported one by one, flags in panels with those of every day first.

A flag names its panel, `rich_help_panel=METHOD`, or `advanced(METHOD)` if few people need it; without one it is of
input and output. The panels of every day and what stands above them fit a screen of 24 lines at 100 columns; the
advanced ones, the description and the examples follow.
"""

import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

INPUT_OUTPUT = "Input and output"
METHOD = "Method"
GUIDANCE = "Guidance"
NETWORK = "Network"
LENGTH = "Length"
MACHINE = "Machine"
PANELS = (INPUT_OUTPUT, METHOD, GUIDANCE, NETWORK, LENGTH, MACHINE)  # what a user decides, in the order of the help

MAX_WIDTH = 100


def advanced(panel: str) -> str:
    """The panel of the flags of a kind that few people need."""
    return panel if panel.startswith("Advanced: ") else f"Advanced: {panel.lower()}"


class Command(TyperCommand):
    """A command whose help begins with the flags of every day; description and examples come last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the arguments apart; --resume has no value but in `--resume auto`, which stands for a hidden option."""
        end = args.index("--") if "--" in args else len(args)
        if any(parameter.name == "resume_auto" for parameter in self.params):
            for place in range(end - 2, -1, -1):
                if args[place : place + 2] == ["--resume", "auto"]:
                    args[place : place + 2] = ["--resume-auto=auto"]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        shown = copy(self)
        first, _, rest = (self.help or "").partition("\n\n")
        shown.help, shown.add_help_option = first, False
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.rich_help_panel is None:
                parameter.rich_help_panel = INPUT_OUTPUT
        shown.params = sorted(self.params, key=_place)
        TyperCommand.format_help(shown, ctx, formatter)
        typer.echo("\n".join(f" {line}".rstrip() for line in _laid_out(rest)))


class LazyGroup(TyperGroup):
    """Commands that are imported when they are called: `vqtool --help` needs their names and first lines alone."""

    table: Mapping[str, tuple[str, str]] = {}  # name -> (group in the help, line of help)
    load: Callable[[str], Any]  # name -> command

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = cast("Any", dict.fromkeys(self.table))  # None until it is needed

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of the help."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now; None if there is none."""
        if cmd_name in self.table and self.commands[cmd_name] is None:
            self.commands[cmd_name] = self.load(cmd_name)
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write plain text: importing what draws panels takes longer than all the rest."""
        formatter.width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
        self.format_usage(ctx, formatter)
        for paragraph in (self.help or "").strip("\n").split("\n\n"):
            is_laid_out = paragraph.startswith(" ")
            lines = (
                paragraph.splitlines() if is_laid_out else textwrap.wrap(" ".join(paragraph.split()), formatter.width)
            )
            formatter.write("\n" + "\n".join(lines) + "\n")
        for group in dict.fromkeys(group for group, _ in self.table.values()):
            with formatter.section(group):
                formatter.write_dl([(name, text) for name, (its, text) in self.table.items() if its == group])
        with formatter.section("Options"):
            formatter.write_dl(filter(None, (option.get_help_record(ctx) for option in self.get_params(ctx))))
        typer.echo(formatter.getvalue().rstrip())  # as typer does with panels: without arguments it expects that
        formatter.buffer.clear()


def _place(parameter: Any) -> int:
    """Where a parameter stands in the help: every day, then panels of its own (of a sampler), then advanced."""
    panel = getattr(parameter, "rich_help_panel", None)
    order = (*PANELS, panel, *map(advanced, PANELS))
    return order.index(panel) if panel in PANELS else len(order) - 1 - order[::-1].index(panel)


def _laid_out(text: str) -> Iterator[str]:
    """The lines of a description, filled to the width of the terminal, and of its examples, as they are."""
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH) - 2
    prose, _, examples = text.partition("Examples:")
    for paragraph in prose.strip().split("\n\n"):
        yield from [*textwrap.wrap(" ".join(paragraph.split()), width), ""]
    yield "Examples:"
    yield from (f"  {line.strip()}" for line in examples.splitlines() if line.strip())
