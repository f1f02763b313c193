"""What commands say to people, all of it on stderr: messages, warnings, progress. stdout is for data alone."""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from vqtool.distributed import is_main_process
from vqtool.errors import VqtoolWarning, count_text, printable
from vqtool.progress import Advance

TABLE_WIDTH = 200  # characters, where there is no terminal
PLAIN_SECONDS = 10.0  # how often a line is printed where there is no terminal
FIRST_SECONDS = 2.0  # after which the first is

_named: ContextVar[Callable[[str], str]] = ContextVar("named", default=str)  # puts flags in place of parameters


def echo(message: str) -> None:
    """Print one line on stderr (the main process only), with what could control the terminal escaped.

    In a command, flags stand in place of the parameters that it names.
    """
    if is_main_process():
        print(printable(_named.get()(message)), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning on stderr (the main process only)."""
    echo(f"warning: {message}")


@contextmanager
def shown_warnings(name_flags: Callable[[str], str] = str) -> Iterator[None]:
    """Print warnings of the library as lines on stderr, each text once; other warnings appear as Python shows them.

    Args:
        name_flags: puts flags in place of the parameters that a text names, in what `echo` prints too.
    """
    token = _named.set(name_flags)
    with warnings.catch_warnings():
        warnings.simplefilter("always", VqtoolWarning)
        as_python, seen = warnings.showwarning, set[str]()

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: Any = None,
            line: Any = None,
        ) -> None:
            text = name_flags(str(message))
            if not issubclass(category, VqtoolWarning):
                as_python(message, category, filename, lineno, file, line)
            elif text not in seen:
                seen.add(text)
                warn(text)

        warnings.showwarning = show
        try:
            yield
        finally:
            _named.reset(token)


@contextmanager
def progress(
    description: str,
    total: int | None,
    unit: str = "images",
    *,
    done: int = 0,
    detail: Callable[[], str] = str,
) -> Iterator[Advance]:
    """Show how far a loop is, with its rate and the time left: a bar on a terminal, plain lines elsewhere.

    Args:
        description: what is being done, e.g. "encode".
        total: how many units there are; None if unknown.
        unit: the plural of what is counted.
        done: how many of them were done before.
        detail: what else there is to say, each time.

    Yields:
        advance(n, total=None): say that n more units are done, and how many there are, where that is another number.
    """
    if not is_main_process():
        yield lambda n, /, *, total=None: None
    elif sys.stderr.isatty():
        with _bar(description, total, unit, done, detail) as advance:
            yield advance
    else:
        with _lines(description, total, unit, done, detail) as advance:
            yield advance


@contextmanager
def _bar(description: str, total: int | None, unit: str, done: int, detail: Callable[[], str]) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    rate = TextColumn("{task.fields[rate]}")
    columns = (
        TextColumn(description),
        BarColumn(),
        MofNCompleteColumn(),
        rate,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, rate="")

        def advance(n: int, /, *, total: int | None = None) -> None:
            bar.advance(task, n)
            speed = bar.tasks[0].speed
            rate = " ".join([_rate(speed, unit) if speed else "", detail()]).strip()
            bar.update(task, rate=rate, total=total)

        yield advance


@contextmanager
def _lines(description: str, total: int | None, unit: str, before: int, detail: Callable[[], str]) -> Iterator[Advance]:
    start = time.monotonic()
    due = start + FIRST_SECONDS
    done, in_all = 0, total

    def more() -> str:
        return f", {detail()}" if detail() else ""

    def line(now: float) -> str:
        rate = done / max(now - start, 1e-9)
        reached = before + done
        if in_all is None:
            return f"{description}: {count_text(reached, unit.removesuffix('s'))}, {_rate(rate, unit)}" + more()
        left = max(0, in_all - reached) / max(rate, 1e-9)
        known = f", {left:.0f} s left" if done else ""
        return f"{description}: {reached}/{in_all} {unit}, {_rate(rate, unit)}{more()}{known}"

    def advance(n: int, /, *, total: int | None = None) -> None:
        nonlocal done, in_all, due
        done, in_all = done + n, in_all if total is None else total
        now = time.monotonic()
        if done and now >= due:
            due = now + PLAIN_SECONDS
            echo(line(now))

    yield advance
    seconds = time.monotonic() - start
    rate = _rate(done / max(seconds, 1e-9), unit)
    echo(f"{description}: {count_text(done, unit.removesuffix('s'))} in {seconds:.1f} s ({rate}{more()})")


def _rate(rate: float, unit: str) -> str:
    """Units a second, or seconds a unit where that is more than one."""
    return f"{1 / rate:.1f} s/{unit.removesuffix('s')}" if 0 < rate < 1 else f"{rate:.1f} {unit}/s"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stderr; its first column is on the left, numbers are on the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(stderr=True, width=None if sys.stderr.isatty() else TABLE_WIDTH).print(table)


def check_json(output: Path | None, *, force: bool) -> None:
    """Refuse early to overwrite what `write_json` would.

    Raises:
        VqtoolError: as `outputs.refuse_existing` says.
    """
    from vqtool.outputs import refuse_existing

    if output is not None and str(output) != "-":
        refuse_existing(output, force=force, kind="JSON")


def write_json(record: Mapping[str, Any], output: Path | None, *, force: bool) -> None:
    """Write JSON to a file; to stdout if that is "-", or no file is named and stdout is no terminal.

    Raises:
        VqtoolError: the file exists and `force` is off, or it cannot be written.
    """
    from vqtool.outputs import atomic_path

    text = json.dumps(record, indent=2)
    if output is not None and str(output) != "-":
        with atomic_path(output, force=force) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        echo(f"wrote {output}")
    elif output is not None or not sys.stdout.isatty():
        print(text, flush=True)
