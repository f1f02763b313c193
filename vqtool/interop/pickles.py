"""Reads the pickled checkpoints of other projects without running anything that stands in them.

torch.load is not used: it runs TorchScript archives, compares no CRC and takes what memory a pickle asks for. Both
formats of torch.save are read here, a zip archive of `data.pkl` and a record a storage, and the older row of pickles
and storages. `_unpickling` says what a pickle may do.

A TorchScript archive is another thing, and `read_pickle` refuses it. Its `data.pkl` holds its modules as objects with
attributes; `read_script` takes the tensors from them and looks at no other record: its code is neither read nor run.
"""

import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop._unpickling import Inert, Storage, unpickle
from vqtool.trust import MAX_LEVELS, check_file, check_size

MAX_PICKLE = 1 << 24  # bytes: tensors stand beside a pickle, not in it
MAX_NAME = 256  # characters of an attribute of a module
_SCRIPT_RECORD = "constants.pkl"  # the record that makes an archive a TorchScript program
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the older format begins with this number, pickled
_NUM_PREFIXES = 3  # pickles before the content in the older format
_BROKEN = (
    pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    MemoryError, ImportError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError,
)  # fmt: skip


class ScriptError(FormatError):
    """A file is a TorchScript program where a checkpoint is expected."""


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
    content = unpickle(archive.read(records[main[0]]), storages.find, size)
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

    def find(self, dtype: torch.dtype, key: str, count: int) -> Storage:
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
        return Storage(data, dtype, count)

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
        unpickle(_read_program(file), _refuse_storage, size)
    program = _read_program(file)
    keys = unpickle(_read_program(file), _refuse_storage, size)
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

    def find(dtype: torch.dtype, key: str, count: int) -> Storage:
        if key not in found or len(found[key]) != count * dtype.itemsize:
            raise FormatError(f"damaged: its storage {key:.60} is missing or of another length")
        return Storage(found[key], dtype, count)

    return unpickle(program, find, size)


def _find_storages(program: bytes) -> dict[str, torch.dtype]:
    """The types of the storages that a pickle names."""
    found: dict[str, torch.dtype] = {}

    def see(dtype: torch.dtype, key: str, count: int) -> Any:
        found[key] = dtype
        return Inert()

    unpickle(program, see, 0)
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
