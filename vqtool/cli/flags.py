"""Flags made of options: what a dataclass of the library states becomes flags of a command, with help and completion.

A command asks for them by an annotation,

    sampling: Annotated[dict[str, Any], FlagGroup.of_file("samplers/_settings.py", "Settings", panel="Guidance")]

and is given the options that stand on the command line, by name; the library knows the defaults and checks the values.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import ArgumentInfo

from vqtool.cli.help import METHOD, advanced
from vqtool.errors import VqtoolError
from vqtool.options import Option, read_literal, read_options, read_registered

MAX_METAVAR = 31  # letters: more choices than that go into the help


@dataclass(frozen=True)
class FlagGroup:
    """Flags that stand for options."""

    options: tuple[Option, ...]
    panels: dict[str, str]  # option -> group of flags in --help

    @classmethod
    def of_file(
        cls,
        file: str,
        kind: str = "Options",
        *,
        panel: str,
        panels: Mapping[str, str] | None = None,
        without: tuple[str, ...] = (),
    ) -> "FlagGroup":
        """The options of one dataclass; see `options.read_options`.

        Args:
            file: of the package.
            kind: the dataclass in it.
            panel: the group of flags in --help.
            panels: option -> group, for those that stand in another one.
            without: options that are no flags of this command.
        """
        options = tuple(each for each in read_options(file, kind) if each.name not in without)
        own = {each.name: advanced(panel) if each.advanced else panel for each in options}
        return cls(options, own | dict(panels or {}))

    @classmethod
    def of_registered(
        cls, package: str, *, what: str, panel: str = "", chooser: str = "", without: tuple[str, ...] = ()
    ) -> "FlagGroup":
        """The options of all strategies of a package; the help says of which of them each is.

        Args:
            package: such as "samplers".
            what: a strategy is called in --help, such as "Sampler".
            panel: the group in --help of options that several have.
            chooser: the option that names the strategy, such as "sampler", if it is a flag too; the package says the
                DEFAULT.
            without: options that are no flags of this command.
        """
        strategies, panel = read_registered(package), panel or f"{what}s in general"
        users: dict[str, dict[str, Option]] = {}  # option -> strategy -> how it states the option
        for strategy, options in strategies.items():
            for each in options:
                users.setdefault(each.name, {})[strategy] = each
        users = {name: own for name, own in users.items() if name not in without}
        merged = tuple(_merge(own, what, most=2 * len(own) > len(strategies)) for own in users.values())
        panels = {name: f"{what} {next(iter(own))}" if len(own) == 1 else panel for name, own in users.items()}
        panels |= {each.name: advanced(METHOD) for each in merged if each.advanced}
        if not chooser:
            return cls(merged, panels)
        shown = read_literal(f"{package}/__init__.py", "DEFAULT")
        first = Option(name=chooser, default=None, shown=shown, help="", choices=tuple(strategies), type="str")
        return cls((first, *merged), {chooser: panel, **panels})

    def moved(self, **panels: str) -> "FlagGroup":
        """The same flags, some of them in other groups of the help."""
        return replace(self, panels=self.panels | panels)

    def __or__(self, other: "FlagGroup") -> "FlagGroup":
        """The flags of both."""
        return FlagGroup(self.options + other.options, self.panels | other.panels)

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The flags, as parameters of a typer command; each is None unless it is given."""
        for each in self.options:
            yield inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(each, self.panels)
            )

    def collect(self, values: dict[str, Any]) -> dict[str, Any]:
        """Take the flags out of the values of a command line: those that are given, lists as numbers."""
        given = {each: values.pop(each.name) for each in self.options}
        return {each.name: _parse(each, value) for each, value in given.items() if value is not None}


def flag_of_parameter(part: inspect.Parameter) -> str:
    """The flag of a parameter of a typer command, the long one that it declares or is named for; the name of others."""
    for details in getattr(part.annotation, "__metadata__", ()):
        if isinstance(details, ArgumentInfo):
            return part.name
        declared = [getattr(details, "default", None), *(getattr(details, "param_decls", None) or ())]
        for name in declared:  # in an annotation, typer takes the first for the default
            if isinstance(name, str) and name.startswith("--"):
                return name.partition("/")[0]
    return flag_of(part.name)


def flag_of(name: str) -> str:
    """The flag of a parameter: --cfg-scale of cfg_scale."""
    return "--" + name.strip("_").replace("_", "-")


def name_flags(text: str, flags: dict[str, str]) -> str:
    """A message of the library with flags in place of the `parameters` that it names."""
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)


def _merge(users: dict[str, Option], what: str, *, most: bool) -> Option:
    """One flag for an option of several strategies, or of most of them, which are not named then."""
    first = next(iter(users.values()))
    defaults: dict[str, list[str]] = {}
    for strategy, each in users.items():
        defaults.setdefault(each.default_text, []).append(strategy)
    defaults.pop("", None)
    if len(defaults) > 2:
        shown = f"that of the {what.lower()}"
    elif len(defaults) > 1:
        shown = ", ".join(f"{text} ({', '.join(strategies)})" for text, strategies in defaults.items())
    else:
        shown = next(iter(defaults), "")
    prefix = "" if most else f"{', '.join(users)}: "
    return replace(first, help=prefix + first.help, shown=shown, default=None)


def _annotation(each: Option, panels: dict[str, str]) -> Any:
    kind = _base_type(each.type)
    text = each.help
    short = "|".join(each.known) if each.choices and each.listed else ""
    if len(short) >= MAX_METAVAR:
        text = f"{text} One of {', '.join(each.known)}.".strip()
    text += f" Default: {each.default_text}." if each.default_text else ""
    names = [flag_of(each.name), *filter(None, [each.flag])]
    if kind is bool:
        names[0] += f"/--no-{flag_of(each.name)[2:]}"
    complete: Callable[[], list[str]] | None = (lambda: list(each.known)) if each.choices else None
    metavar = f"[{short}]" if 0 < len(short) < MAX_METAVAR else None
    details = typer.Option(
        *names,
        help=text,
        show_default=False,
        rich_help_panel=panels[each.name],
        autocompletion=complete,
        metavar=metavar,
    )
    return Annotated[kind | None, details]


def _base_type(written: str) -> Any:
    """What a flag holds, by the type of the option as it is written: bool, int, float, a path, or text."""
    bare = written.removesuffix(" | None")
    return {"bool": bool, "int": int, "float": float, "Path": Path, "Prior": Path}.get(bare, str)


def _parse(each: Option, value: Any) -> Any:
    match = re.search(r"tuple\[(int|float)", each.type)
    if match is None or ("| str" in each.type and re.fullmatch("[a-z]+", value)):
        return value
    found = numbers(flag_of(each.name), value, {"int": int, "float": float}[match[1]])
    return found[0] if len(found) == 1 and not each.type.startswith("tuple") else found


def numbers(flag: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """Numbers from a list with commas.

    Raises:
        VqtoolError: it is none.
    """
    try:
        return tuple(kind(part) for part in re.split("[,x]", text))
    except ValueError as error:
        raise VqtoolError(f"{flag} {text}: numbers with commas between them are expected") from error
