"""Vocabularies that are learned from captions: byte-level BPE and SentencePiece."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vqtool.errors import FormatError, VqtoolError
from vqtool.trust import parse_object, parse_record


class Vocabulary(Protocol):
    """Splits texts into tokens numbered from 0. `data` is its file, from which it can be built again."""

    name: str
    size: int
    data: bytes

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""


class BpeVocabulary:
    """Byte-level byte-pair encoding of lower-cased, NFKC-normalised text; it can encode any text."""

    name = "bpe"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._model = _byte_pairs(*_read_byte_pairs(data))
        self.size: int = self._model.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return list(self._model.encode(text).ids)

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> "BpeVocabulary":
        """Learn merges from the texts; at most `size` tokens, 256 of which are the bytes."""
        from tokenizers import pre_tokenizers, trainers

        model = _byte_pairs({}, [])
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
        )
        model.train_from_iterator(sorted(texts), trainer)
        return cls(model.to_str().encode())


@dataclass(frozen=True)
class _BytePairs:
    """What a model is made of, in the file of a tokenizer."""

    vocab: dict[str, int]
    merges: tuple[Any, ...]  # texts "a b", or pairs


def _byte_pairs(tokens: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """A tokenizer that does nothing but byte-level BPE: other parts of a file could take any time."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model = Tokenizer(models.BPE(tokens, merges))
    model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return model


def _read_byte_pairs(data: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges.

    Raises:
        FormatError: they are not those of byte-level BPE.
    """
    model = parse_object(data, "vocabulary").get("model")
    wanted = {name: model.get(name) for name in ("vocab", "merges")} if isinstance(model, dict) else {}
    found = parse_record(_BytePairs, wanted, "vocabulary")
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in found.merges]
    if sorted(found.vocab.values()) != [*range(len(found.vocab))]:
        raise FormatError("vocabulary: its tokens are not numbered from 0 on")
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(map(str, pair))} <= found.vocab.keys():
            raise FormatError("vocabulary: its merges are not those of its tokens")
    return found.vocab, pairs


class SentencePieceVocabulary:
    """A SentencePiece unigram model of lower-cased, NFKC-normalised text; unknown characters become their bytes."""

    name = "sentencepiece"

    def __init__(self, data: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.data = data
        try:
            self._model = SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise FormatError(f"vocabulary: not a model of SentencePiece: {error}") from error
        self.size: int = self._model.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return list(self._model.encode(text))

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> "SentencePieceVocabulary":
        """Learn pieces from the texts; about `size` tokens, 256 of which are the bytes.

        Raises:
            VqtoolError: SentencePiece cannot make a model of these texts.
        """
        from sentencepiece import SentencePieceTrainer

        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(sorted(texts)),
                model_writer=model,
                vocab_size=size,
                model_type="unigram",
                normalization_rule_name="nmt_nfkc_cf",
                byte_fallback=True,
                hard_vocab_limit=False,
                character_coverage=1.0,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise VqtoolError(
                f"SentencePiece cannot learn from these captions ({error}): use `vocabulary` bpe"
            ) from error
        return cls(model.getvalue())


MODELS: dict[str, type[BpeVocabulary] | type[SentencePieceVocabulary]] = {
    "bpe": BpeVocabulary,
    "sentencepiece": SentencePieceVocabulary,
}
