"""The `vqtool` command: its sub-commands, and what becomes an exit code."""

import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from vqtool.errors import VqtoolError
from vqtool.version import __version__

F = TypeVar("F", bound=Callable[..., Any])

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141

_HELP = """Generate images with vector-quantised discrete diffusion.

images -> tokenizer -> token grids -> prior -> sampler -> token grids -> tokenizer -> images -> metrics
"""

# Registered names, in the order in which --help lists them. "codebook refit" is `refit` in cli/codebook.py.
COMMANDS = (
    "encode",
    "codebook",
    "train-tokenizer",
    "train-prior",
    "sample",
    "decode",
    "eval",
    "show",
    "info",
    "head",
    "cat",
    "check",
)

_state = {"debug": False}


def command(function: F) -> F:
    """Decorate a command: errors a user can mend become one line on stderr and an exit code."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (VqtoolError, OSError, MemoryError, KeyboardInterrupt) as error:
            _stop(error)

    return wrapper  # type: ignore[return-value]


def _stop(error: BaseException) -> NoReturn:
    if _state["debug"]:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        # Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_PIPE_CLOSED) from error
    if isinstance(error, KeyboardInterrupt):
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from error
    print(f"error: {_one_line(error)}", file=sys.stderr)
    raise typer.Exit(EXIT_ERROR) from error


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _print_version(value: bool) -> None:
    if value:
        print(f"vqtool {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="vqtool",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    _state["debug"] = debug


def register(application: typer.Typer = app) -> typer.Typer:
    """Add every command of `COMMANDS` from the file that bears its name."""
    for name in COMMANDS:
        if not importlib.util.find_spec(f"vqtool.cli.{name.replace('-', '_')}"):  # development only: remove
            continue
        module = importlib.import_module(f"vqtool.cli.{name.replace('-', '_')}")
        if hasattr(module, "app"):
            application.add_typer(module.app, name=name)
        else:
            application.command(name)(getattr(module, name.replace("-", "_")))
    return application


def main() -> None:
    """Run `vqtool` on the process's arguments."""
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" in arguments[:end]:
        arguments.remove("--debug")
        arguments.insert(0, "--debug")
    register()(args=arguments, prog_name="vqtool")
