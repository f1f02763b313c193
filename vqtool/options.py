"""Options stated once: a field of a dataclass with its type, default, range and one line of help.

What a strategy can be told stands in its own file and nowhere else:

    @dataclass(frozen=True, kw_only=True)
    class Options(Checked):
        steps: int | None = option(None, "Denoiser calls.", usual=64)
        purity_weight: float = option(1.0, "Sharpening of tokens; 0 is none.", minimum=0)
        purity_form: str = option("code", "Which formula sharpens.", choices=("code", "paper"))

Constructing the dataclass checks the values. Commands make flags and help of the same lines: they read them from the
source, without importing it, so that --help need not wait for torch. Hence all arguments of `option` are literals.

A dataclass may take over the options of another one, by inheritance. Where the choices of an option are a list that
stands elsewhere, such as that of registered names, `choices` says where: "denoisers/__init__.py:NAMES".

Messages name an option by its Python name in backquotes, `purity_weight`; a command shows it as --purity-weight.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from vqtool.errors import VqtoolError

PACKAGE = Path(__file__).parent
LIMIT = 2**63  # whole numbers are 64 bits wide where they are computed with


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: what a flag, its help and its check are made of."""

    default: Any
    help: str
    usual: Any = None  # what a default of None stands for, as far as it is possible (steps: on 8x8 cells)
    shown: str = ""  # the default as people read it, where no value says it
    minimum: float | None = None
    above: float | None = None  # values have to be larger than this
    maximum: float | None = None
    rising: bool = False  # whether it is two numbers, the first below the second
    choices: tuple[str, ...] | str = ()  # or where they stand: "FILE:CONSTANT", a tuple or the keys of dicts
    flag: str = ""  # a second flag, such as "--top-p" or "-K"
    listed: bool = True  # whether the help lists all choices
    advanced: bool = False  # whether the flag is for few people
    name: str = ""
    type: str = ""  # as written in the source, such as "int | None"

    @property
    def known(self) -> tuple[str, ...]:
        """The choices; empty if there is no such list."""
        return read_names(*self.choices.split(":")) if isinstance(self.choices, str) else self.choices

    @property
    def default_text(self) -> str:
        """The default as `--help` shows it; empty if there is none."""
        value = self.usual if self.default is None else self.default
        if self.shown or value is None:
            return self.shown
        if isinstance(value, bool):
            return "yes" if value else "no"
        return _number_text(value)

    def check(self, value: Any) -> None:
        """Raise unless a value is possible; None stands for an option that is not given.

        Raises:
            VqtoolError: it is not.
        """
        if value is None and (self.default is None or self.type.endswith("| None")):
            return
        self._check_type(value)
        if self.choices and value not in self.known:
            raise VqtoolError(f"`{self.name}` {value}: unknown; known are {', '.join(self.known)}")
        if self.rising and not (len(value) == 2 and value[0] < value[1]):
            raise VqtoolError(f"`{self.name}` {_number_text(value)}: two rising numbers are expected, as in 0.2,0.8")
        numbers = value if isinstance(value, tuple | list) else (value,)
        for number in numbers if self._has_range else ():
            if not (
                (self.minimum is None or number >= self.minimum)
                and (self.above is None or number > self.above)
                and (number < float("inf") if self.maximum is None else number <= self.maximum)
            ):
                raise VqtoolError(f"`{self.name}` {number:g}: must be {self._range}")
        for number in numbers:
            if isinstance(number, Integral) and not -LIMIT <= int(number) < LIMIT:
                raise VqtoolError(f"`{self.name}` {number}: whole numbers have to lie below 2**63")

    def _check_type(self, value: Any) -> None:
        """Raise VqtoolError unless a value is of the written type; types other than these are not checked."""
        kinds = self.type.split(" | ")
        names = [_TYPES[kind] for kind in kinds if kind in _TYPES]
        if len(names) < len([kind for kind in kinds if kind != "None"]) or any(_is_a(kind, value) for kind in kinds):
            return
        raise VqtoolError(f"`{self.name}` {value!r}: {' or '.join(names)} is expected")

    @property
    def _has_range(self) -> bool:
        return any(limit is not None for limit in (self.minimum, self.above, self.maximum))

    @property
    def _range(self) -> str:
        limits = []
        if self.minimum is not None:
            limits.append(f"{self.minimum:g} or more" if self.maximum is None else f"at least {self.minimum:g}")
        if self.above is not None:
            limits.append(f"above {self.above:g}")
        if self.maximum is not None:
            limits.append(f"at most {self.maximum:g}")
        return " and ".join(limits)


_TYPES = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[float, float]": "a list of two numbers",
    "tuple[float, ...]": "a list of numbers",
}


def _is_a(kind: str, value: Any) -> bool:
    if kind.startswith("tuple["):
        return isinstance(value, tuple | list) and all(
            _is_a(kind[6:].split(",", maxsplit=1)[0], part) for part in value
        )
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    return isinstance(value, {"int": Integral, "float": Real, "str": str}.get(kind, ()))


def _number_text(value: Any) -> str:
    """Numbers as people type them: 1.0 -> "1", (0.2, 0.8) -> "0.2,0.8"; other values as they are."""
    if isinstance(value, tuple | list):
        return ",".join(map(_number_text, value))
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def option(default: Any, help: str, **details: Any) -> Any:
    """A field of a dataclass that is an option; the details are those of `Option`. All arguments are literals."""
    return field(default=default, metadata={"option": Option(default=default, help=help, **details)})


class Checked:
    """Base of dataclasses with options: constructing one checks every value.

    Raises:
        VqtoolError: a value is out of range or none of the choices.
    """

    def __post_init__(self) -> None:
        for each in options_of(type(self)):
            each.check(getattr(self, each.name))


def options_of(kind: type[Any]) -> tuple[Option, ...]:
    """The options of a dataclass, in order."""
    return tuple(
        replace(each.metadata["option"], name=each.name, type=_type_text(each.type))
        for each in fields(kind)
        if "option" in each.metadata and each.default is not MISSING
    )


def _type_text(annotation: Any) -> str:
    """An annotation as it is written: "float" of float."""
    return annotation.__name__ if type(annotation) is type else str(annotation)


def distribute(given: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """One object of each dataclass of options, made of those that are given; each option goes where it is known.

    Raises:
        TypeError: nobody knows an option.
        VqtoolError: a value is not possible.
    """
    names = [{each.name for each in fields(kind)} for kind in kinds]
    if unknown := sorted(given.keys() - set().union(*names)):
        raise TypeError(
            f"no options are called {', '.join(unknown)}; there are {', '.join(sorted(set().union(*names)))}"
        )
    return [kind(**{n: given[n] for n in known if n in given}) for kind, known in zip(kinds, names, strict=True)]


def usual(options: Any, name: str) -> Any:
    """What an option that is None stands for."""
    return next(each.usual for each in options_of(type(options)) if each.name == name)


@cache
def read_options(file: str, kind: str = "Options") -> tuple[Option, ...]:
    """The options of a dataclass in a source file of the package, read without importing it.

    Args:
        file: such as "samplers/purity.py".
        kind: the name of the dataclass. A file without it has no options.

    Raises:
        ValueError: an argument of `option(...)` is not a literal.
    """
    found: dict[str, Option] = {}
    for node in _parse(file).body:
        if isinstance(node, ast.ClassDef) and node.name == kind:
            for base in map(ast.unparse, node.bases):
                inherited = () if base == "Checked" else _read_inherited(file, base)
                found |= {each.name: each for each in inherited}
            found |= {each.name: each for each in (_read_option(line) for line in node.body if _is_option(line))}
    return tuple(found.values())


def _read_inherited(file: str, base: str) -> tuple[Option, ...]:
    """The options of a base class, `Base` or `module.Base`, of the same file or imported from one of the package."""
    module, _, name = base.rpartition(".")
    for node in _parse(file).body:
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("vqtool."):
            for alias in node.names:
                if (alias.asname or alias.name) == (module or name):
                    place = f"{node.module}.{alias.name}" if module else str(node.module)
                    return read_options(
                        f"{place[len('vqtool.') :].replace('.', '/')}.py", name if module else alias.name
                    )
    return () if module else read_options(file, name)


@cache
def read_literal(file: str, name: str) -> Any:
    """The value of a constant in a source file of the package, read without importing it.

    Raises:
        ValueError: there is none, or it is not a literal.
    """
    for node in _parse(file).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"{file} assigns no literal to {name}")


def read_registered(package: str, names: Iterable[str] | None = None) -> dict[str, tuple[Option, ...]]:
    """The options of every strategy of a package: name -> options, in the order of its list NAMES."""
    listed = read_literal(f"{package}/__init__.py", "NAMES") if names is None else names
    return {name: read_options(f"{package}/{name.replace('-', '_')}.py") for name in listed}


@cache
def read_names(pattern: str, constant: str) -> tuple[str, ...]:
    """The names in a constant, a tuple or the keys of a dict, of a source file, read without importing it.

    Args:
        pattern: of the files, such as "denoisers/*.py": the names in all of them that have the constant.
        constant: such as "SIZES".

    Raises:
        ValueError: there is none.
    """
    found: dict[str, None] = {}
    for path in sorted(PACKAGE.glob(pattern)):
        for value in _values(path.relative_to(PACKAGE).as_posix(), constant):
            items = value.keys if isinstance(value, ast.Dict) else value.elts if isinstance(value, ast.Tuple) else []
            found |= dict.fromkeys(ast.literal_eval(item) for item in items if item is not None)
    if not found:
        raise ValueError(f"{pattern} has no names in {constant}")
    return tuple(found)


def _values(file: str, constant: str) -> Iterator[ast.expr]:
    for node in _parse(file).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(to, ast.Name) and to.id == constant for to in targets):
            yield value


@cache
def _parse(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def _is_option(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.AnnAssign)
        and isinstance(line.value, ast.Call)
        and isinstance(line.value.func, ast.Name)
        and line.value.func.id == "option"
    )


def _read_option(line: Any) -> Option:
    positional = dict(zip(("default", "help"), map(ast.literal_eval, line.value.args), strict=False))
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in line.value.keywords}
    return Option(**positional, **named, name=line.target.id, type=ast.unparse(line.annotation))
