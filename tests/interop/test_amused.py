"""aMUSEd's pipeline: the numbers and whole walks of diffusers' own, and folders that are not what they should be."""

import json
import shutil
from dataclasses import replace
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
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.interop import Options
from vqtool.interop import amused as amused_pipeline
from vqtool.interop.exporting import export
from vqtool.priors import GridSpec, load_prior
from vqtool.samplers import Method, sample
from vqtool.samplers._unmask import PLANS
from vqtool.samplers.editing import edit
from vqtool.samplers.masks import to_cells

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


@pytest.mark.parametrize("plan", ["cosine", "linear"])
def test_as_many_cells_stay_masked_as_in_the_original(io, plan):
    for row in io[f"counts_{plan}"].tolist():
        cells, steps, *left = row
        assert [int(table[-1]) for table in PLANS[plan](cells, steps)] == left[:steps]


def of_size(prior, size, monkeypatch):
    """The prior for grids of another size, whose pictures are told as so large."""
    height, width = (float(4 * side) for side in size)
    config = replace(prior.denoiser.config, micro_conditions=(width, height, 0.0, 0.0, 6.0), grid_size=size)
    monkeypatch.setattr(prior.denoiser, "config", config)
    return replace(prior, grid_spec=GridSpec("", "", size, size, ""))


def test_a_whole_walk_is_that_of_the_original_token_for_token(imported, io, monkeypatch):
    prior, condition = of_size(imported.prior, (4, 6), monkeypatch), imported.prior.conditioner.encode(CAPTIONS)
    found = replay(prior, (4, 6), condition, io["walk_exponentials"], io["walk_uniforms"], 3.0)
    assert torch.equal(found, io["walk_tokens"].clamp(max=40))


def test_a_whole_walk_of_inpainting_is_that_of_the_original_token_for_token(imported, io, monkeypatch):
    prior, condition = of_size(imported.prior, (4, 8), monkeypatch), imported.prior.conditioner.encode(CAPTIONS)
    known = imported.tokenizer.encode(io["inpaint_image"] * 2 - 1)
    cells = to_cells(io["inpaint_mask"][0, 0].numpy() > 0.5, (4, 8))
    known[:, torch.from_numpy(cells)] = 40
    given = io["inpaint_exponentials"], io["inpaint_uniforms"]
    found = replay(prior, (4, 8), condition, *given, 3.0, known=known, plan=prior.sampling["completing"]["plan"])
    expected = io["inpaint_tokens"].clamp(max=40)
    assert torch.equal(found, expected)
    assert not torch.equal(replay(prior, (4, 8), condition, *given, 3.0, known=known), expected)
    images = (imported.tokenizer.decode(found[-1]).permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)
    close(images, io["inpaint_images"], 2e-5)


def test_pictures_are_completed_by_the_linear_plan_and_new_ones_made_by_the_cosine(imported):
    prior = imported.prior
    built = {
        completes: Method.build(prior, has_condition=True, completes=completes).options.plan
        for completes in (False, True)
    }
    assert built == {False: "cosine", True: "linear"}
    chosen = Method.build(prior, has_condition=True, completes=True, plan="arccos")
    assert chosen.options.plan == "arccos"
    assert Method.build(prior, has_condition=True, completes=True, sampler="halton").sampler == "halton"
    grids = torch.zeros(1, 4, 4).long()
    cells = torch.arange(16).view(4, 4) < 8
    made = edit(prior, grids, cells.numpy(), captions=CAPTIONS[:1], seed=2, steps=3)
    known = torch.where(cells, 40, grids)
    how = {"condition": prior.conditioner.encode(CAPTIONS[:1]), "seed": 2, "steps": 3}
    assert torch.equal(made, sample(prior, 1, known=known, plan="linear", **how))
    assert not torch.equal(made, sample(prior, 1, known=known, **how))


def test_a_pipeline_goes_in_and_out_and_into_diffusers(tmp_path, vqtool, io):
    pytest.importorskip("diffusers")
    list(interop.convert(FOLDER, tmp_path / "a.safetensors"))
    assert vqtool("export", tmp_path / "a.safetensors", "-o", tmp_path / "pipeline").code == 0
    again = interop.load(interop.read_source(tmp_path / "pipeline"), Options())
    prior = load_prior(tmp_path / "a.safetensors")
    for mine, theirs in (
        (again.prior.denoiser, prior.denoiser),
        (again.text_encoder, prior.text_encoder),
    ):
        expected = theirs.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in mine.state_dict().items())
    assert torch.equal(again.prior.conditioner.encode(CAPTIONS), io["input_ids"])
    assert again.prior.denoiser.config == prior.denoiser.config
    assert torch.equal(again.tokenizer.encode(io["image"] * 2 - 1), io["indices"])


@pytest.mark.slow
def test_diffusers_runs_an_exported_pipeline_and_gives_its_own_numbers(tmp_path, io):
    diffusers = pytest.importorskip("diffusers")
    list(interop.convert(FOLDER, tmp_path / "a.safetensors"))
    export(tmp_path / "a.safetensors", tmp_path / "pipeline", "diffusers")
    theirs = diffusers.AmusedPipeline.from_pretrained(tmp_path / "pipeline")
    with torch.no_grad():
        states = io["text_hidden"], io["text_pooled"], io["micro_conds"]
        logits = theirs.transformer(io["x_t"].clamp(max=40), states[0], states[1], states[2])
    close(logits, io["logits"], 1e-4)
    assert theirs.scheduler.config.mask_token_id == 40


def test_a_pipeline_holds_square_grids_and_its_own_network_alone(imported, tmp_path, monkeypatch):
    with pytest.raises(VqtoolError, match="an AmusedPipeline holds square grids, not 4x6"):
        amused_pipeline.export(of_size(imported.prior, (4, 6), monkeypatch), imported.tokenizer, tmp_path / "p")
    with pytest.raises(VqtoolError, match="comes without its encoder"):
        amused_pipeline.export(replace(imported.prior, text_encoder=None), imported.tokenizer, tmp_path / "p")


def test_the_published_way_of_sampling_travels_with_the_prior(imported, tmp_path):
    names = {name: value for name, value in imported.prior.sampling.items() if name != "choice_temperature"}
    assert names == {"sampler": "confidence", "steps": 12, "cfg_scale": 10.0, "completing": {"plan": "linear"}}
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
