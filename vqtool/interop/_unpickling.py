"""What a foreign pickle may do: make tensors and plain containers, and nothing else.

A pickle is a program: it may name any function and have it called. Here it reaches what tensors are made of and plain
containers; any other name becomes an `Inert` stand-in that remembers what it was given and does nothing. Checkpoints
that hold trainer objects, callbacks or settings of packages nobody has installed can so be read for their tensors.
Before it is unpickled, a pickle's instructions are read through (`_check_program`).
"""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vqtool.errors import FormatError
from vqtool.trust import ALLOWANCE, MAX_LEVELS

MAX_ITEMS = 1 << 22  # of all containers that a pickle has copied
MAX_CLASSES = 10_000  # names of classes that are not loaded
MAX_SHARED = 8  # times that the bytes of a file may be used by its tensors: averages may share the weights' storage
_FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip


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


@dataclass(frozen=True)
class Storage:
    """A row of numbers that tensors are cut from."""

    data: torch.UntypedStorage
    dtype: torch.dtype
    count: int  # of numbers


Finder = Callable[[torch.dtype, str, int], Any]


def unpickle(program: bytes, find_storage: Finder, size: int) -> Any:
    """What a pickle makes.

    Args:
        program: the pickle.
        find_storage: gives the storage of a type, key and count.
        size: of the file in bytes: tensors may use MAX_SHARED times as many.

    Raises:
        FormatError: it does what none of a checkpoint does; Python's own errors where it is no pickle.
    """
    _check_program(program)
    unpickler = _Unpickler(io.BytesIO(program), encoding="utf-8")
    unpickler.prepare(find_storage, size)
    return unpickler.load()


def _check_program(program: bytes) -> None:
    """Read a pickle's instructions through, as far as they could hurt Python.

    Numbers of memo entries take memory by their value, and tuples in tuples of any depth end the process when they
    are compared.

    Raises:
        FormatError: there are such.
        ValueError: it is no pickle.
    """
    depths: list[int] = []  # of what stands on the stack; a mark is -1
    memo: dict[int, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if index > count:
                raise FormatError("damaged: its pickle numbers what it does not hold")
            memo[index] = depths[-1] if depths else 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            depths.append(memo.get(int(argument or 0), 0))
        elif name == "DUP":
            depths.append(depths[-1] if depths else 0)
        elif name == "MARK":
            depths.append(-1)
        else:
            taken = _take(depths, opcode)
            # What is filled is no key, whatever it is filled with.
            depth = taken[-1] if name in _FILLING and taken else max(taken, default=-1) + 1
            if opcode.stack_after:
                depths.append(depth)
            if depth > 4 * MAX_LEVELS:
                raise FormatError(f"damaged: its pickle holds things more than {4 * MAX_LEVELS} deep in one another")


def _take(depths: list[int], opcode: pickletools.OpcodeInfo) -> list[int]:
    """Take the depths of what an instruction uses from the stack, the uppermost first."""
    taken = []
    for part in reversed(opcode.stack_before):
        if part is pickletools.stackslice:
            while depths and depths[-1] >= 0:
                taken.append(depths.pop())
        elif depths:
            taken.append(depths.pop())
    return [max(depth, 0) for depth in taken]


class _Unpickler(pickle.Unpickler):
    def prepare(self, find_storage: Finder, size: int) -> None:
        self._find_storage = find_storage
        self._classes: dict[tuple[str, str], Any] = {}
        self._items = 0
        self._bytes_left = ALLOWANCE + MAX_SHARED * size

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): self._make(OrderedDict),
            ("builtins", "set"): self._make(set),
            ("builtins", "frozenset"): self._make(frozenset),
            ("torch", "Size"): self._make(tuple),
            ("torch._utils", "_rebuild_tensor"): self._rebuild,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in self._classes:
            if len(self._classes) == MAX_CLASSES:
                raise FormatError(f"damaged: its pickle names more than {MAX_CLASSES} classes")
            made = type(name.rsplit(".", maxsplit=1)[-1], (Inert,), {"name": f"{module}.{name}"})
            self._classes[module, name] = made
        return self._classes[module, name]

    def _make(self, kind: Callable[..., Any]) -> Callable[..., Any]:
        """A container, within MAX_ITEMS of all of them."""

        def make(items: Iterable[Any] = ()) -> Any:
            self._items += len(items) if isinstance(items, list | tuple | set | frozenset | dict) else MAX_ITEMS
            if self._items > MAX_ITEMS:
                raise FormatError(f"damaged: its pickle copies more than {MAX_ITEMS} items")
            return kind(items)

        return make

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise FormatError("damaged: its pickle names something other than storages")
        kind, key, count = pid[1], pid[2], pid[4]
        dtype = _STORAGES.get(str(getattr(kind, "name", "")).rpartition(".")[2].removesuffix("Storage"))
        if dtype is None or not isinstance(key, str) or not isinstance(count, int) or not 0 <= count < 1 << 60:
            raise FormatError("damaged: its pickle describes a storage that none can be")
        if len(pid) == 6 and pid[5] is not None:
            raise FormatError("its storages are views of one another, which is not understood")
        return self._find_storage(dtype, key, count)

    def _rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
        """A tensor of a storage: within it, and with no more numbers than it has."""
        if not isinstance(storage, Storage):
            return storage
        size, stride = tuple(size), tuple(stride)
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 1 << 60 for n in numbers):
            raise FormatError("damaged: its pickle describes a tensor that none can be")
        count, there = math.prod(size), storage.count
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if count and (last >= there or count > there):
            raise FormatError(f"damaged: a tensor of {count} numbers in a storage of {there}")
        self._bytes_left -= count * storage.dtype.itemsize
        if self._bytes_left < 0:
            raise FormatError(f"damaged: its tensors use its storages more than {MAX_SHARED} times")
        return torch.empty(0, dtype=storage.dtype).set_(storage.data, offset, size, stride)
