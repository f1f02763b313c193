"""The `vqtool` command: its sub-commands, and what becomes an exit code."""

import contextlib
import ctypes
import functools
import importlib
import inspect
import io
import keyword
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from vqtool.cli import _descriptors
from vqtool.cli.console import shown_warnings, warn
from vqtool.cli.help import Command, LazyGroup
from vqtool.distributed import is_main_process
from vqtool.errors import VqtoolError, printable
from vqtool.locks import claims
from vqtool.signals import caught, interrupt
from vqtool.version import __version__

if TYPE_CHECKING:
    from vqtool.cli.flags import FlagGroup

F = TypeVar("F", bound=Callable[..., Any])

EXIT_ERROR = 1
EXIT_SIGNAL = 128  # and the signal's number: 130 for Ctrl-C, 143 for SIGTERM
EXIT_PIPE_CLOSED = 141

_HELP = """Generate images with vector-quantised discrete diffusion.

    images -> tokenizer -> token grids -> prior -> sampler -> token grids -> tokenizer -> images -> metrics

Nothing trained, nothing downloaded, an apple:

    vqtool sample --caption "a red apple" --cfg-scale 3 --purity | vqtool decode -o apple.png

From a folder of pictures to new ones like them, each line as often as you like (-f overwrites what it made before):

    vqtool encode imgs/ -f                           # tokens
    vqtool train-prior --from builtin --resume auto  # 10 minutes
    vqtool sample --purity | vqtool decode -f        # decoded/
    vqtool show decoded/ -o sheet.png -f             # all in one
    vqtool eval decoded/ --ref imgs/                 # scores

50 to 5,000 pictures are sensible, and 10 to 60 minutes (--minutes). With captions or classes beside the pictures, add
--cfg-scale 3 to sample. Fewer pictures are learned by heart.
"""

# name -> (group in --help, line of help): in the order in which --help lists them. "codebook refit" is
# cli/codebook/refit.py; "eval stats" stands here itself, since `eval` does something without a second word.
COMMANDS = {
    "encode": ("Begin", "Turn images into token grids."),
    "codebook": ("Begin", "Measure, rebuild and prune codebooks; convert token grids and priors."),
    "train-tokenizer": ("Begin", "Train a VQ-VAE or VQGAN tokenizer on images."),
    "train-prior": ("Begin", "Train a discrete diffusion prior on token grids."),
    "distill": ("Begin", "Train a student that draws in few network calls what a prior draws in many."),
    "sample": ("Begin", "Draw token grids from a prior."),
    "decode": ("Begin", "Turn token grids into images."),
    "inpaint": ("Edit", "Draw a part of each picture again."),
    "outpaint": ("Edit", "Put each picture on a larger canvas and draw what is around it."),
    "vary": ("Edit", "Make pictures like those given."),
    "complete": ("Edit", "Fill the masked cells of token grids."),
    "eval": ("Look", "Score images or token grids: a table on stderr, JSON on stdout."),
    "eval stats": ("Look", "Save statistics of images, which `eval --ref` takes in their place."),
    "eval merge": ("Look", "Join saved statistics of parts into those of the whole."),
    "eval compare": ("Look", "Put results of `eval` side by side, if their metric cards agree."),
    "compare": ("Look", "Compare samplers: network calls, seconds and scores of each."),
    "show": ("Look", "Draw one preview of pictures, with their captions, labels or ids under them."),
    "info": ("Look", "Show what a file is, be it token grids, tokenizer or prior, and its history."),
    "head": ("Look", "Write the first token grids of a file or stream."),
    "check": ("Look", "Check files for truncation, damage and tokens out of range."),
    "import": ("Convert", "Convert another project's checkpoint into artifacts of vqtool."),
    "zoo": ("Convert", "List published models: licences, sizes, the scores that their makers state, and what to type."),
    "export": ("Convert", "Convert an artifact into the files of another project."),
    "cat": ("Convert", "Join token grids of one tokenizer and one grid size."),
}

# Flags of version 0.1 and 0.2 that have other names now: they go on working, with a warning.
OLD_FLAGS = {
    "--holes": "--masked",
    "--drop-condition": "--cond-dropout",
    "--fast": "--bf16",
    "--no-fast": "--no-bf16",
    "--no-revive": "--no-restart",
    "--revive": "--restart",
    "--sheet-every": "--preview-every",
}

# What a name that ends with a slash is: a folder, which only these commands write.
FOLDERS = ("decode", "export", "inpaint", "outpaint", "vary")
_OUTPUTS = ("--output", "--plot", "--report", "--trajectory", "-o")

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # options of mallopt, of glibc's malloc.h

_state = {"debug": False}


def command(function: F) -> F:
    """Decorate a command: errors a user can mend become one line on stderr and an exit code.

    A parameter whose type is a dataclass stands for one flag a field; one that is annotated with a `FlagGroup` stands
    for the flags of the group, and is given those that are on the command line.
    """
    from vqtool.cli.flags import FlagGroup, flag_of_parameter, name_flags  # not for `vqtool --help`

    parameters = inspect.signature(function, eval_str=True).parameters
    groups: dict[str, FlagGroup] = {}
    records: dict[str, Any] = {}
    for name, part in parameters.items():
        if is_dataclass(part.annotation):
            records[name] = part.annotation
        for extra in getattr(part.annotation, "__metadata__", ()):
            if isinstance(extra, FlagGroup):
                groups[name] = extra

    @functools.wraps(function)
    def wrapper(**values: Any) -> Any:
        try:
            for name, group in groups.items():
                values[name] = group.collect(values)
            for name, record in records.items():
                values[name] = record(**{field.name: values.pop(field.name) for field in fields(record)})
            with shown_warnings(lambda text: name_flags(text, flags)), caught(interrupt), claims():
                result = function(**values)
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not while Python exits
            return result
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(_report(error, flags)) from error

    spread = [part for name in parameters for part in _flags(parameters[name], records.get(name), groups.get(name))]
    flags = {part.name: flag_of_parameter(part) for part in spread}
    wrapper.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def _flags(parameter: inspect.Parameter, record: Any, group: "FlagGroup | None") -> Iterator[inspect.Parameter]:
    """The flags that a parameter of a command stands for: itself, the fields of a dataclass, or those of a group."""
    if group is not None:
        yield from group.parameters()
    elif record is None:
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    else:
        hints = get_type_hints(record, include_extras=True)
        for field in fields(record):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            yield inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
            )


def _report(error: BaseException, flags: dict[str, str]) -> int:
    """Say what went wrong in one line, and return the exit code."""
    from vqtool.cli.flags import name_flags

    if _state["debug"]:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        _give_up_stdout()
        return EXIT_PIPE_CLOSED
    if isinstance(error, KeyboardInterrupt):
        if is_main_process():
            print(name_flags(f"interrupted{f': {error}' if str(error) else ''}", flags), file=sys.stderr)
        return EXIT_SIGNAL + getattr(error, "number", signal.SIGINT)
    print(f"error: {printable(name_flags(_one_line(error), flags))}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, VqtoolError):
        _give_up_stdout()
    return EXIT_ERROR


def _give_up_stdout() -> None:
    """Let go of what is still to be written to stdout: Python would fail again when it flushes it at exit."""
    with contextlib.suppress(io.UnsupportedOperation):  # an object in memory stands in for stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, VqtoolError | OSError):
        return text
    return f"{type(error).__name__}{f': {text}' if text else ''}; this is unexpected: --debug shows where it happened"


def _print_version(value: bool) -> None:
    if value:
        print(f"vqtool {__version__}")
        raise typer.Exit


def _load(name: str) -> Any:
    """The command of that name, from the file that bears it."""
    function = _function_name(name)
    module = importlib.import_module(f"vqtool.cli.{function}")
    if hasattr(module, "app"):  # a command of several
        group = typer.main.get_group(module.app)
        group.name = name
        return group
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(name, cls=Command)(getattr(module, function))
    return typer.main.get_command(single)


class _Root(LazyGroup):
    table = COMMANDS
    load = staticmethod(_load)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command, of two words if there is one: `eval stats`. A folder of that name is ./stats."""
        words = " ".join(args[:2])
        if len(args) > 1 and words in COMMANDS:
            if os.path.exists(args[1]) and not ctx.resilient_parsing:
                warn(f"{words} is a command; type ./{args[1]} for what is called so here")
            args = [words, *args[2:]]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="vqtool",
    cls=_Root,
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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


def _function_name(command_name: str) -> str:
    """The name of a command's file and function: train_prior of train-prior, eval_stats of eval stats, import_."""
    name = command_name.replace("-", "_").replace(" ", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def main() -> None:
    """Run `vqtool` on the process's arguments."""
    # OpenMP's threads spin for milliseconds while they wait, and so starve whatever shares the cores with them: threads
    # that read images, the other end of a pipe. Spinning for some 50 microseconds is as quick on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _keep_freed_memory()
    _descriptors.prepare()
    try:
        arguments = _arguments(sys.argv[1:])
        _refuse_folders(arguments)
        try:
            app(args=arguments, prog_name="vqtool")
        finally:
            sys.stdout.flush()  # also of what Typer prints itself, such as the version
    except (OSError, VqtoolError, KeyboardInterrupt) as error:  # in help texts and usage errors, outside of any command
        sys.exit(_report(error, {}))


def _keep_freed_memory() -> None:
    """Let glibc keep memory that tensors free, up to 1 GiB, for the next ones.

    It would give large blocks back at once and have the system make zeros of them again: a third of a training step.
    """
    library: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(library, "mallopt"):
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            library.mallopt(option, 1 << 30)


def _arguments(given: list[str]) -> list[str]:
    """The arguments with --debug in front and flags of earlier versions by their present names, each told."""
    end = given.index("--") if "--" in given else len(given)
    before, after = given[:end], given[end:]
    front = ["--debug"] if "--debug" in before else []
    renamed = []
    for argument in before:
        flag, equals, value = argument.partition("=")
        if flag in OLD_FLAGS:
            warn(f"{flag} is called {OLD_FLAGS[flag]} now")
        if flag != "--debug":
            renamed.append(OLD_FLAGS.get(flag, flag) + equals + value)
    return front + renamed + after


def _refuse_folders(arguments: list[str]) -> None:
    """Raise VqtoolError if a file is to be written, but its name ends with a slash, which a Path does not tell."""
    from vqtool.outputs import FILES

    command = next((each for each in arguments if not each.startswith("-")), "")
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, given = flag.partition("=")
        if flag[:2] == "-o" and len(flag) > 2:
            name, equals, given = "-o", "=", flag[2:]
        output = given if equals else value
        if name in _OUTPUTS and output.endswith("/") and len(output) > 1:
            is_file = os.path.splitext(output.rstrip("/"))[1].lower() in FILES
            if command not in FOLDERS or is_file or name not in ("-o", "--output"):
                raise VqtoolError(f"{output}: a file is to be written, but this names a folder: name a file")
