"""What an importer is given: a file or folder of another project, read without running anything of it."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vqtool.errors import FormatError, VqtoolError
from vqtool.interop.pickles import read_pickle

MAX_LISTED = 12  # keys in a message


@dataclass(frozen=True)
class Source:
    """A file or folder to import."""

    path: Path
    content: Any = None  # of a file: what it holds; None for a folder
    config: Mapping[str, Any] | None = None  # of the yaml or json file that goes with it

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder.

        Raises:
            FormatError: it is missing or no JSON object.
        """
        return read_json(self.path / name)

    def tensors(self, subfolder: str = "") -> dict[str, Tensor]:
        """All tensors of the weight files in a folder: *.safetensors, else *.bin.

        Raises:
            FormatError: there is none, or one is damaged.
        """
        folder = self.path / subfolder
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        if not files:
            raise FormatError(f"{folder}: no weights in it: *.safetensors or *.bin are expected")
        found: dict[str, Tensor] = {}
        for file in files:
            found |= tensors_in(read_file(file))
        return found


class _Loader(yaml.SafeLoader):
    """YAML with Python's tuples as lists; other tags of Python are refused, not obeyed."""


def _construct_tuple(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top is a mapping.

    Raises:
        FormatError: it is not.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not a YAML file of settings: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: not a YAML file of settings: names and values are expected")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        FormatError: it does not, or is missing.
    """
    if not path.is_file():
        raise FormatError(f"{path}: this file is missing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: not a JSON object of settings")
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Settings in YAML or JSON."""
    return read_json(path) if path.suffix == ".json" else read_yaml(path)


def read_file(path: Path) -> Any:
    """What a file of weights holds, with its tensors on the CPU.

    Raises:
        FormatError: it cannot be understood.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise FormatError(f"{path}: not a safetensors file, or damaged: {error}") from error
    return read_pickle(path)


def read_code_map(path: str | Path) -> Tensor:
    """A map of codes as VQ-Diffusion publishes it: (K_full,) int64, the reduced code of each full one.

    Raises:
        FormatError: the file holds something else.
    """
    found = read_file(Path(path))
    if not (isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point()):
        raise FormatError(f"{path}: not a map of codes: one row of whole numbers is expected")
    return found.long()


def tensors_in(content: Any) -> dict[str, Tensor]:
    """The tensors that stand directly in a mapping, by name; empty for anything else."""
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: Source,
    *,
    names: Mapping[str, str] | None = None,
    ignored: Iterable[str] = (),
) -> None:
    """Put tensors into a module: all that it has, and all that there are.

    Args:
        module: gets the weights, in its own types.
        tensors: by the module's names.
        source: for messages.
        names: the module's name -> the name in the source, for messages.
        ignored: regular expressions of names that may be left over.

    Raises:
        FormatError: tensors are missing, of another shape or left over; they are listed.
    """
    shown = names or {}
    wanted = module.state_dict()
    missing = [shown.get(name, name) for name in wanted if name not in tensors]
    if missing:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    wrong = [
        f"{shown.get(name, name)} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if tensors[name].shape != value.shape
    ]
    if wrong:
        raise FormatError(f"{source.path}: tensors do not fit the settings: {listed(wrong)}")
    patterns = [re.compile(pattern) for pattern in ignored]
    left = [name for name in tensors if name not in wanted and not any(p.fullmatch(name) for p in patterns)]
    if left:
        raise FormatError(f"{source.path}: tensors that are not understood: {listed(left)}")
    module.load_state_dict({name: tensors[name] for name in wanted})


def listed(names: Iterable[str]) -> str:
    """Names for a message, not too many."""
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def find_config(path: Path) -> Path | None:
    """The file of settings that goes with a checkpoint: same name, else the only one in its folder.

    Raises:
        VqtoolError: several are there, and none has its name.
    """
    endings = (".yaml", ".yml", ".json")
    for ending in endings:
        if path.with_suffix(ending).is_file():
            return path.with_suffix(ending)
    near = sorted(file for file in path.parent.iterdir() if file.suffix in endings)
    if len(near) > 1:
        raise VqtoolError(
            f"{path}: {listed(file.name for file in near)} are beside it: name the right one with `config`"
        )
    return near[0] if near else None
