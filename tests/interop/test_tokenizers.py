"""Imported tokenizers: golden numbers of the peers' programs, files that are not what they should be, exports."""

import json
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.commands import build_tokenizer, write_pictures
from torch import nn

from vqtool import artifacts, interop
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.images import to_float, to_uint8
from vqtool.interop import Options, diffusers_vqmodel, read_source, taming
from vqtool.interop.pickles import read_pickle
from vqtool.tokenizers import Tokenizer, load_tokenizer, magvit2, maskgit, save_tokenizer
from vqtool.tokenizers.quantizers import nearest
from vqtool.tokenizers.vqgan import VqganConfig
from vqtool.training.tokenizer import train_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = {  # fixture -> file or folder in it, format, whether its images are in [0, 1]
    "taming-vqgan": ("last.ckpt", "taming", False),
    "taming-gumbel": ("last.ckpt", "taming", False),
    "ibq-tokenizer": ("imagenet256_64.ckpt", "ibq", False),
    "magvit2-tokenizer": ("imagenet_tiny_L.ckpt", "magvit2", False),
    "mb-tokenizer": ("maskbit_tokenizer_8bit.bin", "maskbit", True),
    "mb-vqgan-plus": ("vqgan_plus_tiny.bin", "maskbit", True),
    "showo-tokenizer": ("pytorch_model.safetensors", "showo", False),
    "ms-ithq-codec": ("ithq_vqvae.pth", "taming", False),
    "ut-vqgan": ("vqgan_ema_1400000.th", "unleashing-vqgan", True),
    "llamagen-vq": ("vq_ds_tiny.pt", "llamagen", False),
    "om-maskgit-vqgan": ("pytorch_model.bin", "open-muse", True),
    "om-taming-vqgan": ("pytorch_model.bin", "open-muse", True),
    "df-vqmodel": ("vqvae", "diffusers-vqmodel", False),
}
MINE = sorted({name for _, name, _ in SOURCES.values()})
LATENTS, IMAGES = 1e-4, 1e-4  # largest differences allowed, also where the fixture allows more


def source_of(fixture):
    return read_source(GOLDEN / fixture / SOURCES[fixture][0])


def load(fixture, **options):
    return interop.load(source_of(fixture), Options(**options))


def numbers(fixture):
    return load_file(GOLDEN / fixture / "io.safetensors")


def state_of(fixture):
    """The tensors of a taming checkpoint, and the settings beside it."""
    folder = GOLDEN / fixture
    content = read_pickle(folder / SOURCES[fixture][0])
    settings = yaml.safe_load((folder / "model.yaml").read_text()) if (folder / "model.yaml").exists() else None
    return dict(content["state_dict"]), settings


def written(folder, content, settings=None, name="last.ckpt"):
    """A source of one's own."""
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / name)
    if settings is not None:
        (folder / "model.yaml").write_text(yaml.safe_dump(settings))
    return read_source(folder / name)


def same(tokenizer, other):
    ours, theirs = tokenizer.state_dict(), other.state_dict()
    return (
        (tokenizer.config, tokenizer.lookup, tokenizer.num_full_codes)
        == (other.config, other.lookup, other.num_full_codes)
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


@pytest.mark.parametrize("fixture", SOURCES)
def test_latents_tokens_and_images_are_those_of_the_program_that_made_the_file(fixture):
    tokenizer, expected = load(fixture).tokenizer, numbers(fixture)
    unit = SOURCES[fixture][2]
    images = expected["image"] * 2 - 1 if unit else expected["image"]
    with torch.no_grad():
        assert (tokenizer.encoder(images) - expected["latents"]).abs().max() < LATENTS
    assert torch.equal(tokenizer.encode(images), expected["indices"])
    for tokens, wanted in (("indices", "decoded"), ("codes_any", "decoded_codes_any")):
        decoded = tokenizer.decode(expected[tokens])
        decoded = (decoded + 1) / 2 if unit else decoded
        assert (decoded - expected[wanted]).abs().max() < IMAGES


@pytest.mark.parametrize("fixture", SOURCES)
def test_a_source_is_of_its_own_format_alone(fixture):
    source = source_of(fixture)
    assert interop.recognise(source) == SOURCES[fixture][1]
    assert [name for name in MINE if interop.module(name).recognise(source)] == [SOURCES[fixture][1]]


@pytest.mark.parametrize("fixture", SOURCES)
def test_what_was_imported_is_saved_and_loaded_bit_for_bit(tmp_path, fixture):
    tokenizer = load(fixture).tokenizer
    header = save_tokenizer(tmp_path / "t.safetensors", tokenizer)
    loaded = load_tokenizer(tmp_path / "t.safetensors")
    assert same(loaded, tokenizer)
    assert save_tokenizer(tmp_path / "again.safetensors", loaded).fingerprint == header.fingerprint
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))


@pytest.mark.parametrize("fixture", SOURCES)
def test_images_smaller_than_the_factor_are_refused(fixture):
    tokenizer = load(fixture).tokenizer
    with pytest.raises(VqtoolError, match=f"factor {tokenizer.factor}: both sides must be multiples"):
        tokenizer.encode(torch.zeros(1, 3, tokenizer.factor - 1, 8))


def with_epsilon(value):
    def change(tokenizer, patch):
        for module in tokenizer.modules():
            if isinstance(module, nn.GroupNorm):
                patch.setattr(module, "eps", value)

    return change


def with_groups(tokenizer, patch):
    for module in tokenizer.modules():
        if isinstance(module, nn.GroupNorm):
            patch.setattr(module, "num_groups", 16)


def with_true_skips(tokenizer, patch):
    for module in tokenizer.modules():
        if isinstance(module, maskgit.ResidualBlock) and module.nin_shortcut is not None:
            patch.setattr(module, "nin_shortcut", nn.Identity())


def with_symmetric_padding(tokenizer, patch):
    pad = nn.functional.pad
    patch.setattr(
        nn.functional, "pad", lambda x, sides, *more: pad(x, (1, 0, 1, 0) if sides == (0, 1, 0, 1) else sides, *more)
    )


MUTATIONS = {
    "mb-tokenizer": [with_epsilon(1e-5), with_groups, with_true_skips, with_symmetric_padding],
    "mb-vqgan-plus": [with_epsilon(1e-5), with_groups, with_true_skips, with_symmetric_padding],
    "showo-tokenizer": [with_epsilon(1e-5), with_groups, with_symmetric_padding],
    "magvit2-tokenizer": [with_epsilon(1e-5), with_groups],
    "ibq-tokenizer": [with_epsilon(1e-5), with_groups, with_symmetric_padding],
}


@pytest.mark.parametrize(
    ("fixture", "change"), [(fixture, change) for fixture, changes in MUTATIONS.items() for change in changes]
)
def test_networks_that_differ_a_little_are_told_from_those_of_their_programs(fixture, change, monkeypatch):
    tokenizer, expected = load(fixture).tokenizer, numbers(fixture)
    images = expected["image"] * 2 - 1 if SOURCES[fixture][2] else expected["image"]
    change(tokenizer, monkeypatch)
    with torch.no_grad():
        assert (tokenizer.encoder(images) - expected["latents"]).abs().max() > LATENTS


@pytest.mark.parametrize(
    ("fixture", "first_is_highest"), [("mb-tokenizer", False), ("magvit2-tokenizer", False), ("showo-tokenizer", True)]
)
def test_bits_are_signs_in_the_order_of_their_program(fixture, first_is_highest):
    tokenizer, expected = load(fixture).tokenizer, numbers(fixture)
    bits = expected["bits_codes_any"].permute(0, 2, 3, 1)
    assert torch.equal(tokenizer.codebook[expected["codes_any"]], bits)
    powers = 2 ** torch.arange(bits.shape[-1])
    order = powers.flip(0) if first_is_highest else powers
    assert torch.equal(((expected["latents"].permute(0, 2, 3, 1) > 0) * order).sum(-1), expected["indices"])
    assert not torch.equal(((expected["latents"].permute(0, 2, 3, 1) > 0) * order.flip(0)).sum(-1), expected["indices"])
    assert int(tokenizer.look_up(torch.zeros(1, bits.shape[-1]))) == 0  # a latent of 0 counts as -1


ADAPTIVE = {
    "pixel shuffle": lambda patch: patch.setattr(
        magvit2.Upsample, "forward", lambda self, x: nn.functional.pixel_shuffle(self.conv1(x), 2)
    ),
    "biased variance": lambda patch: patch.setattr(
        torch.Tensor, "var", lambda x, axis: x.float().std(axis, correction=0) ** 2
    ),
    "variance": lambda patch: patch.setattr(torch.Tensor, "sqrt", lambda x: x),
    "no codes": lambda patch: patch.setattr(magvit2.Adaptive, "forward", lambda self, x, codes: x),
    "1 + scale": lambda patch: patch.setattr(
        magvit2.Adaptive,
        "forward",
        lambda self, x, codes, own=magvit2.Adaptive.forward: (
            own(self, x, codes) + nn.functional.group_norm(x, 32, eps=1e-6)
        ),
    ),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_decoders_that_differ_a_little_are_told_from_that_of_open_magvit2(name, monkeypatch):
    tokenizer, expected = load("magvit2-tokenizer").tokenizer, numbers("magvit2-tokenizer")
    assert (tokenizer.decode(expected["codes_any"]) - expected["decoded_codes_any"]).abs().max() < IMAGES
    ADAPTIVE[name](monkeypatch)
    assert (tokenizer.decode(expected["codes_any"]) - expected["decoded_codes_any"]).abs().max() > IMAGES


def test_raw_weights_of_open_magvit2_are_those_outside_of_its_averages():
    tokenizer, expected = load("magvit2-tokenizer", weights="raw").tokenizer, numbers("magvit2-tokenizer")
    with torch.no_grad():
        assert (tokenizer.encoder(expected["image"]) - expected["raw_latents"]).abs().max() < LATENTS
    assert (tokenizer.decode(expected["codes_any"]) - expected["raw_decoded_codes_any"]).abs().max() < IMAGES


def test_codebooks_of_bits_that_are_none_are_refused(tmp_path):
    for fixture, name in (("mb-tokenizer", "quantize.codebook"), ("showo-tokenizer", "quantize.embedding")):
        tensors = dict(source_of(fixture).content)
        for wrong in (tensors[name].flip(1), tensors[name] * 2):
            source = written(tmp_path, {**tensors, name: wrong.contiguous()}, name="m.bin")
            with pytest.raises(FormatError, match=f"{name} is not made of -1 and 1 in the order of their numbers"):
                interop.load(source, Options(), SOURCES[fixture][1])
        del tensors[name]
        with pytest.raises(FormatError, match=f"its codebook is missing: {name}"):
            interop.load(written(tmp_path, tensors, name="m.bin"), Options(), SOURCES[fixture][1])


def test_maskbits_settings_that_contradict_the_weights_are_refused(tmp_path):
    settings = yaml.safe_load((GOLDEN / "mb-tokenizer" / "maskbit_tokenizer_8bit.yaml").read_text())
    for name, value in (
        ("token_size", 10),
        ("hidden_channels", 64),
        ("num_res_blocks", 2),
        ("sample_with_conv", False),
    ):
        said = {"model": {"vq_model": {**settings["model"]["vq_model"], name: value}}}
        source = written(tmp_path, dict(source_of("mb-tokenizer").content), said, name="m.bin")
        with pytest.raises(FormatError, match=f"{name} is {value} in its settings but"):
            interop.load(source, Options())


def test_fingerprints_of_tokenizers_from_before_uneven_networks_stay(tmp_path):
    save_tokenizer(tmp_path / "t.safetensors", load("taming-vqgan").tokenizer)
    config = artifacts.read_header(tmp_path / "t.safetensors").config
    assert not {"decoder_channels", "strided"} & config.keys()


def test_notes_say_what_was_left_out_and_chosen():
    assert any("left out: 19 tensors of training losses" in note for note in load("taming-vqgan").notes)
    assert any("attention at 1/4, the middle" in note for note in load("taming-vqgan").notes)
    assert any("most probable codes of the Gumbel" in note for note in load("taming-gumbel").notes)
    assert any("left out: 10 tensors of shortcuts" in note for note in load("ut-vqgan").notes)
    assert any("taken as they are published, normalised" in note for note in load("llamagen-vq").notes)
    assert any("does not run, since it follows a single block" in note for note in load("om-taming-vqgan").notes)
    assert any("images are in [0, 1]" in note for note in load("om-maskgit-vqgan").notes)


def test_tokens_of_a_code_map_are_those_of_vq_diffusion():
    code_map = read_pickle(GOLDEN / "taming-vqgan" / "taming_vqvae_78.pt")
    tokenizer, expected = load("taming-vqgan", code_map=code_map).tokenizer, numbers("taming-vqgan")
    assert (tokenizer.codebook_size, tokenizer.codebook.shape, tokenizer.num_full_codes) == (78, (78, 16), 128)
    tokens = tokenizer.encode(expected["image"])
    assert torch.equal(tokens.flatten(1), expected["mapped_tokens"])
    for name in ("", "_any"):
        decoded = tokenizer.decode(expected[f"mapped_tokens{name}"].view(2, 8, 8)).clamp(-1, 1)
        assert ((decoded + 1) * 127.5 - expected[f"decoded255_mapped{name}"]).abs().max() < 0.02
    full = load("taming-vqgan").tokenizer
    assert torch.equal(tokenizer.codebook[0], full.codebook[0])  # reduced 0 is full 0, though code 0 is out of use
    assert torch.equal(code_map[full.encode(expected["image"])], tokens)


def test_a_code_map_goes_with_a_projection_too(tmp_path):
    code_map = torch.arange(96) // 2
    tokenizer, full = load("taming-gumbel", code_map=code_map).tokenizer, load("taming-gumbel").tokenizer
    images = numbers("taming-gumbel")["image"]
    assert torch.equal(tokenizer.encode(images), full.encode(images) // 2)
    assert torch.equal(tokenizer.codebook, full.codebook[::2])
    save_tokenizer(tmp_path / "t.safetensors", tokenizer)
    assert same(load_tokenizer(tmp_path / "t.safetensors"), tokenizer)


@pytest.mark.parametrize(
    ("code_map", "message"),
    [
        (torch.arange(127), "code map of 127 entries does not fit its 128 codes"),
        (torch.arange(128)[None], "code map of 128 entries does not fit"),
        (torch.arange(128) * 2, r"leads to 128 codes from 0 to 254: each reduced code"),
        (torch.arange(128) - 1, r"leads to 128 codes from -1 to 126"),
    ],
)
def test_a_code_map_of_another_tokenizer_is_refused(code_map, message):
    with pytest.raises(MismatchError, match=message):
        load("taming-vqgan", code_map=code_map)


def test_the_values_of_a_gumbel_quantiser_are_those_of_its_program():
    tokenizer, expected = load("taming-gumbel").tokenizer, numbers("taming-gumbel")
    with torch.no_grad():
        values = tokenizer.latents(expected["image"]) @ tokenizer.projection.T + tokenizer.projection_bias
    assert (values.permute(0, 3, 1, 2) - expected["code_logits"]).abs().max() < 2e-4


def test_on_the_unit_sphere_the_nearest_code_is_the_most_similar_one():
    tokenizer, expected = load("llamagen-vq").tokenizer, numbers("llamagen-vq")
    raw = expected["latents"].permute(0, 2, 3, 1)
    with torch.no_grad():
        latents = tokenizer.latents(expected["image"])
    assert torch.allclose(latents, nn.functional.normalize(raw, dim=-1), atol=LATENTS)
    assert torch.allclose(tokenizer.codebook.norm(dim=1), torch.ones(96), atol=1e-6)
    stored = read_pickle(GOLDEN / "llamagen-vq" / "vq_ds_tiny.pt")["model"]["quantize.embedding.weight"]
    similarity = nn.functional.cosine_similarity(raw[..., None, :], stored, dim=-1)
    assert torch.equal(tokenizer.encode(expected["image"]), similarity.argmax(-1))


def test_settings_of_a_llamagen_training_file_are_obeyed(tmp_path):
    model = read_pickle(GOLDEN / "llamagen-vq" / "vq_ds_tiny.pt")["model"]
    average = {name: value * 2 for name, value in model.items()}
    content = {"model": model, "ema": average, "args": Namespace(codebook_l2_norm=False)}
    source = written(tmp_path, content, name="train.pt")
    images = numbers("llamagen-vq")["image"]
    raw, ema = (interop.load(source, Options(weights=weights)).tokenizer for weights in ("raw", "ema"))
    assert raw.lookup == ema.lookup == "nearest"
    assert torch.equal(raw.codebook, model["quantize.embedding.weight"])
    assert torch.equal(ema.codebook, 2 * raw.codebook)
    with torch.no_grad():
        latents = raw.latents(images)
    assert torch.equal(raw.encode(images).flatten(), nearest(latents.flatten(0, 2), raw.codebook))
    content["args"] = Namespace(codebook_l2_norm=True)
    assert interop.load(written(tmp_path, content, name="train.pt"), Options()).tokenizer.lookup == "cosine"


def test_a_first_stage_is_found_in_a_larger_checkpoint(tmp_path):
    state, settings = state_of("taming-vqgan")
    nested = {f"first_stage_model.{name}": value for name, value in state.items()}
    nested |= {"transformer.tok_emb.weight": torch.zeros(3, 3), "cond_stage_model.conv_in.weight": torch.zeros(3)}
    params = {"first_stage_config": settings["model"], "cond_stage_config": {"params": {"ddconfig": {"ch": 7}}}}
    source = written(tmp_path, {"state_dict": nested}, {"model": {"params": params}})
    assert interop.recognise(source) == "taming"
    assert same(interop.load(source, Options()).tokenizer, load("taming-vqgan").tokenizer)


@pytest.mark.parametrize("fixture", ["taming-vqgan", "taming-gumbel"])
def test_a_remapped_codebook_keeps_the_codes_in_use(tmp_path, fixture):
    state, settings = state_of(fixture)
    used = numbers(fixture)["indices"].unique().flip(0)
    source = written(tmp_path, {"state_dict": {**state, "quantize.used": used}}, settings)
    imported = interop.load(source, Options())
    assert any(f"only the {len(used)} codes in use are kept" in note for note in imported.notes)
    expected = numbers(fixture)
    tokens = imported.tokenizer.encode(expected["image"])
    assert torch.equal(used[tokens], expected["indices"])  # all of these are in use
    assert (imported.tokenizer.decode(tokens) - expected["decoded"]).abs().max() < IMAGES


def test_the_codec_in_a_vq_diffusion_checkpoint_can_be_read_by_itself():
    folder = GOLDEN / "ms-prior-uncond"
    source = read_source(folder / "tiny_pretrained.pth", folder / "config.yaml")
    parts = {}
    for name, value in source.content["model"].items():
        for side in ("content_codec.enc.", "content_codec.dec."):
            if name.startswith(side):
                parts[name.removeprefix(side)] = value
    expected = load_file(folder / "io.safetensors")
    for settings in (source.config, None, yaml.safe_load((folder / "tokenizer.yaml").read_text())):
        tokenizer = taming.read_vqgan(parts, settings, source, Options())
        decoded = tokenizer.decode(expected["codec_tokens"].view(2, 4, 4)).clamp(-1, 1)
        assert ((decoded + 1) * 127.5 - expected["codec_decoded255"]).abs().max() < 0.02


def test_the_tokenizer_of_a_pipeline_makes_its_images():
    expected = load_file(GOLDEN / "df-pipeline" / "io.safetensors")
    tokenizer = diffusers_vqmodel.read_vqmodel(read_source(GOLDEN / "df-pipeline"), "vqvae")
    images = tokenizer.decode(expected["final_tokens"].view(2, 4, 4)).clamp(-1, 1) / 2 + 0.5
    assert (images.permute(0, 2, 3, 1) - expected["images"]).abs().max() < 1e-4


@pytest.mark.parametrize("as_file", [False, True], ids=["folder", "file"])
def test_the_older_attention_names_of_diffusers_are_read(tmp_path, as_file):
    folder = GOLDEN / "df-vqmodel" / "vqvae"
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = {name.replace(f".{new}.", f".{old}."): value for name, value in tensors.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    source = read_source(tmp_path / "diffusion_pytorch_model.safetensors" if as_file else tmp_path)
    assert same(interop.load(source, Options()).tokenizer, load("df-vqmodel").tokenizer)


def test_the_images_of_amused_are_between_0_and_1(tmp_path):
    shutil.copytree(GOLDEN / "df-vqmodel" / "vqvae", tmp_path / "vqvae")
    change_json(tmp_path / "vqvae" / "config.json", lookup_from_codebook=True)
    imported = interop.load(read_source(tmp_path / "vqvae"), Options())
    assert imported.tokenizer.config.pixel_range == (0.0, 1.0)
    assert any("images are in [0, 1], as in aMUSEd" in note for note in imported.notes)
    tokens = numbers("df-vqmodel")["codes_any"]
    assert torch.allclose(imported.tokenizer.decode(tokens), load("df-vqmodel").tokenizer.decode(tokens) * 2 - 1)


def test_an_open_muse_folder_is_read_like_its_file(tmp_path):
    for fixture in ("om-maskgit-vqgan", "om-taming-vqgan"):
        folder = tmp_path / fixture
        folder.mkdir()
        for name in ("config.json", "pytorch_model.bin"):
            shutil.copy(GOLDEN / fixture / name, folder)
        source = read_source(folder)
        assert interop.recognise(source) == "open-muse"
        assert same(interop.load(source, Options()).tokenizer, load(fixture).tokenizer)


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Files that are not what they should be


@pytest.mark.parametrize(
    ("fixture", "gone"),
    [
        ("taming-vqgan", "encoder.mid.block_1.conv1.weight"),
        ("taming-vqgan", "decoder.up.1.block.1.norm2.bias"),
        ("taming-vqgan", "quant_conv.bias"),
        ("taming-vqgan", "quantize.embedding.weight"),
        ("taming-vqgan", "encoder.conv_in.weight"),
        ("taming-gumbel", "quantize.proj.bias"),
        ("ms-ithq-codec", "quantize.embedding"),
        ("ut-vqgan", "ae.generator.blocks.7.conv1.weight"),
        ("ut-vqgan", "ae.encoder.blocks.0.weight"),
        ("ut-vqgan", "ae.quantize.embedding.weight"),
        ("llamagen-vq", "decoder.conv_blocks.1.res.2.conv2.bias"),
        ("om-maskgit-vqgan", "decoder.up.1.upsample_conv.weight"),
        ("om-maskgit-vqgan", "encoder.down.1.block.0.conv1.weight"),
        ("om-taming-vqgan", "decoder.mid.attn_1.q.weight"),
    ],
)
def test_missing_tensors_are_named_as_the_source_names_them(tmp_path, fixture, gone):
    content = read_pickle(GOLDEN / fixture / SOURCES[fixture][0])
    content = next((content[key] for key in ("state_dict", "model") if key in content), content)
    del content[gone]
    source = written(tmp_path, content, name=SOURCES[fixture][0])
    with pytest.raises(FormatError, match=rf"missing: (ae\.)?{re.escape(gone.removeprefix('ae.'))}"):
        interop.load(source, Options(), SOURCES[fixture][1])


def test_a_block_that_is_missing_from_a_flat_list_is_named(tmp_path):
    content = read_pickle(GOLDEN / "ut-vqgan" / SOURCES["ut-vqgan"][0])
    for block, message in (("3", "ae.encoder.blocks.3 is missing"), ("5", "ae.encoder.blocks.5 is missing")):
        kept = {name: value for name, value in content.items() if not name.startswith(f"ae.encoder.blocks.{block}.")}
        with pytest.raises(FormatError, match=message):
            interop.load(written(tmp_path, kept, name="m.th"), Options())
    odd = {name.replace("encoder.blocks.5.", "encoder.blocks.50."): value for name, value in content.items()}
    with pytest.raises(FormatError, match=r"ae\.encoder\.blocks\.5 is missing"):
        interop.load(written(tmp_path, odd, name="m.th"), Options())
    odd = {name.replace("encoder.blocks.5.norm1", "encoder.blocks.5.norm3"): value for name, value in content.items()}
    with pytest.raises(FormatError, match=r"ae\.encoder\.blocks\.5 is of no known kind"):
        interop.load(written(tmp_path, odd, name="m.th"), Options())
    odd = {name: value for name, value in content.items() if not name.startswith("ae.encoder.blocks.9.")}
    with pytest.raises(FormatError, match=r"the blocks of ae\.encoder are not those of a VQGAN: layer, residual"):
        interop.load(written(tmp_path, odd, name="m.th"), Options())


@pytest.mark.parametrize("fixture", [name for name in SOURCES if name not in ("df-vqmodel", "showo-tokenizer")])
def test_a_file_that_is_cut_short_is_one_clear_line(tmp_path, fixture):
    data = (GOLDEN / fixture / SOURCES[fixture][0]).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match=r"cut\.ckpt: cut short"):
        read_source(tmp_path / "cut.ckpt")


def test_a_folder_with_weights_that_are_cut_short_is_one_clear_line(tmp_path):
    shutil.copytree(GOLDEN / "df-vqmodel" / "vqvae", tmp_path / "vqvae")
    weights = tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(FormatError, match="not a safetensors file, or damaged"):
        interop.load(read_source(tmp_path / "vqvae"), Options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 24}, "embed_dim is 24 in its settings but 16 by its weights"),
        ({"n_embed": 1024}, "n_embed is 1024 in its settings but 128"),
        ({"ddconfig": {"ch": 64}}, "ch is 64 in its settings but 32"),
        ({"ddconfig": {"ch_mult": [1, 1, 2]}}, r"ch_mult is \[1, 1, 2\] in its settings but \[2\.0, 1\.0, 1\.0\]"),
        ({"ddconfig": {"num_res_blocks": 2}}, "num_res_blocks is 2 in its settings but 1"),
        ({"ddconfig": {"attn_resolutions": [16]}}, r"attn_resolutions is \[16\] in its settings but \[8\]"),
        ({"ddconfig": {"z_channels": 32}}, "z_channels is 32 in its settings but 24"),
    ],
)
def test_settings_that_contradict_the_weights_are_one_clear_line(tmp_path, changes, message):
    state, settings = state_of("taming-vqgan")
    params = settings["model"]["params"]
    inner = params["ddconfig"] | changes.pop("ddconfig", {})
    source = written(tmp_path, {"state_dict": state}, {"model": {"params": {**params, **changes, "ddconfig": inner}}})
    with pytest.raises(FormatError, match=rf"last\.ckpt: {message}.*`config`"):
        interop.load(source, Options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "spatial"}, "norm_type 'spatial' is not supported"),
        ({"num_vq_embeddings": 71}, "num_vq_embeddings is 71 in its settings but 70"),
        ({"block_out_channels": [32, 32]}, r"block_out_channels is \[32, 32\] in its settings but \[64, 32\]"),
        ({"norm_num_groups": 30}, "its config makes no network"),
    ],
)
def test_a_vqmodel_whose_settings_do_not_fit_is_refused(tmp_path, changes, message):
    shutil.copytree(GOLDEN / "df-vqmodel" / "vqvae", tmp_path / "vqvae")
    change_json(tmp_path / "vqvae" / "config.json", **changes)
    with pytest.raises(FormatError, match=message):
        interop.load(read_source(tmp_path / "vqvae"), Options())


def test_an_open_muse_model_whose_settings_do_not_fit_is_refused(tmp_path):
    for fixture in ("om-maskgit-vqgan", "om-taming-vqgan"):
        shutil.copytree(GOLDEN / fixture, tmp_path / fixture)
        change_json(tmp_path / fixture / "config.json", num_res_blocks=3)
        with pytest.raises(FormatError, match="num_res_blocks is 3 in its settings but 1 by its weights"):
            interop.load(read_source(tmp_path / fixture / "pytorch_model.bin"), Options())


def test_weights_without_settings_are_read_by_their_shapes(tmp_path):
    state, _ = state_of("taming-vqgan")
    imported = interop.load(written(tmp_path, {"state_dict": state}), Options())
    assert same(imported.tokenizer, load("taming-vqgan").tokenizer)
    assert any("no settings of the tokenizer were given" in note for note in imported.notes)


def test_a_prior_is_no_tokenizer(tmp_path):
    prior = GOLDEN / "ms-prior-class" / "tiny_pretrained.pth"
    for name in ("taming", "unleashing-vqgan", "llamagen", "open-muse", "diffusers-vqmodel"):
        with pytest.raises(FormatError, match=r"tiny_pretrained\.pth: its codebook is missing"):
            interop.load(read_source(prior, GOLDEN / "ms-prior-class" / "config.yaml"), Options(), name)
    assert not any(interop.module(name).recognise(read_source(prior)) for name in MINE)


def test_an_autoencoder_without_a_codebook_or_of_two_channels_is_refused(tmp_path):
    state, settings = state_of("taming-vqgan")
    without = {name: value for name, value in state.items() if not name.startswith("quantize.")}
    with pytest.raises(FormatError, match=r"its codebook is missing: quantize\.embedding\.weight"):
        interop.load(written(tmp_path, {"state_dict": without}, settings), Options())
    grey = {**state, "encoder.conv_in.weight": state["encoder.conv_in.weight"][:, :2]}
    with pytest.raises(FormatError, match="its images have 2 channels: 3 are expected"):
        interop.load(written(tmp_path, {"state_dict": grey}, settings), Options())
    more = {**state, "encoder.extra.weight": torch.zeros(1)}
    with pytest.raises(FormatError, match=r"not understood: encoder\.extra\.weight"):
        interop.load(written(tmp_path, {"state_dict": more}, settings), Options())


def test_images_of_one_channel_are_the_mean_of_three_and_come_out_grey(tmp_path):
    """Of grey images it makes what the network of three channels, whose sum is its one, makes of them."""
    state, settings = state_of("taming-vqgan")
    settings["model"]["params"]["ddconfig"] |= {"in_channels": 1, "out_ch": 1}
    first, last = "encoder.conv_in.weight", "decoder.conv_out"
    one = {first: state[first].sum(1, keepdim=True)}
    one |= {f"{last}.{part}": state[f"{last}.{part}"][:1] for part in ("weight", "bias")}
    found = interop.load(written(tmp_path, {"state_dict": {**state, **one}}, settings), Options())
    coloured = load("taming-vqgan").tokenizer
    grey = numbers("taming-vqgan")["image"][:, :1].repeat(1, 3, 1, 1)
    tokens = found.tokenizer.encode(grey)
    assert torch.equal(tokens, coloured.encode(grey))
    shifted = grey + torch.tensor([0.1, 0.0, -0.1])[:, None, None]
    assert torch.allclose(found.tokenizer.latents(shifted), found.tokenizer.latents(grey), atol=1e-4)
    images = found.tokenizer.decode(tokens)
    assert torch.allclose(images, coloured.decode(tokens)[:, :1].expand(-1, 3, -1, -1), atol=1e-5)
    assert any("one channel" in note for note in found.notes)


def test_what_training_leaves_beside_a_network_is_left_out(tmp_path):
    """Means of EMAVQ's codebook, and ReFiT's losses, which stand at the top of its checkpoints."""
    state, settings = state_of("taming-vqgan")
    codebook = state["quantize.embedding.weight"]
    more = {"quantize.embedding.cluster_size": codebook[:, 0], "quantize.embedding.embed_avg": codebook}
    more |= {"perceptual_loss.net.slice1.0.weight": torch.ones(1), "discriminator.main.0.weight": torch.ones(1)}
    found = interop.load(written(tmp_path, {"state_dict": {**state, **more}}, settings), Options())
    assert same(found.tokenizer, load("taming-vqgan").tokenizer)
    assert (
        sum(
            f"left out: {2 + len([name for name in state if name.startswith('loss.')])} tensors of training" in note
            for note in found.notes
        )
        == 1
    )
    assert any("left out: 2 tensors of running means of the codebook" in note for note in found.notes)


# Commands


def test_commands_work_with_an_imported_tokenizer(tmp_path, vqtool):
    pictures = write_pictures(tmp_path / "imgs", 4)
    checkpoint, imported, grids = GOLDEN / "taming-vqgan" / "last.ckpt", tmp_path / "t.safetensors", tmp_path / "g.h5"
    code_map = GOLDEN / "taming-vqgan" / "taming_vqvae_78.pt"
    result = vqtool("import", checkpoint, "--code-map", code_map, "-o", imported)
    assert result.code == 0, result.err
    assert "code map: 128 codes -> 78 tokens" in result.err
    assert vqtool("encode", pictures, "-t", imported, "--size", "16", "-o", grids).code == 0
    assert vqtool("decode", grids, "-o", tmp_path / "out").code == 0
    assert vqtool("info", imported).code == 0
    made = tmp_path / "refit.safetensors"
    result = vqtool("codebook", "refit", pictures, "-t", imported, "-K", "8", "--size", "16", "-o", made)
    assert result.code == 0, result.err
    tokenizer = load_tokenizer(made)
    assert (tokenizer.network, tokenizer.codebook_size, tokenizer.num_full_codes) == ("vqgan", 8, None)
    assert vqtool("import", GOLDEN / "taming-gumbel" / "last.ckpt", "-o", imported, "--force").code == 0
    result = vqtool("codebook", "refit", pictures, "-t", imported, "--size", "16", "-o", made, "--force")
    assert result.code == 1
    assert "projection" in result.err


# Exports


def test_diffusers_loads_an_export_and_agrees(tmp_path):
    VQModel = pytest.importorskip("diffusers").VQModel

    tokenizer = with_equal_stem(load("taming-vqgan").tokenizer)
    images = numbers("taming-vqgan")["image"]
    diffusers_vqmodel.export(tokenizer, tmp_path / "vqvae")
    model, info = VQModel.from_pretrained(tmp_path / "vqvae", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        latents = model.encode(images).latents
        tokens = model.quantize(latents)[2][2].view(2, 8, 8)
        decoded = model.decode(model.quantize.get_codebook_entry(tokens, (2, 8, 8, 16)), force_not_quantize=True).sample
        assert (tokenizer.latents(images).permute(0, 3, 1, 2) - latents).abs().max() < 1e-5
    assert torch.equal(tokenizer.encode(images), tokens)
    assert (tokenizer.decode(tokens) - decoded).abs().max() < 1e-5
    assert same(interop.load(read_source(tmp_path / "vqvae"), Options()).tokenizer, tokenizer)


def with_equal_stem(tokenizer):
    """A tokenizer whose first convolution is as wide as its first resolution, with weights of usual size."""
    config = replace(tokenizer.config, stem_channels=tokenizer.config.channels[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = Tokenizer(config).eval()
        result.codebook.copy_(torch.randn(result.codebook.shape) / 4)
    return result


def test_an_export_to_diffusers_holds_what_the_import_read(tmp_path):
    diffusers_vqmodel.export(load("df-vqmodel").tokenizer, tmp_path)
    original = load_file(GOLDEN / "df-vqmodel" / "vqvae" / "diffusion_pytorch_model.safetensors")
    again = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)
    said = json.loads((GOLDEN / "df-vqmodel" / "vqvae" / "config.json").read_text())
    ours = json.loads((tmp_path / "config.json").read_text())
    assert {name: said[name] for name in ours if name != "sample_size"} == {
        name: value for name, value in ours.items() if name != "sample_size"
    }


@pytest.mark.parametrize("fixture", ["taming-vqgan", "taming-gumbel"])
def test_an_export_to_taming_holds_what_the_import_read(tmp_path, fixture):
    tokenizer = load(fixture).tokenizer
    taming.export(tokenizer, tmp_path)
    state, settings = state_of(fixture)
    again = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    kept = {name: value for name, value in state.items() if not name.startswith("loss.")}
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    said, ours = settings["model"], yaml.safe_load((tmp_path / "model.yaml").read_text())["model"]
    assert ours["target"] == said["target"]
    assert ours["params"].keys() - {"monitor"} == said["params"].keys() - {"base_learning_rate", "monitor"}
    scale = ours["params"]["ddconfig"]["resolution"] // said["params"]["ddconfig"].pop("resolution")
    assert ours["params"]["ddconfig"].pop("resolution")
    said["params"]["ddconfig"]["attn_resolutions"] = [
        side * scale for side in said["params"]["ddconfig"]["attn_resolutions"]
    ]
    assert ours["params"]["ddconfig"] == said["params"]["ddconfig"]
    assert same(interop.load(read_source(tmp_path / "model.ckpt"), Options()).tokenizer, tokenizer)


SMALL = VqganConfig(8, 4, 4, 8, (8, 8), 1, 2, (False, True), (False, True), num_groups=4)


@pytest.mark.parametrize(
    ("module", "tokenizer", "message"),
    [
        (diffusers_vqmodel, build_tokenizer, "has no network 'vqvae'"),
        (taming, build_tokenizer, "has no network 'vqvae'"),
        (taming, lambda: load("om-maskgit-vqgan").tokenizer, "has no network 'maskgit'"),
        (diffusers_vqmodel, lambda: load("taming-gumbel").tokenizer, "the lookup is nearest"),
        (taming, lambda: load("llamagen-vq").tokenizer, "the lookup is nearest or projection"),
        (taming, lambda: load("ut-vqgan").tokenizer, "a swish stands before the last convolutions"),
        (taming, lambda: load("om-taming-vqgan").tokenizer, r"images are in \[-1, 1\]"),
        (taming, lambda: Tokenizer(SMALL, num_full_codes=9), "there is no code map"),
        (taming, lambda: Tokenizer(replace(SMALL, quant_conv=False)), "1x1 convolutions around"),
        (taming, lambda: Tokenizer(replace(SMALL, decoder_blocks=1)), "one block more at each resolution"),
        (taming, lambda: Tokenizer(SMALL), "normalisations have 32 groups"),
        (taming, lambda: Tokenizer(replace(SMALL, mid_attention=False)), "attention in the middle"),
        (taming, lambda: Tokenizer(replace(SMALL, decoder_attention=(True, True))), "at the same resolutions"),
        (diffusers_vqmodel, lambda: Tokenizer(replace(SMALL, stem_channels=4)), "as wide as the first convolution"),
    ],
)
def test_what_a_project_cannot_hold_is_not_exported(tmp_path, module, tokenizer, message):
    with pytest.raises(VqtoolError, match=message):
        module.export(tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_eight_bit_images_survive_the_border_of_a_network_between_0_and_1():
    """The two conversions of an identity network are each other's inverse."""
    config = replace(SMALL, pixel_range=(0.0, 1.0))
    images = to_float(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16).numpy())
    tokenizer = Tokenizer(config)
    seen = []
    tokenizer.encoder.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokenizer.encode(images)
    assert (seen[0].min(), seen[0].max()) == (0, 1)
    tokenizer.decoder.conv_out.register_forward_hook(lambda *_: seen[0])
    assert (to_uint8(tokenizer.decode(torch.zeros(1, 8, 8, dtype=torch.int64))) == to_uint8(images)).all()


# Training on


TRAINED = {
    name: SOURCES[name][0] for name in ("om-maskgit-vqgan", "mb-vqgan-plus", "magvit2-tokenizer", "showo-tokenizer")
}
TRAINED |= {"titok-tokenizer": "legacy", "titok-tokenizer/rgb": ""}


@pytest.mark.parametrize("fixture", TRAINED)
def test_training_goes_on_with_an_imported_tokenizer_and_lowers_its_loss(fixture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("imgs"), 4)
    list(interop.convert(GOLDEN / fixture / TRAINED[fixture], "old.safetensors"))
    losses = []
    train_tokenizer(
        "imgs", "new.safetensors", from_="old.safetensors", size=16, steps=6, batch_size=4, learning_rate=1e-3,
        flip=False, report=lambda step, metrics: losses.append(float(metrics["loss"])),
    )  # fmt: skip
    old, new = (load_tokenizer(f"{name}.safetensors") for name in ("old", "new"))
    assert losses[-1] < losses[0]
    assert (new.config, new.lookup) == (old.config, old.lookup)
    grid = torch.zeros(1, *old.grid_size((16, 16)), dtype=torch.int64)
    assert not torch.equal(old.decode(grid), new.decode(grid))


def test_a_tokenizer_of_one_size_is_trained_on_that_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("imgs"), 2)
    list(interop.convert(GOLDEN / "titok-tokenizer" / "rgb", "old.safetensors"))
    with pytest.raises(VqtoolError, match="images of 32x32 do not fit this tokenizer, which knows those of 16x16"):
        train_tokenizer("imgs", "new.safetensors", from_="old.safetensors", size=32, steps=1)
