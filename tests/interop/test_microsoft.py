"""VQ-Diffusion's checkpoints: the numbers of its own code, and what is said of broken or incomplete files."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vqtool import interop
from vqtool.diffusion import kernels
from vqtool.diffusion.guidance import guide, truncate
from vqtool.diffusion.posterior import average_posterior
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.interop import Options, Source
from vqtool.priors import load_prior
from vqtool.samplers import sample

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("class", "text", "uncond", "convmlp")
FLOOR = -30.0  # below, expected numbers are those of a floor
BLOCK = "transformer.blocks.1."
SAID = {"num_heads": 4, "activation": "gelu2", "grid_size": (4, 4)}  # what a YAML file would say


def source_of(name):
    folder = GOLDEN / f"ms-prior-{name}"
    return interop.read_source(next(folder.glob("*.pth")), folder / "config.yaml")


def numbers(name):
    with safe_open(GOLDEN / f"ms-prior-{name}" / "io.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["meta"])["tensors"]
        return {key: file.get_tensor(key) for key in file.keys()}, {k: v.get("tolerance") for k, v in meta.items()}  # noqa: SIM118


def load(name, **options):
    return interop.load(source_of(name), Options(**options))


def log_p(prior, io, condition=None):
    encoded = None if condition is None else prior.denoiser.encode_condition(condition)
    return prior.denoiser(io["x_t"].view(-1, 4, 4), io["t"] + 1, encoded).log_softmax(-1)


def null_of(name, io):
    """The null condition as the reference has it."""
    return torch.full_like(io["cond"], 1000) if name == "class" else torch.zeros_like(io["cond"])


def assert_close(found, expected, tolerance):
    """(B, 4, 4, K or K + 1) against (B, K + 1, 16); below the floor only that both are."""
    found = found.flatten(1, 2).mT
    expected = expected[:, : found.shape[1]]
    counts = expected > FLOOR
    assert float((found - expected)[counts].abs().max()) <= tolerance
    assert bool((found[~counts] <= FLOOR + 1).all())


@pytest.mark.parametrize("name", NAMES)
def test_networks_give_the_numbers_of_the_original(name):
    io, tolerance = numbers(name)
    prior, condition = load(name).prior, io.get("cond")
    assert interop.recognise(source_of(name)) == "microsoft"
    assert_close(log_p(prior, io, condition), io["log_p_x0"], tolerance["log_p_x0"])
    log_x0 = prior.log_x0(io["x_t"].view(-1, 4, 4), io["t"] + 1, condition)
    assert_close(log_x0, io["log_p_x0"], tolerance["log_p_x0"])
    raw = load(name, weights="raw").prior
    assert_close(log_p(raw, io, condition), io["log_p_x0_raw"], tolerance["log_p_x0_raw"])


@pytest.mark.parametrize("name", ["class", "text"])
def test_the_null_condition_and_guidance_give_the_numbers_of_the_original(name):
    io, tolerance = numbers(name)
    prior = load(name).prior
    log_c, log_u = log_p(prior, io, io["cond"]), log_p(prior, io, null_of(name, io))
    assert_close(log_u, io["log_p_x0_null"], tolerance["log_p_x0_null"])
    assert_close(guide(log_c, log_u, 3.0), io["log_p_x0_cfg"], tolerance["log_p_x0_cfg"])


@pytest.mark.parametrize("name", NAMES)
def test_truncation_and_the_posterior_give_the_numbers_of_the_original(name):
    io, tolerance = numbers(name)
    prior = load(name).prior
    x_t, t = io["x_t"].view(-1, 4, 4), io["t"] + 1
    log_x0 = log_p(prior, io, io.get("cond"))
    assert_close(average_posterior(log_x0, x_t, t, t - 1, prior.kernel), io["posterior"], tolerance["posterior"])
    kind = "cfg_trunc" if "cond" in io else "trunc"
    if "cond" in io:
        log_x0 = guide(log_x0, log_p(prior, io, null_of(name, io)), 3.0)
    cut = truncate(log_x0, 0.86)
    kept = io[f"log_p_x0_{kind}"][:, :-1] > FLOOR  # (B, K, 16)
    assert torch.equal(cut.flatten(1, 2).mT > FLOOR, kept)
    expected = io[f"posterior_{kind}"].log_softmax(1)  # differs from the original: what is left is renormalised
    assert_close(average_posterior(cut, x_t, t, t - 1, prior.kernel), expected, tolerance[f"posterior_{kind}"])


def test_the_codec_inside_a_file_becomes_the_tokenizer():
    io, _ = numbers("uncond")
    found = load("uncond")
    images = found.tokenizer.decode(io["codec_tokens"].view(-1, 4, 4))
    assert float(((images.clamp(-1, 1) + 1) * 127.5 - io["codec_decoded255"]).abs().max()) <= 0.02
    assert found.prior.grid_spec.image_size == (8, 8)


def test_a_prior_of_reduced_codes_needs_their_map():
    source = source_of("uncond")
    for part, prefix in ((source.content["ema"], ""), (source.content["model"], "transformer.")):
        for name, rows in (("content_emb.emb.weight", 41), ("to_logits.1.weight", 40), ("to_logits.1.bias", 40)):
            part[f"{prefix}transformer.{name}"] = part[f"{prefix}transformer.{name}"][:rows]
        part[f"{prefix}log_cumprod_bt"] = part[f"{prefix}log_cumprod_bt"] + torch.tensor(64 / 40).log()
    source = Source(source.path, source.content)
    with pytest.raises(MismatchError, match=r"the prior has 40 tokens, but the tokenizer 64 codes: .*`code_map`"):
        interop.load(source, Options(**SAID))
    code_map = torch.zeros(64, dtype=torch.int64)
    code_map[24:] = torch.arange(40)
    found = interop.load(source, Options(code_map=code_map, **SAID))
    assert (found.prior.kernel.codebook_size, found.tokenizer.codebook_size) == (40, 40)
    assert found.prior.kernel.schedule == "release"


@pytest.mark.parametrize(("name", "schedule"), [("class", "release"), ("convmlp", "paper")])
def test_a_known_schedule_is_recognised_and_exact(name, schedule):
    kernel = load(name).prior.kernel
    exact = kernels.build(
        "mask-replace", schedule=schedule, codebook_size=kernel.codebook_size, num_steps=kernel.num_steps
    )
    assert kernel.config == exact.config
    assert torch.equal(kernel.alpha_bar, exact.alpha_bar)
    assert torch.equal(kernel.gamma_bar, exact.gamma_bar)


def changed(name, change):
    """A source whose content or settings are changed."""
    source = source_of(name)
    content, config = dict(source.content), copy.deepcopy(source.config)
    content |= {part: dict(content[part]) for part in ("model", "ema")}
    change(content, config)
    return Source(source.path, content, config)


def parameters(config):
    return config["model"]["params"]["diffusion_config"]["params"]["transformer_config"]["params"]


def test_another_schedule_is_taken_from_the_buffers():
    mine = kernels.build("mask-replace", schedule="paper", codebook_size=40, num_steps=100)
    rates = {"a": mine.alpha_bar.square(), "c": 1 - (1 - mine.gamma_bar).square()}
    rates["b"] = (1 - rates["a"] - rates["c"]).clamp(min=0) / 40

    def change(content, config):
        for rate, table in rates.items():
            content["ema"][f"log_cumprod_{rate}t"] = table.roll(-1).log().float()

    found = interop.load(changed("class", change), Options())
    kernel = found.prior.kernel
    assert (kernel.name, kernel.schedule) == ("mask-replace", "checkpoint")
    torch.testing.assert_close(kernel.alpha_bar, rates["a"], atol=1e-7, rtol=2e-6)
    torch.testing.assert_close(kernel.beta_bar, rates["b"], atol=1e-12, rtol=2e-6)
    assert any("read from the checkpoint" in note for note in found.notes)


def test_what_neither_weights_nor_settings_say_is_asked_for_and_never_guessed():
    source = source_of("class")
    bare = Source(source.path, source.content)
    found = interop.load(bare, Options(**SAID))
    io, tolerance = numbers("class")
    assert_close(log_p(found.prior, io, io["cond"]), io["log_p_x0"], tolerance["log_p_x0"])
    for name, published in (("num_heads", "16"), ("activation", "gelu2"), ("grid_size", "16, also where")):
        told = {other: value for other, value in SAID.items() if other != name}
        with pytest.raises(FormatError, match=rf"no YAML file.*`config`, or say `{name}` \(published: {published}"):
            interop.load(bare, Options(**told))
    assert interop.load(bare, Options(**SAID | {"activation": "gelu"})).prior.denoiser.config.activation == "gelu"


def test_a_learned_null_text_that_the_settings_promise_has_to_be_there():
    with pytest.raises(FormatError, match="say learnable_cf, but the learned null text, empty_text_embed, is missing"):
        interop.load(changed("text", drop("empty_text_embed")), Options())


def test_a_prior_with_a_learned_null_is_sampled_without_a_text_encoder_as_long_as_nothing_is_said():
    prior = load("text").prior
    assert prior.text_encoder is None
    assert sample(prior, 2, steps=4, seed=1).shape == (2, 4, 4)
    own = prior.denoiser.encode_condition(prior.denoiser.null_text.expand(2, -1, -1))
    assert torch.equal(prior.encode_condition(None, 2).keys_values, own.keys_values)
    with pytest.raises(VqtoolError, match="imported without one"):
        prior.encode_condition(prior.conditioner.encode(["a fox", None]), 2)


def test_options_that_mean_nothing_for_a_source_are_refused(tmp_path):
    with pytest.raises(VqtoolError, match=r"pth: `vocabulary` says nothing about this microsoft source"):
        load("class", vocabulary=tmp_path)
    with pytest.raises(VqtoolError, match="`num_steps` says nothing"):
        load("class", num_steps=7)


def test_tables_of_the_published_class_models_are_larger_than_their_grids():
    def change(content, config):
        for side in ("height", "width"):
            name = f"transformer.content_emb.{side}_emb.weight"
            content["ema"][name] = content["ema"][name].repeat(4, 1)

    source = changed("class", change)
    with pytest.raises(FormatError, match=r"published: 16, also where the tables of positions have 32x32"):
        interop.load(Source(source.path, source.content), Options(num_heads=4, activation="gelu2"))
    found = interop.load(Source(source.path, source.content), Options(**SAID | {"grid_size": (16, 16)}))
    assert found.prior.grid_spec.grid_size == (16, 16)
    assert found.prior.denoiser.config.table_size == (32, 32)
    assert any(note.startswith("positions: the first 256 of tables for 32x32 cells") for note in found.notes)


def test_a_text_model_says_by_a_buffer_how_many_cells_there_are():
    source = source_of("text")
    found = interop.load(Source(source.path, source.content), Options(num_heads=2, activation="gelu2"))
    assert found.prior.grid_spec.grid_size == (4, 4)


def test_a_thousand_classes_have_no_null_row_and_settings_without_a_prior_are_left_out():
    def change(content, config):
        for name in [name for name in content["ema"] if name.endswith("ln2.emb.weight")]:
            content["ema"][name] = content["ema"][name][:1000]

    source = changed("class", change)
    found = interop.load(Source(source.path, source.content, {"model": {"params": {}}}), Options(**SAID))
    assert not found.prior.denoiser.config.learned_null
    assert len(found.prior.conditioner.examples) == 1000
    assert any(note.startswith("the settings say nothing of a diffusion model") for note in found.notes)


def drop(*endings, part="ema"):
    def change(content, config):
        content[part] = {name: value for name, value in content[part].items() if not name.endswith(endings)}

    return change


def put(name, value):
    return lambda content, config: content["ema"].update({name: value})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            drop("blocks.1.attn.key.bias"),
            FormatError,
            r"1 tensors are missing: transformer\.blocks\.1\.attn\.key\.bias",
        ),
        (drop("content_emb.height_emb.weight"), FormatError, r"missing: transformer\.content_emb\.height_emb\.weight"),
        (drop("log_cumprod_ct"), FormatError, "tensors are missing: log_cumprod_ct"),
        (put("log_cumprod_ct", torch.zeros(7)), FormatError, "not of one length"),
        (put("log_cumprod_ct", torch.zeros(101)), FormatError, "not those of a diffusion that starts from x_0"),
        (put(f"{BLOCK}attn.gate", torch.ones(3)), FormatError, r"not understood: transformer\.blocks\.1\.attn\.gate"),
        (put(f"{BLOCK}attn.key.weight", torch.ones(16, 8)), FormatError, "do not fit together: .*attn.key.weight"),
        (put(f"{BLOCK}attn.key.weight", torch.ones(8, 16)), FormatError, r"\(40, 16\) instead of \(48, 16\)"),
        (lambda content, config: parameters(config).update(n_layer=3), MismatchError, "n_layer is 3 there, 2 in the"),
        (lambda content, config: parameters(config).update(mlp_type="fc"), MismatchError, "mlp_type is fc there"),
        (lambda content, config: parameters(config).update(n_head=5), FormatError, "cannot be shared by 5 heads"),
        (
            lambda content, config: parameters(config).update(class_type="adainsnorm"),
            FormatError,
            "class_type adainsnorm",
        ),
        (lambda content, config: parameters(config).update(block_activate="ReLU"), FormatError, "block_activate ReLU"),
        (
            lambda content, config: parameters(config).update(content_seq_len=15, content_spatial_size=[4, 4]),
            FormatError,
            "how 15 cells are laid out is not known: .*`grid_size`",
        ),
    ],
)
def test_broken_or_contradictory_files_are_one_clear_error(change, error, message):
    with pytest.raises(error, match=message):
        interop.load(changed("class", change), Options())


def test_one_of_the_two_sets_of_weights_may_be_missing():
    without_average = changed("class", lambda content, config: content.pop("ema"))
    found = interop.load(without_average, Options())
    assert any(note.startswith("the file holds no averaged weights") for note in found.notes)
    io, tolerance = numbers("class")
    assert_close(log_p(found.prior, io, io["cond"]), io["log_p_x0_raw"], tolerance["log_p_x0_raw"])
    with pytest.raises(FormatError, match="leave out `weights` raw"):
        interop.load(changed("class", lambda content, config: content.pop("model")), Options(weights="raw"))
    for weights in ("ema", "raw"):
        with pytest.raises(FormatError, match=f"raw weights alone: leave out `weights` {weights}"):
            interop.load(without_average, Options(weights=weights))


def test_a_file_cut_short_is_one_clear_error(tmp_path):
    whole = (GOLDEN / "ms-prior-class" / "tiny_pretrained.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"cut\.pth: cut short"):
        interop.read_source(tmp_path / "cut.pth")


@pytest.mark.parametrize("name", ["class", "uncond", "convmlp"])
def test_a_prior_saved_and_loaded_is_the_same(name, tmp_path):
    prior = load(name).prior
    io, _ = numbers(name)
    prior.save(tmp_path / "p.safetensors")
    again = load_prior(tmp_path / "p.safetensors")
    x_t, t = io["x_t"].view(-1, 4, 4), io["t"] + 1
    assert torch.equal(again.log_x0(x_t, t, io.get("cond")), prior.log_x0(x_t, t, io.get("cond")))
    assert again.kernel.config == prior.kernel.config


@pytest.mark.parametrize("sampler", ["ancestral", "purity"])
def test_samples_of_an_imported_prior_do_not_depend_on_the_batch_size(sampler):
    prior = load("class").prior
    condition = prior.conditioner.encode(["3", "999", "3"])
    settings = {"sampler": sampler, "steps": 5, "cfg_scale": 2.0, "truncation": 0.9, "condition": condition, "seed": 4}
    grids = sample(prior, 3, batch_size=3, **settings)
    assert torch.equal(sample(prior, 3, batch_size=1, **settings), grids)
    assert 0 <= int(grids.min()) <= int(grids.max()) < 40
    other = sample(prior, 3, **(settings | {"condition": prior.conditioner.encode(["4"] * 3)}))
    assert not torch.equal(other, grids)
