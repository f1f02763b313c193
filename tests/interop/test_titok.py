"""TiTok: the numbers and whole walks of its own program, and its rows of tokens through every command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import write_pictures

from vqtool import interop
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.images import to_float
from vqtool.interop import Options
from vqtool.priors import load_prior
from vqtool.samplers import Settings, Walk, confidence, sample
from vqtool.samplers._unmask import find_largest
from vqtool.samplers.editing import edit
from vqtool.samplers.trajectories import decode_masked
from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from vqtool.tokenizers.titok import TitokConfig

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZERS, GENERATORS = GOLDEN / "titok-tokenizer", GOLDEN / "titok-prior"
LATENTS = {"legacy": 1e-5, "rgb": 2e-5}
IMAGES = {"legacy": 2e-4, "rgb": 1e-5}


def load(folder, **options):
    return interop.load(interop.read_source(folder), Options(**options))


@pytest.fixture(scope="module", params=["legacy", "rgb"])
def tokenizer(request):
    return request.param, load(TOKENIZERS / request.param).tokenizer


@pytest.fixture(scope="module", params=["bert", "uvit"])
def generator(request):
    return request.param, load(GENERATORS / request.param).prior


def numbers(folder, kind):
    prefix = f"{kind}_"
    return {name.removeprefix(prefix): value for name, value in load_file(folder / "io.safetensors").items()}


def close(found, expected, tolerance):
    assert float((found - expected).abs().max()) <= tolerance


def images_match(tokenizer, io, tolerance):
    for tokens, wanted in ((io["codes_any"][:, None], "decoded_codes_any"), (io["codes"], "decoded")):
        close((tokenizer.decode(tokens) + 1) / 2, io[wanted], tolerance)


def test_latents_tokens_and_images_are_those_of_the_original(tokenizer):
    kind, tokenizer = tokenizer
    assert interop.recognise(interop.read_source(TOKENIZERS / kind)) == "titok"
    io = numbers(TOKENIZERS, kind)
    with torch.no_grad():
        close(tokenizer.encoder(io["image"] * 2 - 1), io["z"], LATENTS[kind])
    assert torch.equal(tokenizer.encode(io["image"] * 2 - 1), io["codes"])
    images_match(tokenizer, io, IMAGES[kind])


def _set_norms(network, epsilon):
    for part in network.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = epsilon


MUTATIONS = {
    "epsilon": lambda part: _set_norms(part, 1e-3),
    "heads": lambda part: [setattr(block, "num_heads", 4) for block in part.trunk.blocks],
    "order of norms": lambda part: [setattr(block, "norm_last", True) for block in part.trunk.blocks],
}


@pytest.mark.parametrize("kind", ["legacy", "rgb"])
@pytest.mark.parametrize("name", MUTATIONS)
def test_tokenizers_that_differ_a_little_are_told_from_the_original(name, kind):
    tokenizer, io = load(TOKENIZERS / kind).tokenizer, numbers(TOKENIZERS, kind)
    for part in (tokenizer.encoder, tokenizer.decoder):
        MUTATIONS[name](part)
    with torch.no_grad():
        assert float((tokenizer.encoder(io["image"] * 2 - 1) - io["z"]).abs().max()) > LATENTS[kind]
    with pytest.raises(AssertionError):
        images_match(tokenizer, io, IMAGES[kind])


def test_latents_in_the_order_of_other_models_are_told_from_the_original(tokenizer):
    kind, tokenizer = tokenizer
    io, encoder = numbers(TOKENIZERS, kind), tokenizer.encoder
    encoder.legacy = not encoder.legacy
    with torch.no_grad():
        assert float((encoder(io["image"] * 2 - 1) - io["z"]).abs().max()) > 1e-2
    encoder.legacy = not encoder.legacy


def test_a_tokenizer_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    kind, tokenizer = tokenizer
    save_tokenizer(tmp_path / "t.safetensors", tokenizer)
    again, io = load_tokenizer(tmp_path / "t.safetensors"), numbers(TOKENIZERS, kind)
    assert again.config == tokenizer.config
    assert torch.equal(again.encode(io["image"] * 2 - 1), io["codes"])
    assert torch.equal(again.decode(io["codes"]), tokenizer.decode(io["codes"]))


def test_there_is_one_size_of_images_and_one_of_grids(tokenizer):
    _, tokenizer = tokenizer
    num = tokenizer.config.num_tokens
    assert tokenizer.grid_size((16, 16)) == (1, num)
    assert tokenizer.image_size((1, num)) == tokenizer.usual_size == (16, 16)
    with pytest.raises(VqtoolError, match="images of 32x16 do not fit this tokenizer, which knows those of 16x16"):
        tokenizer.grid_size((32, 16))
    with pytest.raises(MismatchError, match=f"grids of 4x4 tokens do not fit.*{num} tokens in one row"):
        tokenizer.image_size((4, 4))


def test_masked_tokens_have_no_place_to_be_grey_in(tokenizer):
    kind, tokenizer = tokenizer
    codes = numbers(TOKENIZERS, kind)["codes"]
    whole = decode_masked(codes, tokenizer)
    assert np.array_equal(to_float(whole), to_float(decode_masked(codes.clone(), tokenizer)))
    hidden = codes.clone()
    hidden[:, :, 3] = tokenizer.codebook_size
    assert not (decode_masked(hidden, tokenizer) == 128).all((1, 2)).any()


# Generators


def test_logits_are_those_of_the_original(generator):
    kind, prior = generator
    assert interop.recognise(interop.read_source(GENERATORS / kind)) == "titok"
    io, t = numbers(GENERATORS, kind), torch.tensor([1, 2])
    x_t = io["x_t"][:, None]
    close(prior.denoiser(x_t, t, io["labels"])[:, 0], io["logits"], 5e-5)
    close(prior.denoiser(x_t, t)[:, 0], io["logits_null"], 5e-5)
    cells = torch.tensor([[1, 5], [0, 11]])
    expected = io["logits"].gather(1, cells[..., None].expand(-1, -1, io["logits"].shape[-1]))
    close(prior.denoiser(x_t, t, io["labels"], cells), expected, 5e-5)


def _reverse_skips(network):
    network.skips = torch.nn.ModuleList(reversed(network.skips))


GENERATOR_MUTATIONS = {
    "epsilon": lambda network: _set_norms(network, 1e-3),
    "heads": lambda network: [setattr(block, "num_heads", 2) for block in network.blocks],
    "order of norms": lambda network: [setattr(block, "norm_last", not block.norm_last) for block in network.blocks],
    "skips": lambda network: _reverse_skips(network) if network.skips else _set_norms(network, 1e-2),
}


@pytest.mark.parametrize("kind", ["bert", "uvit"])
@pytest.mark.parametrize("name", GENERATOR_MUTATIONS)
def test_generators_that_differ_a_little_are_told_from_the_original(name, kind):
    network, io = load(GENERATORS / kind).prior.denoiser, numbers(GENERATORS, kind)
    GENERATOR_MUTATIONS[name](network)
    logits = network(io["x_t"][:, None], torch.tensor([1, 2]), io["labels"])[:, 0]
    assert float((logits - io["logits"]).abs().max()) > 5e-5


def _gumbel(uniforms):
    return -(-uniforms.clamp(min=1e-20).log()).clamp(min=1e-20).log()


class Replayed(Walk):
    """A batch that is drawn with the random numbers of a golden walk."""

    def apply(self, rule, x_t, t, cells, *rows, active=None):
        step = len(self.seen)
        self.seen.append(x_t)
        logits = next(self._ask(x_t, t, None, active))[1].flatten(1, 2)[: len(x_t)]
        heat = self.heat * (1 - (step + 1) / self.steps)
        drawn = (logits + heat * _gumbel(self.io["walk_uniforms"][step])).argmax(-1)
        score = logits.gather(-1, drawn[..., None])[..., 0] + heat * _gumbel(self.io["walk_uniforms_conf"][step])
        masked = x_t.flatten(1).gather(1, cells) == self.kernel.mask_id
        places = find_largest(score.gather(1, cells), masked, rule.args[1])
        return places, drawn.gather(1, cells).gather(1, places)


def walked(kind, prior, **changes):
    """All grids of a walk as the prior's makers sample it, and those of the original."""
    io, theirs = numbers(GENERATORS, kind), {**prior.sampling, **changes}
    own = {name: theirs.pop(name) for name in ("steps", "plan", "score", "choice_temperature")}
    assert theirs.pop("sampler") == "confidence"
    theirs["temperature"] = tuple(theirs["temperature"])
    walk = Replayed(
        prior, range(2), io["labels"], seed=0, grid_size=prior.grid_spec.grid_size, settings=Settings(**theirs)
    )
    walk.seen, walk.io, walk.heat, walk.steps = [], io, own["choice_temperature"], own["steps"]
    final = confidence.sample(walk, confidence.Options(**own))
    return torch.stack([*walk.seen[1:], final])[:, :, 0], io["walk_tokens"]


def test_whole_walks_are_those_of_the_original_token_for_token(generator):
    found, expected = walked(*generator)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "changes",
    [{"score": "log-p"}, {"plan": "cosine"}, {"temperature": [1.0]}, {"cfg_schedule": "constant", "cfg_power": None}],
    ids=str,
)
def test_walks_that_differ_a_little_are_told_from_the_original(generator, changes):
    found, expected = walked(*generator, **changes)
    assert not torch.equal(found, expected)


def test_tokens_are_drawn_at_the_choice_temperature_and_cells_chosen_by_logits():
    """Against the same law by numbers that make both noises the same: at heat 0 the likeliest token of each cell."""
    logits = torch.tensor([[[0.0, 2.0, 1.0], [9.0, 8.0, 7.0], [3.0, 1.0, 2.0]]])
    half, masked = torch.full((1, 3), 0.5, dtype=torch.float64), torch.tensor([[True, False, True]])
    places, tokens = confidence._choose_by_logit(0.0, 2, logits, half, half, masked)
    assert places.tolist() == [[2, 0]]
    assert tokens.tolist() == [[0, 1]]
    num = 20_000
    noise = torch.rand(num, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = torch.ones(num, 1, dtype=torch.bool)
    _, tokens = confidence._choose_by_logit(2.0, 1, logits[:, :1].expand(num, -1, -1), noise, noise, seen)
    shares = torch.bincount(tokens[:, 0], minlength=3) / num
    close(shares, (logits[0, 0] / 2).softmax(-1), 0.017)  # 5 standard errors


def test_the_published_way_of_sampling_travels_with_the_prior_and_editing_keeps_what_is_given(generator, tmp_path):
    kind, prior = generator
    prior.save(tmp_path / "p.safetensors")
    again = load_prior(tmp_path / "p.safetensors")
    assert again.sampling == prior.sampling
    assert prior.sampling["cfg_schedule"] == {"bert": "linear", "uvit": "power-cosine"}[kind]
    condition = prior.conditioner.encode([prior.conditioner.examples[3], prior.conditioner.examples[7]])
    grids = sample(again, 2, condition=condition, seed=1)
    theirs = {**prior.sampling, "temperature": tuple(prior.sampling["temperature"])}
    assert torch.equal(grids, sample(prior, 2, condition=condition, seed=1, **theirs))
    known = torch.rand(grids.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    masked = torch.where(known, grids, prior.kernel.mask_id)
    edited = sample(prior, 2, known=masked, condition=condition.flip(0), seed=5)
    assert torch.equal(edited[known], grids[known])
    truncated = sample(prior, 2, condition=condition, truncation=0.5, seed=1)
    assert 0 <= int(truncated.min()) <= int(truncated.max()) < prior.kernel.codebook_size


# Files that are not what they should be


def changed(tmp_path, folder, change=None, **settings):
    shutil.copytree(folder, tmp_path / "f")
    path = tmp_path / "f" / "config.json"
    config = json.loads(path.read_text())
    for name, value in settings.items():
        section, _, field = name.partition("__")
        config["model"][section][field] = value
    path.write_text(json.dumps(config))
    if change is not None:
        tensors = load_file(tmp_path / "f" / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "f" / "model.safetensors")
    return tmp_path / "f"


def drop(*beginnings):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(beginnings)]:
            del tensors[name]

    return change


@pytest.mark.parametrize(
    ("folder", "change", "settings", "message"),
    [
        (TOKENIZERS / "legacy", None, {"vq_model__is_legacy": False}, "is_legacy is False in its settings but True"),
        (TOKENIZERS / "legacy", None, {"vq_model__token_size": 12}, "token_size is 12 in its settings but 6"),
        (TOKENIZERS / "legacy", drop("pixel_"), {}, "no pixel decoder, and makes no images"),
        (TOKENIZERS / "legacy", drop("pixel_decoder.up.1.b"), {}, r"missing: pixel_decoder\.up\.1\.block\.0\.conv1"),
        (TOKENIZERS / "rgb", drop("quantize."), {}, r"missing: quantize\.embedding\.weight"),
        (TOKENIZERS / "rgb", drop("decoder.ffn"), {}, r"missing: decoder\.ffn\.0\.weight, decoder\.ffn\.0\.bias"),
        (GENERATORS / "bert", None, {"generator__model_type": "UViT"}, "model_type is UViT in its settings but ViT"),
        (GENERATORS / "bert", None, {"generator__num_attention_heads": 5}, "cannot be shared by 5 heads"),
        (GENERATORS / "bert", drop("model.encoder.layer.1.attention.self.key"), {}, r"query\.weight \+ .*self\.key"),
        (GENERATORS / "uvit", drop("out_blocks.1.skip"), {}, r"missing: out_blocks\.1\.skip_linear\.weight"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path, folder, change, settings, message):
    with pytest.raises(FormatError, match=message):
        load(changed(tmp_path, folder, change, **settings))


def test_weights_alone_are_read_as_the_published_models_and_it_is_said(tmp_path):
    shutil.copy(TOKENIZERS / "legacy" / "model.safetensors", tmp_path / "tokenizer.safetensors")
    found, io = load(tmp_path / "tokenizer.safetensors"), numbers(TOKENIZERS, "legacy")
    assert any("as in the published models of its kind" in note for note in found.notes)
    assert torch.equal(found.tokenizer.encode(io["image"] * 2 - 1), io["codes"])
    shutil.copy(GENERATORS / "bert" / "model.safetensors", tmp_path / "generator.safetensors")
    with pytest.raises(FormatError, match="how many heads it has: say it with `num_heads`"):
        load(tmp_path / "generator.safetensors")
    found = load(tmp_path / "generator.safetensors", num_heads=4)
    assert found.prior.sampling["choice_temperature"] == 9.5
    assert any("sampled as the published model" in note for note in found.notes)


def test_a_generator_and_a_tokenizer_of_other_grids_do_not_fit(tmp_path):
    config = TitokConfig(40, 6, 9, (16, 16), 64, 1, 4, 64, 1, 4, legacy=False)
    with pytest.raises(MismatchError, match=r"grids of 1x12 tokens do not fit.*9 tokens in one row"):
        load(GENERATORS / "bert", tokenizer=Tokenizer(config))


# Through every command


def prepare(folder, vqtool, kind):
    """In the working folder: a generator, a tokenizer of its grids, and pictures of two of its classes."""
    codes, num, names = {"bert": (40, 12, ("goldfish", "tench")), "uvit": (56, 16, ("3", "7"))}[kind]
    torch.manual_seed(0)
    network = Tokenizer(TitokConfig(codes, 6, num, (16, 16), 64, 1, 4, 64, 1, 4, legacy=False))
    with torch.no_grad():
        for name, part in network.named_parameters():
            if part.ndim > 1 and "norm" not in name:
                part.normal_(std=0.1)
        network.codebook.normal_(std=0.3)
    save_tokenizer("tok.safetensors", network)
    result = vqtool("import", GENERATORS / kind, "-t", "tok.safetensors", "-o", "p.safetensors")
    assert result.code == 0, result.err
    for number, name in enumerate(names):
        write_pictures(folder / "imgs" / name, 3, size=(20, 16), seed=number)


@pytest.fixture
def folder(tmp_path, monkeypatch, vqtool):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, vqtool, "bert")
    return tmp_path


@pytest.mark.slow
def test_rows_of_tokens_go_through_every_command(folder, vqtool):
    for words in (
        ("encode", "imgs", "-t", "tok.safetensors", "-o", "tok.h5"),
        ("decode", "tok.h5", "-o", "back"),
        ("head", "-n", "2", "tok.h5", "-o", "two.h5"),
        ("info", "p.safetensors"),
        ("check", "p.safetensors", "tok.h5"),
        ("show", "tok.h5", "-o", "tok.png"),
        ("codebook", "usage", "tok.h5"),
        ("eval", "imgs", "-t", "tok.safetensors", "-o", "t.json"),
        ("eval", "--likelihood", "tok.h5", "--prior", "p.safetensors", "-o", "p.json"),
        ("sample", "p.safetensors", "--label", "goldfish", "-n", "3", "--trajectory", "walk.gif", "-o", "s.h5"),
        ("vary", "tok.h5", "--prior", "p.safetensors", "--strength", "0.5", "-o", "v.h5"),
        ("inpaint", "imgs", "--prior", "p.safetensors", "--mask", "random:0.5", "-o", "edited"),
        ("train-prior", "tok.h5", "--from", "p.safetensors", "--steps", "2", "-o", "tuned.safetensors"),
        ("train-prior", "tok.h5", "--size", "tiny", "--steps", "2", "-o", "own.safetensors"),
    ):
        result = vqtool(*words)
        assert result.code == 0, (words, result.err)
    assert len(list(Path("edited").glob("*.png"))) == 6
    for words in (
        ("inpaint", "imgs", "--prior", "p.safetensors", "--mask", "left-half", "-o", "half"),
        ("outpaint", "imgs", "--prior", "p.safetensors", "--left", "2", "-o", "more"),
    ):
        result = vqtool(*words)
        assert result.code == 1
        assert "each of its 12 tokens stands for the whole image" in result.err
    result = vqtool("encode", "imgs", "-t", "tok.safetensors", "--size", "32", "-o", "x.h5")
    assert result.code == 1
    assert "which knows those of 16x16 pixels alone" in result.err


def test_masks_of_pixels_are_refused_and_those_of_tokens_are_not(folder):
    prior, images = load_prior("p.safetensors"), torch.zeros(1, 3, 16, 16, dtype=torch.uint8).numpy()
    tokens = np.zeros((1, 12), bool)
    tokens[0, :4] = True
    assert edit(prior, images, tokens).shape == (1, 3, 16, 16)
    with pytest.raises(VqtoolError, match="stands for the whole image"):
        edit(prior, images, np.ones((16, 16), bool))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "uvit"])
def test_training_goes_on_with_an_imported_generator_and_lowers_its_bound(tmp_path, monkeypatch, vqtool, kind):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, vqtool, kind)
    assert vqtool("encode", "imgs", "-t", "tok.safetensors", "-o", "tok.h5").code == 0
    result = vqtool("train-prior", "tok.h5", "--from", "p.safetensors", "--steps", "20", "-o", "tuned.safetensors")
    assert result.code == 0, result.err
    bits = []
    for name in ("p", "tuned"):
        result = vqtool("eval", "--likelihood", "tok.h5", "--prior", f"{name}.safetensors", "-o", f"{name}.json")
        assert result.code == 0, result.err
        bits.append(json.loads(Path(f"{name}.json").read_text())["scores"]["bits-per-token"])
    assert bits[1] < bits[0] - 0.2
    assert load_prior("tuned.safetensors").sampling == load_prior("p.safetensors").sampling
