"""Conditions: none, a class label or a caption. Labels and captions -> condition tensors.

Every kind of condition is a `Conditioner`: it turns texts into the tensor the denoiser takes, knows the null condition
(the learned "no condition" that guidance compares with) and goes into the prior's file. Captions are split into tokens
by a byte-level BPE (the default; `tokenizers`) or SentencePiece model trained on the captions of the grid file; the
training is deterministic. Priors of other projects have CLIP's vocabulary (`vqtool.conditions.clip`). This is the only
package that imports tokenizers and sentencepiece.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from vqtool import rng
from vqtool.captions import split_captions
from vqtool.checks import check_texts
from vqtool.conditions._imagenet import imagenet_labels
from vqtool.conditions._vocabularies import MODELS as VOCABULARY_MODELS
from vqtool.conditions._vocabularies import Vocabulary
from vqtool.errors import FormatError, VqtoolError
from vqtool.grids.labels import count_labels
from vqtool.images.sources.items import NameIndex, natural_key
from vqtool.registry import check_known
from vqtool.trust import parse_record

KINDS = ("none", "class", "caption")
VOCABULARIES = ("bpe", "sentencepiece")
MAX_EXAMPLES = 256  # captions kept in a prior, so that it can be sampled without being given any
MIN_CAPTION_LENGTH = 32  # tokens that a prior can read, however short the captions are that it learns from
MAX_CAPTION_LENGTH = 64  # tokens; a caption's own length costs cross-attention in every denoiser call
MAX_VOCABULARY = 8192
PAD, NULL, END = 0, 1, 2  # the ids before those of the vocabulary
NUM_SPECIAL = 3
_LISTED = 20  # labels named in an error


class Conditioner(ABC):
    """One kind of condition: texts in, (B, ...) int64 condition tensors out."""

    kind: str
    needs_text_encoder = False  # whether the denoiser takes a text encoder's features in place of the tokens
    examples: tuple[str, ...]  # texts of the training data, to condition on where the user names none

    def encode(self, texts: Sequence[str | None]) -> Tensor:
        """The condition tensor of B labels or captions; None is the null condition.

        Raises:
            VqtoolError: a label that the prior was not trained on.
            ValueError: no list of texts.
        """
        check_texts(texts)
        return self._encode(texts)

    @abstractmethod
    def _encode(self, texts: Sequence[str | None]) -> Tensor:
        """What `encode` returns, of texts that have been checked."""

    @abstractmethod
    def null(self, num: int) -> Tensor:
        """The null condition `num` times: what `encode` gives for None."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What stands in the prior's header; `load` reads it back."""

    def tensors(self) -> dict[str, Tensor]:
        """What goes into the prior's file beside the config."""
        return {}

    def select(self, labels: Sequence[str] | None, captions: Sequence[str] | None) -> list[str | None] | None:
        """A grid file's labels or captions, whichever this kind uses; an empty text becomes None.

        Of several captions of an image this is the first; `select_all` gives all of them.
        """
        texts = {"class": labels, "caption": captions}.get(self.kind)
        return None if texts is None else [split_captions(own)[0] or None for own in texts]

    def select_all(
        self, labels: Sequence[str] | None, captions: Sequence[str] | None
    ) -> list[tuple[str | None, ...]] | None:
        """As `select`, with all captions of each image."""
        texts = {"class": labels, "caption": captions}.get(self.kind)
        return None if texts is None else [tuple(text or None for text in split_captions(own)) for own in texts]

    def find_truncated(self, texts: Sequence[str | None]) -> list[str]:
        """The texts whose end is cut off, because they are longer than the denoiser's input."""
        return []

    def find_unread(self, texts: Sequence[str | None]) -> list[str]:
        """The texts in letters of which nothing can have been learned: no two bytes of them were ever seen together."""
        return []


class NoCondition(Conditioner):
    """Unconditional: samples follow the distribution of the training data."""

    kind = "none"
    examples = ()

    def _encode(self, texts: Sequence[str | None]) -> Tensor:
        """(B, 0) int64: an empty condition.

        Raises:
            VqtoolError: a text was given.
        """
        if any(text is not None for text in texts):
            raise VqtoolError("this prior takes no labels and no captions: it was trained without a condition")
        return self.null(len(texts))

    def null(self, num: int) -> Tensor:
        """(B, 0) int64."""
        return torch.zeros(num, 0, dtype=torch.int64)

    def config(self) -> dict[str, Any]:
        """The kind alone."""
        return {"kind": self.kind}


class ClassCondition(Conditioner):
    """One of a list of labels; where they are words, the number of one, from 0 on, stands for it too."""

    kind = "class"

    def __init__(self, labels: Sequence[str]) -> None:
        self.examples = tuple(labels)
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._names = NameIndex(labels)
        self._named = not any(label.isdigit() for label in labels)

    @property
    def num_classes(self) -> int:
        """How many labels there are; also the number of the null condition."""
        return len(self.examples)

    def _encode(self, texts: Sequence[str | None]) -> Tensor:
        """(B,) int64 numbers of the labels; None becomes num_classes.

        Raises:
            VqtoolError: an unknown label; close matches and the known labels are named.
        """
        return torch.tensor([self._number(text) for text in texts], dtype=torch.int64)

    def _number(self, label: str | None) -> int:
        if label is None:
            return self.num_classes
        known = self._names.find(label)
        if known is None and self._named and re.fullmatch("[0-9]{1,6}", label) and int(label) < self.num_classes:
            return int(label)
        if known is None:
            raise VqtoolError(f"unknown label {label!r}: {_known(label, self.examples)}")
        return self._numbers[known]

    def null(self, num: int) -> Tensor:
        """(B,) int64, all num_classes."""
        return torch.full((num,), self.num_classes, dtype=torch.int64)

    def config(self) -> dict[str, Any]:
        """The kind and the labels in the order of their numbers."""
        return {"kind": self.kind, "labels": list(self.examples)}


def _known(label: str, labels: Sequence[str]) -> str:
    close = get_close_matches(label, labels, n=5, cutoff=0.5)
    others = [known for known in labels if known not in close]
    listed = (close + others)[:_LISTED]
    more = f" and {len(labels) - len(listed)} more" if len(labels) > len(listed) else ""
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}the prior knows {', '.join(listed)}{more}"


class CaptionCondition(Conditioner):
    """A sentence, as a row of token ids: the caption, END, then PAD; the null condition is NULL, then PAD."""

    kind = "caption"

    def __init__(self, vocabulary: Vocabulary, max_length: int, examples: Sequence[str]) -> None:
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.examples = tuple(examples)

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, with PAD, NULL and END."""
        return self.vocabulary.size + NUM_SPECIAL

    def _encode(self, texts: Sequence[str | None]) -> Tensor:
        """(B, max_length) int64 token ids; a longer caption loses its end (see `find_truncated`)."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}  # variants of a picture share them
        rows = self.null(len(numbers))
        for row, text in zip(rows, numbers, strict=True):
            if text is not None:
                ids = [NUM_SPECIAL + token for token in self.vocabulary.encode(text)][: self.max_length - 1]
                row[: len(ids) + 1] = torch.tensor([*ids, END])
        return rows[[numbers[text] for text in texts]]

    def null(self, num: int) -> Tensor:
        """(B, max_length) int64: NULL, then PAD."""
        result = torch.full((num, self.max_length), PAD, dtype=torch.int64)
        result[:, 0] = NULL
        return result

    def find_truncated(self, texts: Sequence[str | None]) -> list[str]:
        """The captions of more than max_length - 1 tokens."""
        limit = self.max_length - 1
        return [text for text in texts if text is not None and len(self.vocabulary.encode(text)) > limit]

    def find_unread(self, texts: Sequence[str | None]) -> list[str]:
        """The captions of other letters than ASCII's that the vocabulary spells byte by byte."""
        foreign = [text for text in texts if text is not None and not text.isascii()]
        return [text for text in foreign if len(self.vocabulary.encode(text)) >= len("".join(text.split()).encode())]

    def config(self) -> dict[str, Any]:
        """The kind, the vocabulary's name, the caption length and the example captions."""
        return {
            "kind": self.kind,
            "vocabulary": self.vocabulary.name,
            "vocabulary_size": self.vocabulary_size,
            "max_length": self.max_length,
            "examples": list(self.examples),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The vocabulary as the bytes of its own file format (BPE: JSON; SentencePiece: its model file)."""
        return {"vocabulary": torch.frombuffer(bytearray(self.vocabulary.data), dtype=torch.uint8)}


def numbered_classes(num: int) -> tuple[ClassCondition, str]:
    """The conditioner of classes that only have numbers, and what is said of their names; 1,000 are ImageNet's."""
    if num == len(imagenet_labels()):
        return ClassCondition(imagenet_labels()), "classes: 1,000, taken for ImageNet's, by name or number"
    names = [str(number) for number in range(num)]
    return ClassCondition(names), f"classes: 0 to {num - 1}, by number; their names are not in the file"


def choose_kind(labels: Sequence[str] | None, captions: Sequence[str] | None) -> str:
    """The kind of condition for a grid file.

    Captions if there are any; else classes if there are two or more, of two grids each on average; else none.
    """
    if captions is not None and any(captions):
        return "caption"
    distinct = count_labels(labels).keys() - {""}
    return "class" if 2 <= len(distinct) <= len(labels or ()) / 2 else "none"


def explain_none(labels: Sequence[str] | None) -> str:
    """Why labels that are there are no condition; nothing where there are none."""
    distinct = sorted(count_labels(labels).keys() - {""})
    if not distinct:
        return ""
    if len(distinct) == 1:
        return f"{distinct[0]} is the only class, and no condition"
    return (
        f"{len(distinct)} classes of {len(labels or ())} grids are no condition, which takes two grids of each: "
        "`condition` class learns them all the same"
    )


def build(
    kind: str,
    labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    *,
    vocabulary: str = "bpe",
    vocabulary_size: int | None = None,
) -> Conditioner:
    """The conditioner for the labels and captions of a grid file.

    Args:
        kind: one of KINDS.
        labels: one a grid; an empty one counts as missing.
        captions: one a grid; an empty one counts as missing.
        vocabulary: one of VOCABULARIES, for captions.
        vocabulary_size: most tokens of it; None for what suits the captions.

    Raises:
        VqtoolError: an unknown kind or vocabulary, or the grids have no labels or captions.
    """
    check_known("condition", kind, KINDS)
    if kind == "none":
        return NoCondition()
    if kind == "class":
        known = sorted(count_labels(labels).keys() - {""}, key=natural_key)
        if not known:
            raise VqtoolError("`condition` class needs labels, but the grids have none: encode images in class folders")
        return ClassCondition(known)
    check_known("vocabulary", vocabulary, VOCABULARIES)
    texts = [caption for own in captions or () if own for caption in split_captions(own)]
    if not texts:
        raise VqtoolError("`condition` caption needs captions, but the grids have none: give them in metadata.jsonl")
    return _build_caption(texts, vocabulary, vocabulary_size or MAX_VOCABULARY)


def _build_caption(texts: Sequence[str], vocabulary: str, most: int) -> CaptionCondition:
    words = {word for text in texts for word in text.lower().split()}
    size = min(most, 256 + 64 + 2 * len(words))
    return _caption_condition(texts, VOCABULARY_MODELS[vocabulary].train(texts, size))


def _caption_condition(
    texts: Sequence[str], model: Vocabulary, *, at_least: int = MIN_CAPTION_LENGTH
) -> CaptionCondition:
    """Captions of a length that takes all of these, up to a limit."""
    distinct = list(dict.fromkeys(texts))
    longest = max(len(model.encode(text)) for text in distinct)
    # In random order, so that the first few are as varied as all of them.
    order = rng.permutation(0, 0, len(distinct))[:MAX_EXAMPLES]
    max_length = max(at_least, min(longest + 1, MAX_CAPTION_LENGTH))
    return CaptionCondition(model, max_length, [distinct[i] for i in order])


def extend(conditioner: Conditioner, labels: Sequence[str] | None, captions: Sequence[str] | None) -> Conditioner:
    """The conditioner for more grids: labels that it does not know go after those that it knows.

    A vocabulary stays what it is, since both kinds can write any text; captions may become longer, as far as a fresh
    conditioner's. The examples are those of the new grids: none, where these have no captions.
    """
    if isinstance(conditioner, ClassCondition):
        names = NameIndex(conditioner.examples)
        new = {label for label in count_labels(labels) if label and names.find(label) is None}
        return ClassCondition([*conditioner.examples, *sorted(new, key=natural_key)])
    texts = [caption for own in captions or () if own for caption in split_captions(own)]
    if isinstance(conditioner, CaptionCondition):
        if not texts:
            return CaptionCondition(conditioner.vocabulary, conditioner.max_length, ())
        return _caption_condition(texts, conditioner.vocabulary, at_least=conditioner.max_length)
    return conditioner


def load(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Conditioner:
    """The conditioner that `Conditioner.config` and `Conditioner.tensors` describe.

    Raises:
        FormatError: the kind is unknown, or a field or the vocabulary is missing or damaged.
    """
    kind, vocabulary = config.get("kind"), config.get("vocabulary")
    if kind == "none":
        return NoCondition()
    if kind == "class":
        labels = parse_record(_Classes, config, "condition").labels
        if not labels or len(set(labels)) < len(labels):
            raise FormatError("condition: labels are missing, or some are the same")
        return ClassCondition(labels)
    if kind != "caption" or vocabulary not in (*VOCABULARY_MODELS, "clip"):
        raise FormatError(f"condition {kind!r:.60} is none that this vqtool knows ({', '.join(KINDS)}): upgrade it")
    if vocabulary == "clip":
        from vqtool.conditions import clip

        return clip.load(config, tensors)
    record = parse_record(_Captions, config, "condition")
    if record.max_length < 2:
        raise FormatError(f"condition: captions of {record.max_length} tokens")
    model = VOCABULARY_MODELS[vocabulary](vocabulary_bytes(tensors))
    return CaptionCondition(model, record.max_length, record.examples)


def vocabulary_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The vocabulary in a prior's file.

    Raises:
        FormatError: it is missing or no bytes.
    """
    found = tensors.get("vocabulary")
    if found is None or found.dtype != torch.uint8 or found.ndim != 1:
        raise FormatError("the vocabulary of the captions is missing")
    return found.numpy().tobytes()


@dataclass(frozen=True)
class _Classes:
    kind: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _Captions:
    kind: str
    vocabulary: str
    max_length: int
    examples: tuple[str, ...]
    vocabulary_size: int
