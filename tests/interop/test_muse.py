"""open-muse's MaskGitTransformer: the numbers and a whole walk of its own program, and files that do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.replayed import replay

from vqtool import interop
from vqtool.errors import FormatError, MismatchError
from vqtool.interop import Options, muse
from vqtool.priors import load_prior
from vqtool.samplers import sample

GOLDEN = Path(__file__).parents[1] / "golden"
IO, FOLDER = GOLDEN / "om-transformer" / "io.safetensors", GOLDEN / "om-transformer" / "model"
TOLERANCE = 3e-4


def load(path, config=None, **options):
    return interop.load(interop.read_source(path, config), Options(**options))


@pytest.fixture
def prior():
    return load(FOLDER).prior


@pytest.fixture(scope="module")
def io():
    return {
        name: value.unflatten(-1, (4, 4)) if name in ("x_t", "walk_tokens") else value
        for name, value in load_file(IO).items()
    }


def difference(prior, io):
    logits = prior.denoiser(io["x_t"], torch.tensor([1, 2]), io["labels"]).flatten(1, 2)
    return float((logits - io["logits"]).abs().max())


def test_logits_are_those_of_the_original(prior, io):
    assert interop.recognise(interop.read_source(FOLDER)) == "muse"
    assert difference(prior, io) <= TOLERANCE
    cells = torch.tensor([[1, 5], [0, 11]])
    expected = io["logits"].gather(1, cells[..., None].expand(-1, -1, 40))
    found = prior.denoiser(io["x_t"], torch.tensor([1, 2]), io["labels"], cells)
    assert float((found - expected).abs().max()) <= TOLERANCE


def _silence(network, name):
    for block in network.blocks:
        setattr(block, name, torch.nn.Identity())


def _set_norms(network):
    for part in network.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 1e-6


def _exchange(network):
    for block in network.blocks:
        block.w1, block.w3 = block.w3, block.w1


MUTATIONS = {
    "epsilon": _set_norms,
    "heads": lambda network: [setattr(block, "num_heads", 2) for block in network.blocks],
    "no norm behind attention": lambda network: _silence(network, "out_norm"),
    "no norm inside the MLP": lambda network: _silence(network, "inner_norm"),
    "the other gate": _exchange,
    "no last norm": lambda network: setattr(network, "norm", torch.nn.Identity()),
    "class last": lambda network: network.positions.set_(network.positions.roll(-1, 0)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_networks_that_differ_a_little_are_told_from_the_original(prior, io, name):
    MUTATIONS[name](prior.denoiser)
    assert difference(prior, io) > 10 * TOLERANCE


def test_a_whole_walk_is_that_of_the_original_token_for_token(prior, io):
    condition = prior.conditioner.encode([prior.conditioner.examples[label] for label in io["labels"]])
    steps = torch.arange(1, 7) / 6
    given = prior, (4, 4), condition, io["walk_exponentials"], io["walk_uniforms"], 1.0
    assert torch.equal(replay(*given, temperatures=(1 - steps).cumprod(0)), io["walk_tokens"])
    assert not torch.equal(replay(*given, temperatures=1 - steps), io["walk_tokens"])


def test_the_published_way_of_sampling_travels_with_it_and_temperatures_are_those_of_every_call(prior, tmp_path):
    heats = prior.sampling["choice_temperature"]
    assert [round(heat, 6) for heat in heats[:3]] == [0.9375, 0.820312, 0.666504]  # 15/16, times 14/16, times 13/16
    assert (len(heats), heats[-1], prior.sampling["steps"]) == (16, 0.0, 16)
    prior.save(tmp_path / "p.safetensors")
    again = load_prior(tmp_path / "p.safetensors")
    condition = prior.conditioner.encode(["3", "5"])
    drawn = sample(again, 2, condition=condition, seed=1)
    said = {"sampler": "confidence", "steps": 16, "choice_temperature": heats}
    assert torch.equal(drawn, sample(prior, 2, condition=condition, seed=1, **said))
    assert not torch.equal(drawn, sample(prior, 2, condition=condition, seed=1, **{**said, "choice_temperature": 9.0}))
    falling = [2.0 * (1 - call / 16) for call in range(1, 17)]
    same = [sample(prior, 2, condition=condition, seed=1, **{**said, "choice_temperature": a}) for a in (2.0, falling)]
    assert torch.equal(*same)


def test_a_pipeline_of_it_brings_its_tokenizer(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "transformer")
    shutil.copytree(GOLDEN / "om-maskgit-vqgan", tmp_path / "vae", ignore=shutil.ignore_patterns("io*"))
    with pytest.raises(MismatchError, match="40 tokens, but the tokenizer 64 codes"):
        list(interop.convert(tmp_path, tmp_path / "p.safetensors"))
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    tensors = torch.load(tmp_path / "transformer" / "pytorch_model.bin")
    table = tensors[muse.TABLE]
    tensors[muse.TABLE] = torch.cat([table[:40], torch.zeros(24, 32), table[40:]])
    head = tensors[muse.HEAD]
    tensors[muse.HEAD] = torch.cat([head[:40], torch.zeros(24, 32), head[40:]])
    torch.save(tensors, tmp_path / "transformer" / "pytorch_model.bin")
    config |= {"codebook_size": 64, "vocab_size": 72, "mask_token_id": 71}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    found = load(tmp_path)
    assert found.prior.codebook_size == found.tokenizer.codebook_size == 64
    assert torch.equal(found.tokenizer.codebook, load(tmp_path / "vae").tokenizer.codebook)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"add_cross_attention": True}, "captions that T5 reads"),
        ({"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm': only 'layernorm' is understood"),
        ({"num_classes": 8}, "48 rows and 20 positions are not those of 40 codes, 8 classes"),
        ({"num_vq_tokens": 25}, "on 5x5 cells"),
        ({"num_vq_tokens": 12}, "num_vq_tokens is 12 in its settings but 9 by its weights"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3 in its settings but 2"),
        ({"mask_token_id": 46}, "mask_token_id is 46 in its settings but 47"),
        ({"num_attention_heads": 5}, "cannot be shared by 5 heads"),
        ({"codebook_size": None}, "no settings say how many codes, classes and heads"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path, settings, message):
    shutil.copytree(FOLDER, tmp_path / "f")
    config = json.loads((FOLDER / "config.json").read_text()) | settings
    (tmp_path / "f" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "f")


def test_a_file_of_weights_is_read_with_the_settings_beside_it_alone(io, tmp_path):
    shutil.copy(FOLDER / "pytorch_model.bin", tmp_path / "m.bin")
    with pytest.raises(FormatError, match=r"no settings say how many codes.*`config`"):
        load(tmp_path / "m.bin")
    shutil.copy(FOLDER / "config.json", tmp_path / "config.json")
    assert difference(load(tmp_path / "m.bin").prior, io) <= TOLERANCE
