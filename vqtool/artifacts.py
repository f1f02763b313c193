"""One-file artifacts: safetensors with a JSON header that says what the file is and where it came from.

The header stands in the safetensors metadata under the key "vqtool": kind, config, fingerprint, parents, history and
training summary (docs/formats.md). Reading a header needs neither torch nor the tensors. Files are written under a
temporary name in the same folder and renamed, so a file under its final name is whole.
"""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.resources import files
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vqtool.errors import FormatError, VqtoolError
from vqtool.outputs import atomic_path
from vqtool.trust import check_file, parse_object, parse_record
from vqtool.version import TOKENS, __version__

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
_DTYPES = {  # torch's names -> those of safetensors
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_EXPONENTS = {  # of the types above that have one: bytes of a number, and which bits
    "F64": (8, 0x7FF << 52), "F32": (4, 0xFF << 23), "F16": (2, 0x1F << 10), "BF16": (2, 0xFF << 7),
}  # fmt: skip
CODES = "codes"  # the parent that a tokenizer has encoder and codes of: all tensors but those of its decoder
DECODER = "decoder."  # how the names of these begin
_TEXTS = 4096  # of a digest, that are held at a time
BUILTIN = "builtin"  # in place of a path: the tokenizer or prior inside the package


@dataclass(frozen=True)
class Header:
    """What an artifact says about itself."""

    kind: str  # "tokenizer", "code-map", "text-encoder", "prior", "adapter", "dual-encoder" or "training-state"
    config: dict[str, Any]
    fingerprint: str  # 16 hex digits over kind, config and tensors: see `fingerprint`
    parents: dict[str, str] = field(default_factory=dict)  # role -> fingerprint, e.g. {"tokenizer": "..."}
    history: tuple[dict[str, Any], ...] = ()  # one record a step, oldest first: see `history_record`
    summary: dict[str, Any] = field(default_factory=dict)  # steps, seconds, losses, scores
    format_version: int = FORMAT_VERSION

    @property
    def identity(self) -> str:
        """What other files know it by: of a tokenizer that kept encoder and codes of another one, that one's."""
        return self.parents.get(CODES) or self.fingerprint


def fingerprint(kind: str, config: Mapping[str, Any], tensors: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Identity of an artifact: SHA-256 over its kind, config and tensors, not over its history.

    Args:
        kind: of the artifact.
        config: JSON-able; its keys are sorted.
        tensors: name and {dtype, shape, data} of each, as `safetensors.deserialize` gives them; sorted by name here.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{kind}\n{json.dumps(config, sort_keys=True)}\n".encode())
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        digest.update(f"{name} {tensor['dtype']} {list(tensor['shape'])}\n".encode())
        digest.update(tensor["data"])
    return digest.hexdigest()[:16]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, whose header is compared with the size of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        check_file(path)
        with safe_open(path, "numpy") as file:
            yield file
    except OSError as error:
        raise VqtoolError(f"{path}: cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        with path.open("rb") as raw:
            begins_well = raw.read(9)[8:] == b"{"
        found = f"truncated or damaged: {error}" if begins_well else "not a safetensors file"
        raise FormatError(f"{path}: {found}") from error


def _parse_header(metadata: Mapping[str, str], path: Path) -> Header:
    if "vqtool" not in metadata:
        raise FormatError(f"{path}: a safetensors file, but not made by vqtool (no vqtool header)")
    where = f"{path}: its vqtool header is damaged"
    found = parse_object(metadata["vqtool"], where)
    version = found.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:  # checked first: a later version may have other fields
        raise FormatError(f"{path}: format version {version}, this vqtool reads up to {FORMAT_VERSION}: upgrade vqtool")
    header = parse_record(Header, found, where)
    if not re.fullmatch("[0-9a-f]{16}", header.identity):
        raise FormatError(f"{where}: the parent {CODES!r} is no fingerprint: {header.identity!r:.60}")
    return header


def read_header(path: str | Path) -> Header:
    """The header of an artifact, without loading torch or the tensors.

    Raises:
        FormatError: not a safetensors file, cut short, or not vqtool's.
    """
    path = Path(path)
    with _opened(path) as file:
        return _parse_header(file.metadata() or {}, path)


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a safetensors file, without loading them."""
    with _opened(Path(path)) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def verify(path: str | Path) -> Header:
    """Read an artifact whole and compare its tensors with the fingerprint in its header, without torch.

    Raises:
        FormatError: the content is not what was written, or numbers in it are not finite.
    """
    return _read_whole(Path(path))[0]


def _read_whole(path: Path) -> tuple[Header, bytes]:
    """The header and all bytes of an artifact that is what was written."""
    from safetensors import deserialize

    header = read_header(path)
    encoded = path.read_bytes()
    tensors = deserialize(encoded)  # type: ignore[no-untyped-call]
    found = fingerprint(header.kind, header.config, tensors)
    if found != header.fingerprint:
        raise FormatError(f"{path}: damaged: its content has fingerprint {found}, its header says {header.fingerprint}")
    for name, tensor in tensors:
        if not _is_finite(tensor["dtype"], tensor["data"]):
            raise FormatError(f"{path}: {name} holds numbers that are not finite: the weights are damaged")
    return header, encoded


def _is_finite(dtype: str, data: bytes) -> bool:
    """Whether no number is NaN or infinite: those have all bits of their exponent set."""
    width, exponent = _EXPONENTS.get(dtype, (0, 0))
    if not width:
        return True
    numbers = np.frombuffer(data, f"<u{width}")
    step = 1 << 20
    return not any(
        ((numbers[start : start + step] & exponent) == exponent).any() for start in range(0, len(numbers), step)
    )


def save(
    path: str | Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    tensors: "Mapping[str, Tensor]",
    parents: Mapping[str, str] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Header:
    """Write an artifact and return its header.

    Raises:
        VqtoolError: the file exists and `force` is off, or it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    config = dict(json.loads(json.dumps(config)))
    header = Header(
        kind=kind,
        config=config,
        fingerprint=fingerprint(
            kind, config, ((name, describe_tensor(tensor)) for name, tensor in sorted(tensors.items()))
        ),
        parents=dict(parents or {}),
        history=tuple(dict(record) for record in history),
        summary=dict(summary or {}),
    )
    # Written by Python and not by safetensors, whose errors do not say that a disk is full, and tensor by tensor.
    with atomic_path(path, force=force) as temporary, temporary.open("wb") as file:
        _write(file, tensors, {"vqtool": json.dumps(asdict(header))})
    return header


def describe_tensor(tensor: "Tensor") -> dict[str, Any]:
    """The type, shape and bytes of a tensor, as `safetensors.deserialize` gives them, but without a copy."""
    import torch

    name = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
    data = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
    return {"dtype": name, "shape": list(tensor.shape), "data": data}


def _write(file: BinaryIO, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """A safetensors file: the length of a header, the header, then all tensors, those of wide numbers first."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        part = describe_tensor(tensors[name])
        header[name] = {"dtype": part["dtype"], "shape": part["shape"], "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in order:
        file.write(describe_tensor(tensors[name])["data"])


def load(path: str | Path, kind: str | None = None) -> "tuple[Header, dict[str, Tensor]]":
    """The header and tensors of an artifact, on the CPU.

    Args:
        path: of the file.
        kind: what it has to be; None takes any.

    Raises:
        FormatError: not an artifact, damaged, or of another kind.
    """
    from safetensors.torch import load as from_bytes

    path = Path(path)
    header = read_header(path)
    if kind is not None and header.kind != kind:
        raise FormatError(f"{path}: a {header.kind}, but a {kind} is needed here")
    header, encoded = _read_whole(path)
    return header, from_bytes(encoded)


def builtin_path(kind: str) -> Path:
    """The file of the tokenizer or prior inside the package."""
    return Path(str(files("vqtool"))) / "builtin" / f"{kind}.safetensors"


def find(name: str | Path, kind: str) -> Path:
    """The file that a name stands for: "builtin" or a path."""
    return builtin_path(kind) if str(name) == BUILTIN else Path(name)


def find_named(fingerprint: str, location: str, *, near: Path | None = None) -> Path | None:
    """The file of an artifact that another file names, where it was or beside the one that names it.

    Args:
        fingerprint: that the artifact is known by; a file that has it is preferred.
        location: the path that is named.
        near: folder of the file that names it.

    Returns:
        A file that is there, even if all have other fingerprints; None where none is.
    """
    name = Path(location).name
    places = [Path(location), *([near / location, near / name] if near else []), Path(name)]
    there = [place for place in dict.fromkeys(places) if place.is_file()]
    fitting = (place for place in there if _has_fingerprint(place, fingerprint))
    return next(fitting, there[0] if there else None)


def _has_fingerprint(path: Path, fingerprint: str) -> bool:
    try:
        header = read_header(path)
    except VqtoolError:
        return False
    return fingerprint in (header.identity, header.fingerprint)


def text_digest(texts: Iterable[str]) -> str:
    """Digest of some texts in order, "sha256:" and 64 hexadecimal digits: that of a JSON list, made in pieces."""
    total, rest, comma = hashlib.sha256(b"["), iter(texts), ""
    while some := list(islice(rest, _TEXTS)):
        total.update(f"{comma}{json.dumps(some)[1:-1]}".encode())
        comma = ", "
    total.update(b"]")
    return f"sha256:{total.hexdigest()}"


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "vqtool" if name == "__main__.py" else name  # python -m vqtool


def history_record(
    step: str, *, inputs: Mapping[str, str] | None = None, seed: int | None = None, **details: Any
) -> dict[str, Any]:
    """One line of an artifact's or a grid file's history.

    Args:
        step: the command's name.
        inputs: name -> digest or fingerprint of what went in.
        seed: of the run, if it drew noise.
        details: whatever else explains the result.
    """
    record: dict[str, Any] = {
        "step": step,
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "version": __version__,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "inputs": dict(inputs or {}),
    }
    if TOKENS > 1:
        record["tokens"] = TOKENS
    if seed is not None:
        record["seed"] = seed
    return record | details
