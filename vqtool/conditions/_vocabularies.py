"""Vocabularies that are learned from captions: byte-level BPE and SentencePiece."""

import io
from collections.abc import Sequence
from typing import Protocol

from vqtool.errors import VqtoolError


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
        from tokenizers import Tokenizer

        self.data = data
        self._model = Tokenizer.from_str(data.decode())
        self.size: int = self._model.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return list(self._model.encode(text).ids)

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> "BpeVocabulary":
        """Learn merges from the texts; at most `size` tokens, 256 of which are the bytes."""
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        model = Tokenizer(models.BPE())
        model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
        )
        model.train_from_iterator(sorted(texts), trainer)
        return cls(model.to_str().encode())


class SentencePieceVocabulary:
    """A SentencePiece unigram model of lower-cased, NFKC-normalised text; unknown characters become their bytes."""

    name = "sentencepiece"

    def __init__(self, data: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.data = data
        self._model = SentencePieceProcessor(model_proto=data)
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
