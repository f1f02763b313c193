"""CLIP's caption tokens against transformers' CLIPTokenizer, and the vocabulary's way through folders and files."""

import hashlib
import importlib
import json
import lzma
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vqtool import conditions
from vqtool.conditions import clip
from vqtool.conditions.clip import ClipCondition, ClipVocabulary
from vqtool.errors import FormatError
from vqtool.interop.transformers import read_vocabulary

GOLDEN = Path(__file__).parents[1] / "golden" / "df-pipeline"
TEXTS = [
    "a red cat", "", " ", "A  Photo\tof\na DOG ", "it's the dog's, they'll've 'em", "hello!!! world!", "!", "1234 5th",
    "<b>bold</b> &amp; &lt;i&gt;", "<|endoftext|>", "a <|startoftext|> b<|endoftext|>c", "naïve café", "cafe\u0301 ﬁ",
    "яблоко и груша", "苹果 和 梨", "한국어", "🐈‍⬛ and 🏳️‍🌈", "İstanbul ǅ ẞ", "a\u00a0b\u2003c\u200bd",
    "\ud7ff\x00\x7f", "x" * 300, "many words " * 60, "</w> end</w>", "__init__.py -- [a](b) {c: 'd'}", "½ Ⅻ ²",
    "don’t “quote”",
]  # fmt: skip


@pytest.fixture(scope="module")
def peer():
    """transformers' CLIPTokenizer over the standard vocabulary; pad "!" as VQ-Diffusion's folders have it."""
    transformers = pytest.importorskip("transformers")
    known = clip.standard()

    def build(pad):
        return transformers.CLIPTokenizer(
            vocab=dict(known.tokens), merges=list(known.merges), pad_token=pad, model_max_length=77
        )

    return build


def rows_of(tokenizer, texts=TEXTS):
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, max_length=tokenizer.model_max_length, **settings).input_ids


def test_captions_get_the_tokens_of_transformers_with_padding_by_the_end(peer):
    conditioner = ClipCondition(pad=49407)
    assert torch.equal(conditioner.encode(TEXTS), rows_of(peer("<|endoftext|>")))


def test_captions_get_the_tokens_of_transformers_where_an_exclamation_mark_is_the_padding(peer, tmp_path):
    tokenizer = peer("!")
    tokenizer.save_pretrained(tmp_path)
    conditioner = read_vocabulary(tmp_path)
    assert (conditioner.pad, conditioner.max_length) == (0, 77)
    assert torch.equal(conditioner.encode(TEXTS), rows_of(tokenizer))
    assert conditioner.tensors() == {}, "it is the standard vocabulary, which stands in a prior by name"


def test_in_microsofts_priors_padding_is_0_and_an_exclamation_mark_a_word():
    rows = ClipCondition().encode(["a red cat!", None, ""])
    assert rows.shape == (3, 77)
    assert rows[0, :7].tolist() == [49406, 320, 736, 2368, 256, 49407, 0]
    assert rows[1].tolist() == rows[2].tolist() == [49406, 49407] + 75 * [0]


def test_an_overlong_caption_ends_with_the_end_and_is_named():
    conditioner = ClipCondition()
    fits, too_long = "cat " * 75, "cat " * 76
    rows = conditioner.encode([fits, too_long])
    assert rows[0].tolist() == rows[1].tolist() == [49406] + 75 * [2368] + [49407]
    assert conditioner.find_truncated([fits, too_long, None]) == [too_long]


def test_the_golden_prompts_get_their_tokens():
    conditioner = read_vocabulary(GOLDEN / "tokenizer", max_length=16)
    with safe_open(GOLDEN / "io.safetensors", "pt") as file:
        assert torch.equal(conditioner.encode(["a red cat", "the dog on"]), file.get_tensor("input_ids"))


def test_the_golden_folder_agrees_with_transformers_on_all_texts():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(GOLDEN / "tokenizer")
    assert torch.equal(read_vocabulary(GOLDEN / "tokenizer").encode(TEXTS), rows_of(tokenizer))


@pytest.mark.parametrize("conditioner", [ClipCondition(), read_vocabulary(GOLDEN / "tokenizer")], ids=["own", "golden"])
def test_a_clip_condition_survives_saving_and_loading(conditioner):
    config = json.loads(json.dumps(conditioner.config()))
    loaded = conditions.load(config, conditioner.tensors())
    assert loaded.kind == "caption"
    assert loaded.config() == config
    assert torch.equal(loaded.encode(TEXTS), conditioner.encode(TEXTS))
    assert torch.equal(loaded.null(2), conditioner.null(2))
    assert bool(conditioner.tensors()) != config["standard"]


def test_a_condition_without_its_vocabulary_is_damaged():
    conditioner = read_vocabulary(GOLDEN / "tokenizer")
    with pytest.raises(FormatError, match="vocabulary of the captions is missing"):
        conditions.load(conditioner.config(), {})


def test_the_built_in_vocabulary_is_small_whole_and_licensed(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts")
    script = importlib.import_module("build_clip_vocabulary")
    file = script.BUILTIN / "clip-vocabulary.txt.xz"
    lines = lzma.decompress(file.read_bytes()).decode().split("\n")
    assert file.stat().st_size < 600_000
    assert len(lines) == script.NUM_MERGES
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest.startswith("f61f2adf497e6f53")
    assert "Permission is hereby granted" in (script.BUILTIN / "clip-vocabulary.LICENSE.txt").read_text()
    sys.modules.pop("build_clip_vocabulary")


def test_the_standard_vocabulary_numbers_bytes_merges_start_and_end_in_this_order():
    tokens = clip.standard().tokens
    assert (tokens["!"], tokens["!</w>"], tokens["in"], tokens["<|startoftext|>"]) == (0, 256, 512, 49406)
    assert sorted(tokens.values()) == list(range(49408))
    assert isinstance(clip.standard(), ClipVocabulary)
