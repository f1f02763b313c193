"""Strategies by name: looks them up in a table, or as the file of a package that has the name, with _ for -."""

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from torch import nn

Found = TypeVar("Found")
Config = TypeVar("Config")


def check_known(what: str, name: Any, names: Collection[str]) -> None:
    """Raise VqtoolError unless the name of a `what` is one of the names; lists them."""
    if not isinstance(name, str) or name not in names:
        raise VqtoolError(f"unknown {what} {name!r}: known are {', '.join(names)}")


def find(what: str, name: str, table: Mapping[str, Found]) -> Found:
    """What stands in a table under a name.

    Raises:
        VqtoolError: an unknown name; lists the known.
    """
    check_known(what, name, table)
    return table[name]


def find_module(package: str, what: str, name: str, names: Collection[str]) -> ModuleType:
    """The file of a name.

    Args:
        package: that the file is in, such as "vqtool.samplers".
        what: such a file stands for, for the message.
        name: asked for.
        names: that are registered.

    Raises:
        VqtoolError: an unknown name; lists the known.
    """
    check_known(what, name, names)
    return import_module(f"{package}.{name.replace('-', '_')}")


def count_parameters(network: "Callable[[Config], nn.Module]", config: Config) -> int:
    """How many weights a network of a config has, without making them."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network(config).parameters())
