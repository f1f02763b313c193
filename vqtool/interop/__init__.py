"""Other projects' checkpoints <-> ours.

An importer is a file `vqtool/interop/NAME.py` with

    recognise(source) -> bool                 whether a source is of this format, by its content
    load(source, options) -> Imported

and its name in FORMATS. Importers run no code of a source (see `pickles`), never change it, and guess nothing in
silence: what they had to choose stands in `Imported.notes`.
"""

from pathlib import Path
from types import ModuleType

from torch import Tensor

from vqtool.errors import FormatError, VqtoolError
from vqtool.interop import _hub
from vqtool.interop._contract import Imported, Options
from vqtool.interop._saving import attach_tokenizer, save
from vqtool.interop._sources import (
    Source,
    fill,
    find_config,
    listed,
    read_config,
    read_file,
    tensors_in,
    without,
)
from vqtool.registry import find_module

FORMATS: tuple[str, ...] = (
    "microsoft",
    "unleashing",
    "vq-ddm",
    "taming",
    "unleashing-vqgan",
    "llamagen",
    "open-muse",
    "diffusers",
    "diffusers-vqmodel",
)

__all__ = [
    "FORMATS", "Imported", "Options", "Source", "fill", "find_source", "listed", "load", "read_code_map", "read_source",
    "save", "tensors_in", "without",
]  # fmt: skip


def module(name: str) -> ModuleType:
    """The file of a format.

    Raises:
        VqtoolError: an unknown name.
    """
    return find_module("vqtool.interop", "format", name, FORMATS)


def find_source(name: str) -> Path:
    """The file or folder that a name stands for: a path, else a repository on the Hugging Face hub, owner/name.

    Raises:
        VqtoolError: it is not there, and cannot be downloaded.
    """
    return _hub.download(name) if not Path(name).exists() and _hub.is_name(name) else Path(name)


def read_source(path: Path, config: Path | None = None) -> Source:
    """Read a file or folder to import.

    Args:
        path: of a checkpoint, or of a folder such as diffusers writes.
        config: YAML or JSON file of settings; None looks beside the checkpoint.

    Raises:
        VqtoolError: it is missing or cannot be understood.
    """
    if path.is_dir():
        return Source(path, None, read_config(config) if config else None)
    if not path.is_file():
        raise VqtoolError(f"{path}: no such file or folder")
    content = read_file(path)
    config = config or find_config(path)
    return Source(path, content, read_config(config) if config else None)


def recognise(source: Source) -> str:
    """The format of a source, by its content.

    Raises:
        FormatError: it is none of FORMATS; says what is in it.
    """
    fitting = [name for name in FORMATS if module(name).recognise(source)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise FormatError(f"{source.path}: could be {' or '.join(fitting)}: choose with --format")
    raise FormatError(f"{source.path}: of no format that is known ({', '.join(FORMATS)}); it holds {_describe(source)}")


def load(source: Source, options: Options, name: str | None = None) -> Imported:
    """What a source holds, as ours.

    Args:
        source: from `read_source`.
        options: what the user says about it.
        name: of the format; None recognises it.

    Raises:
        FormatError: it is incomplete, or not of that format: the missing tensors are listed.
    """
    imported: Imported = module(name or recognise(source)).load(source, options)
    return attach_tokenizer(imported, options)


def read_code_map(path: Path) -> Tensor:
    """A map of codes as VQ-Diffusion publishes it: (K_full,) int64, the reduced code of each full one.

    Raises:
        FormatError: the file holds something else.
    """
    found = read_file(path)
    if not (isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point()):
        raise FormatError(f"{path}: not a map of codes: one row of whole numbers is expected")
    return found.long()


def _describe(source: Source) -> str:
    if source.content is None:
        return f"the files {listed(sorted(path.name for path in source.path.iterdir())) or '(none)'}"
    if isinstance(source.content, dict):
        return f"the names {listed(map(str, source.content)) or '(none)'}"
    return f"an object of type {type(source.content).__name__}"
