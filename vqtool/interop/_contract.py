"""What an importer is told beside its source, and what it gives back."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from vqtool.conditions.text_encoders import TextEncoder
from vqtool.priors import Prior
from vqtool.tokenizers import Tokenizer


@dataclass(frozen=True)
class Options:
    """What a user may say about a source."""

    weights: str = "ema"  # or "raw": which of the two that a training checkpoint holds
    num_heads: int | None = None  # of attention, where the source does not say
    grid_size: tuple[int, int] | None = None  # (H, W), where the source does not say
    tokenizer: Tokenizer | None = None  # what a prior's tokens decode with, where the source has none
    text_encoder: TextEncoder | None = None  # that a prior reads captions with, where the source has none
    code_map: Tensor | None = None  # (K_full,) int64: full code -> reduced code
    vocabulary: Path | None = None  # of captions, where the source has none: a folder of transformers' CLIPTokenizer


@dataclass(frozen=True)
class Imported:
    """What was found in a source."""

    tokenizer: Tokenizer | None = None
    prior: Prior | None = None  # has its text encoder
    text_encoder: TextEncoder | None = None  # that of the prior, if it came with it
    notes: list[str] = field(default_factory=list)  # what was found, chosen and left out
