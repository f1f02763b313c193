"""Quantizers: the nearest code, gradients and codebooks that learn, in numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from vqtool.errors import VqtoolError
from vqtool.options import options_of, read_options
from vqtool.tokenizers import Tokenizer, quantizers
from vqtool.tokenizers.quantizers import _lookup, build, highest, nearest
from vqtool.tokenizers.quantizers._gradients import pass_gradient
from vqtool.tokenizers.quantizers._placed import k_means, pick, seeds
from vqtool.tokenizers.quantizers.lfq import _mean
from vqtool.tokenizers.vqvae import VqVaeConfig


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("distance_bytes", [1, 4 * 100 * 13, 1 << 28])
def test_the_nearest_code_is_that_of_a_full_search(monkeypatch, size, distance_bytes):
    monkeypatch.setattr(_lookup, "DISTANCE_BYTES", distance_bytes)
    noise = torch.Generator().manual_seed(size)
    vectors, codebook = torch.randn(50, 5, generator=noise), torch.randn(size, 5, generator=noise)
    found = nearest(vectors, codebook)
    assert found.dtype == torch.int64
    assert torch.equal(found, (vectors[:, None].double() - codebook.double()).square().sum(2).argmin(1))


@pytest.mark.parametrize(("codes", "budget"), [(1 << 18, 1 << 16), (1 << 18, 1 << 22), (1000, 1 << 14)])
def test_a_search_never_holds_more_distances_than_its_budget(monkeypatch, codes, budget):
    """Also for K = 262144: smaller blocks of codes where one row of distances is too much."""
    monkeypatch.setattr(_lookup, "DISTANCE_BYTES", budget)
    held, addmm = [], torch.addmm

    def watched(*arguments, **options):
        made = addmm(*arguments, **options)
        held.append(made.nbytes)
        return made

    monkeypatch.setattr(torch, "addmm", watched)
    noise = torch.Generator().manual_seed(0)
    codebook = torch.randn(codes, 3, generator=noise)
    chosen = torch.randint(codes, (10,), generator=noise)
    assert torch.equal(nearest(codebook[chosen] + 1e-5, codebook), chosen)
    assert max(held) <= budget
    assert sum(held) == 10 * codes * 4


@pytest.mark.parametrize("budget", [1, 4 * 3, 1 << 28])
def test_the_highest_value_of_a_projection_is_that_of_the_whole_matrix(monkeypatch, budget):
    monkeypatch.setattr(_lookup, "DISTANCE_BYTES", budget)
    noise = torch.Generator().manual_seed(1)
    vectors, weight, bias = (torch.randn(*shape, generator=noise) for shape in ((20, 4), (7, 4), (7,)))
    assert torch.equal(highest(vectors, weight, bias), (vectors @ weight.T + bias).argmax(1))


@pytest.mark.parametrize("budget", [8, 1 << 28])
def test_of_equal_codes_the_first_is_chosen(monkeypatch, budget):
    monkeypatch.setattr(_lookup, "DISTANCE_BYTES", budget)
    assert nearest(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]])).tolist() == [1]


def test_no_vectors_have_no_tokens():
    assert nearest(torch.empty(0, 3), torch.zeros(2, 3)).shape == (0,)


def quantizer(codes, counts, *, decay=0.75, **rest):
    """A quantizer with codes (K, D) that were chosen so often."""
    codes = torch.tensor(codes)
    result = build("ema", *codes.shape, decay=decay, **{"k_means": 0, **rest})
    result.counts.copy_(torch.tensor(counts))
    result.use.copy_(result.counts)
    result.codebook.copy_(codes)
    result.sums.copy_(codes * result.counts[:, None])
    result.ready.fill_(True)
    return result


def test_codes_follow_the_latents_as_worked_out_by_hand():
    """Codes 0 and 10, each with count 2. Latents 1, 2, 3 choose code 0 and 12 chooses code 10.

    counts: 0.75 * (2, 2) + 0.25 * (3, 1) = (2.25, 1.75); sums: 0.75 * (0, 20) + 0.25 * (6, 12) = (1.5, 18).
    """
    books = quantizer([[0.0], [10.0]], [2.0, 2.0])
    latents = torch.tensor([1.0, 2.0, 3.0, 12.0]).reshape(1, 2, 2, 1)
    codes, tokens, losses = books(latents, torch.zeros(2))
    assert losses.keys() == {"commitment"}
    assert tokens.tolist() == [[[0, 0], [0, 1]]]
    assert codes.flatten().tolist() == [0.0, 0.0, 0.0, 10.0]  # of the codebook as it was
    assert losses["commitment"].item() == pytest.approx((1 + 4 + 9 + 4) / 4)
    assert books.counts.tolist() == [2.25, 1.75]
    assert books.sums.flatten().tolist() == [1.5, 18.0]
    assert books.codebook.flatten().tolist() == pytest.approx([1.5 / 2.25, 18 / 1.75])


def test_gradients_pass_straight_through_and_the_commitment_pulls_latents_to_their_codes():
    """d/dz of sum(w * codes) is w; d/dz of mean((z - c)^2) over 4 numbers is (z - c) / 2."""
    books = quantizer([[0.0, 0.0], [10.0, 10.0]], [1.0, 1.0])
    latents = torch.tensor([[1.0, 2.0], [9.0, 12.0]]).reshape(1, 1, 2, 2).requires_grad_()
    weights = torch.tensor([[3.0, -1.0], [0.5, 7.0]]).reshape(1, 1, 2, 2)
    codes, _, losses = books(latents, torch.zeros(2))
    (through,) = torch.autograd.grad((weights * codes).sum(), latents, retain_graph=True)
    assert torch.equal(through, weights)
    (pull,) = torch.autograd.grad(losses["commitment"], latents)
    assert pull.flatten().tolist() == [0.5, 1.0, -0.5, 1.0]


def test_a_code_that_nobody_chooses_is_moved_onto_a_latent_of_the_batch():
    """Code 100 has count 0.08, then 0.06 < 0.05 * (4 latents / 2 codes): it moves onto latent 0.6 * 4 = number 2."""
    books = quantizer([[0.0], [100.0]], [2.0, 0.08])
    books(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1), torch.tensor([0.0, 0.6]))
    assert books.codebook.flatten().tolist() == pytest.approx([2.5 / 2.5, 3.0])  # sums 0 + 10 / 4, counts 1.5 + 1
    assert books.counts.tolist() == pytest.approx([2.5, 2.0])  # as if the moved code had its even share


def test_no_code_is_moved_when_restart_is_off_or_the_code_is_in_use():
    latents = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    for count, restart in ((0.08, False), (0.2, True)):
        books = quantizer([[0.0], [100.0]], [2.0, count])
        books(latents, torch.tensor([0.0, 0.6]), restart=restart)
        assert books.codebook[1].item() == pytest.approx(100.0)


def test_codes_start_on_latents_drawn_by_their_squared_distances():
    """k-means++ by hand. Of 0, 1, 3 the pick .5 takes number 1.5, rounded down: 1. Squared distances 1, 0, 4 reach up
    to 1, 1, 5: the pick .1 stands for .5 and takes 0; then 0, 0, 4 are left, and any pick takes 3."""
    books = build("ema", 3, 1, k_means=0)
    codes, tokens, _ = books(
        torch.tensor([0.0, 1.0, 3.0]).reshape(1, 1, 3, 1), torch.tensor([0.5, 0.1, 0.0]), restart=False
    )
    assert books.is_ready()
    assert codes.flatten().tolist() == [0.0, 1.0, 3.0]
    assert tokens.flatten().tolist() == [1, 0, 2]
    assert seeds(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0.5, 0.3])).flatten().tolist() == [1.0, 3.0]


def test_fewer_distinct_latents_than_codes_still_place_a_codebook():
    books = build("ema", 5, 2, k_means=0)
    codes, _, _ = books(torch.ones(1, 2, 2, 2), torch.rand(5))
    assert torch.equal(codes, torch.ones(1, 2, 2, 2))
    assert books.codebook.isfinite().all()


def test_nothing_moves_in_eval_mode():
    books = quantizer([[0.0], [10.0]], [2.0, 2.0]).eval()
    before = {name: buffer.clone() for name, buffer in books.named_buffers()}
    books(torch.randn(1, 3, 3, 1), torch.rand(2))
    assert all(torch.equal(before[name], buffer) for name, buffer in books.named_buffers())


def test_codes_settle_on_the_means_of_clusters():
    """Four clusters of deviation 0.01: after 300 batches every code is within 0.01 of a centre, and all are in use."""
    noise = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    books = build("ema", 4, 2, k_means=0, decay=0.9)
    for _ in range(300):
        chosen = torch.randint(4, (64,), generator=noise)
        latents = centres[chosen] + 0.01 * torch.randn(64, 2, generator=noise)
        books(latents.reshape(1, 8, 8, 2), torch.rand(4, generator=noise))
    distance = torch.cdist(centres, books.codebook)
    assert distance.min(1).values.max() < 0.01
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2, 3]


def test_two_processes_pick_the_rows_that_one_would(monkeypatch):
    """Each process contributes its own rows, zeros elsewhere; the sum over processes is what one process picks."""
    latents, picks = torch.arange(12.0).reshape(6, 2), torch.tensor([0.0, 0.2, 0.5, 0.99])
    expected = pick(latents, picks)
    monkeypatch.setattr("vqtool.distributed.total", lambda tensor: tensor)
    parts = []
    for rank in (0, 1):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        parts.append(pick(latents[3 * rank : 3 * rank + 3], picks))
    assert torch.equal(parts[0] + parts[1], expected)
    assert torch.equal(expected, latents[[0, 1, 3, 5]])


def started(name, codes, **options):
    """A quantizer that starts on codes (K, D), in training mode."""
    codes = torch.tensor(codes)
    result = build(name, *codes.shape, **options)
    with torch.no_grad():
        result.place(codes, 1.0)
    result.ready.fill_(True)
    return result


LATENTS, NO_PICKS = [[1.0, 2.0], [9.0, 12.0]], torch.zeros(2)


def test_the_terms_of_a_gradient_codebook_pull_each_side_to_the_other_alone():
    """By hand: both terms are (1 + 4 + 1 + 4) / 4. d commitment / dz = (z - c) / 2 and nothing for c; d codebook / dc
    is the opposite, and nothing for z. beta therefore weighs the commitment, not the codebook."""
    books = started("vq", [[0.0, 0.0], [10.0, 10.0]])
    latents = torch.tensor(LATENTS).reshape(1, 1, 2, 2).requires_grad_()
    codes, tokens, losses = books(latents, NO_PICKS)
    assert tokens.flatten().tolist() == [0, 1]
    assert (losses["commitment"].item(), losses["codebook"].item()) == (2.5, 2.5)
    pull = torch.autograd.grad(losses["commitment"], [latents, books.codebook], retain_graph=True, allow_unused=True)
    assert pull[0].flatten().tolist() == [0.5, 1.0, -0.5, 1.0]
    assert pull[1] is None
    push = torch.autograd.grad(losses["codebook"], [latents, books.codebook], retain_graph=True, allow_unused=True)
    assert push[0] is None
    assert push[1].tolist() == [[-0.5, -1.0], [0.5, -1.0]]
    through = torch.autograd.grad(codes.sum(), [latents, books.codebook], allow_unused=True)
    assert torch.equal(through[0], torch.ones_like(latents))
    assert through[1] is None


def test_the_rotation_turns_and_scales_the_gradient_as_it_turns_and_scales_the_latent():
    """By hand: the latent (3, 0) becomes the code (0, 2) by a quarter turn and 2/3. The gradient (a, b) of the code
    goes back by the transpose: 2/3 (b, -a). Straight-through would give (a, b)."""
    latents = torch.tensor([[3.0, 0.0]], requires_grad=True)
    code = torch.tensor([[0.0, 2.0]])
    moved = pass_gradient(latents, code, "rotation")
    assert torch.equal(moved, code)
    (found,) = torch.autograd.grad((torch.tensor([[5.0, 7.0]]) * moved).sum(), latents)
    assert found.flatten().tolist() == pytest.approx([2 / 3 * 7, -2 / 3 * 5])


def test_the_rotation_keeps_the_angle_between_gradient_and_vector():
    """In 8 dimensions: the angle of the gradient to the code is that of what arrives to the latent; lengths scale."""
    noise = torch.Generator().manual_seed(0)
    latents, codes, gradient = torch.randn(3, 20, 8, generator=noise).unbind(0)
    latents.requires_grad_()
    (found,) = torch.autograd.grad((gradient * pass_gradient(latents, codes, "rotation")).sum(), latents)
    cosines = [functional.cosine_similarity(a, b) for a, b in ((gradient, codes), (found, latents))]
    assert torch.allclose(*cosines, atol=1e-5)
    scale = codes.norm(dim=1) / latents.norm(dim=1)
    assert torch.allclose(found.norm(dim=1), scale * gradient.norm(dim=1), rtol=1e-4)


def test_a_latent_or_code_of_length_0_gives_no_gradient_that_is_not_finite():
    latents = torch.zeros(2, 3, requires_grad=True)
    pass_gradient(latents, torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), "rotation").sum().backward()
    assert latents.grad.isfinite().all()


@pytest.mark.parametrize("name", ["ema", "vq", "cosine", "simvq"])
def test_the_rotation_is_an_option_of_every_looked_up_codebook(name):
    books = started(name, [[0.0, 1.0], [1.0, 0.0]], gradient="rotation")
    latents = torch.tensor([[0.6, 0.8]]).reshape(1, 1, 1, 2).requires_grad_()
    codes, _, _ = books(latents, NO_PICKS)
    (found,) = torch.autograd.grad(codes[..., 0].sum(), latents)
    assert found.flatten().tolist() == pytest.approx([0.8, -0.6])  # from (0.6, 0.8) to (0, 1): turned by its own angle


def test_cosine_codes_are_directions_and_their_gradients_are_tangents():
    """By hand: v = (0, 2) is the code c = (0, 1), nearest to z = (.6, .8): |z - c|^2 = .36 + .04, halved by the mean
    over two numbers. dv = (I - c c^T) (c - z) / |v| = (-.6 / 2, 0)."""
    books = started("cosine", [[0.0, 2.0], [5.0, -5.0]])
    latents = torch.tensor([[0.6, 0.8]]).reshape(1, 1, 1, 2)
    codes, tokens, losses = books(latents, NO_PICKS)
    assert tokens.item() == 0
    assert codes.flatten().tolist() == [0.0, 1.0]
    assert losses["codebook"].item() == pytest.approx(0.2)
    (found,) = torch.autograd.grad(losses["codebook"], books.codebook)
    assert found.tolist() == [[pytest.approx(-0.3), pytest.approx(0.0)], [0.0, 0.0]]


def test_one_latent_moves_all_codes_of_simvq_and_the_basis_stays():
    """By hand: basis (1, 0), (2, 1), map I. z = (1, 2) is nearest to the second code; dW = basis^T (c - z) of that row,
    = (2, 1)^T (1, -1). A step of 1 against it makes W = [[-1, 2], [-1, 2]]: both codes move."""
    books = started("simvq", [[1.0, 0.0], [2.0, 1.0]])
    _, tokens, losses = books(torch.tensor([[1.0, 2.0]]).reshape(1, 1, 1, 2), NO_PICKS)
    assert tokens.item() == 1
    (found,) = torch.autograd.grad(losses["codebook"], books.map)
    assert found.tolist() == [[2.0, -2.0], [1.0, -1.0]]
    with torch.no_grad():
        books.map -= found
    assert books.effective_codebook().tolist() == [[-1.0, 2.0], [-3.0, 6.0]]
    assert books.basis.tolist() == [[1.0, 0.0], [2.0, 1.0]]


def test_a_dead_gradient_code_is_moved_before_the_batch_is_quantised():
    """Code 100 has count 0.08 < 0.05 * (4 latents / 2 codes): it moves onto latent 0.6 * 4 = number 2 and is chosen."""
    books = started("vq", [[0.0], [100.0]])
    books.use.copy_(torch.tensor([2.0, 0.08]))
    latents = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    _, tokens, _ = books(latents, torch.tensor([0.0, 0.6]))
    assert books.codebook.flatten().tolist() == [0.0, 3.0]
    assert tokens.flatten().tolist() == [0, 1, 1, 1]
    decay = 0.05 ** (2 / 100)  # falls to the share of the dead while an even code gets 100 latents
    assert books.use.tolist() == pytest.approx([decay * 2 + (1 - decay) * 1, decay * 2 + (1 - decay) * 3])
    books.use[1] = 0.08
    books(latents + 50, torch.tensor([0.0, 0.6]), restart=False)
    assert books.codebook.flatten().tolist() == [0.0, 3.0]


@pytest.mark.parametrize(("latents_a_batch", "steps"), [(4, 50), (20, 10), (400, 29)])
@pytest.mark.parametrize("name", ["ema", "vq", "cosine"])
def test_a_code_without_latents_is_dead_once_an_even_one_has_had_100_of_them(name, latents_a_batch, steps):
    """2 codes: 50 batches of 2 each, 10 of 10; but no sooner than log(0.05) / log(0.9) = 28.4 batches."""
    books = build(name, 2, 2)
    with torch.no_grad():
        books.place(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), latents_a_batch / 2)
    books.ready.fill_(True)
    latents = torch.tensor([[0.0, 1.0]]).expand(latents_a_batch, 2).reshape(1, 1, -1, 2)
    alive = 0
    while books.effective_codebook()[1, 1] < 0:
        books(latents, torch.zeros(2))
        alive += 1
    assert alive == pytest.approx(max(steps, 29), abs=2)


def test_k_means_starts_codes_on_the_means_that_scikit_learn_finds():
    from sklearn.cluster import KMeans

    noise = torch.Generator().manual_seed(0)
    flat = torch.randn(200, 3, generator=noise)
    picks = torch.rand(7, generator=noise)
    expected = KMeans(7, init=seeds(flat, picks).numpy(), n_init=1, max_iter=300, tol=0).fit(flat.numpy())
    found = k_means(flat, picks, 100)
    assert np.allclose(found.numpy(), expected.cluster_centers_, atol=1e-5)
    books = build("ema", 7, 3, k_means=100, decay=1.0)
    books(flat.view(2, 10, 10, 3), torch.rand(7, generator=torch.Generator().manual_seed(1)), restart=False)
    assert books.counts.tolist() == pytest.approx([200 / 7] * 7)  # an even use, until they are followed


def lattice(levels):
    return build("fsq", math.prod(levels), len(levels), levels=levels)


def test_levels_are_the_middles_of_equal_intervals():
    """By hand: 3 levels are -2/3, 0, 2/3 with borders -1/3 and 1/3; 2 levels are -1/2, 1/2. Tokens count 2 i + j."""
    books = lattice((3, 2))
    assert torch.allclose(
        books.effective_codebook(),
        torch.tensor([[-2 / 3, -0.5], [-2 / 3, 0.5], [0, -0.5], [0, 0.5], [2 / 3, -0.5], [2 / 3, 0.5]]),
    )
    latents = torch.tensor([[-0.99, 0.1], [-0.34, -0.1], [-0.32, -0.1], [0.99, 0.99]]).reshape(1, 2, 2, 2)
    latents.requires_grad_()
    codes, tokens, losses = books(latents, NO_PICKS)
    assert tokens.flatten().tolist() == [1, 0, 2, 5]
    assert torch.equal(codes.reshape(-1, 2), books.effective_codebook()[tokens.flatten()])
    assert losses == {}
    assert torch.equal(torch.autograd.grad(codes.sum(), latents)[0], torch.ones_like(latents))


def test_signs_are_the_corners_of_a_cube_and_their_entropy_is_that_of_all_codes():
    """Against sums over all corners: p(c | z) of exp(-|z - c|^2 / tau)."""
    books = build("lfq", 8, 3, entropy_temperature=0.7)
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 2, 2, 3, generator=noise, dtype=torch.float64).requires_grad_()
    codes, tokens, losses = books(latents, NO_PICKS)
    corners = books.effective_codebook()
    assert corners[0].tolist() == [-1, -1, -1]
    assert corners[4].tolist() == [1, -1, -1]
    assert torch.equal(codes, latents.sign())
    assert torch.equal(corners[tokens].double(), codes)
    flat = latents.flatten(0, 2)
    shares = torch.softmax(-(flat[:, None] - corners).square().sum(-1) / 0.7, 1)
    mean = shares.mean(0)
    expected = -(shares * shares.log()).sum(1).mean() + (mean * mean.log()).sum()
    assert losses["entropy"].item() == pytest.approx(expected.item(), abs=1e-5)
    (found,) = torch.autograd.grad(losses["entropy"], latents, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, latents)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert losses["commitment"].item() == pytest.approx((latents - codes).square().mean().item(), rel=1e-6)


def test_the_mean_over_processes_has_the_gradient_that_is_right_once_it_is_averaged(monkeypatch):
    """Two processes hold half of the rows each. Of f(mean) = mean^2 the gradient by a row is 2 mean / 4; each process
    finds 2 mean / 2 for its own rows, which are halved where gradients are averaged over the two."""
    rows = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for half, other in ((rows[:2], rows[2:]), (rows[2:], rows[:2])):
        monkeypatch.setattr("vqtool.distributed.total", lambda tensor, other=other: tensor + other.mean(0))
        own = half.clone().requires_grad_()
        mean = _mean(own)
        assert mean.item() == 3.0
        assert torch.autograd.grad(mean.square().sum(), own)[0].flatten().tolist() == [3.0, 3.0]


def test_lfq_of_many_dimensions_needs_no_table():
    books = build("lfq", 2**24, 24)
    latents = torch.randn(1, 2, 2, 24, generator=torch.Generator().manual_seed(0))
    _, tokens, losses = books(latents, NO_PICKS)
    bits = (tokens[..., None] // books.strides) % 2
    assert torch.equal(bits > 0, latents > 0)
    assert losses["entropy"].isfinite()


def shape_of(name):
    """(K, D) of a small codebook and the options that make it, of any quantizer."""
    options = {"levels": (5, 3, 2)} if "levels" in quantizers.option_names(name) else {}
    options |= {"code_dim": 5} if "code_dim" in quantizers.option_names(name) else {}
    return *quantizers.choose_options(name, options).shape(32, 5), options


@pytest.mark.parametrize("name", quantizers.NAMES)
def test_a_tokenizer_finds_the_tokens_and_codes_that_the_quantizer_trained_with(name):
    """Contract of all: lookup and codebook of the finished tokenizer give what the quantizer gave."""
    size, dim, options = shape_of(name)
    torch.manual_seed(0)
    config = VqVaeConfig(size, dim, channels=(16, 16), encoder_blocks=(0, 1), decoder_blocks=(1, 0))
    tokenizer = Tokenizer(config, lookup=quantizers.find(name).Quantizer.lookup)
    books = build(name, size, dim, **options)
    latents = tokenizer.latents(8 * torch.randn(4, 3, 16, 16)).detach()
    books(latents, torch.rand(size))
    books.eval()
    codes, tokens, losses = books(latents, torch.rand(size))
    tokenizer.codebook.copy_(books.effective_codebook().detach())
    assert torch.equal(tokenizer.look_up(latents.flatten(0, 2)).view_as(tokens), tokens)
    assert torch.allclose(tokenizer.codebook[tokens], codes)
    assert losses.keys() == books.weights.keys()
    assert len(tokens.unique()) > 4


@pytest.mark.parametrize("name", quantizers.NAMES)
def test_a_saved_quantizer_goes_on_as_it_would_have(name):
    size, dim, options = shape_of(name)
    one, other = (build(name, size, dim, **options) for _ in range(2))
    noise = torch.Generator().manual_seed(0)

    def batch():
        return torch.rand(2, 8, 8, dim, generator=noise) * 2 - 1, torch.rand(size, generator=noise)

    one(*batch())
    other.load_state_dict(one.state_dict())
    latents, picks = batch()
    for a, b in zip(one(latents, picks)[:2], other(latents, picks)[:2], strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("none", 4, 2), {}, "unknown quantizer 'none': known are ema"),
        (("fsq", 2, 2), {"levels": (2, 1)}, "`levels` 1: must be 2 or more"),
        (("ema", 4, 2), {"gradient": "none"}, "`gradient` none: unknown; known are straight-through, rotation"),
        (("lfq", 4, 2), {"gradient": "rotation"}, "`gradient` is for `quantizer` ema, vq, cosine, simvq, not for lfq"),
        (("simvq", 4, 2), {"restart": False}, "`restart` is for `quantizer` ema, vq, cosine, not for simvq"),
    ],
)
def test_what_a_quantizer_does_not_take_is_an_error_that_says_who_does(arguments, options, message):
    with pytest.raises(VqtoolError, match=message):
        build(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("fsq", 4, 2), {"levels": (3, 2)}, "levels .* do not make 4 codes of 2 numbers"),
        (("lfq", 6, 2), {}, "6 codes are not the 4 corners"),
    ],
)
def test_a_codebook_of_another_shape_is_an_error_of_the_caller(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments, **options)


@pytest.mark.parametrize("name", quantizers.NAMES)
def test_what_a_quantizer_states_is_read_from_its_file_and_weighs_its_terms(name):
    """Contract of all: options are stated by `option`, and no restart means that codes stay where they are."""
    stated = read_options(f"tokenizers/quantizers/{name}.py")
    assert [each.name for each in stated] == [each.name for each in options_of(quantizers.find(name).Options)]
    assert {each.name for each in stated} == quantizers.option_names(name)
    size, dim, options = shape_of(name)
    weighed = [each.name for each in stated if each.name in ("commitment", "codebook_weight", "entropy")]
    books = build(name, size, dim, **options, **{part: 10.0 + i for i, part in enumerate(weighed)})
    assert sorted(books.weights.values()) == [10.0 + i for i in range(len(weighed))]
