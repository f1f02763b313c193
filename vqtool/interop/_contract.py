"""What an importer is told beside its source, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vqtool.conditions.text_encoders import TextEncoder, load_text_encoder
from vqtool.errors import VqtoolError
from vqtool.options import Checked, option, options_of
from vqtool.priors import Prior
from vqtool.tokenizers import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Options(Checked):
    """What a user may say about a source. Artifacts are given as they are or as the paths of their files.

    Whoever reads an option uses it: one that is given and that no importer reads means nothing for its source, and is
    an error (`check_used`).
    """

    tokenizer: Tokenizer | None = option(
        None, "Artifact that the tokens are of, where the source holds none.", flag="-t"
    )
    text_encoder: TextEncoder | None = option(
        None, "Artifact that captions are read with, where the source holds none.", advanced=True
    )
    vocabulary: Path | None = option(
        None,
        "Of captions, where the source has none of its own: a folder of transformers' CLIPTokenizer.",
        advanced=True,
    )
    weights: str | None = option(
        None,
        "Averaged or raw weights, where a checkpoint holds both.",
        shown="ema",
        choices=("ema", "raw"),
        advanced=True,
    )
    code_map: Tensor | None = option(None, "Full -> reduced codes: VQ-Diffusion's taming_vqvae_2887.pt.", advanced=True)
    num_heads: int | None = option(
        None, "Attention heads, where the source does not say.", minimum=1, flag="--heads", advanced=True
    )
    grid_size: tuple[int, int] | None = option(
        None,
        "Cells, 32 or 24x32 (height x width), where the source does not say.",
        minimum=1,
        flag="--grid",
        advanced=True,
    )
    num_steps: int | None = option(
        None, "Diffusion steps T, where the source does not say.", minimum=1, flag="--diffusion-steps", advanced=True
    )
    activation: str | None = option(
        None, "Of VQ-Diffusion's MLPs, where the source does not say.", choices=("gelu", "gelu2"), advanced=True
    )
    _used: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._used.clear()  # the check has read them all

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("_"):
            super().__getattribute__("__dict__").get("_used", set()).add(name)
        return value

    def check_used(self, source: Path, format: str) -> None:
        """Raise VqtoolError if something is given that nobody has read."""
        used = set(self._used)
        for each in options_of(type(self)):
            if each.name not in used and getattr(self, each.name) is not None:
                raise VqtoolError(f"{source}: `{each.name}` says nothing about this {format} source: leave it out")

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Options":
        """Options whose artifacts may be the paths of their files; a grid of one number is a square.

        Raises:
            VqtoolError: a file cannot be read, or a value is not possible.
        """
        from vqtool.interop._sources import read_code_map

        readers: dict[str, Callable[[Any], Any]] = {
            "tokenizer": load_tokenizer,
            "text_encoder": load_text_encoder,
            "code_map": read_code_map,
        }
        found = {
            name: readers[name](value) if name in readers and isinstance(value, str | Path) else value
            for name, value in given.items()
        }
        if len(found.get("grid_size") or ()) == 1:
            found["grid_size"] *= 2
        return cls(**found)


@dataclass(frozen=True)
class Imported:
    """What was found in a source."""

    tokenizer: Tokenizer | None = None
    prior: Prior | None = None  # has its text encoder
    text_encoder: TextEncoder | None = None  # that of the prior, if it came with it
    notes: list[str] = field(default_factory=list)  # what was found, chosen and left out
