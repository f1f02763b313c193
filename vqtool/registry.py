"""Looks up what is registered by name: a file of a package, named as in its list of names, with _ for -."""

from collections.abc import Collection
from importlib import import_module
from types import ModuleType

from vqtool.errors import VqtoolError


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
    if name not in names:
        raise VqtoolError(f"unknown {what} {name!r}: known are {', '.join(names)}")
    return import_module(f"{package}.{name.replace('-', '_')}")
