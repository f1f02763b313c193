"""Which files a source is made of, which project it is of, and what the user has to say: nothing is guessed quietly."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vqtool import interop
from vqtool.errors import FormatError, VqtoolError
from vqtool.interop import Options, read_source
from vqtool.interop.pickles import read_pickle
from vqtool.priors import load_prior
from vqtool.tokenizers import load_tokenizer
from vqtool.tokenizers.quantizers import nearest

GOLDEN = Path(__file__).parents[1] / "golden"
IBQ = GOLDEN / "ibq-tokenizer"
VQMODEL = GOLDEN / "df-vqmodel" / "vqvae"


def notes_of(path, **options):
    return interop.load(read_source(path), Options(**options)).notes


# Which project


def test_an_ibq_checkpoint_is_not_tamings_though_its_names_are(tmp_path):
    expected = load_file(IBQ / "io.safetensors")
    source = read_source(IBQ / "imagenet256_64.ckpt")
    assert interop.recognise(source) == "ibq"
    tokenizer = interop.load(source, Options()).tokenizer
    assert torch.equal(tokenizer.encode(expected["image"]), expected["indices"])
    with torch.no_grad():
        latents = tokenizer.latents(expected["image"])
    differing = nearest(latents.flatten(0, 2), tokenizer.codebook) != expected["indices"].flatten()
    assert differing.float().mean() > 0.5  # what taming's rule would give


def test_without_settings_averages_can_be_of_two_projects_and_the_user_says_which(tmp_path):
    shutil.copy(IBQ / "imagenet256_64.ckpt", tmp_path)
    source = read_source(tmp_path / "imagenet256_64.ckpt")
    with pytest.raises(FormatError, match="could be taming or ibq, by its names alone: choose with `format`"):
        interop.load(source, Options())
    expected = load_file(IBQ / "io.safetensors")
    tokenizer = interop.load(source, Options(), "ibq").tokenizer
    assert torch.equal(tokenizer.encode(expected["image"]), expected["indices"])


def test_raw_weights_of_ibq_are_those_outside_of_its_averages():
    expected = load_file(IBQ / "io.safetensors")
    tokenizer = interop.load(read_source(IBQ / "imagenet256_64.ckpt"), Options(weights="raw")).tokenizer
    with torch.no_grad():
        assert (tokenizer.encoder(expected["image"]) - expected["raw_latents"]).abs().max() < 1e-4
    assert (tokenizer.decode(expected["codes_any"]) - expected["raw_decoded_codes_any"]).abs().max() < 1e-4


def test_averages_of_ibq_that_are_not_all_there_are_named(tmp_path):
    content = read_pickle(IBQ / "imagenet256_64.ckpt")
    del content["state_dict"]["model_ema.quant_convbias"]
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "m.ckpt")
    shutil.copy(IBQ / "imagenet256_64.yaml", tmp_path / "m.yaml")
    with pytest.raises(FormatError, match=r"1 tensors are missing: model_ema\.quant_convbias"):
        interop.load(read_source(tmp_path / "m.ckpt"), Options())
    raw = {name: value for name, value in content["state_dict"].items() if not name.startswith("model_ema")}
    torch.save({"state_dict": raw}, tmp_path / "m.ckpt")
    assert any("holds no averaged weights (model_ema)" in note for note in notes_of(tmp_path / "m.ckpt"))
    with pytest.raises(FormatError, match="leave out `weights` raw"):
        notes_of(tmp_path / "m.ckpt", weights="raw")


def test_a_bare_file_of_weights_with_tamings_names_is_of_one_project_or_another(tmp_path):
    folder = GOLDEN / "om-taming-vqgan"
    shutil.copy(folder / "pytorch_model.bin", tmp_path)
    with pytest.raises(FormatError, match="could be taming or open-muse, by its names alone"):
        interop.recognise(read_source(tmp_path / "pytorch_model.bin"))
    shutil.copy(folder / "config.json", tmp_path)
    assert interop.recognise(read_source(tmp_path / "pytorch_model.bin")) == "open-muse"
    with pytest.raises(FormatError, match="could be taming or open-muse"):
        interop.recognise(read_source(tmp_path / "pytorch_model.bin", Path("none")))
    (tmp_path / "config.json").unlink()
    settings = {"model": {"target": "taming.models.vqgan.VQModel", "params": {}}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(settings))
    assert interop.recognise(read_source(tmp_path / "pytorch_model.bin")) == "taming"


# Which files


@pytest.mark.parametrize("variant", ["fp16", "non_ema", "bf16"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_plain_file_of_weights_goes_before_its_variants_and_the_choice_is_said(tmp_path, variant, ending):
    tensors = load_file(VQMODEL / "diffusion_pytorch_model.safetensors")
    shutil.copy(VQMODEL / "config.json", tmp_path)
    wrong = {name: value * 2 for name, value in tensors.items()}
    save = save_file if ending == "safetensors" else torch.save
    save(tensors, tmp_path / f"diffusion_pytorch_model.{ending}")
    save(wrong, tmp_path / f"diffusion_pytorch_model.{variant}.{ending}")
    imported = interop.load(read_source(tmp_path), Options())
    assert torch.equal(imported.tokenizer.codebook, tensors["quantize.embedding.weight"])
    file = f"diffusion_pytorch_model.{ending}"
    assert f"weights: {file}, not diffusion_pytorch_model.{variant}.{ending}" in imported.notes


def test_weights_in_numbered_files_are_put_together_and_other_names_do_not_confuse(tmp_path):
    tensors = load_file(VQMODEL / "diffusion_pytorch_model.safetensors")
    shutil.copy(VQMODEL / "config.json", tmp_path)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = tmp_path / f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, file)
    save_file({"lora_A": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    imported = interop.load(read_source(tmp_path), Options())
    assert torch.equal(imported.tokenizer.codebook, tensors["quantize.embedding.weight"])
    for file in tmp_path.glob("diffusion*"):
        file.rename(tmp_path / file.name.replace("diffusion_pytorch_model", "mine"))
    with pytest.raises(
        VqtoolError, match=r"adapter\.safetensors, mine-00001.* are in it: name the file of the weights"
    ):
        interop.load(read_source(tmp_path), Options())


def test_files_that_are_no_settings_of_a_model_do_not_count(tmp_path):
    for file in ("last.ckpt", "model.yaml"):
        shutil.copy(GOLDEN / "taming-vqgan" / file, tmp_path)
    (tmp_path / "labels.json").write_text('["tench", "goldfish"]')
    (tmp_path / "compose.yml").write_text("services: {web: {image: x}}\n")
    (tmp_path / "broken.yaml").write_text("{{{\n")
    (tmp_path / "last.json").write_text('{"date": "today"}')
    imported = interop.load(read_source(tmp_path / "last.ckpt"), Options())
    assert imported.notes[:2] == [
        "settings: model.yaml",
        "settings: last.json is beside it, but holds none of a model",
    ]
    assert not any("no settings of the tokenizer were given" in note for note in imported.notes)
    alone = interop.load(read_source(tmp_path / "last.ckpt", Path("none")), Options())
    assert any("no settings of the tokenizer were given" in note for note in alone.notes)


# What is said


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_heads", 3), ("grid_size", (4, 4)), ("weights", "raw"), ("num_steps", 5), ("activation", "gelu")],
)
def test_options_that_mean_nothing_for_a_tokenizer_are_refused(option, value):
    with pytest.raises(VqtoolError, match=f"`{option}` says nothing about this taming source: leave it out"):
        interop.load(read_source(GOLDEN / "taming-vqgan" / "last.ckpt"), Options(**{option: value}))


def test_a_tokenizer_for_a_source_that_holds_one_is_refused():
    tokenizer = interop.load(read_source(GOLDEN / "taming-vqgan" / "last.ckpt"), Options()).tokenizer
    for folder in ("taming-vqgan/last.ckpt", "ms-prior-uncond/tiny_pretrained.pth"):
        config = GOLDEN / "ms-prior-uncond" / "config.yaml" if "ms" in folder else None
        with pytest.raises(VqtoolError, match="`tokenizer` says nothing about this"):
            interop.load(read_source(GOLDEN / folder, config), Options(tokenizer=tokenizer))


def test_weights_of_llamagen_without_an_average_cannot_be_chosen_from():
    with pytest.raises(FormatError, match=r"vq_ds_tiny\.pt: holds no averaged weights .*leave out `weights` raw"):
        interop.load(read_source(GOLDEN / "llamagen-vq" / "vq_ds_tiny.pt"), Options(weights="raw"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_the_name_they_have_in_the_file(tmp_path, value):
    content = read_pickle(GOLDEN / "llamagen-vq" / "vq_ds_tiny.pt")
    for name in ("decoder.conv_blocks.0.res.0.conv1.weight", "quantize.embedding.weight"):
        model = {key: tensor.clone() for key, tensor in content["model"].items()}
        model[name].view(-1)[0] = value
        torch.save({"model": model}, tmp_path / "m.pt")
        with pytest.raises(FormatError, match=rf"m\.pt: {name} holds numbers that are not finite"):
            interop.load(read_source(tmp_path / "m.pt"), Options())


def test_a_flipped_byte_in_a_checkpoint_is_found(tmp_path):
    data = bytearray((GOLDEN / "llamagen-vq" / "vq_ds_tiny.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(FormatError, match=r"m\.pt: .*Bad CRC-32"):
        read_source(tmp_path / "m.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_stay_so_on_disk_and_are_the_same_numbers(dtype, tmp_path):
    """A whole pipeline: prior, tokenizer and text encoder take half the space, and are computed in float32."""
    shutil.copytree(GOLDEN / "meissonic-pipeline", tmp_path / "p")
    for file in (tmp_path / "p").rglob("*/*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    list(interop.convert(tmp_path / "p", tmp_path / "short.safetensors"))
    list(interop.convert(GOLDEN / "meissonic-pipeline", tmp_path / "long.safetensors"))
    for part in ("", ".tokenizer", ".text-encoder"):
        short, long = (load_file(tmp_path / f"{name}{part}.safetensors") for name in ("short", "long"))
        weights = [name for name in short if not name.startswith(("kernel.", "condition.", "captions."))]
        floats = [name for name in weights if short[name].is_floating_point() and name != "codebook"]
        assert len(floats) > 10
        assert all(short[name].element_size() == 2 for name in floats)
        for name in floats:
            assert torch.equal(short[name].float(), long[name].float().to(dtype).float())
    prior = load_prior(tmp_path / "short.safetensors")
    assert {value.dtype for value in prior.denoiser.state_dict().values()} == {torch.float32}
    tokenizer = load_tokenizer(tmp_path / "short.tokenizer.safetensors")
    assert tokenizer.decode(torch.zeros(1, 4, 4, dtype=torch.int64)).isfinite().all()
