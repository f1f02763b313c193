"""Captions as CLIP reads them: start, words, end, padding, in the tokens of its byte-pair encoding.

For priors of other projects that attend to CLIP's features (`vqtool.conditions.text_encoders`). The standard
vocabulary of 49,408 tokens is inside the package and stands in a prior by name; another one stands there by value.
Tokens are those of transformers' CLIPTokenizer; differs from OpenAI's program: entities such as "&amp;" stay as they
are written.

Source: Radford et al. 2021 (arXiv:2103.00020), section 2.4; Sennrich et al. 2016 (arXiv:1508.07909).
"""

import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtool.conditions import Conditioner
from vqtool.errors import FormatError
from vqtool.trust import parse_object, parse_record

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77  # tokens that CLIP's towers read
END_OF_WORD = "</w>"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class ClipVocabulary:
    """Tokens and merges of CLIP's byte-pair encoding."""

    tokens: Mapping[str, int] = field(repr=False)
    merges: Sequence[tuple[str, str]] = field(repr=False)  # in the order in which they are tried
    special: tuple[str, ...] = (START, END)  # start, end, others: found whole in captions

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.tokens)

    def check(self, where: str) -> None:
        """Raise FormatError unless tokens are numbered from 0, merges are made of them, and start and end are there."""
        if sorted(self.tokens.values()) != [*range(self.size)]:
            raise FormatError(f"{where}: its {self.size} tokens are not numbered from 0 on")
        if len(self.special) < 2 or not all(word in self.tokens for word in self.special):
            raise FormatError(f"{where}: its start or end is no token of it")
        if not all({left, right, left + right} <= self.tokens.keys() for left, right in self.merges):
            raise FormatError(f"{where}: its merges are not those of its tokens")

    @cached_property
    def _model(self) -> Any:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        bpe = models.BPE(
            dict(self.tokens), list(self.merges), end_of_word_suffix=END_OF_WORD, unk_token=self.special[1]
        )
        model = Tokenizer(bpe)
        model.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
        model.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        model.add_special_tokens(list(self.special))
        return model

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without start and end."""
        return list(self._model.encode(text, add_special_tokens=False).ids)


@cache
def standard() -> ClipVocabulary:
    """The vocabulary of all of OpenAI's CLIP models."""
    packed = (Path(str(files("vqtool"))) / "builtin" / "clip-vocabulary.txt.xz").read_bytes()
    lines = lzma.decompress(packed).decode().split("\n")
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    letters = _letters()
    names = [*letters, *(letter + END_OF_WORD for letter in letters), *(a + b for a, b in merges), START, END]
    return ClipVocabulary({name: number for number, name in enumerate(names)}, merges)


def _letters() -> list[str]:
    """The characters that stand for the 256 bytes, in the order of their tokens: those that can be printed first."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printed), *(chr(256 + number) for number in range(256 - len(printed)))]


class ClipCondition(Conditioner):
    """A caption, as a row of CLIP's tokens; the null condition is the empty caption."""

    kind = "caption"
    needs_text_encoder = True
    examples = ()

    def __init__(self, vocabulary: ClipVocabulary | None = None, *, max_length: int = MAX_LENGTH, pad: int = 0) -> None:
        """Captions in a vocabulary.

        Args:
            vocabulary: None for the standard one.
            max_length: tokens of a caption with start and end.
            pad: the token that fills rows up: 0 in VQ-Diffusion.
        """
        self.vocabulary = vocabulary or standard()
        self.max_length = max_length
        self.pad = pad
        start, end = self.vocabulary.special[:2]
        self.start, self.end = self.vocabulary.tokens[start], self.vocabulary.tokens[end]

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are, with start and end."""
        return self.vocabulary.size

    def _encode(self, texts: Sequence[str | None]) -> Tensor:
        """(B, max_length) int64 tokens; a longer caption loses its end (see `find_truncated`)."""
        result = self.null(len(texts))
        for row, text in zip(result, texts, strict=True):
            ids = [self.start, *self.vocabulary.encode(text or "")][: self.max_length - 1]
            row[: len(ids) + 1] = torch.tensor([*ids, self.end])
        return result

    def null(self, num: int) -> Tensor:
        """(B, max_length) int64: start, end, padding."""
        result = torch.full((num, self.max_length), self.pad, dtype=torch.int64)
        result[:, 0], result[:, 1] = self.start, self.end
        return result

    def find_truncated(self, texts: Sequence[str | None]) -> list[str]:
        """The captions of more than max_length - 2 tokens."""
        limit = self.max_length - 2
        return [text for text in texts if text is not None and len(self.vocabulary.encode(text)) > limit]

    @property
    def _is_standard(self) -> bool:
        return self.vocabulary.tokens == standard().tokens

    def config(self) -> dict[str, Any]:
        """The kind, whether the vocabulary is the standard one, the caption length, the padding."""
        return {
            "kind": self.kind,
            "vocabulary": "clip",
            "standard": self._is_standard,
            "special": list(self.vocabulary.special),
            "vocabulary_size": self.vocabulary_size,
            "max_length": self.max_length,
            "pad": self.pad,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The vocabulary as JSON; nothing for the standard one."""
        if self._is_standard:
            return {}
        data = json.dumps({"tokens": dict(self.vocabulary.tokens), "merges": list(self.vocabulary.merges)})
        return {"vocabulary": torch.frombuffer(bytearray(data.encode()), dtype=torch.uint8)}


def load(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ClipCondition:
    """The conditioner that `ClipCondition.config` and `ClipCondition.tensors` describe.

    Raises:
        FormatError: the vocabulary is missing.
    """
    from vqtool.conditions import vocabulary_bytes

    record = parse_record(_Record, config, "condition")
    known = standard()
    if not record.standard:
        found = parse_record(Words, parse_object(vocabulary_bytes(tensors), "vocabulary"), "vocabulary")
        known = ClipVocabulary(found.tokens, found.merges)
    vocabulary = ClipVocabulary(known.tokens, known.merges, record.special)
    if not record.standard or record.special != known.special:
        vocabulary.check("vocabulary")
    if record.max_length < 2 or record.pad >= vocabulary.size:
        raise FormatError(f"condition: captions of {record.max_length} tokens, filled up with token {record.pad}")
    return ClipCondition(vocabulary, max_length=record.max_length, pad=record.pad)


@dataclass(frozen=True)
class _Record:
    kind: str
    vocabulary: str
    standard: bool
    special: tuple[str, ...]
    vocabulary_size: int
    max_length: int
    pad: int


@dataclass(frozen=True)
class Words:
    """A vocabulary as files have it."""

    tokens: dict[str, int]
    merges: tuple[tuple[str, str], ...]
