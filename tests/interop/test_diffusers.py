"""diffusers' VQDiffusionPipeline: golden numbers from captions to images, folders that do not fit, export, the hub."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import vqtool
from vqtool import interop
from vqtool.artifacts import history_record
from vqtool.conditions.clip import ClipCondition
from vqtool.denoisers import vq_diffusion
from vqtool.diffusion import guidance, kernels
from vqtool.diffusion.posterior import average_posterior
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.interop import Options, _hub, diffusers

GOLDEN = Path(__file__).parents[1] / "golden" / "df-pipeline"
PROMPTS = ["a red cat", "the dog on"]
FLOOR = -30.0  # log-probabilities below it are not compared: the peer's floors differ
MASK, T, LAST = 40, 12, 11


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "io.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def imported():
    return load(GOLDEN)


@pytest.fixture(scope="module")
def prior(imported):
    return imported.prior


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden folder, to be changed."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "pipeline"))


def load(path, **options):
    return interop.load(interop.read_source(path), Options(**options))


def change(file, **settings):
    """Change settings in a JSON file; None takes one out."""
    merged = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))


def grids(rows):
    """(B, 16) tokens as grids."""
    return rows.view(-1, 4, 4)


def ours(log_p):
    """The peer's (B, K, L) with the grid in front and the vocabulary last."""
    return log_p.transpose(1, 2).unflatten(1, (4, 4))


def compare(found, expected, tolerance):
    seen = expected > FLOOR
    torch.testing.assert_close(found[seen].double(), expected[seen].double(), rtol=0, atol=tolerance)
    assert bool((found[~seen] < FLOOR).all())


def log_x0(prior, golden, condition):
    return prior.log_x0(grids(golden["x_t"]), (golden["t"] + 1).expand(2), condition)


def test_a_pipeline_is_recognised_and_says_what_was_found(imported):
    assert interop.recognise(interop.read_source(GOLDEN)) == "diffusers"
    assert imported.prior.kernel.schedule == "release"
    assert (imported.prior.kernel.codebook_size, imported.prior.kernel.num_steps) == (MASK, T)
    assert imported.text_encoder is imported.prior.text_encoder
    assert "null condition: learned" in imported.notes
    assert "schedule: release of 12 steps, kernel mask-replace" in imported.notes


def test_prompts_become_the_tokens_and_features_of_the_peer(prior, golden):
    ids = prior.conditioner.encode(PROMPTS)
    assert torch.equal(ids, golden["input_ids"])
    torch.testing.assert_close(prior.text_encoder(ids), golden["cond"], rtol=0, atol=2e-6)


def test_predictions_with_and_without_the_condition_are_those_of_the_peer(prior, golden):
    ids = prior.conditioner.encode(PROMPTS)
    compare(log_x0(prior, golden, ids), ours(golden["log_p_x0"]), 5e-5)
    compare(log_x0(prior, golden, golden["cond"]), ours(golden["log_p_x0"]), 5e-5)
    compare(log_x0(prior, golden, None), ours(golden["log_p_x0_null"]), 5e-5)


def test_guidance_and_truncation_are_those_of_the_peer_but_for_the_norm(prior, golden):
    ids = prior.conditioner.encode(PROMPTS)
    guided = guidance.guide(log_x0(prior, golden, ids), log_x0(prior, golden, None), 3.0)
    compare(guided, ours(golden["log_p_x0_cfg"]), 5e-4)
    cut = guidance.truncate(guided, 0.86)
    expected = ours(golden["log_p_x0_cfg_trunc"])
    assert torch.equal(cut > -torch.inf, expected > -70)
    compare(cut + expected.logsumexp(-1, keepdim=True), expected, 5e-4)


@pytest.mark.parametrize(("law", "name"), [("log_p_x0", "posterior"), ("log_p_x0_cfg_trunc", "posterior_cfg_trunc")])
def test_posteriors_are_those_of_the_peer(prior, golden, law, name):
    log_p = ours(golden[law])
    mass = log_p.logsumexp(-1, keepdim=True)  # the peer hands on what truncation leaves as it is
    t = (golden["t"] + 1).expand(2)
    found = average_posterior(log_p - mass, grids(golden["x_t"]), t, t - 1, prior.kernel)
    expected = ours(golden[name])
    compare(found + mass, expected, 5e-4)


def gumbel(uniforms):
    return -torch.log(-torch.log(uniforms + 1e-30) + 1e-30)


def test_the_walk_of_the_peer_is_reproduced_token_by_token_and_pixel_by_pixel(imported, prior, golden):
    condition, null = prior.encode_condition(prior.conditioner.encode(PROMPTS), 2), prior.encode_condition(None, 2)
    x_t = torch.full((2, 4, 4), MASK)
    for step, (index, tokens) in enumerate(zip(golden["timesteps"], golden["trajectory"], strict=True)):
        t = torch.full((2,), int(index) + 1)
        guided = guidance.guide(prior.log_x0(x_t, t, condition), prior.log_x0(x_t, t, null), 3.0)
        law = average_posterior(guidance.truncate(guided, 0.86), x_t, t, t - 1, prior.kernel)
        noise = golden["uniforms"][step] if step < LAST else golden["uniforms_last"]
        x_t = (law[..., : noise.shape[1]] + gumbel(ours(noise))).argmax(-1)
        assert torch.equal(x_t, grids(tokens)), f"step {step}"
    assert torch.equal(x_t, grids(golden["final_tokens"]))
    images = (imported.tokenizer.decode(x_t) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(images, golden["images"], rtol=0, atol=1e-3)


def test_what_is_imported_is_the_same_after_saving_and_is_sampled_by_captions(prior, tmp_path, vqtool):
    parts = interop.save(load(GOLDEN), tmp_path / "tiny.safetensors", record=history_record("import"))
    assert [what for what, *_ in parts] == ["text encoder", "tokenizer", "prior"]
    loaded = load_prior(tmp_path / "tiny.safetensors")
    ids = loaded.conditioner.encode(PROMPTS)
    x_t, t = torch.full((2, 4, 4), MASK), torch.tensor([12, 5])
    assert torch.equal(loaded.log_x0(x_t, t, ids), prior.log_x0(x_t, t, ids))
    assert torch.equal(loaded.log_x0(x_t, t), prior.log_x0(x_t, t))
    drawn = tmp_path / "grids.h5"
    flags = ["--cfg-scale", 3, "--truncation", 0.86, "-n", 2, "-o", drawn]
    assert vqtool("sample", tmp_path / "tiny.safetensors", "--caption", PROMPTS[0], *flags).code == 0
    assert vqtool("decode", drawn, "-o", tmp_path / "images").code == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 2


def load_prior(path):
    return vqtool.load_prior(path)


def test_a_pipeline_without_a_learned_null_condition_takes_the_empty_caption(folder, golden):
    shutil.rmtree(folder / diffusers.NULL_TEXT)
    plain = load(folder).prior
    features = plain.text_encoder(plain.conditioner.encode([""]))
    expected = log_x0(plain, golden, features.expand(2, -1, -1))
    torch.testing.assert_close(log_x0(plain, golden, None), expected, rtol=0, atol=1e-5)
    change_learnable = {"learnable": False, "hidden_size": 24, "length": 16}
    (folder / diffusers.NULL_TEXT).mkdir()
    (folder / diffusers.NULL_TEXT / "config.json").write_text(json.dumps(change_learnable))
    assert torch.equal(log_x0(load(folder).prior, golden, None), log_x0(plain, golden, None))


def test_pickled_weights_and_settings_that_old_folders_leave_out_are_read(folder, prior, golden):
    for part, name in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = folder / part / f"{name}.safetensors"
        with safe_open(file, "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        if part == "text_encoder":
            tensors = {f"text_model.{key}": value for key, value in tensors.items()}
            tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]
        torch.save(tensors, file.with_suffix(".bin"))
        file.unlink()
    change(folder / "transformer" / "config.json", norm_type=None, attention_type=None, norm_eps=None)
    old = load(folder).prior
    assert torch.equal(log_x0(old, golden, golden["cond"]), log_x0(prior, golden, golden["cond"]))


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("transformer/config.json", {"activation_fn": "geglu"}, "activation_fn is 'geglu': only 'geglu-approximate'"),
        ("transformer/config.json", {"attention_bias": False}, "attention_bias is False"),
        ("transformer/config.json", {"num_layers": None}, "says nothing of num_layers"),
        ("transformer/config.json", {"cross_attention_dim": None}, "no text prior"),
        (
            "transformer/config.json",
            {"num_layers": 3},
            r"13 tensors are missing: transformer_blocks\.2|tensors are missi",
        ),
        ("scheduler/scheduler_config.json", {"num_vec_classes": None}, "say nothing of num_vec_classes"),
        ("scheduler/scheduler_config.json", {"alpha_cum_end": 1.5}, "rates are not those of a diffusion"),
    ],
)
def test_pipelines_of_another_kind_or_with_missing_parts_are_refused(folder, file, settings, message):
    change(folder / file, **settings)
    with pytest.raises(FormatError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_vec_classes": 30}, "codes of the transformer and the scheduler are 40 and 29"),
        ({"num_train_timesteps": 50}, "steps of the transformer and the scheduler are 12 and 50"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(folder, settings, message):
    change(folder / "scheduler" / "scheduler_config.json", **settings)
    with pytest.raises(MismatchError, match=message):
        load(folder)


def test_a_vocabulary_larger_than_the_text_encoder_is_refused(folder, tmp_path):
    words = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({**words, "more</w>": len(words)}))
    with pytest.raises(MismatchError, match=r"has 524 tokens, the text encoder 523: .* `vocabulary`"):
        load(folder)
    assert load(folder, vocabulary=GOLDEN / "tokenizer").prior.conditioner.vocabulary_size == 523


@pytest.mark.parametrize("part", ["transformer", "vqvae", "text_encoder", "scheduler", "tokenizer"])
def test_a_pipeline_without_one_of_its_folders_says_which(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(FormatError, match=part):
        load(folder)


def test_another_schedule_of_the_family_is_built_exactly(folder):
    change(folder / "scheduler" / "scheduler_config.json", gamma_cum_end=0.7)
    kernel = load(folder).prior.kernel
    assert (kernel.name, kernel.schedule) == ("mask-replace", "checkpoint")
    line = torch.arange(12, dtype=torch.float64) / 11
    torch.testing.assert_close(kernel.gamma_bar[1:], 9e-6 + line * (0.7 - 9e-6), rtol=0, atol=1e-12)
    torch.testing.assert_close(kernel.alpha_bar[1:], 0.99999 + line * (9e-6 - 0.99999), rtol=0, atol=1e-12)
    change(folder / "scheduler" / "scheduler_config.json", gamma_cum_end=0.9)
    assert load(folder).prior.kernel.schedule == "paper"


@pytest.mark.parametrize("learned", [True, False])
def test_export_and_import_are_the_identity(folder, tmp_path, learned):
    if not learned:
        shutil.rmtree(folder / diffusers.NULL_TEXT)
    first = load(folder)
    assert diffusers.export(first.prior, first.tokenizer, tmp_path / "out") == []
    second = load(tmp_path / "out")
    for one, two in (
        (first.prior.denoiser, second.prior.denoiser),
        (first.tokenizer, second.tokenizer),
        (first.text_encoder, second.text_encoder),
    ):
        assert one.config == two.config
        assert one.state_dict().keys() == two.state_dict().keys()
        assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert first.prior.conditioner.config() == second.prior.conditioner.config()
    assert first.prior.kernel.config == second.prior.kernel.config
    assert torch.equal(first.prior.kernel.alpha_bar, second.prior.kernel.alpha_bar)
    assert first.notes == second.notes


def changed(prior, **settings):
    """The prior with a network of other settings."""
    denoiser = vq_diffusion.Network(replace(prior.denoiser.config, **settings))
    return replace(prior, denoiser=denoiser)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mlp": "conv"}, "the MLP is linear"),
        ({"mlp_ratio": 2}, "4 times as wide"),
        ({"activation": "gelu"}, "gelu2"),
        ({"time": "sinusoidal"}, "the time is learned"),
        ({"positions": "flat"}, "rows and columns"),
        ({"table_size": (8, 8)}, "of the size of the grid"),
        ({"grid_size": (2, 8)}, "grids are square"),
        ({"head_bias": False}, "the head has a bias"),
        ({"text_length": 9}, "the null text is as long"),
    ],
)
def test_what_a_pipeline_cannot_hold_is_said_before_anything_is_written(imported, tmp_path, settings, message):
    with pytest.raises(VqtoolError, match=f"cannot hold this prior: there, .*{message}"):
        diffusers.export(changed(imported.prior, **settings), imported.tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_kernels_and_priors_cannot_be_exported(imported, tmp_path):
    prior, tokenizer = imported.prior, imported.tokenizer
    absorbing = kernels.build("absorbing", codebook_size=40, num_steps=12)
    alone = kernels.build("mask-replace", schedule="release", codebook_size=40, num_steps=1)
    for other, message in (
        (replace(prior, kernel=absorbing), "two straight lines"),
        (replace(prior, kernel=alone), "at least 2 steps"),
        (replace(prior, parameterisation="evidence"), "parameterisation direct"),
        (replace(prior, rule="plug-in"), "mixture"),
        (replace(prior, text_encoder=None), "captions that CLIP reads"),
    ):
        with pytest.raises(VqtoolError, match=message):
            diffusers.export(other, tokenizer, tmp_path / "out")
    other = replace(prior, grid_spec=replace(prior.grid_spec, tokenizer_fingerprint="0" * 16))
    with pytest.raises(MismatchError, match="fingerprint"):
        diffusers.export(other, tokenizer, tmp_path / "out")
    fewer = changed(prior, codebook_size=30)
    with pytest.raises(MismatchError, match="30 tokens, the tokenizer 40 codes"):
        diffusers.export(fewer, tokenizer, tmp_path / "out")


def test_a_padding_that_transformers_would_read_in_captions_is_said(imported, tmp_path):
    conditioner = imported.prior.conditioner
    vocabulary = replace(conditioner.vocabulary, special=conditioner.vocabulary.special[:2])
    prior = replace(imported.prior, conditioner=ClipCondition(vocabulary, max_length=16, pad=0))
    notes = diffusers.export(prior, imported.tokenizer, tmp_path / "out")
    assert notes == ["transformers will take '!' in a caption for padding; here it is a word"]


def hub(monkeypatch, folder, calls):
    """A hub that holds one repository: the client gives its folder, and remembers what it was asked for."""

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        calls.append((name, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


def test_a_name_on_the_hub_is_downloaded_without_pickles(monkeypatch, tmp_path, golden):
    monkeypatch.chdir(tmp_path)
    calls = []
    hub(monkeypatch, GOLDEN, calls)
    found = load(interop.find_source("someone/vq-diffusion-tiny")).prior
    assert torch.equal(found.conditioner.encode(PROMPTS), golden["input_ids"])
    assert [name for name, _ in calls] == ["someone/vq-diffusion-tiny"]
    assert "*.safetensors" in calls[0][1]
    assert not any("bin" in pattern for pattern in calls[0][1])


def test_pickles_are_downloaded_of_the_parts_that_have_nothing_else(monkeypatch, folder):
    calls = []
    hub(monkeypatch, folder, calls)
    (folder / "transformer" / diffusers.WEIGHTS).unlink()
    assert _hub.download(_hub.Place("someone/old")) == folder
    assert [patterns for _, patterns in calls[1:]] == [("transformer/*.bin",)]


def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*_, **__):
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        VqtoolError, match=r"someone/thing: no such file or folder, .*hub \(Cannot find .* folder\): check"
    ):
        interop.find_source("someone/thing")


def test_files_and_folders_come_before_the_hub_and_other_names_never_go_there(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert interop.find_source("a/b") == Path("a/b")
    for name in ("prior.pth", "a/prior.pth", "./a/c", "/a/c", "a/b/c", "../c", "a/.hidden", "~/x"):
        assert interop.find_source(name) == Path(name)
