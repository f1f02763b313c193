"""Repositories of the Hugging Face hub, through its own client: its cache, tokens, HF_HUB_OFFLINE and HF_ENDPOINT.

A repository is named owner/name, or hub:owner/name[/FILE OR FOLDER][@REVISION].
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtool.errors import VqtoolError

PREFIX = "hub:"
SETTINGS = ("*.json", "*.txt", "*.yaml", "*.yml")
WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".th")
IGNORED = ("*.fp16.*", "*.non_ema.*", "*.msgpack", "*.onnx", "*.h5")  # the same weights once more


@dataclass(frozen=True)
class Place:
    """A repository, and what of it is meant."""

    repository: str  # owner/name
    part: str = ""  # a file or folder; empty for all
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Of hub:owner/name[/PART][@REVISION].

        Raises:
            VqtoolError: it is not written so.
        """
        word = r"[\w-][\w.-]*"
        match = re.fullmatch(rf"{PREFIX}({word}/{word})(?:/({word}(?:/{word})*))?(?:@([\w./-]+))?", text)
        if not match:
            raise VqtoolError(f"{text}: {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME/FILE@REVISION is expected")
        return cls(match[1], match[2] or "", match[3])


def is_name(name: str) -> bool:
    """Whether a text can be the name of a repository, owner/name, and is not rather that of a file of weights."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not name.endswith(WEIGHTS)


def download(place: Place) -> Path:
    """The file or folder that is meant: settings, vocabularies and weights, pickles only where there is nothing else.

    Raises:
        VqtoolError: there is no network, or no such repository or file.
    """
    if place.part.endswith(WEIGHTS):
        return _file(place)
    below = f"{place.part}/" if place.part else ""
    root = _snapshot(place, [below + pattern for pattern in (*SETTINGS, "*.safetensors")])
    folder = root / place.part
    models = [config.parent for config in sorted(folder.rglob("config.json"))]
    pickled = [model for model in models if not any(model.glob("*.safetensors"))]
    if pickled:
        _snapshot(place, [(model.relative_to(root) / "*.bin").as_posix() for model in pickled])
    return folder


def _snapshot(place: Place, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    def ask() -> Any:
        return snapshot_download(
            place.repository, revision=place.revision, allow_patterns=patterns, ignore_patterns=[*IGNORED]
        )

    return _explained(place, ask)


def _file(place: Place) -> Path:
    """A file, with the settings of its name beside it where the repository has them."""
    from huggingface_hub import hf_hub_download

    found = _explained(place, lambda: hf_hub_download(place.repository, place.part, revision=place.revision))
    stem = place.part.rsplit(".", 1)[0]
    _snapshot(place, [f"{stem}.yaml", f"{stem}.yml", f"{stem}.json"])
    return found


def _explained(place: Place, ask: Any) -> Path:
    try:
        return Path(ask())
    except (OSError, ValueError) as error:  # what the client raises without network, repository or permission
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        part = f"/{place.part}" if place.part else ""
        raise VqtoolError(
            f"{place.repository}{part}: no such file or folder, and it cannot be downloaded from the Hugging Face hub "
            f"({reason}): check the name and the network, or download it elsewhere and name the folder"
        ) from error
