"""A text encoder on its own: the folder of transformers' CLIPTextModel or CLIPModel, or weights in OpenAI's layout.

Its features are those that VQ-Diffusion was trained on: every token's state after the last norm, of length 1. The
vocabulary is read from the folder, else it is CLIP's standard one, and stands in the artifact, so that
`train-prior --text-encoder` needs nothing else. OpenAI's published `ViT-B-32.pt` is a TorchScript program: its tensors
are read by the names of its modules' attributes, which are those of its `state_dict()`, and its code is not looked at.
"""

from pathlib import Path
from typing import Any

from vqtool.conditions.clip import ClipCondition
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.errors import FormatError
from vqtool.interop import openai, transformers
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, tensors_in

TYPES = ("clip_text_model", "clip")  # of the settings of such a folder
MARKS = {"token_embedding.weight", "positional_embedding", "ln_final.weight"}
VOCABULARY_FILES = ("tokenizer.json", "vocab.json")


def recognise(source: Source) -> bool:
    """Whether it is the folder of such a model, or holds the layers of its text tower under OpenAI's names."""
    return tensors_in(source.content).keys() >= MARKS or _settings(source).get("model_type") in TYPES


def _settings(source: Source) -> dict[str, Any]:
    there = source.content is None and (source.path / "config.json").is_file()
    return source.json("config.json") if there else {}


def load(source: Source, options: Options) -> Imported:
    """The text encoder, with the vocabulary that it was trained with.

    Raises:
        FormatError: tensors are missing or do not fit, or the vocabulary is not known.
    """
    if source.content is None:
        encoder = transformers.read_text_encoder(source.tensors(), _settings(source), source, gelu=True)
    else:
        encoder = openai.read_text_encoder(tensors_in(source.content), source)
    encoder.captions, note = _find_vocabulary(encoder, source, options)
    config = encoder.config
    return Imported(
        text_encoder=encoder,
        notes=[f"text encoder: {config.num_layers} layers of {config.width}, {config.max_length} tokens", note],
    )


def _find_vocabulary(encoder: TextEncoder, source: Source, options: Options) -> tuple[ClipCondition, str]:
    """What reads captions for it, and what is said of that."""
    size, length = encoder.config.vocabulary_size, encoder.config.max_length
    folder: Path | None = options.vocabulary
    if folder is None and source.content is None:
        folder = next((source.path for name in VOCABULARY_FILES if (source.path / name).is_file()), None)
    if folder is not None:
        found, note = transformers.read_vocabulary(folder, length), f"vocabulary: that of {folder}"
    else:
        found, note = ClipCondition(max_length=length), "vocabulary: CLIP's standard one"
    if found.vocabulary_size != size and (folder is None or found.vocabulary_size > size):
        raise FormatError(
            f"{source.path}: the vocabulary has {found.vocabulary_size} tokens, the text encoder {size}: name the "
            "folder of the right one with `vocabulary`"
        )
    return found, note
