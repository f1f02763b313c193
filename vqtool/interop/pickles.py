"""Reads the pickled checkpoints of other projects without running anything that stands in them.

A pickle is a program: it may name any function and have it called. Here it reaches what tensors are made of, plain
containers and numbers; any other name becomes an `Inert` stand-in that remembers what it was given and does nothing.
Checkpoints that hold trainer objects, callbacks or settings of packages nobody has installed can so be read for their
tensors.
"""

import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from vqtool.errors import FormatError

_BUILTINS = {"set", "frozenset", "list", "dict", "tuple", "int", "float", "complex", "bool", "str", "bytes", "slice"}
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.nn.parameter", "Parameter"),
}
_BROKEN = (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)


class Inert:
    """Stands for an object of a class that is not loaded.

    Attributes:
        name: of the class in the pickle, "module.name"; of the class, not of the object.
        arguments: what it was made with.
        state: what it was given to remember, such as its attributes.
    """

    name = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments = arguments
        self.state: Any = named

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        """An empty one, as unpickling makes it."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, named
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any, **named: Any) -> "Inert":
        """Another one."""
        return Inert(*arguments, **named)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of dictionary-like classes are not kept."""

    def append(self, item: Any) -> None:
        """Items of list-like classes are not kept."""

    def extend(self, items: Any) -> None:
        """Items of list-like classes are not kept."""

    def add(self, item: Any) -> None:
        """Items of set-like classes are not kept."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) in _ALLOWED or (module == "builtins" and name in _BUILTINS):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(name.rsplit(".", maxsplit=1)[-1], (Inert,), {"name": f"{module}.{name}"})


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_MODULE = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="vqtool.interop.pickles")


def read_pickle(path: Path) -> Any:
    """What a file written by torch.save holds: tensors on the CPU, foreign objects as `Inert`.

    Args:
        path: of the file, in the zip format of today or the older one.

    Raises:
        FormatError: not such a file, or damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        whole = zipfile.is_zipfile(file)
        starts_as_zip = file.seek(0) == 0 and file.read(2) == b"PK"
    if starts_as_zip and not whole:
        raise FormatError(f"{path}: cut short: the end of the archive is missing; copy or download it again")
    try:
        return torch.load(path, map_location="cpu", pickle_module=_MODULE, weights_only=False, mmap=whole)
    except _BROKEN as error:
        raise FormatError(f"{path}: not a checkpoint that can be read, or damaged: {error}") from error
