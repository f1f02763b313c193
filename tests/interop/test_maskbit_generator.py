"""MaskBit's generators: the numbers and the whole walk of its own program, and tokens of several parts everywhere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vqtool import interop
from vqtool.denoisers import maskbit
from vqtool.diffusion.guidance import guide, scales
from vqtool.diffusion.parts import join_parts, split_tokens
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridWriter, read_grids
from vqtool.interop import Options, Source
from vqtool.interop.pickles import read_pickle
from vqtool.priors import load_prior
from vqtool.samplers import Settings, Walk, confidence, sample
from vqtool.samplers._unmask import PLANS, find_largest
from vqtool.samplers.editing import edit
from vqtool.samplers.trajectories import Trajectory
from vqtool.training.prior import train_prior

FOLDER = Path(__file__).parents[1] / "golden" / "mb-prior"
FILE = FOLDER / "maskbit_generator_8bit.bin"


@pytest.fixture(scope="module")
def prior():
    return interop.load(interop.read_source(FILE), Options()).prior


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


def close(found, expected, tolerance):
    assert float((found - expected).abs().max()) <= tolerance


def as_grid(parts):
    """Parts (..., 16, 2) of 4x4 cells as the denoiser sees them, (..., 4, 8)."""
    return parts.reshape(*parts.shape[:-2], 4, 8)


def outputs(prior, io, labels):
    """(B, 16, 2, 16)."""
    logits = prior.denoiser(as_grid(io["tokens"]), torch.ones(len(labels)).long(), labels)
    return logits.reshape(len(labels), 16, 2, 16)


def test_tokens_are_split_and_joined_as_in_the_original(prior, io):
    codes = io["codes"].view(5, 4, 4)
    parts = split_tokens(codes, 16, 2)
    assert torch.equal(parts, as_grid(io["split_tokens"]))
    assert torch.equal(join_parts(parts, 16, 2), io["combined_tokens"].view(5, 4, 4))
    assert torch.equal(prior.join(as_grid(io["tokens"])) == 256, (io["tokens"] == 16).any(-1).view(5, 4, 4))
    masked = codes.clone()
    masked[:, 0] = 256
    assert bool((prior.split(masked)[:, 0] == 16).all())
    assert torch.equal(prior.join(prior.split(masked)), masked)
    assert (prior.codebook_size, prior.cells, prior.grid_spec.grid_size) == (256, (4, 8), (4, 4))


def test_the_network_gives_the_numbers_of_the_original(prior, io):
    assert interop.recognise(interop.read_source(FILE)) == "maskbit-generator"
    assert torch.equal(prior.denoiser.read_bits(as_grid(io["tokens"])), io["input_bits"])
    null = torch.full_like(io["labels"], 1000)
    given, without = outputs(prior, io, io["labels"]), outputs(prior, io, null)
    close(given, io["logits"], 2e-4)
    close(without, io["logits_null"], 2e-4)
    close(outputs(prior, io, torch.where(io["drop"].bool(), 1000, io["labels"])), io["logits_drop"], 2e-4)
    guided = guide(given.log_softmax(-1), without.log_softmax(-1), 1 + 7.1)
    close(guided, io["logits_cfg"].log_softmax(-1), 2e-3)
    loss = F.cross_entropy(io["logits_drop"].flatten(0, 2), io["split_tokens"].flatten(), label_smoothing=0.1)
    close(loss, io["loss"], 5e-5)
    cells = torch.tensor([[0, 31], [7, 8], [1, 2], [3, 3], [30, 4]])
    some = prior.denoiser(as_grid(io["tokens"]), torch.ones(5).long(), io["labels"], cells)
    close(some, io["logits"].flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, 16)), 2e-4)


def _set_norms(network):
    for part in network.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 1e-5


MUTATIONS = {
    "epsilon": _set_norms,
    "heads": lambda network: [setattr(block, "num_heads", 2) for block in network.blocks],
    "order of norms": lambda network: [setattr(block, "norm_last", False) for block in network.blocks],
    "class first": lambda network: network.positions.copy_(network.positions.roll(1, 0)),
    "order of bits": lambda network: network.bits.weight.copy_(network.bits.weight.flip(1)),
    "order of parts": lambda network: network.head.weight.copy_(network.head.weight.roll(16, 0)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_networks_that_differ_a_little_are_told_from_the_original(io, name):
    changed = interop.load(interop.read_source(FILE), Options()).prior
    with torch.no_grad():
        MUTATIONS[name](changed.denoiser)
    assert float((outputs(changed, io, io["labels"]) - io["logits"]).abs().max()) > 2e-4


class Replayed(Walk):
    """A batch that is drawn with the noise of the golden walk."""

    def apply(self, rule, x_t, t, cells, *rows, active=None):
        step = len(self.seen)
        self.seen.append(x_t)
        log_p = next(self._ask(x_t, t, None, active))[1].flatten(1, 2)[: len(x_t)]
        drawn = (log_p + self.io["sample_gumbel"][step].flatten(1, 2)).argmax(-1)
        heat = 7.8 * (1 - (step + 1) / 6)
        score = log_p.gather(-1, drawn[..., None])[..., 0] + heat * self.io["sample_rank_gumbel"][step].flatten(1)
        places = find_largest(score.gather(1, cells), x_t.flatten(1).gather(1, cells) == 16, rule.args[1])
        return places, drawn.gather(1, cells).gather(1, places)


def test_a_whole_walk_is_that_of_the_original_part_for_part(prior, io):
    theirs = dict(prior.sampling)
    assert theirs.pop("sampler") == "confidence"
    own = {name: theirs.pop(name) for name in ("steps", "plan", "choice_temperature")}
    assert own == {"steps": 6, "plan": "arccos", "choice_temperature": 7.8}
    walk = Replayed(prior, range(2), io["sample_labels"], seed=0, grid_size=prior.cells, settings=Settings(**theirs))
    walk.seen, walk.io = [], io
    final = confidence.sample(walk, confidence.Options(**own))
    assert torch.equal(torch.stack(walk.seen), as_grid(io["sample_seen"]))
    assert torch.equal(walk.tokens(final), io["sample_final"])


@pytest.mark.parametrize("name", ["published_10bit_64", "published_14bit_128"])
def test_published_counts_and_guidance_are_those_of_the_original(io, name):
    steps, power, scale = (64, 2.5, 6.4) if "10bit" in name else (128, 3.0, 7.1)
    left = [int(table[-1]) for table in PLANS["arccos"](512, steps)]
    assert left[:-1] == io[f"{name}_masked"].tolist()
    share = torch.arange(steps, dtype=torch.float64) / steps
    found = scales(share, 1 + scale, "power-cosine", (0.0, 1.0), power) - 1
    close(found, io[f"{name}_guidance"].double(), 2e-5)


# Tokens of parts through everything


def test_samples_are_tokens_and_editing_keeps_those_that_are_given(prior, tmp_path):
    prior.save(tmp_path / "p.safetensors")
    again = load_prior(tmp_path / "p.safetensors")
    assert again.sampling == prior.sampling
    condition = prior.conditioner.encode(["tench", "daisy"])
    grids = sample(again, 2, condition=condition, seed=1)
    assert grids.shape == (2, 4, 4)
    assert int(grids.max()) > 15
    assert torch.equal(grids, sample(prior, 2, condition=condition, seed=1))
    known = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    for sampler in ("confidence", "halton", "ancestral"):
        masked = torch.where(known, grids, 256)
        edited = sample(prior, 2, known=masked, condition=condition.flip(0), sampler=sampler, cfg_scale=1.0, seed=3)
        assert torch.equal(edited[known], grids[known])
    made = edit(prior, grids, np.arange(16).reshape(4, 4) < 4, seed=4, cfg_scale=1.0)
    assert torch.equal(made[:, 1:], grids[:, 1:])
    assert torch.equal(sample(prior, 2, source=grids, strength=0.0, cfg_scale=1.0), grids)
    with pytest.raises(VqtoolError, match="`grid_size` 4x6: a prior of parts of tokens knows its own grid alone"):
        sample(prior, 1, grid_size=(4, 6))
    with pytest.raises(VqtoolError, match=r"`known` has tokens from 257 to 257: 0 to 256 are possible"):
        sample(prior, 1, known=torch.full((1, 4, 4), 257))


def test_a_trajectory_shows_tokens_that_are_masked_until_all_parts_are_there(prior):
    seen = Trajectory(range(1))
    grids = sample(prior, 1, seed=0, cfg_scale=1.0, observe=seen.observe)
    frames = seen.grids()
    assert frames.shape[1:] == (1, 4, 4)
    assert bool((frames[0] == 256).all())
    assert torch.equal(frames[-1], grids)


def write_grids(num_codes=256):
    header = GridHeader(num_codes, (4, 4), (16, 16), "0" * 16, "nowhere.safetensors", "")
    tokens = np.random.default_rng(0).choice([3, 17, 250], (16, 4, 4)).astype(np.uint16)
    with GridWriter(Path("tok.h5"), header) as writer:
        writer.write(GridBatch(tokens, [str(i) for i in range(16)], labels=["a", "b"] * 8))
    return tokens


def test_a_prior_of_parts_is_trained_measured_and_sampled_by_commands(tmp_path, monkeypatch, vqtool):
    monkeypatch.chdir(tmp_path)
    write_grids()
    command = ("train-prior", "tok.h5", "--denoiser", "maskbit", "--size", "tiny", "--kernel", "absorbing", "-T", "8")
    result = vqtool(*command, "--parts", "2", "--steps", "20", "--learning-rate", "3e-3", "-o", "p.safetensors")
    assert result.code == 0, result.err
    own = load_prior("p.safetensors")
    assert (own.kernel.codebook_size, own.num_parts, own.codebook_size) == (16, 2, 256)
    result = vqtool("eval", "--likelihood", "tok.h5", "--prior", "p.safetensors", "-o", "p.json")
    assert result.code == 0, result.err
    scores = json.loads(Path("p.json").read_text())["scores"]
    assert np.log2(3) - 0.1 < scores["bits-per-token"] < 4  # 3 tokens of 256; 8 bits is nothing known
    result = vqtool("sample", "p.safetensors", "-n", "16", "--label", "a", "-o", "s.h5")
    assert result.code == 0, result.err
    header, batch = read_grids("s.h5")
    assert (header.codebook_size, header.grid_size, header.image_size) == (256, (4, 4), (16, 16))
    assert np.isin(batch.tokens, [3, 17, 250]).mean() > 0.6
    result = vqtool("train-prior", "tok.h5", "--from", "p.safetensors", "--steps", "1", "-o", "q.safetensors")
    assert result.code == 0, result.err


def test_a_fine_tuning_of_an_imported_generator_lowers_its_bound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = torch.from_numpy(write_grids().astype(np.int64))
    list(interop.convert(FILE, "p.safetensors"))
    with pytest.warns(UserWarning, match="no previews"):
        train_prior("tok.h5", "q.safetensors", from_="p.safetensors", steps=20, condition="class")
    parts = load_prior("p.safetensors").split(tokens)
    hidden = torch.rand(parts.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    entropies = []
    for name in ("p", "q"):
        found = load_prior(f"{name}.safetensors")
        log_p = found.log_x0(torch.where(hidden, 16, parts), torch.ones(16).long())
        entropies.append(float(-log_p.gather(-1, parts[..., None])[..., 0][hidden].mean()))
    assert entropies[1] < entropies[0] - 0.2


@pytest.mark.parametrize(
    ("options", "num_codes", "message"),
    [
        (
            {"denoiser": "vq-diffusion", "num_parts": 2},
            256,
            "the denoiser vq-diffusion has no parts, transformer and maskbit have",
        ),
        ({"num_parts": 3}, 256, "a codebook of 256 codes is not made of so many parts"),
        ({"denoiser": "maskbit", "num_parts": 3}, 256, "a codebook of 256 codes is not made of so many parts"),
        ({"denoiser": "maskbit"}, 250, "a codebook of 250 codes is not made of so many parts"),
    ],
)
def test_parts_that_a_codebook_or_denoiser_does_not_have_are_refused(
    tmp_path, monkeypatch, options, num_codes, message
):
    monkeypatch.chdir(tmp_path)
    write_grids(max(num_codes, 251) if num_codes != 250 else 251)
    with pytest.raises(VqtoolError, match=message.replace("250", "251")):
        train_prior("tok.h5", "p.safetensors", steps=1, **options)


# Files that are not what they should be


def changed(change, config=None):
    state = dict(read_pickle(FILE))
    change(state)
    known = interop.read_source(FILE).config
    model = {**known["model"], "mlm_model": {**known["model"]["mlm_model"], **(config or {})}}
    return Source(FILE, state, {**known, "model": model})


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda state: None, {"codebook_splits": 4}, "codebook_splits is 4 in its settings but 2 by its weights"),
        (lambda state: None, {"heads": 5}, "cannot be shared by 5 heads"),
        (lambda state: state.pop("last_layer.0.bias"), {}, r"1 tensors are missing: last_layer\.0\.bias"),
        (lambda state: state.update({"bits_to_indices": torch.arange(4)}), {}, "does not count bits"),
        (lambda state: state.update({"prediction_layer.weight": torch.zeros(33, 32)}), {}, "33 outputs are no heads"),
        (lambda state: state.update({"norm_after_transformer.weight": torch.zeros(2)}), {}, "norms before its layers"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(change, config, message):
    with pytest.raises(FormatError, match=message):
        interop.load(changed(change, config), Options())


def test_without_settings_the_published_ones_of_so_many_bits_are_taken_and_heads_have_to_be_said():
    source = Source(FILE, read_pickle(FILE))
    with pytest.raises(FormatError, match="say it with `num_heads`"):
        interop.load(source, Options())
    found = interop.load(source, Options(num_heads=4))
    assert found.prior.sampling["cfg_scale"] == 1 + 5.8
    assert any("published model of so many bits" in note for note in found.notes)


def test_a_tokenizer_of_other_codes_is_refused(prior):
    with pytest.raises(MismatchError, match="the prior has 256 tokens, but the tokenizer 64 codes"):
        interop.load(
            interop.read_source(FILE),
            Options(
                tokenizer=interop.load(
                    interop.read_source(FOLDER.parent / "titok-tokenizer" / "rgb"), Options()
                ).tokenizer
            ),
        )


def test_a_config_of_impossible_parts_is_refused():
    sizes = {"grid_size": (2, 4), "num_steps": 8, **maskbit.SIZES["tiny"]}
    for changes, message in (({"codebook_size": 12}, "no power of 2"), ({"num_parts": 3}, "not made of 3 each")):
        with pytest.raises(ValueError, match=message):
            maskbit.Config(**{"codebook_size": 16, **sizes, **changes})


def test_second_priors_of_other_parts_do_not_guide(prior):
    with pytest.raises(MismatchError, match="codebook size"):
        sample(prior, 1, cfg_scale=2.0, guide_with=replace(prior, kernel=replace(prior.kernel, codebook_size=4)))
