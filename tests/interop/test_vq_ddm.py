"""VQ-DDM's checkpoints against what VQ-DDM itself made of them, and broken ones."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vqtool
from vqtool import interop
from vqtool.diffusion import kernels
from vqtool.diffusion.losses import stationary_term, variational_bound
from vqtool.diffusion.posterior import average_posterior, posterior
from vqtool.errors import FormatError
from vqtool.interop import Options, Source

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("vqddm-unet", "vqddm-noise")
TOLERANCE = {  # maximum absolute differences, as the README of each says
    "vqddm-unet": {
        "net_output": 5e-3,
        "log_p_x0": 5e-3,
        "posterior_model": 5e-4,
        "loss_Lt": 5e-5,
        "bits_per_dim": 5e-4,
    },
    "vqddm-noise": {
        "net_output": 2e-4,
        "log_p_x0": 2e-4,
        "posterior_model": 2e-4,
        "loss_Lt": 2e-5,
        "bits_per_dim": 2e-4,
    },
}


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    """(name, prior, notes, expected numbers), grids as (B, 4, 4) and laws as (B, 4, 4, K)."""
    imported = interop.load(interop.read_source(GOLDEN / request.param / "last.ckpt"), Options())
    stored = load_file(GOLDEN / request.param / "io.safetensors")
    numbers = {}
    for name, value in stored.items():
        if name in ("x_t", "x0"):
            numbers[name] = value.reshape(4, 4, 4)
        elif value.ndim >= 4:  # (B, K, H, W) or (B, K, 1, H, W)
            numbers[name] = value.reshape(4, -1, 4, 4).movedim(1, -1)
        else:
            numbers[name] = value
    return request.param, imported.prior, imported.notes, numbers


def close(found, expected, tolerance):
    torch.testing.assert_close(found.to(expected.dtype), expected, atol=tolerance, rtol=0)


def test_network_and_law_of_x_0_equal_theirs(golden):
    name, prior, _, numbers = golden
    t = numbers["t"] + 1
    close(prior.denoiser(numbers["x_t"], t), numbers["net_output"], TOLERANCE[name]["net_output"])
    close(prior.log_x0(numbers["x_t"], t), numbers["log_p_x0"], TOLERANCE[name]["log_p_x0"])


def test_rates_are_those_of_the_cosine_schedule_exactly(golden):
    _, prior, notes, numbers = golden
    exact = kernels.build("uniform", schedule="cosine", codebook_size=prior.kernel.codebook_size, num_steps=100)
    assert prior.kernel.schedule == "cosine"
    assert torch.equal(prior.kernel.alpha_bar, exact.alpha_bar)
    assert any("cosine" in note for note in notes)
    log_alpha_bar = exact.alpha_bar.log()
    close(log_alpha_bar[1:], numbers["schedule_log_alpha_bar"], 1e-5)
    close(log_alpha_bar.diff(), numbers["schedule_log_alpha"], 1e-5)


def test_forward_laws_equal_theirs(golden):
    _, prior, _, numbers = golden
    t = numbers["t"] + 1
    alpha_bar, beta_bar, _ = (rate.view(-1, 1, 1, 1) for rate in prior.kernel.cumulative(t))
    alpha, beta, _ = (rate.view(-1, 1, 1, 1) for rate in prior.kernel.transition(t - 1, t))
    for tokens, keep, anew, name in (
        (numbers["x0"], alpha_bar, beta_bar, "log_q_t_given_0"),
        (numbers["x_t"], alpha, beta, "log_q_t_given_prev"),
    ):
        known = torch.nn.functional.one_hot(tokens, prior.kernel.codebook_size)
        close((keep * known + anew).log(), numbers[name], 5e-5)


def test_posteriors_equal_theirs(golden):
    name, prior, _, numbers = golden
    t = numbers["t"] + 1
    true = posterior(numbers["x0"], numbers["x_t"], t, t - 1, prior.kernel)[..., :-1]
    above = numbers["posterior_true"] > -30
    close(true[above], numbers["posterior_true"][above], 2e-4)
    assert bool((true[~above] < -30).all())
    model = average_posterior(numbers["log_p_x0"], numbers["x_t"], t, t - 1, prior.kernel, "plug-in")[..., :-1]
    close(model, numbers["posterior_model"], TOLERANCE[name]["posterior_model"])


def test_losses_and_bits_equal_theirs(golden):
    name, prior, _, numbers = golden
    x_0, t = numbers["x0"], numbers["t"] + 1
    log_x0 = prior.log_x0(numbers["x_t"], t)
    loss = variational_bound(log_x0, x_0, numbers["x_t"], t, prior.kernel, prior.rule).sum((1, 2))
    close(loss, numbers["loss_Lt"], TOLERANCE[name]["loss_Lt"])
    stationary = stationary_term(x_0, prior.kernel).sum((1, 2))
    close(stationary, numbers["kl_prior"], 2e-5)
    bits = (loss * prior.kernel.num_steps + stationary).sum() / (math.log(2) * x_0.numel())
    close(bits, numbers["bits_per_dim"], TOLERANCE[name]["bits_per_dim"])


def test_it_is_recognised_and_sampled_by_the_plug_in_rule(golden):
    name, prior, notes, _ = golden
    assert interop.recognise(interop.read_source(GOLDEN / name / "last.ckpt")) == "vq-ddm"
    assert prior.rule == "plug-in"
    assert prior.parameterisation == {"vqddm-unet": "direct", "vqddm-noise": "residual"}[name]
    assert prior.grid_spec.grid_size == (4, 4)
    assert not any("--" in note for note in notes), "all settings were found"
    own, plug_in, mixture = (
        vqtool.sample(prior, 3, steps=10, **rule) for rule in ({}, {"rule": "plug-in"}, {"rule": "mixture"})
    )
    assert torch.equal(own, plug_in)
    assert not torch.equal(own, mixture)


def test_a_saved_import_predicts_and_samples_bit_for_bit_what_it_did(golden, tmp_path):
    _, prior, _, numbers = golden
    prior.save(tmp_path / "prior.safetensors")
    loaded = vqtool.load_prior(tmp_path / "prior.safetensors")
    t = numbers["t"] + 1
    assert torch.equal(loaded.log_x0(numbers["x_t"], t), prior.log_x0(numbers["x_t"], t))
    assert torch.equal(vqtool.sample(loaded, 3, steps=5), vqtool.sample(prior, 3, steps=5))
    assert (loaded.rule, loaded.kernel.schedule) == ("plug-in", "cosine")


def test_a_batch_of_one_and_grids_of_other_sizes_work(golden):
    _, prior, _, numbers = golden
    t = numbers["t"] + 1
    alone = prior.log_x0(numbers["x_t"][:1], t[:1])
    torch.testing.assert_close(alone, prior.log_x0(numbers["x_t"], t)[:1], atol=1e-4, rtol=1e-4)
    odd = torch.randint(prior.kernel.codebook_size, (1, 3, 7), generator=torch.Generator().manual_seed(0))
    law = prior.log_x0(odd, t[:1]).exp()
    torch.testing.assert_close(law.sum(-1), torch.ones(1, 3, 7))
    assert vqtool.sample(prior, 1, steps=2, grid_size=(5, 7)).shape == (1, 5, 7)  # through windows


def source(name, change=None, config=True):
    """A golden checkpoint with its state dict changed."""
    found = interop.read_source(GOLDEN / name / "last.ckpt")
    state = dict(found.content["state_dict"])
    if change:
        change(state)
    return Source(Path("last.ckpt"), {"state_dict": state}, found.config if config else None)


def test_without_settings_the_shapes_say_all_but_grid_and_heads(golden):
    name, prior, _, numbers = golden
    heads = {"num_heads": 2} if name == "vqddm-noise" else {}
    imported = interop.load(source(name, config=False), Options(grid_size=(4, 4), **heads), "vq-ddm")
    assert imported.prior.denoiser.config == prior.denoiser.config
    assert torch.equal(
        imported.prior.log_x0(numbers["x_t"], numbers["t"] + 1), prior.log_x0(numbers["x_t"], numbers["t"] + 1)
    )
    chosen = interop.load(source(name, config=False), Options())
    assert chosen.prior.grid_spec.grid_size == (16, 16)
    assert any("`grid_size`" in note for note in chosen.notes)
    assert any("`num_heads`" in note for note in chosen.notes) == (name == "vqddm-noise")


def test_one_copy_of_the_network_is_enough(golden):
    name, prior, _, numbers = golden

    def drop(state):
        for key in [key for key in state if key.startswith("_nn.")]:
            del state[key]

    imported = interop.load(source(name, drop), Options())
    assert torch.equal(
        imported.prior.log_x0(numbers["x_t"], numbers["t"] + 1), prior.log_x0(numbers["x_t"], numbers["t"] + 1)
    )


def test_rates_of_no_named_schedule_are_kept(golden):
    name, *_ = golden
    alpha = torch.linspace(0.999, 0.9, 100)

    def change(state):
        state["_denoising.log_alpha"] = alpha.log()
        state["_denoising.log_cumprod_alpha"] = alpha.log().cumsum(0)

    imported = interop.load(source(name, change), Options())
    assert imported.prior.kernel.schedule == "checkpoint"
    assert any("of no schedule with a name" in note for note in imported.notes)
    wanted = alpha.log().double().cumsum(0).exp()
    torch.testing.assert_close(imported.prior.kernel.alpha_bar[1:], wanted, rtol=1e-6, atol=0)


def removes(*names):
    def change(state):
        for name in names:
            for key in [key for key in state if key.endswith(name)]:
                del state[key]

    return change


def sets(name, value):
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vqddm-unet", removes("mid_attn.fn.g"), r"1 tensors are missing: _denoising\._denoise_fn\.mid_attn\.fn\.g"),
        ("vqddm-unet", removes("embedding.weight"), r"missing: embedding\.weight"),
        ("vqddm-unet", removes("downs.1.0.block1.block.0.weight"), r"missing: downs\.1\.0\.block1"),
        ("vqddm-noise", removes("out.2.bias", "out.0.bias"), r"2 tensors are missing: _denoising\._nn\.out\.0\.bias"),
        ("vqddm-noise", removes("input_blocks.2.0.op.weight"), r"missing: _denoising\._nn\.input_blocks\.2\.0\.op"),
        ("vqddm-noise", removes("input_blocks.0.0.weight"), r"missing: input_blocks\.0\.0\.weight"),
        ("vqddm-unet", removes("log_alpha"), r"tensors are missing: _denoising\.log_alpha"),
        ("vqddm-unet", sets("_denoising.log_alpha", torch.zeros(3)), "rates of one step each"),
        ("vqddm-unet", sets("_denoising.log_alpha", torch.full((100,), -0.5)), "is not the sum of"),
        ("vqddm-unet", sets("_nn.mid_attn.fn.g", torch.ones(1)), r"but they differ: mid_attn\.fn\.g"),
        ("vqddm-unet", sets("_denoising._denoise_fn.label.weight", torch.ones(1)), r"not understood: label\.weight"),
        ("vqddm-unet", sets("other.weight", torch.ones(1)), r"not understood: other\.weight"),
        ("vqddm-unet", sets("_nn.final_conv.1.bias", torch.ones(9)), "but they differ"),
    ],
)
def test_incomplete_and_contradictory_checkpoints_say_what_is_wrong(name, change, message):
    with pytest.raises(FormatError, match=message):
        interop.load(source(name, change), Options(), "vq-ddm")


def test_a_checkpoint_without_its_network_says_so():
    def drop(state):
        for key in [key for key in state if key.startswith(("_denoising._denoise_fn.", "_nn."))]:
            del state[key]

    with pytest.raises(FormatError, match=r"the network is missing: tensors _denoising\._denoise_fn\.\*"):
        interop.load(source("vqddm-unet", drop), Options())


def test_rates_that_rise_are_refused():
    def change(state):
        for key in ("_denoising.log_alpha", "_denoising.log_cumprod_alpha"):
            state[key] = -state[key]

    with pytest.raises(FormatError, match=r"last\.ckpt: its rates are not those of a diffusion"):
        interop.load(source("vqddm-unet", change), Options())


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("vqddm-unet", "dim: 16", "dim: 32", "settings of Unet do not fit the weights: dim 32, not 16; name others"),
        ("vqddm-unet", "num_steps: 100", "num_steps: 4000", "num_steps 4000, not 100"),
        ("vqddm-unet", "num_classes: 48", "num_classes: 47", "num_classes 47, not 48"),
        ("vqddm-unet", "timesteps: 100", "timesteps: 50", "settings of DiscreteDiffusion do not fit.*timesteps 50"),
        ("vqddm-noise", "model_channels: 32", "model_channels: 64", "model_channels 64, not 32"),
        ("vqddm-noise", "num_heads: 2", "num_heads: 5", "5 heads of attention do not divide 32 channels"),
        ("vqddm-noise", "num_res_blocks: 1", "num_res_blocks: 2", "num_res_blocks 2, not 1"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(tmp_path, name, old, new, message):
    shutil.copy(GOLDEN / name / "last.ckpt", tmp_path)
    text = (GOLDEN / name / "config.yaml").read_text()
    assert old in text
    (tmp_path / "config.yaml").write_text(text.replace(old, new))
    with pytest.raises(FormatError, match=message):
        interop.load(interop.read_source(tmp_path / "last.ckpt"), Options())


def test_settings_of_another_program_are_left_aside():
    found = replace(source("vqddm-unet"), config={"Model": ["x"], "lr": 1})
    assert interop.load(found, Options()).prior.grid_spec.grid_size == (16, 16)


def test_a_checkpoint_cut_short_is_one_clear_error(tmp_path):
    data = (GOLDEN / "vqddm-unet" / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match=r"last\.ckpt: cut short"):
        interop.read_source(tmp_path / "last.ckpt")


def with_classes(num_rows, *, said=None):
    """A source of the plain network with a table of classes and the convolution that it never uses."""
    source = interop.read_source(GOLDEN / "vqddm-unet" / "last.ckpt")
    state = dict(source.content["state_dict"])
    dim = state["_nn.embedding.weight"].shape[1]
    table = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(0))
    more = {
        "label_emb.weight": table,
        "input_conv.weight": torch.zeros(dim, 1, 1, 1),
        "input_conv.bias": torch.zeros(dim),
    }
    state |= {prefix + name: value for prefix in ("_nn.", "_denoising._denoise_fn.") for name, value in more.items()}
    model = dict(source.config["Model"])
    model["Unet"] = {"kwargs": {**model["Unet"]["kwargs"], **({"classes": said} if said else {})}}
    return Source(source.path, {**source.content, "state_dict": state}, {**source.config, "Model": model}), table


def test_a_class_is_added_to_the_embedded_time():
    """Against the network without classes whose time has the class's row in its last bias."""
    source, table = with_classes(48, said=5)
    found = interop.load(source, Options())
    prior, plain = found.prior, interop.load(interop.read_source(GOLDEN / "vqddm-unet" / "last.ckpt"), Options()).prior
    assert prior.conditioner.examples == tuple("01234")
    x_t, t = torch.arange(16).view(1, 4, 4), torch.tensor([7])
    bias = plain.denoiser.time[2].bias
    before = bias.clone()
    for number, row in ((3, table[3]), (5, table[:5].mean(0))):  # the last is the null condition
        bias.copy_(before + row)
        close(prior.denoiser(x_t, t, torch.tensor([number])), plain.denoiser(x_t, t), 1e-4)
    assert any("the mean of the classes" in note for note in found.notes)
    grids = vqtool.sample(prior, 2, condition=prior.conditioner.encode(["1", "4"]), sampler="ancestral")
    assert grids.shape == (2, 4, 4)


def test_the_number_of_classes_is_that_of_the_settings_else_of_the_rows():
    found = interop.load(with_classes(48)[0], Options())
    assert len(found.prior.conditioner.examples) == 48
    assert any("no settings say how many" in note for note in found.notes)
    with pytest.raises(FormatError, match=r"1000 classes in its settings, but .*label_emb\.weight has 48 rows"):
        interop.load(with_classes(48, said=1000)[0], Options())
