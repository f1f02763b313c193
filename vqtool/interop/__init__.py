"""Other projects' checkpoints <-> ours.

An importer is a file `vqtool/interop/NAME.py` with

    recognise(source) -> bool                 whether a source is of this format, by its content
    load(source, options) -> Imported

and its name in FORMATS. Importers run no code of a source (see `pickles`), never change it, and guess nothing in
silence: what they had to choose stands in `Imported.notes`.
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import Tensor

from vqtool.errors import FormatError, VqtoolError
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
from vqtool.priors import Prior
from vqtool.tokenizers import Tokenizer

FORMATS: tuple[str, ...] = ()

__all__ = ["FORMATS", "Imported", "Options", "Source", "fill", "listed", "load", "read_source", "tensors_in", "without"]


@dataclass(frozen=True)
class Options:
    """What a user may say about a source."""

    weights: str = "ema"  # or "raw": which of the two that a training checkpoint holds
    num_heads: int | None = None  # of attention, where the source does not say
    grid_size: tuple[int, int] | None = None  # (H, W), where the source does not say
    tokenizer: Tokenizer | None = None  # what a prior's tokens decode with, where the source has none
    code_map: Tensor | None = None  # (K_full,) int64: full code -> reduced code
    vocabulary: Path | None = None  # of captions, where the source has none


@dataclass(frozen=True)
class Imported:
    """What was found in a source."""

    tokenizer: Tokenizer | None = None
    prior: Prior | None = None
    notes: list[str] = field(default_factory=list)  # what was found, chosen and left out


def module(name: str) -> ModuleType:
    """The file of a format.

    Raises:
        VqtoolError: an unknown name.
    """
    if name not in FORMATS:
        raise VqtoolError(f"unknown format {name!r}: known are {', '.join(FORMATS)}")
    return import_module(f"vqtool.interop.{name.replace('-', '_')}")


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
    return imported


def _describe(source: Source) -> str:
    if source.content is None:
        return f"the files {listed(sorted(path.name for path in source.path.iterdir())) or '(none)'}"
    if isinstance(source.content, dict):
        return f"the names {listed(map(str, source.content)) or '(none)'}"
    return f"an object of type {type(source.content).__name__}"
