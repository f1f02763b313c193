"""Reads the pickled checkpoints of other projects without running anything that stands in them.

A pickle is a program: it may name any function and have it called. Here it reaches what tensors are made of and plain
containers; any other name becomes an `Inert` stand-in that remembers what it was given and does nothing. Checkpoints
that hold trainer objects, callbacks or settings of packages nobody has installed can so be read for their tensors.

torch.load is not used: it runs TorchScript archives, compares no CRC and takes what memory a pickle asks for. Both
formats of torch.save are read here, a zip archive of `data.pkl` and a record a storage, and the older row of pickles
and storages. Before it is unpickled, a pickle's instructions are read through (`_check_program`).

A TorchScript archive is another thing, and `read_pickle` refuses it. Its `data.pkl` holds its modules as objects with
attributes; `read_script` takes the tensors from them and looks at no other record: its code is neither read nor run.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vqtool.errors import FormatError
from vqtool.trust import ALLOWANCE, MAX_LEVELS, check_file, check_size

MAX_PICKLE = 1 << 24  # bytes: tensors stand beside a pickle, not in it
MAX_ITEMS = 1 << 22  # of all containers that a pickle has copied
MAX_CLASSES = 10_000  # names of classes that are not loaded
MAX_SHARED = 8  # times that the bytes of a file may be used by its tensors: averages may share the weights' storage
_FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
MAX_NAME = 256  # characters of an attribute of a module
_SCRIPT_RECORD = "constants.pkl"  # the record that makes an archive a TorchScript program
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the older format begins with this number, pickled
_NUM_PREFIXES = 3  # pickles before the content in the older format
_BROKEN = (
    pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    MemoryError, ImportError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError,
)  # fmt: skip
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip


class ScriptError(FormatError):
    """A file is a TorchScript program where a checkpoint is expected."""


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
class _Storage:
    """A row of numbers that tensors are cut from."""

    data: torch.UntypedStorage
    dtype: torch.dtype
    count: int  # of numbers


def read_pickle(path: Path) -> Any:
    """What a file written by torch.save holds: tensors on the CPU, foreign objects as `Inert`.

    Args:
        path: of the file, in the zip format of today or the older one.

    Raises:
        ScriptError: a TorchScript program.
        FormatError: not such a file, or damaged.
        OSError: it cannot be read.
    """
    return _read(path, _read_archive)


def read_script(path: Path) -> dict[str, Tensor]:
    """The tensors of the modules in a TorchScript archive, by the path of attributes that leads to each.

    Nothing is run, and no code is read: a module is an `Inert` with its attributes. One that stands at several paths
    counts at one of them.

    Raises:
        FormatError: not such a file, or damaged.
        OSError: it cannot be read.
    """
    return _find_tensors(_read(path, _read_script), path)


def _read(path: Path, read_archive: Callable[[Path, IO[bytes], int], Any]) -> Any:
    size = check_file(path)
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
        file.seek(0)
        try:
            if start.startswith(b"PK"):
                return read_archive(path, file, size)
            if start.startswith(_MAGIC):
                return _read_row(file, size)
        except FormatError as error:
            raise type(error)(f"{path}: {error}") from error
        except _BROKEN as error:
            raise FormatError(f"{path}: not a checkpoint that can be read, or damaged: {_reason(error)}") from error
    raise FormatError(f"{path}: not a checkpoint that can be read: torch.save writes another beginning")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _find_tensors(module: Any, path: Path) -> dict[str, Tensor]:
    """The tensors among the attributes of a module and of the modules in it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    level = [("", module)]
    for _ in range(MAX_LEVELS):
        below: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, Inert) and value.name.startswith("__torch__.") and id(value) not in seen:
                seen.add(id(value))
                attributes = value.state if isinstance(value.state, dict) else {}
                if not all(isinstance(key, str) and len(key) <= MAX_NAME for key in attributes):
                    raise FormatError(f"{path}: damaged: a module has attributes with names that none can have")
                below += [(f"{name}.{key}".removeprefix("."), part) for key, part in attributes.items()]
        level = below
    return found


def _read_archive(path: Path, file: IO[bytes], size: int) -> Any:
    """The content of a zip archive, whose tensors stay in the file until they are used."""
    with _open_archive(file) as archive:
        if _is_script(archive):
            raise ScriptError(
                "a TorchScript program, which is not run: save the state_dict() of its module instead and import that"
            )
        return _read_content(path, archive, size, archive.namelist())


def _read_script(path: Path, file: IO[bytes], size: int) -> Any:
    """The module in a TorchScript archive; records other than those of its attributes are not read."""
    with _open_archive(file) as archive:
        if not _is_script(archive):
            raise FormatError("not a TorchScript program")
        own = re.compile(r"[^/]*/(data\.pkl|data/[^/]*|byteorder)")
        return _read_content(path, archive, size, [name for name in archive.namelist() if own.fullmatch(name)])


def _open_archive(file: IO[bytes]) -> zipfile.ZipFile:
    if not zipfile.is_zipfile(file):
        raise FormatError("cut short: the end of the archive is missing; copy or download it again")
    return zipfile.ZipFile(file)


def _is_script(archive: zipfile.ZipFile) -> bool:
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return any(name.split("/")[-1] == _SCRIPT_RECORD or "/code/" in f"/{name}" for name in names)


def _read_content(path: Path, archive: zipfile.ZipFile, size: int, names: Iterable[str]) -> Any:
    """What the pickle of an archive holds.

    Args:
        path: of the file.
        archive: in it.
        size: of the file.
        names: of the records that are read.
    """
    there = [info for info in archive.infolist() if not info.is_dir()]
    if len({info.filename for info in there}) != len(there):
        raise FormatError("damaged: two of its records have the same name")
    check_size(sum(info.file_size for info in there), size, "damaged")
    if sum(info.compress_size for info in there) > size:
        raise FormatError("damaged: its records are longer than the file")
    chosen = set(names)
    records = {info.filename: info for info in there if info.filename in chosen}
    main = [name for name in records if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if len(main) != 1:
        raise FormatError("not a checkpoint that can be read: a zip archive without one data.pkl")
    if records[main[0]].file_size > MAX_PICKLE:
        raise FormatError(f"its pickle is larger than {MAX_PICKLE >> 20} MiB, which none of a checkpoint is")
    root = main[0].removesuffix("data.pkl")
    order = archive.read(records[f"{root}byteorder"]) if f"{root}byteorder" in records else b"little"
    if order != b"little":
        raise FormatError("was written on a big-endian machine, which is not understood")
    storages = _ArchiveStorages(path, archive, {name.removeprefix(root): info for name, info in records.items()})
    content = _unpickle(archive.read(records[main[0]]), storages.find, size)
    for info in records.values():
        _compare_crc(archive, info)
    return content


def _compare_crc(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Read a record through; zipfile compares its CRC at the end."""
    with archive.open(info) as record:
        while record.read(1 << 20):
            pass


class _ArchiveStorages:
    """The storages of an archive: parts of the mapped file, or copies of records that are packed."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo]) -> None:
        self._path = path
        self._archive = archive
        self._records = records
        self._mapped: Any = None
        self._found: dict[str, torch.UntypedStorage] = {}

    def find(self, dtype: torch.dtype, key: str, count: int) -> _Storage:
        """A storage of so many numbers."""
        if key not in self._found:
            info = self._records.get(f"data/{key}")
            if info is None:
                raise FormatError(f"damaged: its record data/{key:.60} is missing")
            if info.file_size != count * dtype.itemsize:
                raise FormatError(f"damaged: its record data/{key:.60} has {info.file_size} bytes for {count} numbers")
            self._found[key] = self._read(info)
        data = self._found[key]
        if len(data) != count * dtype.itemsize:
            raise FormatError(f"damaged: its record data/{key:.60} is used with two lengths")
        return _Storage(data, dtype, count)

    def _read(self, info: zipfile.ZipInfo) -> torch.UntypedStorage:
        start = self._find_start(info)
        if info.compress_type != zipfile.ZIP_STORED or start % 16:  # none of torch's own
            return _as_storage(self._archive.read(info))
        if self._mapped is None:
            self._mapped = torch.UntypedStorage.from_file(str(self._path), False, self._path.stat().st_size)
        part: torch.UntypedStorage = self._mapped[start : start + info.file_size]
        return part

    def _find_start(self, info: zipfile.ZipInfo) -> int:
        with self._archive.open(info) as record:  # compares the record's own header with the archive's
            record.read(1)
        with self._path.open("rb") as file:
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
        return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _as_storage(data: bytes) -> torch.UntypedStorage:
    return torch.frombuffer(bytearray(data or b"0"), dtype=torch.uint8)[: len(data)].clone().untyped_storage()


def _read_row(file: IO[bytes], size: int) -> Any:
    """The content of the older format: pickles one after the other, then the storages with their lengths."""
    for _ in range(_NUM_PREFIXES):  # the magic number, the version, the sizes of C's types
        _unpickle(_read_program(file), _refuse_storage, size)
    program = _read_program(file)
    keys = _unpickle(_read_program(file), _refuse_storage, size)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FormatError("damaged: the names of its storages are no texts")
    wanted = _find_storages(program)
    found: dict[str, torch.UntypedStorage] = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        length = count * wanted.get(key, torch.uint8).itemsize
        if length > size - file.tell():
            raise FormatError("cut short, or damaged: a storage is longer than the file")
        found[key] = _as_storage(file.read(length))

    def find(dtype: torch.dtype, key: str, count: int) -> _Storage:
        if key not in found or len(found[key]) != count * dtype.itemsize:
            raise FormatError(f"damaged: its storage {key:.60} is missing or of another length")
        return _Storage(found[key], dtype, count)

    return _unpickle(program, find, size)


def _find_storages(program: bytes) -> dict[str, torch.dtype]:
    """The types of the storages that a pickle names."""
    found: dict[str, torch.dtype] = {}

    def see(dtype: torch.dtype, key: str, count: int) -> Any:
        found[key] = dtype
        return Inert()

    _unpickle(program, see, 0)
    return found


def _refuse_storage(dtype: torch.dtype, key: str, count: int) -> Any:
    raise FormatError("damaged: a storage where none is expected")


def _read_program(file: IO[bytes]) -> bytes:
    """The next pickle of a file."""
    start = file.tell()
    for _, _, position in pickletools.genops(file):
        if (position or 0) - start > MAX_PICKLE:
            raise FormatError(f"its pickle is larger than {MAX_PICKLE >> 20} MiB, which none of a checkpoint is")
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


_Finder = Callable[[torch.dtype, str, int], Any]


def _unpickle(program: bytes, find_storage: _Finder, size: int) -> Any:
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
    def prepare(self, find_storage: _Finder, size: int) -> None:
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
        if not isinstance(storage, _Storage):
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
