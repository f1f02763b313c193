"""The nearest code, and the codebook that follows the latents: numbers worked out by hand."""

import pytest
import torch

from vqtool.tokenizers import quantizers
from vqtool.tokenizers.quantizers import EmaQuantizer, highest, nearest


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("distance_bytes", [1, 4 * 100 * 13, 1 << 28])
def test_the_nearest_code_is_that_of_a_full_search(monkeypatch, size, distance_bytes):
    monkeypatch.setattr(quantizers, "DISTANCE_BYTES", distance_bytes)
    noise = torch.Generator().manual_seed(size)
    vectors, codebook = torch.randn(50, 5, generator=noise), torch.randn(size, 5, generator=noise)
    found = nearest(vectors, codebook)
    assert found.dtype == torch.int64
    assert torch.equal(found, (vectors[:, None].double() - codebook.double()).square().sum(2).argmin(1))


@pytest.mark.parametrize(("codes", "budget"), [(1 << 18, 1 << 16), (1 << 18, 1 << 22), (1000, 1 << 14)])
def test_a_search_never_holds_more_distances_than_its_budget(monkeypatch, codes, budget):
    """Also for K = 262144: smaller blocks of codes where one row of distances is too much."""
    monkeypatch.setattr(quantizers, "DISTANCE_BYTES", budget)
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
    monkeypatch.setattr(quantizers, "DISTANCE_BYTES", budget)
    noise = torch.Generator().manual_seed(1)
    vectors, weight, bias = (torch.randn(*shape, generator=noise) for shape in ((20, 4), (7, 4), (7,)))
    assert torch.equal(highest(vectors, weight, bias), (vectors @ weight.T + bias).argmax(1))


@pytest.mark.parametrize("budget", [8, 1 << 28])
def test_of_equal_codes_the_first_is_chosen(monkeypatch, budget):
    monkeypatch.setattr(quantizers, "DISTANCE_BYTES", budget)
    assert nearest(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]])).tolist() == [1]


def test_no_vectors_have_no_tokens():
    assert nearest(torch.empty(0, 3), torch.zeros(2, 3)).shape == (0,)


def quantizer(codes, counts, *, decay=0.75, **rest):
    """A quantizer with codes (K, D) that were chosen so often."""
    codes = torch.tensor(codes)
    result = EmaQuantizer(*codes.shape, decay=decay, **rest)
    result.counts.copy_(torch.tensor(counts))
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
    codes, commitment, tokens = books(latents, torch.zeros(2))
    assert tokens.tolist() == [[[0, 0], [0, 1]]]
    assert codes.flatten().tolist() == [0.0, 0.0, 0.0, 10.0]  # of the codebook as it was
    assert commitment.item() == pytest.approx((1 + 4 + 9 + 4) / 4)
    assert books.counts.tolist() == [2.25, 1.75]
    assert books.sums.flatten().tolist() == [1.5, 18.0]
    assert books.codebook.flatten().tolist() == pytest.approx([1.5 / 2.25, 18 / 1.75])


def test_gradients_pass_straight_through_and_the_commitment_pulls_latents_to_their_codes():
    """d/dz of sum(w * codes) is w; d/dz of mean((z - c)^2) over 4 numbers is (z - c) / 2."""
    books = quantizer([[0.0, 0.0], [10.0, 10.0]], [1.0, 1.0])
    latents = torch.tensor([[1.0, 2.0], [9.0, 12.0]]).reshape(1, 1, 2, 2).requires_grad_()
    weights = torch.tensor([[3.0, -1.0], [0.5, 7.0]]).reshape(1, 1, 2, 2)
    codes, commitment, _ = books(latents, torch.zeros(2))
    (through,) = torch.autograd.grad((weights * codes).sum(), latents, retain_graph=True)
    assert torch.equal(through, weights)
    (pull,) = torch.autograd.grad(commitment, latents)
    assert pull.flatten().tolist() == [0.5, 1.0, -0.5, 1.0]


def test_a_code_that_nobody_chooses_is_moved_onto_a_latent_of_the_batch():
    """Code 100 has count 0.08, then 0.06 < 0.05 * (4 latents / 2 codes): it moves onto latent 0.6 * 4 = number 2."""
    books = quantizer([[0.0], [100.0]], [2.0, 0.08])
    books(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1), torch.tensor([0.0, 0.6]))
    assert books.codebook.flatten().tolist() == pytest.approx([2.5 / 2.5, 3.0])  # sums 0 + 10 / 4, counts 1.5 + 1
    assert books.counts.tolist() == pytest.approx([2.5, 2.0])  # as if the moved code had its even share


def test_no_code_is_moved_when_revival_is_off_or_the_code_is_in_use():
    latents = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    for count, revive in ((0.08, False), (0.2, True)):
        books = quantizer([[0.0], [100.0]], [2.0, count])
        books(latents, torch.tensor([0.0, 0.6]), revive=revive)
        assert books.codebook[1].item() == pytest.approx(100.0)


def test_the_first_batch_places_the_codebook_on_its_latents():
    books = EmaQuantizer(4, 2)
    latents = torch.arange(16.0).reshape(1, 2, 4, 2)
    codes, _, tokens = books(latents, torch.tensor([0.0, 0.3, 0.5, 0.99]), revive=False)
    placed = latents.reshape(-1, 2)[[0, 2, 4, 7]]
    assert bool(books.ready)
    assert torch.equal(codes.reshape(-1, 2)[[0, 2, 4, 7]], placed)
    assert tokens.flatten()[[0, 2, 4, 7]].tolist() == [0, 1, 2, 3]


def test_nothing_moves_in_eval_mode():
    books = quantizer([[0.0], [10.0]], [2.0, 2.0]).eval()
    before = {name: buffer.clone() for name, buffer in books.named_buffers()}
    books(torch.randn(1, 3, 3, 1), torch.rand(2))
    assert all(torch.equal(before[name], buffer) for name, buffer in books.named_buffers())


def test_codes_settle_on_the_means_of_clusters():
    """Four clusters of deviation 0.01: after 300 batches every code is within 0.01 of a centre, and all are in use."""
    noise = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    books = EmaQuantizer(4, 2, decay=0.9)
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
    expected = quantizers._pick(latents, picks)
    monkeypatch.setattr(quantizers, "_total", lambda tensor: tensor)
    parts = []
    for rank in (0, 1):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        parts.append(quantizers._pick(latents[3 * rank : 3 * rank + 3], picks))
    assert torch.equal(parts[0] + parts[1], expected)
    assert torch.equal(expected, latents[[0, 1, 3, 5]])
