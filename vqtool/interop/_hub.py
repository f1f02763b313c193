"""Repositories of the Hugging Face hub, through its own client: its cache, its tokens, its HF_HUB_OFFLINE."""

import re
from pathlib import Path

from vqtool.errors import VqtoolError

SETTINGS = ("*.json", "*.txt", "*.yaml", "*.yml")
WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".th")
IGNORED = ("*.fp16.*", "*.non_ema.*", "*.msgpack", "*.onnx", "*.h5")  # the same weights once more


def is_name(name: str) -> bool:
    """Whether a text can be the name of a repository, owner/name, and is not rather that of a file of weights."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not name.endswith(WEIGHTS)


def download(name: str) -> Path:
    """The folder of a repository: settings, vocabularies and weights, pickles only where there is nothing else.

    Raises:
        VqtoolError: there is no network, or no such repository.
    """
    folder = _snapshot(name, [*SETTINGS, "*.safetensors"])
    models = [config.parent for config in sorted(folder.rglob("config.json"))]
    pickled = [model for model in models if not any(model.glob("*.safetensors"))]
    if pickled:
        _snapshot(name, [(model.relative_to(folder) / "*.bin").as_posix() for model in pickled])
    return folder


def _snapshot(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=[*IGNORED]))
    except (OSError, ValueError) as error:  # what the client raises without network, repository or permission
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise VqtoolError(
            f"{name}: no such file or folder, and it cannot be downloaded from the Hugging Face hub ({reason}): "
            "check the name and the network, or download it elsewhere and name the folder"
        ) from error
