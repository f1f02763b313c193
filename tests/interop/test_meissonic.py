"""Meissonic's pipeline: the numbers and a whole walk of its own program, negative prompts, folders that do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.replayed import features, replay
from torch import nn

from vqtool import interop
from vqtool.denoisers.meissonic import rotations
from vqtool.diffusion.guidance import guide
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.interop import Options, meissonic
from vqtool.priors import load_prior
from vqtool.samplers import condition, sample

FOLDER = Path(__file__).parents[1] / "golden" / "meissonic-pipeline"
CAPTION = "the red boat on the lake"
TOLERANCES = {0: 2e-4, 2: 0.002, 63: 0.05}


@pytest.fixture(scope="module")
def imported():
    return interop.load(interop.read_source(FOLDER), Options())


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


def close(found, expected, tolerance):
    assert float((found - expected).abs().max()) <= tolerance


def logits(network, io, calls, kind="text"):
    given = network.encode_condition(features(io, kind, -8).expand(2, -1, -1), io["micro_conds"])
    return network(io["x_t"].clamp(max=48), torch.full((2,), calls + 1), given).permute(0, 3, 1, 2)


def test_captions_become_the_states_and_pooled_texts_of_the_original(imported, io):
    assert interop.recognise(interop.read_source(FOLDER)) == "meissonic"
    prior = imported.prior
    ids = prior.conditioner.encode([CAPTION, None])
    assert torch.equal(ids, torch.cat([io["input_ids"], io["null_ids"]]))
    close(prior.text_encoder(ids), torch.cat([features(io, "text", -8), features(io, "null", -8)]), 2e-5)


def test_the_network_gives_the_numbers_of_the_original(imported, io):
    network = imported.prior.denoiser
    cos, sin = rotations((3, 5), (4, 6, 6))
    close(cos.repeat_interleave(2, dim=1), io["rope_cos"], 2e-6)
    close(sin.repeat_interleave(2, dim=1), io["rope_sin"], 2e-6)
    given = network.encode_condition(features(io, "text", -8).expand(2, -1, -1), io["micro_conds"])
    close(given.embedding, io["cond_vector"], 1e-4)
    for calls, tolerance in TOLERANCES.items():
        t = torch.full((2,), calls + 1)
        close(network.embed(t, given.embedding), io[f"temb_{calls}"], {0: 5e-5, 2: 2e-4, 63: 0.01}[calls])
        close(logits(network, io, calls), io[f"logits_t{calls}"], tolerance)
    close(logits(network, io, 0, "null"), io["logits_null"], 2e-4)
    guided = guide(*(logits(network, io, 0, kind).log_softmax(1).movedim(1, -1) for kind in ("text", "null")), 4.0)
    close(guided, io["logits_guided"].log_softmax(1).movedim(1, -1), 1e-3)
    cells = torch.tensor([[0, 59], [7, 7]])
    at_cells = network(io["x_t"].clamp(max=48), torch.ones(2).long(), given, cells)
    close(at_cells, io["logits_t0"].flatten(2).mT.gather(1, cells[..., None].expand(-1, -1, 48)), 2e-4)


def test_images_are_those_of_the_original(io):
    """In float64: eight doublings, with a convolution each in one step, differ by 3e-4 here and there in float32."""
    tokenizer = interop.load(interop.read_source(FOLDER), Options()).tokenizer.double()
    with torch.no_grad():
        images = (tokenizer.decode_codes(tokenizer.codebook[io["codes_any"]]) + 1) / 2
        close(images[..., ::16, ::16], io["decoded_codes_any"], 2e-5)


def _set_norms(network, epsilon):
    for part in network.modules():
        if hasattr(part, "epsilon"):
            part.epsilon = epsilon


def _streams(network):
    return [stream for double in network.two_streams for stream in (double.text, double.cells)]


MUTATIONS = {
    "epsilon": lambda network, patch: _set_norms(network, 1e-3),
    "calls without their factor": lambda network, patch: patch.setattr("vqtool.denoisers.meissonic.CALL", 1.0),
    "rows and columns": lambda network, patch: patch.setattr("vqtool.denoisers.meissonic.rotations", _turned),
    "texts with places": lambda network, patch: patch.setattr(
        "vqtool.denoisers.meissonic.rotations", lambda size, axes, num: rotations(size, axes, num).roll(1, dims=1)
    ),
    "halves for neighbours": lambda network, patch: patch.setattr("vqtool.denoisers.meissonic.turn", _turn_halves),
    "no norm of queries": lambda network, patch: [setattr(part, "q_norm", nn.Identity()) for part in _streams(network)],
    "no pooled text": lambda network, patch: nn.init.zeros_(network.picture[0].weight[:, :32]),
    "text and cells swapped": lambda network, patch: [
        part.__dict__["_modules"].update(text=part.cells, cells=part.text) for part in network.two_streams
    ],
}


def _turned(size, axes, num):
    table = rotations((size[1], size[0]), axes)
    table = table.view(2, size[1], size[0], -1).transpose(1, 2).flatten(1, 2)
    return torch.cat([rotations((1, 1), axes, num)[:, :num], table], dim=1)


def _turn_halves(x, rotation):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * rotation[0] - second * rotation[1], second * rotation[0] + first * rotation[1]], dim=-1)


@pytest.mark.parametrize("name", MUTATIONS)
def test_networks_that_differ_a_little_are_told_from_the_original(io, name, monkeypatch):
    network = interop.load(interop.read_source(FOLDER), Options()).prior.denoiser
    MUTATIONS[name](network, monkeypatch)
    assert float((logits(network, io, 2) - io["logits_t2"]).abs().max()) > TOLERANCES[2]


def test_a_whole_walk_is_that_of_the_original_token_for_token(imported, io):
    prior, given = imported.prior, condition(imported.prior, captions=[CAPTION])
    expected = io["walk_tokens"].clamp(max=48)
    found = replay(prior, (8, 8), given, io["walk_exponentials"], io["walk_uniforms"], 4.0)
    assert torch.equal(found, expected)
    other = replay(prior, (8, 8), given, io["walk_exponentials"], io["walk_uniforms"], 4.0, negative="a lake")
    assert not torch.equal(other, expected)


def test_the_network_is_told_how_many_calls_are_to_come_whatever_is_masked(imported, monkeypatch):
    told, prior = [], imported.prior
    forward = prior.denoiser.forward

    def listen(x_t, t, *rest):
        told.append(sorted(set(t.tolist())))
        return forward(x_t, t, *rest)

    monkeypatch.setattr(prior.denoiser, "forward", listen)
    sample(prior, 2, sampler="confidence", steps=5, cfg_scale=1.0, exact=False)
    assert told == [[5], [4], [3], [2], [1]]
    told.clear()
    sample(prior, 1, sampler="halton", steps=3, cfg_scale=1.0, exact=False)
    assert told == [[3], [2], [1]]


def test_guidance_away_from_the_empty_caption_is_that_from_the_null(imported):
    prior, given = imported.prior, condition(imported.prior, captions=[CAPTION])
    how = {"condition": given, "seed": 1, "sampler": "confidence", "steps": 3, "cfg_scale": 3.0}
    plain = sample(prior, 1, **how)
    assert torch.equal(sample(prior, 1, **how, negative=""), plain)
    assert not torch.equal(sample(prior, 1, **how, negative="two dogs"), plain)
    assert "negative" in prior.sampling


def test_a_negative_text_goes_with_nothing_else_to_guide_away_from(imported):
    with pytest.raises(VqtoolError, match="`null` and `negative` both say what guidance compares with"):
        sample(imported.prior, 1, cfg_scale=2.0, null="zero-shot", negative="dark")
    with pytest.raises(VqtoolError, match="`negative` is about guidance, and there is none"):
        sample(imported.prior, 1, cfg_scale=1.0, negative="dark")


def test_the_published_way_of_sampling_travels_with_the_prior_and_editing_keeps_what_is_given(imported, tmp_path):
    list(interop.convert(FOLDER, tmp_path / "a.safetensors"))
    prior = load_prior(tmp_path / "a.safetensors")
    assert prior.sampling == imported.prior.sampling
    assert {name: prior.sampling[name] for name in ("steps", "cfg_scale")} == {"steps": 64, "cfg_scale": 9.0}
    assert prior.grid_spec.image_size == (1024, 1024)
    given = prior.conditioner.encode([CAPTION, "two dogs"])
    grids = sample(prior, 2, condition=given, seed=3, steps=4)
    known = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    edited = sample(prior, 2, known=torch.where(known, grids, 48), condition=given.flip(0), seed=4, steps=4)
    assert torch.equal(edited[known], grids[known])


def changed(tmp_path, file, **changes):
    shutil.copytree(FOLDER, tmp_path / "p")
    path = tmp_path / "p" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return interop.read_source(tmp_path / "p")


def test_a_network_that_does_not_halve_its_grid_is_sampled_as_monetico(tmp_path):
    source = changed(tmp_path, "transformer/config.json", downsample=False, upsample=False)
    weights = source.path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    halving = [name for name in tensors if "_block.downsample." in name or "_block.upsample." in name]
    assert len(halving) == 4
    save_file({name: tensor for name, tensor in tensors.items() if name not in halving}, weights)
    prior = interop.load(source, Options()).prior
    negative = prior.sampling.pop("negative")
    assert (negative[:27], negative[-16:]) == ("worst quality, low quality,", "identifying mark")
    assert prior.sampling == {  # of inference_fp16_Monetico.py: 48 steps; temperatures from 2 to 0
        "sampler": "confidence",
        "steps": 16,  # there are no more cells in this tiny one of 512 pixels
        "choice_temperature": 2 * 16 / 15,
        "cfg_scale": 9.0,
        "completing": {"plan": "linear"},
    }
    assert meissonic.STEPS[False] == 48
    assert prior.denoiser.config.micro_conditions == (512.0, 512.0, 0.0, 0.0, 6.0)
    assert prior.grid_spec.image_size == (512, 512)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"upsample": False}, FormatError, "downsample and upsample differ"),
        ({"guidance_embeds": True}, FormatError, "guidance_embeds is on"),
        ({"axes_dims_rope": [4, 6, 8]}, FormatError, r"2 heads of \(4, 6, 8\) numbers, even ones, do not make 32"),
        ({"axes_dims_rope": [3, 6, 7]}, FormatError, "even ones, do not make 32"),
        ({"pooled_projection_dim": 24}, FormatError, "pooled_projection_dim 24 is not the width of the network, 32"),
        ({"num_single_layers": 4}, FormatError, r"missing: single_transformer_blocks\.3\."),
        ({"codebook_size": 49}, MismatchError, "codes of the transformer and the tokenizer are 49 and 48"),
        ({"joint_attention_dim": 25}, MismatchError, "widths of the transformer's text and the text encoder"),
    ],
)
def test_parts_that_do_not_fit_are_one_clear_error(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        interop.load(changed(tmp_path, "transformer/config.json", **changes), Options())


@pytest.mark.slow
def test_training_goes_on_with_an_imported_prior_and_lowers_its_bound(tmp_path, monkeypatch, vqtool):
    monkeypatch.chdir(tmp_path)
    assert vqtool("import", FOLDER, "-o", "p.safetensors").code == 0
    spec = load_prior("p.safetensors").grid_spec
    header = GridHeader(48, (8, 8), (1024, 1024), spec.tokenizer_fingerprint, spec.tokenizer_location, "")
    tokens = np.random.default_rng(0).integers(0, 4, (8, 8, 8)).astype(np.uint32)
    with GridWriter(Path("tok.h5"), header) as writer:
        writer.write(GridBatch(tokens, [str(i) for i in range(8)], captions=["a red boat", "two dogs"] * 4))
    result = vqtool("train-prior", "tok.h5", "--from", "p.safetensors", "--steps", "20", "-o", "tuned.safetensors")
    assert result.code == 0, result.err
    priors = [load_prior(f"{name}.safetensors") for name in ("p", "tuned")]
    x_0 = torch.from_numpy(tokens[:4].astype(np.int64))
    hidden = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    given, t = priors[0].conditioner.encode(["a red boat", "two dogs"] * 2), torch.full((4,), 32)
    entropies = []
    for prior in priors:
        log_p = prior.log_x0(torch.where(hidden, 48, x_0), t, given).gather(-1, x_0[..., None])[..., 0]
        entropies.append(float(-log_p[hidden].mean()))
    assert entropies[1] < entropies[0] - 0.2
    assert priors[1].sampling == priors[0].sampling
