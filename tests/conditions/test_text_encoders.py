"""Text encoders: golden features of microsoft's and diffusers' towers, transformers itself, the artifact, the prior."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.text_priors import random_encoder, text_prior

import vqtool
from vqtool import artifacts, interop
from vqtool.conditions import text_encoders
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.diffusion.guidance import guide
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.interop import Source, openai
from vqtool.interop.pickles import read_pickle

GOLDEN = Path(__file__).parents[1] / "golden"
PREFIX = "transformer.condition_emb."


@pytest.fixture(scope="module")
def openai_tensors():
    model = read_pickle(GOLDEN / "ms-prior-text-tower" / "tiny_text_pretrained.pth")["model"]
    return {name.removeprefix(PREFIX): tensor for name, tensor in model.items() if name.startswith(PREFIX)}


def test_features_have_length_one_and_do_not_depend_on_later_tokens():
    encoder = random_encoder()
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 5:] = 7
    before, after = encoder(ids), encoder(changed)
    torch.testing.assert_close(before.norm(dim=-1), torch.ones(2, 9))
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


def test_an_encoder_is_the_same_after_saving_and_half_tensors_stay_half(openai_tensors, tmp_path):
    encoder = openai.read_text_encoder(openai_tensors, Source(Path("tiny.pth")))
    path = tmp_path / "text-encoder.safetensors"
    header = text_encoders.save_text_encoder(path, encoder, history=[{"step": "import"}])
    assert (encoder.fingerprint, encoder.location) == (header.fingerprint, str(path))
    loaded = text_encoders.load_text_encoder(path)
    assert (loaded.fingerprint, loaded.location) == (header.fingerprint, str(path))
    assert loaded.history == ({"step": "import"},)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    stored = artifacts.load(path, "text-encoder")[1]
    assert stored["blocks.0.qkv.weight"].dtype == openai_tensors["transformer.resblocks.0.attn.in_proj_weight"].dtype
    assert stored["tokens.weight"].dtype == torch.float32


def test_a_named_encoder_is_found_where_it_was_and_beside_the_prior(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    encoder = random_encoder()
    header = text_encoders.save_text_encoder("old/text.safetensors", encoder)
    find = text_encoders.find_named_text_encoder
    assert find(header.fingerprint, "old/text.safetensors").location == "old/text.safetensors"
    Path("old/text.safetensors").rename("new/text.safetensors")
    found = find(header.fingerprint, "old/text.safetensors", near=Path("new"))
    assert found.location == "new/text.safetensors"


def test_a_missing_or_another_encoder_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(VqtoolError, match=r"is not at .*gone.safetensors: put its file, gone.safetensors, beside"):
        text_encoders.find_named_text_encoder("0" * 16, str(tmp_path / "gone.safetensors"), near=tmp_path)
    path = tmp_path / "text.safetensors"
    text_encoders.save_text_encoder(path, random_encoder())
    with pytest.raises(MismatchError, match="is not the text encoder 0000000000000000"):
        text_encoders.find_named_text_encoder("0" * 16, str(path))


def test_a_file_whose_tensors_do_not_fit_its_config_is_refused(tmp_path):
    path = tmp_path / "text.safetensors"
    artifacts.save(path, kind="text-encoder", config={"width": 4}, tensors={"x": torch.zeros(1)})
    with pytest.raises(FormatError, match="do not fit its config"):
        text_encoders.load_text_encoder(path)


@pytest.mark.parametrize("learned_null", [True, False])
def test_a_prior_sees_features_of_captions_and_its_null_condition(learned_null):
    prior = text_prior(learned_null=learned_null)
    x_t, t = torch.full((3, 2, 3), 5), torch.tensor([6, 3, 1])
    ids = prior.conditioner.encode(["a red cat", "", "the dog"])
    features = prior.text_encoder(ids)
    if learned_null:
        features[1] = 0.0
    found = prior.log_x0(x_t, t, ids)
    torch.testing.assert_close(found, prior.log_x0(x_t, t, features), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1:2], prior.log_x0(x_t[1:2], t[1:2]), rtol=0, atol=1e-5)
    assert (found[0] - found[2]).abs().max() > 1e-3


def test_features_of_a_caption_do_not_depend_on_its_batch_and_are_made_once_a_sample(monkeypatch):
    prior = text_prior()
    ids = prior.conditioner.encode(["a red cat", "the dog", "a red cat"])
    seen, calls = [], []
    with monkeypatch.context() as patch:
        patch.setattr(prior.denoiser, "encode_condition", seen.append)
        prior.encode_condition(ids[:1], 1)
        prior.encode_condition(ids, 3)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[1][0], seen[1][2])
    monkeypatch.setattr(TextEncoder, "forward", lambda self, ids: calls.append(len(ids)) or torch.ones(len(ids), 9, 16))
    vqtool.sample(prior, 4, condition=ids[:1], cfg_scale=3.0, seed=0)
    assert len(calls) <= 3, "the caption, and the null condition of empty places and of guidance: not once a step"


def test_a_saved_text_prior_finds_its_encoder_and_predicts_bit_for_bit_what_it_did(tmp_path):
    prior = text_prior()
    with pytest.raises(ValueError, match="save it first"):
        prior.save(tmp_path / "prior.safetensors")
    (tmp_path / "a").mkdir()
    header = text_encoders.save_text_encoder(tmp_path / "a" / "text.safetensors", prior.text_encoder)
    prior.save(tmp_path / "a" / "prior.safetensors")
    (tmp_path / "a").rename(tmp_path / "b")
    loaded = vqtool.load_prior(tmp_path / "b" / "prior.safetensors")
    ids = loaded.conditioner.encode(["a red cat", None])
    x_t, t = torch.full((2, 2, 3), 5), torch.tensor([6, 3])
    assert torch.equal(loaded.log_x0(x_t, t, ids), prior.log_x0(x_t, t, ids))
    assert artifacts.read_header(tmp_path / "b" / "prior.safetensors").parents["text_encoder"] == header.fingerprint
    assert loaded.to("cpu").text_encoder is loaded.text_encoder

    text_encoders.save_text_encoder(tmp_path / "b" / "text.safetensors", random_encoder(), force=True)
    with pytest.raises(MismatchError, match="is not the text encoder"):
        vqtool.load_prior(tmp_path / "b" / "prior.safetensors")
    (tmp_path / "b" / "text.safetensors").unlink()
    with pytest.raises(VqtoolError, match=r"put its file, text\.safetensors, beside the prior"):
        vqtool.load_prior(tmp_path / "b" / "prior.safetensors")


def test_a_prior_without_its_text_encoder_says_how_to_get_it():
    prior = replace(text_prior(), text_encoder=None)
    x_t, t = torch.full((1, 2, 3), 5), torch.tensor([6])
    with pytest.raises(VqtoolError, match="import it again with its `text_encoder`"):
        prior.log_x0(x_t, t, prior.conditioner.encode(["a cat"]))
    assert torch.equal(prior.log_x0(x_t, t), prior.log_x0(x_t, t, torch.zeros(1, 9, 16)))  # its null is learned


@pytest.fixture
def words(tmp_path):
    """A vocabulary of the 100 tokens that the golden tower knows."""
    names = [*map(chr, range(0x4E00, 0x4E00 + 98)), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": names[0]}))
    return tmp_path


def test_microsofts_prior_with_its_tower_agrees_from_tokens_to_guided_predictions(words, tmp_path):
    source = interop.read_source(GOLDEN / "ms-prior-text-tower" / "tiny_text_pretrained.pth")
    imported = interop.load(source, interop.Options(vocabulary=words))
    prior = imported.prior
    assert imported.text_encoder is prior.text_encoder
    with safe_open(GOLDEN / "ms-prior-text-tower" / "io.safetensors", "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert torch.equal(prior.conditioner.null(2), golden["tokens_null"])
    x_t, t = golden["x_t"].view(-1, 4, 4), golden["t"] + 1
    log_c, log_u = prior.log_x0(x_t, t, golden["tokens"]), prior.log_x0(x_t, t)
    for found, name in ((log_c, "log_p_x0"), (log_u, "log_p_x0_null"), (guide(log_c, log_u, 3.0), "log_p_x0_cfg")):
        expected = golden[name].transpose(1, 2)[..., :40].unflatten(1, (4, 4))
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)
    files = [path for _, path, _ in interop.save(imported, tmp_path / "ms.safetensors", record={"step": "import"})]
    assert files == [tmp_path / "ms.text-encoder.safetensors", tmp_path / "ms.safetensors"]
    assert torch.equal(vqtool.load_prior(files[1]).log_x0(x_t, t, golden["tokens"]), log_c)


def test_a_tower_may_come_from_elsewhere_but_must_fit(words):
    source = interop.read_source(GOLDEN / "ms-prior-text-tower" / "tiny_text_pretrained.pth")
    bare = {"ema": {name: value for name, value in source.content["ema"].items() if "condition_emb" not in name}}
    bare = replace(source, content=bare)
    whole = interop.load(source, interop.Options(vocabulary=words))
    alone = interop.load(bare, interop.Options())
    assert alone.prior.text_encoder is None
    assert any("none in the file; without `text_encoder`" in note for note in alone.notes)
    options = interop.Options(vocabulary=words, text_encoder=whole.text_encoder)
    again = interop.load(bare, options)
    assert again.text_encoder is None, "it has a file already"
    assert again.prior.text_encoder is whole.text_encoder
    with pytest.raises(MismatchError, match="features of 64 numbers, the text encoder gives 16"):
        interop.load(bare, replace(options, text_encoder=random_encoder()))
    with pytest.raises(MismatchError, match="knows 100 tokens, the vocabulary has 49408"):
        interop.load(source, interop.Options())


def test_commands_understand_text_priors_and_their_encoders(tmp_path, vqtool):
    prior = text_prior()
    text_encoders.save_text_encoder(tmp_path / "text.safetensors", prior.text_encoder)
    prior.save(tmp_path / "prior.safetensors")
    one = vqtool("sample", tmp_path / "prior.safetensors", "-n", 2, "--caption", "A red cat", "--cfg-scale", 3)
    assert (one.code, len(one.data) > 0) == (0, True)
    (tmp_path / "captions.txt").write_text("a red cat\nthe dog on the dog on the dog on the dog\n")
    two = vqtool("sample", tmp_path / "prior.safetensors", "--captions", tmp_path / "captions.txt")
    assert two.code == 0
    assert "warning: longer than the prior can read" in two.err
    none = vqtool("sample", tmp_path / "prior.safetensors", "-n", 2, "--cfg-scale", 3)
    assert none.code == 0
    assert "conditions: none; this prior takes captions" in none.err
    assert "warning: --cfg-scale 3 has nothing to guide: no condition is given" in none.err
    assert "parameters" in vqtool("info", tmp_path / "text.safetensors").out
    shown = vqtool("info", tmp_path / "prior.safetensors").out
    assert f"text_encoder {prior.text_encoder.fingerprint}" in shown
    assert vqtool("check", tmp_path / "text.safetensors", tmp_path / "prior.safetensors").code == 0
