"""Priors: Bayes' rule on the logits, the file and what does not fit it."""

from dataclasses import replace

import pytest
import torch
from support.exact import ExactDenoiser, random_prior
from support.matrices import build_kernel

import vqtool
from vqtool import artifacts
from vqtool.diffusion import kernels
from vqtool.diffusion.parameterisations import log_probabilities
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.grids import GridHeader
from vqtool.priors import find_prior


@pytest.mark.parametrize("name", ["mask-replace", "absorbing", "uniform"])
def test_evidence_makes_logits_of_the_other_cells_into_the_exact_law_of_independent_cells(name):
    # For independent cells the others say nothing: the logits are the log law, and x_t adds what is in x_t.
    kernel = build_kernel(name, codebook_size=3, num_steps=10)
    law = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    exact = ExactDenoiser(law, (1, 1), kernel)
    states = [0, 1, 2, 3] if kernel.has_mask else [0, 1, 2]
    for t in range(1, 11):
        x_t = torch.tensor(states).view(-1, 1, 1)
        times = torch.full((len(states),), t)
        logits = law.log().expand(len(states), 1, 1, 3)
        found = log_probabilities(logits, x_t, times, kernel, "evidence").exp()
        wanted = exact(x_t, times).softmax(-1).float()
        if name == "absorbing" and t == 10:  # an unmasked cell is impossible there
            found, wanted = found[-1:], wanted[-1:]
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "class", "caption"])
def test_log_x0_is_normalised_and_without_a_condition_uses_the_null_condition(kind):
    prior = random_prior(kind=kind)
    x_t = torch.randint(0, 12, (3, 4, 6), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 9, 20])
    log_x0 = prior.log_x0(x_t, t)
    assert log_x0.shape == (3, 4, 6, 11)
    assert log_x0.dtype == torch.float32
    torch.testing.assert_close(log_x0.exp().sum(-1), torch.ones(3, 4, 6), atol=1e-5, rtol=0)
    assert torch.equal(prior.log_x0(x_t, t, prior.conditioner.null(3)), log_x0)
    assert torch.equal(prior.log_x0(x_t, t, prior.encode_condition(None, 3)), log_x0)


LIGHT = {"caption_width": 32, "shared_modulation": True}


@pytest.mark.parametrize(("kind", "network"), [("none", {}), ("class", {}), ("caption", {}), ("caption", LIGHT)])
def test_a_saved_prior_predicts_bit_for_bit_what_it_did(tmp_path, kind, network):
    history = [{"step": "train-prior"}]
    prior = replace(random_prior(kind=kind, **network), history=tuple(history), summary={"steps": 3})
    saved = prior.save(tmp_path / "prior.safetensors")
    loaded = vqtool.load_prior(tmp_path / "prior.safetensors")
    x_t = torch.full((3, 4, 6), 11)
    t = torch.tensor([1, 9, 20])
    texts = [None] if kind == "none" else [None, loaded.conditioner.examples[1], loaded.conditioner.examples[0]]
    condition = loaded.conditioner.encode((texts * 3)[:3])
    assert torch.equal(loaded.log_x0(x_t, t, condition), prior.log_x0(x_t, t, condition))
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.grid_spec == prior.grid_spec
    assert loaded.history == ({"step": "train-prior"},)
    assert loaded.summary == {"steps": 3}
    assert loaded.conditioner.examples == prior.conditioner.examples
    header = artifacts.read_header(tmp_path / "prior.safetensors")
    assert header.kind == "prior"
    assert header.parents == {"tokenizer": prior.grid_spec.tokenizer_fingerprint}


def test_a_kernel_with_tables_of_its_own_is_kept(tmp_path):
    prior = random_prior("absorbing", num_steps=4)
    table = torch.tensor([1.0, 0.9, 0.5, 0.2, 0.0], dtype=torch.float64)
    own = kernels.Kernel("absorbing", "imported", 11, 4, table, 1 - table)
    replace(prior, kernel=own).save(tmp_path / "prior.safetensors")
    loaded = vqtool.load_prior(tmp_path / "prior.safetensors")
    assert torch.equal(loaded.kernel.alpha_bar, table)


def test_the_rule_is_kept_and_files_without_one_have_the_mixture(tmp_path):
    prior = replace(random_prior(), rule="plug-in")
    prior.save(tmp_path / "new.safetensors")
    assert vqtool.load_prior(tmp_path / "new.safetensors").rule == "plug-in"
    header, tensors = artifacts.load(tmp_path / "new.safetensors")
    config = {name: value for name, value in header.config.items() if name != "rule"}
    artifacts.save(tmp_path / "old.safetensors", kind="prior", config=config, tensors=tensors)
    assert vqtool.load_prior(tmp_path / "old.safetensors").rule == "mixture"


def test_an_existing_file_is_not_overwritten_without_force(tmp_path):
    path = tmp_path / "prior.safetensors"
    prior = random_prior()
    prior.save(path)
    with pytest.raises(VqtoolError, match="exists"):
        prior.save(path)
    prior.save(path, force=True)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(VqtoolError, match="train a prior with `vqtool train-prior`"):
        vqtool.load_prior(tmp_path / "none.safetensors")


@pytest.mark.parametrize("in_package", [True, False])
@pytest.mark.parametrize("in_folder", [True, False])
def test_a_prior_that_nobody_names_is_the_one_of_the_folder_else_the_built_in_one(
    builtin, tmp_path, monkeypatch, in_package, in_folder
):
    monkeypatch.chdir(tmp_path)
    told = []
    if in_package:
        random_prior(kind="class").save(builtin / "prior.safetensors")
    if in_folder:
        random_prior().save("prior.safetensors")
    is_builtin = in_package and not in_folder
    assert find_prior(None, notify=told.append) == ("builtin" if is_builtin else "prior.safetensors")
    assert [text.partition(":")[0] for text in told] == ["no prior.safetensors here"] * is_builtin
    assert find_prior(tmp_path / "mine", notify=told.append) == str(tmp_path / "mine")
    if in_package:
        prior = vqtool.load_prior("builtin")
        assert (prior.location, prior.conditioner.kind) == ("builtin", "class")
    assert len(told) == is_builtin


def test_a_prior_of_16_bits_is_computed_with_in_32(tmp_path):
    prior = random_prior()
    prior.save(tmp_path / "32.safetensors")
    header, tensors = artifacts.load(tmp_path / "32.safetensors")
    half = {name: value.half() if name.startswith("denoiser.") else value for name, value in tensors.items()}
    artifacts.save(tmp_path / "16.safetensors", kind=header.kind, config=header.config, tensors=half)
    loaded = vqtool.load_prior(tmp_path / "16.safetensors")
    assert {parameter.dtype for parameter in loaded.denoiser.parameters()} == {torch.float32}
    x_t, t = torch.full((1, 4, 6), 11), torch.tensor([9])
    torch.testing.assert_close(loaded.log_x0(x_t, t), prior.log_x0(x_t, t), atol=0.02, rtol=0)


def rewrite(path, *, drop=(), change=None, config=None):
    """Write a damaged copy of a prior over it, with a fingerprint that fits."""
    header, tensors = artifacts.load(path)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in drop}
    tensors |= change or {}
    artifacts.save(path, kind="prior", config={**header.config, **(config or {})}, tensors=tensors, force=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"drop": ["denoiser.head.weight"]}, "denoiser: tensors are missing: head.weight"),
        ({"drop": ["kernel.alpha_bar"]}, "kernel.alpha_bar"),
        ({"drop": ["condition.vocabulary"]}, "the vocabulary of the captions is missing"),
        (
            {"change": {"denoiser.head.weight": torch.zeros(2, 2)}},
            r"head.weight has shape \(2, 2\) instead of \(11, 64\)",
        ),
        ({"config": {"condition": {"kind": "sound"}}}, "condition 'sound'"),
        (
            {"config": {"denoiser": {"name": "transformer", "wings": 2}}},
            "transformer: 'wings' is not known here",
        ),
    ],
)
def test_a_damaged_prior_is_a_format_error_that_names_the_file(tmp_path, damage, message):
    path = tmp_path / "prior.safetensors"
    random_prior(kind="caption").save(path)
    rewrite(path, **damage)
    with pytest.raises(FormatError, match=message) as caught:
        vqtool.load_prior(path)
    assert str(caught.value).startswith(str(path))


def test_an_unknown_denoiser_says_which_file_needs_it(tmp_path):
    path = tmp_path / "prior.safetensors"
    random_prior().save(path)
    rewrite(path, config={"denoiser": {"name": "gru"}})
    with pytest.raises(FormatError, match=r"prior\.safetensors: unknown denoiser 'gru'"):
        vqtool.load_prior(path)


def test_another_kind_of_artifact_is_refused(tmp_path):
    artifacts.save(tmp_path / "t.safetensors", kind="tokenizer", config={}, tensors={"x": torch.zeros(1)})
    with pytest.raises(FormatError, match="a tokenizer, but a prior is needed here"):
        vqtool.load_prior(tmp_path / "t.safetensors")


def test_the_residual_adds_one_to_the_logit_of_a_token_that_is_seen_and_nothing_to_a_mask():
    """VQ-DDM's x_0 = mu(x_t, t) + x_t, with x_t as a row of K numbers: a one at its token, zeros for the mask."""
    kernel = build_kernel("mask-replace", codebook_size=3, num_steps=10)
    logits, x_t = torch.randn(1, 1, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[[0, 2, 1, 3]]])
    rows = torch.eye(4)[x_t][..., :3]
    ours = log_probabilities(logits, x_t, torch.tensor([4]), kernel, "residual")
    torch.testing.assert_close(ours, (logits + rows).log_softmax(-1))
    plain = log_probabilities(logits, x_t, torch.tensor([4]), kernel, "direct")
    torch.testing.assert_close(plain, logits.log_softmax(-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_fingerprint": "ffff"}, "has tokenizer ffff, but the prior has tokenizer 0123456789abcdef"),
        ({"codebook_size": 12}, "has codebook size 12, but the prior has codebook size 11"),
        ({"grid_size": (4, 4)}, "has grid size 4x4, but the prior has grid size 4x6"),
    ],
)
def test_grids_of_another_kind_are_refused_with_both_named_and_a_remedy(change, message):
    prior = random_prior()
    header = GridHeader(11, (4, 6), (32, 48), prior.grid_spec.tokenizer_fingerprint, "builtin", "crop")
    prior.check_grids(header, "tok.h5")
    with pytest.raises(MismatchError, match=message):
        prior.check_grids(replace(header, **change), "tok.h5")


def test_a_prior_of_no_known_tokenizer_takes_the_tokens_of_any():
    prior = random_prior()
    unnamed = replace(prior, grid_spec=replace(prior.grid_spec, tokenizer_fingerprint=""))
    unnamed.check_grids(GridHeader(11, (4, 6), (32, 48), "ffff", "mine", "crop"), "tok.h5")


def test_another_tokenizer_is_refused_with_both_fingerprints():
    prior = random_prior()
    prior.check_tokenizer("0123456789abcdef", "elsewhere")
    with pytest.raises(MismatchError, match=r"mine has fingerprint ffff, .* 0123456789abcdef \(builtin\): use"):
        prior.check_tokenizer("ffff", "mine")
