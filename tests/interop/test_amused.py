"""aMUSEd's pipeline: the numbers and whole walks of diffusers' own, and folders that are not what they should be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.replayed import features, replay
from torch.nn import functional as F

from vqtool import interop
from vqtool.denoisers import amused
from vqtool.denoisers.amused import micro_embedding
from vqtool.diffusion.guidance import guide
from vqtool.errors import FormatError, MismatchError
from vqtool.interop import Options
from vqtool.priors import load_prior
from vqtool.samplers import sample
from vqtool.samplers._unmask import cosine

FOLDER = Path(__file__).parents[1] / "golden" / "amused-pipeline"
CAPTIONS = ["a red cat on the mat", "Two dogs!"]


@pytest.fixture(scope="module")
def imported():
    return interop.load(interop.read_source(FOLDER), Options())


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


def close(found, expected, tolerance):
    assert float((found - expected).abs().max()) <= tolerance


def test_captions_become_the_states_and_pooled_texts_of_the_original(imported, io):
    assert interop.recognise(interop.read_source(FOLDER)) == "amused"
    prior = imported.prior
    ids = prior.conditioner.encode([*CAPTIONS, None])
    assert torch.equal(ids[:2], io["input_ids"])
    assert torch.equal(ids[2:], io["null_ids"])
    found = prior.text_encoder(ids)
    close(found[:2], features(io, "text", 8), 2e-5)
    close(found[2:], features(io, "null", 8), 2e-5)


def test_the_network_gives_the_numbers_of_the_original(imported, io):
    network = imported.prior.denoiser
    close(micro_embedding(io["micro_conds"], 16), io["micro_embedding"], 1e-4)
    condition = network.encode_condition(features(io, "text", 8), io["micro_conds"])
    close(condition.embedding, io["cond_vector"], 2e-5)
    t = torch.tensor([3, 16])
    logits = network(io["x_t"].clamp(max=40), t, condition).permute(0, 3, 1, 2)
    close(logits, io["logits"], 1e-4)
    null = network.encode_condition(features(io, "null", 8).expand(2, -1, -1), io["micro_conds"])
    unguided = network(io["x_t"].clamp(max=40), t, null).permute(0, 3, 1, 2)
    close(unguided, io["logits_null"], 5e-5)
    guided = guide(logits.log_softmax(1).movedim(1, -1), unguided.log_softmax(1).movedim(1, -1), 3.0)
    close(guided, io["logits_guided"].log_softmax(1).movedim(1, -1), 2e-4)
    cells = torch.tensor([[0, 23], [7, 7]])
    at_cells = network(io["x_t"].clamp(max=40), t, condition, cells)
    close(at_cells, io["logits"].flatten(2).mT.gather(1, cells[..., None].expand(-1, -1, 40)), 1e-4)


def test_the_tokenizer_makes_the_tokens_and_images_of_the_original(imported, io):
    tokenizer = imported.tokenizer
    images = io["image"] * 2 - 1
    with torch.no_grad():
        close(tokenizer.encoder(images), io["latents"], 2e-5)
    assert torch.equal(tokenizer.encode(images), io["indices"])
    close((tokenizer.decode(io["codes_any"]) + 1) / 2, io["decoded_codes_any"], 2e-5)
    close((tokenizer.decode(io["walk_tokens"][-1]).permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1), io["walk_images"], 5e-5)


MUTATIONS = {
    "sine first": lambda network, patch: patch.setattr(
        "vqtool.denoisers.amused.micro_embedding",
        lambda x, n: micro_embedding(x, n).view(len(x), 5, 2, -1).flip(2).flatten(1),
    ),
    "no micro-conditions": lambda network, patch: patch.setattr(
        "vqtool.denoisers.amused.micro_embedding", lambda x, n: torch.zeros(len(x), 5 * n)
    ),
    "heads of the layers": lambda network, patch: [
        patch.setattr(layer.attn1, "num_heads", 2) for layer in network.layers
    ],
    "heads of the ends": lambda network, patch: [patch.setattr(block.attn1, "num_heads", 4) for block in network.down],
    "epsilon of tokens": lambda network, patch: patch.setattr(network.token_norm, "epsilon", 1e-2),
    "epsilon of the ends": lambda network, patch: [patch.setattr(block.norm1, "epsilon", 1e-3) for block in network.up],
    "no text at the ends": lambda network, patch: [
        patch.setattr(block, "text", torch.nn.Linear(48, 32, bias=False).requires_grad_(False))
        for block in network.down
    ],
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_networks_that_differ_a_little_are_told_from_the_original(io, name, monkeypatch):
    network = interop.load(interop.read_source(FOLDER), Options()).prior.denoiser
    MUTATIONS[name](network, monkeypatch)
    condition = network.encode_condition(features(io, "text", 8), io["micro_conds"])
    logits = network(io["x_t"].clamp(max=40), torch.tensor([3, 16]), condition).permute(0, 3, 1, 2)
    assert float((logits - io["logits"]).abs().max()) > 1e-4


def test_as_many_cells_stay_masked_as_in_the_original(io):
    for row in io["counts_cosine"].tolist():
        cells, steps, *left = row
        assert [int(table[-1]) for table in cosine(cells, steps)] == left[:steps]


def test_a_whole_walk_is_that_of_the_original_token_for_token(imported, io, monkeypatch):
    prior, expected = imported.prior, io["walk_tokens"].clamp(max=40)
    micro = (24.0, 16.0, 0.0, 0.0, 6.0)
    config = type(prior.denoiser.config)(
        **{**prior.denoiser.config.__dict__, "micro_conditions": micro, "grid_size": (4, 6)}
    )
    monkeypatch.setattr(prior.denoiser, "config", config)
    wide = type(prior)(**{**prior.__dict__, "grid_spec": type(prior.grid_spec)("", "", (4, 6), (4, 6), "")})
    condition = prior.conditioner.encode(CAPTIONS)
    found = replay(wide, (4, 6), condition, io["walk_exponentials"], io["walk_uniforms"], 3.0)
    assert torch.equal(found, expected)


def test_the_published_way_of_sampling_travels_with_the_prior(imported, tmp_path):
    names = {name: value for name, value in imported.prior.sampling.items() if name != "choice_temperature"}
    assert names == {"sampler": "confidence", "steps": 12, "cfg_scale": 10.0}
    assert imported.prior.sampling["choice_temperature"] == pytest.approx(2 * 12 / 11)
    paths = [tmp_path / f"{name}.safetensors" for name in ("a", "a.tokenizer", "a.text-encoder")]
    list(interop.convert(FOLDER, paths[0]))
    assert all(path.is_file() for path in paths)
    prior = load_prior(paths[0])
    assert prior.grid_spec.image_size == (16, 16)
    condition = prior.conditioner.encode(CAPTIONS)
    grids = sample(prior, 2, condition=condition, seed=3)
    assert torch.equal(grids, sample(imported.prior, 2, condition=condition, seed=3))
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(2, 4, 4, generator=generator) < 0.5
    edited = sample(prior, 2, known=torch.where(known, grids, 40), condition=condition.flip(0), seed=4)
    assert torch.equal(edited[known], grids[known])


def changed(tmp_path, file, **changes):
    shutil.copytree(FOLDER, tmp_path / "p")
    path = tmp_path / "p" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return interop.read_source(tmp_path / "p")


@pytest.mark.parametrize(
    ("file", "changes", "error", "message"),
    [
        ("transformer/config.json", {"use_bias": True}, FormatError, "use_bias is True: only False"),
        ("transformer/config.json", {"downsample": True}, FormatError, "downsample and upsample differ"),
        (
            "transformer/config.json",
            {"micro_cond_embed_dim": 48},
            FormatError,
            "is not 5 times micro_cond_encode_dim 16",
        ),
        ("transformer/config.json", {"num_attention_heads": 5}, FormatError, "cannot be shared by 5 heads"),
        ("transformer/config.json", {"codebook_size": 41}, MismatchError, "codes of the transformer and the tokenizer"),
        ("transformer/config.json", {"num_hidden_layers": 3}, FormatError, r"missing: transformer_layers\.2\."),
        ("transformer/config.json", {"_class_name": "UVit3D"}, FormatError, "UVit2DModel is expected"),
        ("scheduler/scheduler_config.json", {"mask_token_id": 39}, FormatError, "39 is no row of a mask"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, FormatError, "hidden_act relu"),
    ],
)
def test_parts_that_do_not_fit_are_one_clear_error(tmp_path, file, changes, error, message):
    with pytest.raises(error, match=message):
        interop.load(changed(tmp_path, file, **changes), Options())


def test_a_network_that_halves_its_grid_is_that_of_the_published_layers():
    """Convolutions of stride 2 without overlap, and their transposes, as explicit sums; no golden folder has them."""
    torch.manual_seed(0)
    sizes = {**amused.SIZES["tiny"], "halves": True, "codebook_size": 7, "grid_size": (4, 6), "num_steps": 24}
    network = amused.Network(amused.Config(**sizes)).eval().requires_grad_(False)
    x = torch.randn(2, 4, 6, 64)
    normed = F.rms_norm(x, (64,), network.halving.norm.weight, 1e-6)
    patches = normed.view(2, 2, 2, 3, 2, 64)  # (B, rows, 2, columns, 2, D)
    expected = torch.einsum("brxcyi,oixy->brco", patches, network.halving.conv.weight)
    close(network.halving(x), expected, 1e-5)
    doubled = torch.einsum(
        "brci,ioxy->brxcyo", F.rms_norm(expected, (64,), None, 1e-6), network.doubling.conv.weight
    ).reshape(2, 4, 6, 64)
    close(network.doubling(expected), doubled, 1e-5)
    logits = network(torch.randint(8, (2, 4, 6)), torch.tensor([1, 1]))
    assert logits.shape == (2, 4, 6, 7)
