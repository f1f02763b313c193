"""Other projects' checkpoints <-> ours.

An importer is a file `vqtool/interop/NAME.py` with

    recognise(source) -> bool                 whether a source is of this format, by its content
    load(source, options) -> Imported

and its name in FORMATS. Importers run no code of a source (see `pickles`), never change it, and guess nothing in
silence: what they had to choose stands in `Imported.notes`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from vqtool.artifacts import history_record
from vqtool.errors import FormatError, VqtoolError
from vqtool.interop import _hub
from vqtool.interop._contract import Imported, Options
from vqtool.interop._saving import attach_tokenizer, save
from vqtool.interop._sources import (
    Source,
    fill,
    find_config,
    listed,
    read_code_map,
    read_config,
    read_file,
    tensors_in,
    without,
)
from vqtool.interop.pickles import ScriptError, read_script
from vqtool.registry import check_known, find_module

FORMATS = (
    "microsoft",
    "unleashing",
    "halton-maskgit",
    "titok",
    "vq-ddm",
    "taming",
    "ibq",
    "magvit2",
    "unleashing-vqgan",
    "llamagen",
    "maskbit",
    "maskbit-generator",
    "showo",
    "open-muse",
    "muse",
    "diffusers",
    "amused",
    "meissonic",
    "clip-text",
    "diffusers-vqmodel",
)

__all__ = [
    "FORMATS", "Imported", "Options", "Source", "convert", "fill", "find_source", "listed", "load", "read_code_map",
    "read_source", "save", "tensors_in", "without",
]  # fmt: skip


NO_CONFIG = Path("none")  # in place of a file of settings: there is none

# What importers meet in tensors and settings of other types and shapes than those of their format.
_UNFIT = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError, MemoryError)


def module(name: str) -> ModuleType:
    """The file of a format.

    Raises:
        VqtoolError: an unknown name.
    """
    return find_module("vqtool.interop", "format", name, FORMATS)


def convert(
    source: str | Path,
    output: str | Path | None = None,
    *,
    format: str | None = None,
    config: str | Path | None = None,
    force: bool = False,
    **options: Any,
) -> Iterator[str]:
    """Convert a checkpoint of another project into artifacts, as `vqtool import` does.

    Args:
        source: a file or folder; a repository on the Hugging Face hub, owner/name, or a part of it,
            hub:owner/name/FILE@REVISION; or a published model by its short name, zoo:NAME.
        output: of the prior, or of the tokenizer if that is all; other parts go beside it. None: prior.safetensors or
            tokenizer.safetensors.
        format: one of FORMATS; None finds it by the content.
        config: YAML or JSON file of settings; None looks beside the checkpoint, "none" does not.
        force: overwrite.
        **options: what the source does not say: fields of `Options`; artifacts also by their paths.

    Yields:
        Lines on what was found, chosen, left out and written.

    Raises:
        VqtoolError: the source or an option cannot be understood, or a file exists and `force` is off.
        TypeError: an option is unknown.
    """
    if format is not None:
        check_known("format", format, FORMATS)
    if str(source).startswith("zoo:"):
        from vqtool.interop import zoo

        place = None if output is None else Path(output)
        yield from zoo.convert(str(source), place, format=format, config=config, force=force, **options)
        return
    chosen = Options.read(options)
    found = read_source(find_source(str(source)), None if config is None else Path(config))
    found = replace(found, copies=False)  # what is made of it is written before it can change
    format = format or recognise(found)
    yield f"{source}: {format}"
    imported = load(found, chosen, format)
    yield from imported.notes
    record = history_record("import", source=str(source), format=format, notes=imported.notes)
    for what, file, fingerprint in save(imported, None if output is None else Path(output), record=record, force=force):
        yield f"wrote {file}: {what} {fingerprint}"


def find_source(name: str) -> Path:
    """The file or folder that a name stands for: a path, else one on the Hugging Face hub.

    Args:
        name: a path, owner/name, or hub:owner/name[/FILE OR FOLDER][@REVISION].

    Raises:
        VqtoolError: it is not there, and cannot be downloaded.
    """
    if name.startswith(_hub.PREFIX):
        return _hub.download(_hub.Place.parse(name))
    return _hub.download(_hub.Place(name)) if not Path(name).exists() and _hub.is_name(name) else Path(name)


def read_source(path: Path, config: Path | None = None) -> Source:
    """Read a file or folder to import.

    Args:
        path: of a checkpoint, or of a folder such as diffusers writes.
        config: YAML or JSON file of settings; None looks beside the checkpoint, "none" does not.

    Raises:
        VqtoolError: it is missing or cannot be understood.
    """
    if path.is_dir():
        return Source(path, None, read_config(config) if config and config != NO_CONFIG else None)
    if not path.is_file():
        raise VqtoolError(f"{path}: no such file or folder")
    content = _read_content(path)
    if config == NO_CONFIG:
        return Source(path, content)
    found, notes = (config, []) if config else find_config(path)
    return Source(path, content, read_config(found) if found else None, notes)


def _read_content(path: Path) -> Any:
    """What a file holds; of a TorchScript program the tensors, if it is a text encoder, as OpenAI publishes them."""
    try:
        return read_file(path)
    except ScriptError:
        tensors = read_script(path)
        if tensors.keys() >= module("clip-text").MARKS:
            return tensors
        raise


def recognise(source: Source) -> str:
    """The format of a source, by its content.

    Raises:
        FormatError: it is none of FORMATS; says what is in it.
    """
    fitting = [name for name in FORMATS if module(name).recognise(source)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise FormatError(
            f"{source.path}: could be {' or '.join(fitting)}, by its names alone: choose with `format`, or name its "
            "file of settings with `config`"
        )
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
    name = name or recognise(source)
    try:
        imported: Imported = module(name).load(source, options)
    except _UNFIT as error:
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{source.path}: damaged, or not of the format {name}: {reason}") from error
    imported = attach_tokenizer(replace(imported, notes=[*source.notes, *imported.notes]), options)
    options.check_used(source.path, name)
    return imported


def _describe(source: Source) -> str:
    if source.content is None:
        return f"the files {listed(sorted(path.name for path in source.path.iterdir())) or '(none)'}"
    if isinstance(source.content, dict):
        return f"the names {listed(map(str, source.content)) or '(none)'}"
    return f"an object of type {type(source.content).__name__}"
