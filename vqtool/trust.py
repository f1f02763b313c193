"""What a file may do to its reader: nothing is run, no more is taken than is there, and what is wrong says so.

All that comes from outside goes through here before it is used:

- sizes: a file may claim to unpack to RATIO times its bytes on disk, and ALLOWANCE more; see `check_size`
- JSON: `parse_json` limits its levels and the digits of its numbers
- headers, configs and settings: `parse_record` makes dataclasses of them, with every field there and of its type
- networks: `build_network` compares a config with the tensors in the file before it takes memory
- weights: `check_weights` compares names, shapes and types, and refuses what is not finite

Errors are FormatErrors: one line with the file and what in it is wrong. docs/security.md states the promises.
"""

import json
import stat
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vqtool.errors import FormatError, VqtoolError

if TYPE_CHECKING:
    from torch import Tensor, nn

RATIO = 100  # bytes that one byte on disk may stand for: deflate makes 1000 of one, real archives 10
ALLOWANCE = 1 << 26  # bytes that any file may unpack to, 64 MiB
MAX_TEXT = 1 << 26  # bytes of a file of settings or of a vocabulary
MAX_LEVELS = 64  # of brackets in JSON
MAX_DIGITS = 40  # of a number in JSON
MAX_NUMBER = 1 << 31  # that a config may name: sizes, steps, classes
_LISTED = 3  # tensors in an error

Kind = TypeVar("Kind")
Network = TypeVar("Network", bound="nn.Module")


def check_size(claimed: int, there: int, where: str) -> None:
    """Raise FormatError if so many bytes cannot be expected of a file that has `there` bytes on disk."""
    if claimed > ALLOWANCE + RATIO * there:
        raise FormatError(f"{where}: claims {claimed:,} bytes where {there:,} are stored: that is not taken")


def check_file(path: Path) -> int:
    """The size of an ordinary file.

    Raises:
        FormatError: a pipe, device or folder, or a file with next to nothing on disk in its many bytes.
        VqtoolError: it cannot be read.
    """
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise FormatError(f"{path}: not an ordinary file, but a pipe or a device")
        path.open("rb").close()
    except OSError as error:
        raise VqtoolError(f"{path}: cannot be read: {error.strerror}") from error
    check_size(found.st_size, found.st_blocks * 512, str(path))
    return found.st_size


def read_text(path: Path) -> str:
    """A text file of settings or words.

    Raises:
        FormatError: it is too large, or no UTF-8.
        VqtoolError: it cannot be read.
    """
    if check_file(path) > MAX_TEXT:
        raise FormatError(f"{path}: larger than {MAX_TEXT >> 20} MiB, the most that a file of text may have")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not a file of text: {error}") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """JSON of at most MAX_LEVELS levels and numbers of at most MAX_DIGITS digits.

    Raises:
        FormatError: it is not.
    """
    try:
        found = json.loads(text, parse_int=_parse_int)
    except RecursionError as error:
        raise FormatError(f"{where}: not JSON that can be read: more than {MAX_LEVELS} levels of brackets") from error
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {error}") from error
    check_levels(found, where)
    return found


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def check_levels(found: Any, where: str) -> None:
    """Raise FormatError if lists and mappings stand in one another more than MAX_LEVELS deep."""
    level = [found]
    for _ in range(MAX_LEVELS + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
        if not below:
            return
        level = below
    raise FormatError(f"{where}: more than {MAX_LEVELS} levels of brackets")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        FormatError: it does not, or is missing.
    """
    if not path.exists():
        raise FormatError(f"{path}: this file is missing")
    return parse_object(read_text(path), str(path))


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """JSON that holds an object.

    Raises:
        FormatError: it does not.
    """
    found = parse_json(text, where)
    if not isinstance(found, dict):
        raise FormatError(f"{where}: not a JSON object of names and values")
    return found


class _UnfitError(Exception):
    """A value is not what a field takes; says what is expected."""


def parse_record(kind: type[Kind], values: Any, where: str) -> Kind:
    """A dataclass of values as JSON has them: every field of its type, none missing, none unknown.

    Lists become tuples where the field is one. Whole numbers lie in [0, MAX_NUMBER] unless the field is a float.

    Args:
        kind: a dataclass.
        values: name -> value of its fields.
        where: file and part, for messages.

    Raises:
        FormatError: a field is missing, unknown or of another type, or the dataclass refuses the values.
    """
    try:
        return _record(kind, values)
    except _UnfitError as error:
        raise FormatError(f"{where}: {error}") from error
    except (ValueError, TypeError, OverflowError) as error:  # of __post_init__
        raise FormatError(f"{where}: {error}") from error


def _record(kind: type[Kind], values: Any) -> Kind:
    if not isinstance(values, Mapping):
        raise _UnfitError(f"names and values are expected, not {_shown(values)}")
    hints, found = get_type_hints(kind), {}
    known = {field.name: field for field in fields(kind) if field.init}  # type: ignore[arg-type]
    if unknown := [name for name in values if name not in known]:
        raise _UnfitError(f"{unknown[0]!r:.60} is not known here; known are {', '.join(known)}")
    for name, field in known.items():
        if name in values:
            try:
                found[name] = _fit(hints[name], values[name])
            except _UnfitError as error:
                raise _UnfitError(f"{name}: {error}") from error
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _UnfitError(f"{name} is missing")
    return kind(**found)


def _fit(hint: Any, value: Any) -> Any:
    """A value as a type hint wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _fit_any(arguments, value)
    if is_dataclass(hint):
        return _record(hint, value)  # type: ignore[arg-type]
    if origin is tuple:
        return _fit_tuple(arguments, value)
    if origin is list and isinstance(value, list):
        return [_fit(arguments[0], part) for part in value]
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {name: _fit(arguments[1], part) for name, part in value.items()}
    return _fit_plain(origin or hint, value)


def _fit_plain(kind: Any, value: Any) -> Any:
    if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise _UnfitError(f"a number is expected, not {_shown(value)}")
    if kind is int:
        if not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
            raise _UnfitError(f"a whole number from 0 to {MAX_NUMBER} is expected, not {_shown(value)}")
        return value
    if kind is float:
        if not abs(value) <= 1e300:
            raise _UnfitError(f"a number is expected, not {_shown(value)}")
        return float(value)
    names = {str: "a text", bool: "true or false", type(None): "nothing", list: "a list", dict: "names and values"}
    if not isinstance(value, kind):
        raise _UnfitError(f"{names.get(kind, kind)} is expected, not {_shown(value)}")
    return value


def _fit_any(hints: Iterable[Any], value: Any) -> Any:
    problems = []
    for hint in hints:
        try:
            return _fit(hint, value)
        except _UnfitError as error:
            problems.append(str(error))
    raise _UnfitError(problems[0])


def _fit_tuple(hints: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _UnfitError(f"a list is expected, not {_shown(value)}")
    if hints[-1] is Ellipsis:
        return tuple(_fit(hints[0], part) for part in value)
    if len(value) != len(hints):
        raise _UnfitError(f"a list of {len(hints)} is expected, not {_shown(value)}")
    return tuple(_fit(hint, part) for hint, part in zip(hints, value, strict=True))


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    return f"{value!r:.60}"


def build_network(build: Callable[[], Network], tensors: "Mapping[str, Tensor]", where: str) -> Network:
    """A network whose config comes from a file, after it has been compared with the tensors that the file holds.

    It is built without memory first, and stopped as soon as it has more tensors than there are.

    Args:
        build: makes it.
        tensors: of the file, by the network's names.
        where: file and part, for messages.

    Returns:
        It, with these weights, as its own types have them.

    Raises:
        FormatError: the config makes no network, or one of other tensors; or weights are not finite.
    """
    check_weights(sketch(build, len(tensors), where), tensors, where)
    network = build()
    network.load_state_dict(dict(tensors))
    return network


def sketch(build: "Callable[[], nn.Module]", num_tensors: int, where: str) -> "dict[str, Tensor]":
    """The tensors that a network would have, by name, without their memory.

    Args:
        build: makes it.
        num_tensors: that are there for it: it is stopped as soon as it has many more.
        where: file and part, for messages.

    Raises:
        FormatError: its config makes no network.
    """
    import torch

    try:
        with _at_most(num_tensors), torch.device("meta"), _without_values():
            return build().state_dict()
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"{where}: its config makes no network: {reason[:200]}") from error


def bare(build: Callable[[], Network]) -> Network:
    """A network without the memory of its tensors, which are on "meta" until others are assigned."""
    import torch

    with torch.device("meta"), _without_values():
        return build()


def _without_values() -> Any:
    """Leave tensors as they are where a network fills them: on "meta" that would import 800 modules."""
    import torch
    from torch.overrides import TorchFunctionMode

    filling = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_, torch.Tensor.fill_}
    filling |= {value for name, value in vars(torch.nn.init).items() if name.endswith("_") and callable(value)}

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in filling:
                return args[0] if args else (kwargs or {})["tensor"]
            return func(*args, **(kwargs or {}))

    return Mode()


@contextmanager
def _at_most(num_tensors: int) -> Iterator[None]:
    """Stop building a network that has more tensors."""
    from torch.nn.modules import module

    count = 0

    def see(owner: Any, name: str, tensor: Any) -> None:
        nonlocal count
        persistent = name not in owner._non_persistent_buffers_set
        count += tensor is not None and persistent
        if count > 2 * num_tensors + 16:  # a parameter may be registered twice
            raise ValueError(f"it has more tensors than the {num_tensors} that are stored")

    hooks = [
        module.register_module_parameter_registration_hook(see),
        module.register_module_buffer_registration_hook(see),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_weights(wanted: "Mapping[str, Tensor]", tensors: "Mapping[str, Tensor]", where: str) -> None:
    """Raise FormatError unless tensors have the names, shapes and kinds of those wanted, and are finite."""
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise FormatError(f"{where}: tensors are missing: {_listed(missing)}")
    if left := sorted(tensors.keys() - wanted.keys()):
        raise FormatError(f"{where}: tensors do not belong to it: {_listed(left)}")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            shapes = f"{tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
            raise FormatError(f"{where}: {name} has shape {shapes}")
        if tensors[name].is_floating_point() != value.is_floating_point() or tensors[name].is_complex():
            raise FormatError(f"{where}: {name} is {tensors[name].dtype}, of another kind than {value.dtype}")
    check_finite(tensors, where)


def check_finite(tensors: "Mapping[str, Tensor]", where: str) -> None:
    """Raise FormatError, naming a tensor that holds NaN or infinity."""
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (tensor if tensor.element_size() > 1 else tensor.float()).aminmax()
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise FormatError(f"{where}: {name} holds numbers that are not finite: the weights are damaged")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
