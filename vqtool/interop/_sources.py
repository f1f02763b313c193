"""What an importer is given: a file or folder of another project, read without running anything of it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, bfloat16, float16, int8, int16, int32, int64, nn, uint8

from vqtool.errors import FormatError, VqtoolError
from vqtool.interop.pickles import read_pickle
from vqtool.trust import bare, check_file, check_levels, check_weights, read_json, read_text, sketch

Module = TypeVar("Module", bound=nn.Module)
MAX_LISTED = 12  # keys in a message
CONFIG_ENDINGS = (".yaml", ".yml", ".json")
USUAL_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
MAX_YAML = 1 << 20  # characters; settings have some thousand
MAX_ALIASES = 10
MAX_LAYER_DIGITS = 4  # of the number of a layer


@dataclass(frozen=True)
class Source:
    """A file or folder to import."""

    path: Path
    content: Any = None  # of a file: what it holds; None for a folder
    config: Mapping[str, Any] | None = None  # of the yaml or json file that goes with it
    notes: list[str] = field(default_factory=list)  # on which files were chosen
    copies: bool = True  # whether networks get copies of its weights, or use the mapped file itself

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder.

        Raises:
            FormatError: it is missing or no JSON object.
        """
        return read_json(self.path / name)

    def is_pipeline(self, name: str) -> bool:
        """Whether it is the folder of a diffusers pipeline of that class."""
        index = self.path / "model_index.json"
        return self.content is None and index.is_file() and self.json(index.name).get("_class_name") == name

    def tensors(self, subfolder: str = "") -> dict[str, Tensor]:
        """All tensors of the weights in a folder, which may be in several numbered files.

        Raises:
            FormatError: there is none, or one is damaged.
            VqtoolError: there are several, and none has a usual name.
        """
        folder = self.path / subfolder
        files, others = find_weights(folder)
        if others:
            self.notes.append(
                f"weights: {files[0].relative_to(self.path)}, not {listed(other.name for other in others)}"
            )
        found: dict[str, Tensor] = {}
        for file in files:
            found |= tensors_in(read_file(file))
        return found


class _Loader(yaml.SafeLoader):
    """YAML with Python's tuples as lists; other tags of Python are refused, not obeyed, and so are many aliases."""

    num_aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; a few aliases of aliases could stand for more than any memory holds."""
        if self.check_event(yaml.AliasEvent):
            self.num_aliases += 1
            if self.num_aliases > MAX_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_ALIASES} aliases")
        return super().compose_node(parent, index)


def _construct_tuple(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top is a mapping.

    Raises:
        FormatError: it is not.
    """
    text = read_text(path)
    if len(text) > MAX_YAML:
        raise FormatError(f"{path}: a YAML file of more than {MAX_YAML >> 20} MiB is not read")
    try:
        found = yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise FormatError(f"{path}: not a YAML file of settings: too many levels") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{path}: not a YAML file of settings: {reason}") from error
    check_levels(found, str(path))
    if not isinstance(found, dict):
        raise FormatError(f"{path}: not a YAML file of settings: names and values are expected")
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
        check_file(path)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path}: not a safetensors file, or damaged: {error}") from error
    return read_pickle(path)


def read_code_map(path: str | Path) -> Tensor:
    """A map of codes as VQ-Diffusion publishes it: (K_full,) int64, the reduced code of each full one.

    Raises:
        FormatError: the file holds something else.
    """
    found = read_file(Path(path))
    kinds = (uint8, int8, int16, int32, int64)
    if not (isinstance(found, Tensor) and found.ndim == 1 and found.dtype in kinds):
        raise FormatError(f"{path}: not a map of codes: one row of whole numbers is expected")
    return found.long()


def tensors_in(content: Any) -> dict[str, Tensor]:
    """The tensors that stand directly in a mapping, by name; empty for anything else."""
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def count_numbers(numbers: Iterable[str]) -> int:
    """One more than the highest of some numbers in names of layers; 0 if there are none.

    Raises:
        FormatError: they are no numbers of layers, which are counted without large gaps.
    """
    found = list(numbers)
    if not all(number.isascii() and number.isdigit() and len(number) <= MAX_LAYER_DIGITS for number in found):
        wrong = max(found, key=len)
        raise FormatError(f"damaged: a layer is numbered {wrong:.60}")
    return 1 + max(map(int, found), default=-1)


def without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def fill(
    module: Module | Callable[[], Module],
    tensors: Mapping[str, Tensor],
    source: Source,
    *,
    names: Callable[[str], str] | Mapping[str, str] | None = None,
    ignored: Iterable[str] = (),
) -> Module:
    """Put tensors into a module and return it: all that it has, and all that there are.

    Args:
        module: gets the weights, in its own types; or a function that makes it, called without memory at first.
        tensors: by the module's names.
        source: for messages.
        names: the module's name -> the name in the source, for messages.
        ignored: regular expressions of names that may be left over.

    Raises:
        FormatError: tensors are missing, of another shape, left over or not finite; they are listed.
    """
    known = names or {}
    shown = known if callable(known) else lambda name: known.get(name, name)
    where = str(source.path)
    wanted = module.state_dict() if isinstance(module, nn.Module) else sketch(module, len(tensors), where)
    missing = [shown(name) for name in wanted if name not in tensors]
    if missing:
        raise FormatError(f"{where}: {len(missing)} tensors are missing: {listed(missing)}")
    wrong = [
        f"{shown(name)} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if tensors[name].shape != value.shape
    ]
    if wrong:
        raise FormatError(f"{where}: tensors do not fit the settings: {listed(wrong)}")
    patterns = [re.compile(pattern) for pattern in ignored]
    left = [name for name in tensors if name not in wanted and not any(p.fullmatch(name) for p in patterns)]
    if left:
        raise FormatError(f"{where}: tensors that are not understood: {listed(left)}")
    found = {name: tensors[name] for name in wanted}
    check_weights(_renamed(wanted, shown), _renamed(found, shown), where)
    if not (isinstance(module, nn.Module) or source.copies):
        return _mapped(module, wanted, found)
    made: Module = module if isinstance(module, nn.Module) else module()  # type: ignore[assignment]
    made.load_state_dict(found)
    return made


def _mapped(build: Callable[[], Module], wanted: Mapping[str, Tensor], found: dict[str, Tensor]) -> Module:
    """A network that uses tensors as they are, of 16 bits too: they are written to a file before the source changes."""
    made = bare(build)
    for name, value in wanted.items():
        if found[name].dtype not in (float16, bfloat16):
            found[name] = found[name].to(value.dtype)
    made.load_state_dict(found, assign=True)
    return made


def _renamed(tensors: Mapping[str, Tensor], shown: Callable[[str], str]) -> dict[str, Tensor]:
    return {shown(name): value for name, value in tensors.items()}


def listed(names: Iterable[str]) -> str:
    """Names for a message, not too many."""
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def find_weights(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of the weights in a folder: *.safetensors, else *.bin; and those that were passed over.

    A plain file goes before its variants, such as x.fp16.bin and x.non_ema.bin, and a usual name before others.

    Raises:
        FormatError: there is none.
        VqtoolError: there are several, and none has a usual name.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise FormatError(f"{folder}: no weights in it: *.safetensors or *.bin are expected")
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(re.sub(r"-\d{5}-of-\d{5}", "", file.stem), []).append(file)
    plain = [name for name in groups if not any(name.startswith(f"{other}.") for other in groups)]
    usual = [name for name in USUAL_WEIGHTS if name in plain]
    if len(plain) > 1 and not usual:
        raise VqtoolError(f"{folder}: {listed(file.name for file in files)} are in it: name the file of the weights")
    chosen = groups[usual[0] if usual else plain[0]]
    return chosen, [file for file in files if file not in chosen]


def find_config(path: Path) -> tuple[Path | None, list[str]]:
    """The file of settings that goes with a checkpoint, and lines on others.

    It is the one of the same name, else the only one in its folder. Files that are no settings of a model, such as
    lists of labels, do not count.

    Raises:
        VqtoolError: several are there, and none has its name.
    """
    own = [path.with_suffix(ending) for ending in CONFIG_ENDINGS if path.with_suffix(ending).is_file()]
    near = sorted(file for file in path.parent.iterdir() if file.suffix in CONFIG_ENDINGS and file.is_file())
    found = [file for file in near if _is_config(file)]
    for file in own:
        if file in found:
            return file, []
    if len(found) > 1:
        raise VqtoolError(
            f"{path}: {listed(file.name for file in found)} are beside it: name the right one with `config`, or say "
            "`config` none"
        )
    notes = [f"settings: {file.name} is beside it, but holds none of a model" for file in own]
    return (found[0], [f"settings: {found[0].name}", *notes]) if found else (None, notes)


def _is_config(path: Path) -> bool:
    """Whether a YAML or JSON file holds settings of a model, in the layout of some project."""
    try:
        found = read_config(path)
    except VqtoolError:
        return False
    sections = ("model", "Model", "ddconfig")
    named = any(isinstance(found.get(name), str) for name in ("_class_name", "vit_size"))
    return named or any(isinstance(found.get(name), dict) for name in sections)


def class_named(config: Mapping[str, Any] | None) -> str:
    """The class of a model that settings name, as written there; empty if they do not."""
    part = config or {}
    inner = part.get("model")
    for level in (part, inner if isinstance(inner, Mapping) else {}):
        for name in ("_class_name", "class_path", "target"):
            if isinstance(level.get(name), str):
                return str(level[name])
    return ""
