"""Priors that are carried over to other codes: renamed, split and merged ones, by files and by commands' functions."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.commands import build_tokenizer, write_pictures
from support.exact import grid_spec
from support.matrices import build_kernel

from vqtool import codebooks, conditions, denoisers
from vqtool.codebooks.links import Links
from vqtool.codebooks.rebuilt import with_codebook
from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridWriter, cat
from vqtool.priors import GridSpec, Prior, load_prior
from vqtool.tokenizers import load_tokenizer, save_tokenizer
from vqtool.training.building import build_prior
from vqtool.training.transplanting import Carrier, transplant, transplant_denoiser

K, SIZE = 16, (2, 2)
NETWORKS = [
    ("transformer", "tiny", {}),
    ("transformer", "light", {}),
    ("vq-diffusion", "tiny", {}),
    ("vq-diffusion", "tiny", {"head_bias": False}),
    ("halton-maskgit", "tiny", {}),
    ("titok", "tiny", {}),
    ("unet", "tiny", {}),
    ("unet", "tiny", {"num_inputs": K}),
]


def random_prior(name="transformer", size="tiny", changes=None, spec=None):
    kernel = build_kernel("uniform" if changes and "num_inputs" in changes else "mask-replace", codebook_size=K)
    tokens = np.arange(K).reshape(4, 2, 2)
    prior = build_prior(
        kernel, conditions.build("none"), spec or grid_spec(SIZE), size, seed=0, tokens=tokens, denoiser=name
    )
    network = denoisers.build(name, vars(prior.denoiser.config) | (changes or {}))
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return replace(prior, denoiser=network.eval().requires_grad_(False), location="old.safetensors")


def links_of(table):
    """Links of a table of weights (num_old, num_new)."""
    weight = np.asarray(table, np.float64)
    old, new = weight.nonzero()
    return Links(old, new, weight[old, new], *weight.shape)


def carried(prior: Prior, links):
    return replace(
        prior,
        kernel=replace(prior.kernel, codebook_size=links.num_new),
        denoiser=transplant_denoiser(prior.denoiser, prior.denoiser_name, links),
    )


def grids(prior, num=6):
    noise = torch.Generator().manual_seed(5)
    x_t = torch.randint(0, K + prior.kernel.has_mask, (num, *SIZE), generator=noise)
    return x_t, torch.randint(1, prior.kernel.num_steps + 1, (num,), generator=noise)


@pytest.mark.parametrize(("name", "size", "changes"), NETWORKS)
def test_renamed_codes_have_the_same_distribution_renamed(name, size, changes):
    prior = random_prior(name, size, changes)
    x_t, t = grids(prior)
    order = torch.from_numpy(np.random.default_rng(0).permutation(K))  # old j becomes order[j]
    table = np.zeros((K, K))
    table[np.arange(K), order] = np.random.default_rng(1).integers(1, 100, K)
    renamed = torch.cat([order, torch.tensor([K])])[x_t]
    found, expected = carried(prior, links_of(table)).log_x0(renamed, t), prior.log_x0(x_t, t)
    torch.testing.assert_close(found[..., order], expected, rtol=1e-5, atol=1e-5)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize(("name", "size", "changes"), NETWORKS)
def test_the_same_codes_leave_every_weight_as_it_is(name, size, changes):
    prior = random_prior(name, size, changes)
    made = transplant_denoiser(prior.denoiser, name, links_of(np.diag(np.arange(1, K + 1)))).state_dict()
    for own, tensor in prior.denoiser.state_dict().items():
        assert torch.equal(made[own], tensor), own
    assert {own: float(made[own].abs().max()) for own in made.keys() - prior.denoiser.state_dict().keys()} == (
        {"head.bias": 0.0} if "head_bias" in (changes or {}) else {}
    )


def test_codes_that_were_alike_have_the_sum_of_their_probabilities_and_split_ones_their_shares():
    prior = random_prior()
    with torch.no_grad():
        for table in (prior.denoiser.tokens.weight, prior.denoiser.head.weight):
            table[1] = table[0]
        prior.denoiser.head.bias[:2] = torch.tensor([0.3, 0.3 + np.log(3.0)])
    table = np.zeros((K, K))
    table[0, 0], table[1, 0] = 10, 30  # 0 and 1 become 0, as frequent as they are probable
    table[2, 1], table[2, 2] = 5, 15  # 2 is split
    table[np.arange(3, K), np.arange(3, K)] = 20
    x_t, t = torch.full((3, *SIZE), K), torch.tensor([1, 4, 7])  # all masked: x_t says nothing about itself
    before, after = prior.log_x0(x_t, t).exp(), carried(prior, links_of(table)).log_x0(x_t, t).exp()
    torch.testing.assert_close(after[..., 0], before[..., 0] + before[..., 1])
    torch.testing.assert_close(after[..., 1], 0.25 * before[..., 2])
    torch.testing.assert_close(after[..., 2], 0.75 * before[..., 2])
    torch.testing.assert_close(after[..., 3:], before[..., 3:])


def test_the_logits_of_merged_codes_are_a_lower_bound_by_the_stated_formula():
    prior = random_prior()
    weight = np.random.default_rng(0).integers(0, 4, (K, 5)).astype(float)
    weight[0] += 1
    links = links_of(weight)
    x_t, t = torch.full((3, *SIZE), K), torch.tensor([1, 4, 7])
    new = transplant_denoiser(prior.denoiser, "transformer", links)
    logits = prior.denoiser(x_t, t).double()
    found = new(torch.full_like(x_t, 5), t).double()
    totals = torch.from_numpy(weight.sum(1))
    shares = torch.from_numpy(weight) / totals[:, None]  # P(k | j)
    r = torch.from_numpy(weight / weight.sum(0))  # r_kj, (K, 5)
    inner = logits[..., None] + torch.where(r > 0, (shares / r).log(), 0.0)
    torch.testing.assert_close(found, (r * inner).sum(-2), rtol=1e-4, atol=1e-4)
    exact = (logits[..., None] + shares.log()).logsumexp(-2)
    assert bool((found <= exact + 1e-4).all())
    # Equal where codes are as probable among each other as they are frequent.
    torch.testing.assert_close((r * (totals.log()[:, None] + (shares / r).nan_to_num(1).log())).sum(0),
                               (totals.log()[:, None] + shares.log()).logsumexp(0))  # fmt: skip


def write_grids(path, tokenizer, tokens, ids=None):
    size = tokens.shape[1:]
    header = GridHeader(
        tokenizer.codebook_size, size, (8 * size[0], 8 * size[1]), tokenizer.fingerprint, tokenizer.location, "crop"
    )
    with GridWriter(path, header) as writer:
        writer.write(GridBatch(tokens, ids or [str(i) for i in range(len(tokens))]))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A current folder with a tokenizer of 16 codes, one with the same codes in another order, and a prior."""
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    save_tokenizer("old.safetensors", tokenizer)
    order = np.random.default_rng(0).permutation(K)
    save_tokenizer("new.safetensors", with_codebook(tokenizer, tokenizer.codebook[np.argsort(order)]))
    old = load_tokenizer("old.safetensors")
    write_grids("tok.h5", old, np.random.default_rng(1).integers(0, K, (20, *SIZE)))
    spec = GridSpec(old.fingerprint, "old.safetensors", SIZE, (16, 16), "crop")
    random_prior(spec=spec).save("prior.safetensors")
    return torch.from_numpy(order)


@pytest.mark.parametrize("grids", [[], ["tok.h5"], ["new.h5"], ["tok.h5", "new.h5"], ["tok.index", "new.h5"]])
def test_a_prior_in_a_file_is_carried_to_codes_in_another_order(work, grids):
    old, new = load_tokenizer("old.safetensors"), load_tokenizer("new.safetensors")
    tokens = np.random.default_rng(1).integers(0, K, (20, *SIZE))
    write_grids("new.h5", new, work.numpy()[tokens])
    write_grids("empty.h5", old, tokens[:0], [])
    cat(["tok.h5"], "tok.index", index=True)
    how = {"tokenizer": "new.safetensors", "grids": [*grids, "empty.h5"] if grids else []}
    with pytest.warns(match=r"empty\.h5: no token grids in it: passed over") if grids else nullcontext():
        made = transplant("prior.safetensors", "moved.safetensors", **how)
    before, after = load_prior("prior.safetensors"), load_prior("moved.safetensors")
    assert after.fingerprint == made.prior.fingerprint
    assert (after.parent, after.grid_spec.tokenizer_fingerprint) == (before.fingerprint, new.fingerprint)
    assert after.history[-1]["inputs"] == {"prior": before.fingerprint, "tokenizer": new.fingerprint}
    x_t = torch.from_numpy(tokens)
    t = torch.full((20,), 3)
    found = after.log_x0(work[x_t], t)[..., work]
    torch.testing.assert_close(found, before.log_x0(x_t, t), rtol=1e-5, atol=1e-5)
    assert old.fingerprint != new.fingerprint


def test_grids_in_both_codes_carry_a_prior_between_unlike_encoders(work):
    save_tokenizer("other.safetensors", build_tokenizer(seed=1))
    with pytest.raises(MismatchError, match="their encoders differ"):
        transplant("prior.safetensors", "moved.safetensors", tokenizer="other.safetensors")
    tokens = np.random.default_rng(1).integers(0, K, (20, *SIZE))
    write_grids(
        "other.h5", load_tokenizer("other.safetensors"), work.numpy()[tokens][::-1], [*map(str, range(20))][::-1]
    )
    transplant("prior.safetensors", "moved.safetensors", tokenizer="other.safetensors", grids=["tok.h5", "other.h5"])
    x_t, t = torch.from_numpy(tokens), torch.full((20,), 3)
    found = load_prior("moved.safetensors").log_x0(work[x_t], t)[..., work]
    torch.testing.assert_close(found, load_prior("prior.safetensors").log_x0(x_t, t), rtol=1e-5, atol=1e-5)


def test_a_pruned_tokenizer_brings_a_prior_that_knows_the_codes_that_are_left(work):
    write_grids("few.h5", load_tokenizer("old.safetensors"), np.array([[[0, 3], [3, 9]]]))
    carrier = Carrier.open("prior.safetensors", "pruned.safetensors")
    made = codebooks.prune("few.h5", "pruned.safetensors")
    carrier.carry(made.links, made.parent, made.fingerprint, "pruned.safetensors")
    after = load_prior("pruned.prior.safetensors")
    assert after.kernel.codebook_size == 3
    assert after.grid_spec.tokenizer_fingerprint == load_tokenizer("pruned.safetensors").fingerprint
    with pytest.raises(VqtoolError, match=r"pruned\.prior\.safetensors: exists"):
        Carrier.open("prior.safetensors", "pruned.safetensors")


def test_a_refit_counts_which_codes_its_vectors_had_and_have(work, tmp_path):
    write_pictures(tmp_path / "imgs", 8)
    made = codebooks.refit("imgs", "refit.safetensors", tokenizer="old.safetensors", size="16", codebook_size=6)
    assert (made.links.num_old, made.links.num_new) == (16, 6)
    assert made.links.weight.sum() == made.num_vectors == 32
    prior = Carrier.open("prior.safetensors", "refit.safetensors").carry(
        made.links, made.parent, made.fingerprint, "refit.safetensors"
    )
    assert prior.kernel.codebook_size == 6
    with pytest.raises(MismatchError, match=r"is of tokenizer .*, not of feed, whose codes were rebuilt: x is written"):
        Carrier.open("prior.safetensors", "x.safetensors").carry(made.links, "feed", "beef", "x")


def test_what_cannot_be_carried_over_is_refused(work):
    with pytest.raises(VqtoolError, match=r"prior\.safetensors is in the codes of old\.safetensors already"):
        transplant("prior.safetensors", "x.safetensors", tokenizer="old.safetensors")
    write_grids("new.h5", load_tokenizer("new.safetensors"), np.zeros((2, 3, 3), np.int64))
    save_tokenizer("other.safetensors", build_tokenizer(seed=1))
    write_grids("other.h5", load_tokenizer("other.safetensors"), np.zeros((2, 2, 2), np.int64))
    write_grids("away.h5", load_tokenizer("new.safetensors"), np.zeros((1, 2, 2), np.int64), ["elsewhere"])
    write_grids("empty.h5", load_tokenizer("new.safetensors"), np.zeros((0, 2, 2), np.int64), [])
    for grids, message in (
        (["empty.h5"], r"empty\.h5: no token grids in it"),
        (["other.h5"], r"other\.h5 has tokens of tokenizer .*, neither of the prior's .* nor of new\.safetensors"),
        (["tok.h5", "tok.h5"], r"tok\.h5: named twice"),
        (["tok.h5", "new.h5"], "have grids of two sizes"),
        (["tok.h5", "away.h5"], "have no image in common"),
    ):
        with pytest.raises(VqtoolError, match=message):
            transplant("prior.safetensors", "x.safetensors", tokenizer="new.safetensors", grids=grids)
    with pytest.raises(VqtoolError, match="guided-unet reads tokens as numbers"):
        transplant_denoiser(random_prior("guided-unet").denoiser, "guided-unet", links_of(np.eye(K)))
