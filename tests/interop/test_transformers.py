"""CLIP's text towers and vocabularies in OpenAI's and transformers' files: golden features, transformers itself."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.text_priors import random_encoder

from vqtool.errors import FormatError
from vqtool.interop import Source, openai
from vqtool.interop.pickles import read_pickle
from vqtool.interop.transformers import export_text_encoder, read_text_encoder, read_vocabulary

GOLDEN = Path(__file__).parents[1] / "golden"
PREFIX = "transformer.condition_emb."
SOURCE = Source(Path("x.pth"))


@pytest.fixture(scope="module")
def openai_tensors():
    model = read_pickle(GOLDEN / "ms-prior-text-tower" / "tiny_text_pretrained.pth")["model"]
    return {name.removeprefix(PREFIX): tensor for name, tensor in model.items() if name.startswith(PREFIX)}


def transformers_folder():
    folder = GOLDEN / "df-pipeline" / "text_encoder"
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("ids", "features"), [("tokens", "cond"), ("tokens_null", "cond_null")])
def test_the_tower_of_microsofts_checkpoint_gives_its_features(openai_tensors, ids, features):
    encoder = openai.read_text_encoder(openai_tensors, SOURCE)
    with safe_open(GOLDEN / "ms-prior-text-tower" / "io.safetensors", "pt") as file:
        found = encoder(file.get_tensor(ids))
        torch.testing.assert_close(found, file.get_tensor(features), rtol=0, atol=2e-5)


def test_the_tower_of_a_transformers_folder_gives_its_features():
    encoder = read_text_encoder(*transformers_folder(), SOURCE)
    with safe_open(GOLDEN / "df-pipeline" / "io.safetensors", "pt") as file:
        torch.testing.assert_close(encoder(file.get_tensor("input_ids")), file.get_tensor("cond"), rtol=0, atol=2e-6)


def test_names_with_and_without_their_prefix_and_of_a_whole_clip_are_the_same_tower():
    tensors, settings = transformers_folder()
    bare = read_text_encoder(tensors, settings, SOURCE).state_dict()
    named = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    for other in (
        read_text_encoder(named, settings, SOURCE),
        read_text_encoder(named, {"text_config": settings}, SOURCE),
    ):
        assert all(torch.equal(tensor, bare[name]) for name, tensor in other.state_dict().items())


def test_features_are_those_of_transformers_and_writing_its_names_is_undone_by_reading_them():
    transformers = pytest.importorskip("transformers")
    encoder = random_encoder()
    tensors, settings = export_text_encoder(encoder)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings)).eval()
    names = set(model.state_dict())
    prefix = "" if "embeddings.token_embedding.weight" in names else "text_model."
    model.load_state_dict({prefix + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()})
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = model(ids).last_hidden_state
    torch.testing.assert_close(encoder(ids), states / states.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    again = read_text_encoder(tensors, settings, SOURCE)
    assert again.config == encoder.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in encoder.state_dict().items())


def test_missing_and_ill_fitting_tensors_are_named(openai_tensors):
    gone = {name: tensor for name, tensor in openai_tensors.items() if "resblocks.1.ln_1" not in name}
    with pytest.raises(FormatError, match=r"x\.pth: 2 tensors .* transformer\.resblocks\.1\.ln_1\.weight"):
        openai.read_text_encoder(gone, SOURCE)
    with pytest.raises(FormatError, match=r"x\.pth: 3 tensors .* token_embedding\.weight"):
        openai.read_text_encoder({}, SOURCE)
    with pytest.raises(FormatError, match=r"ln_final\.bias \(3,\) instead of \(64,\)"):
        openai.read_text_encoder({**openai_tensors, "ln_final.bias": torch.zeros(3)}, SOURCE)


def test_settings_of_other_networks_are_refused():
    tensors, settings = transformers_folder()
    with pytest.raises(FormatError, match="hidden_act gelu"):
        read_text_encoder(tensors, {**settings, "hidden_act": "gelu"}, SOURCE)
    del settings["hidden_size"]
    with pytest.raises(FormatError, match=r"config\.json says nothing of hidden_size"):
        read_text_encoder(tensors, settings, SOURCE)


def test_a_folder_limits_the_length_only_where_it_says_so(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((GOLDEN / "df-pipeline" / "tokenizer" / name).read_text())
    assert read_vocabulary(tmp_path).max_length == 77
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert read_vocabulary(tmp_path, max_length=12).max_length == 12
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    assert read_vocabulary(tmp_path, max_length=12).max_length == 9


def test_folders_that_hold_no_clip_tokenizer_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"no CLIP tokenizer: tokenizer\.json, or vocab\.json and merges\.txt"):
        read_vocabulary(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text('{"model": {"type": "WordPiece"}}')
    with pytest.raises(FormatError, match="not a tokenizer of CLIP"):
        read_vocabulary(tmp_path)
    file.write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        read_vocabulary(tmp_path)
    file.write_text("[]")
    with pytest.raises(FormatError, match="not a JSON object"):
        read_vocabulary(tmp_path)
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 0}, "merges": []}
    file.write_text(json.dumps({"model": model}))
    with pytest.raises(FormatError, match=r"no <\|startoftext\|>, <\|endoftext\|>"):
        read_vocabulary(tmp_path)
    file.write_text(json.dumps({"model": {**model, "merges": ["a b c"]}}))
    with pytest.raises(FormatError, match="not pairs of tokens"):
        read_vocabulary(tmp_path)
