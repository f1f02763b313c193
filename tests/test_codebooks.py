"""Seeding against its exact law, k-means against scikit-learn, and what is said of vectors that cannot be fitted."""

import itertools

import numpy as np
import pytest
import torch
from conftest import build_tokenizer, write_pictures
from sklearn.cluster import KMeans

from vqtool.codebooks.rebuilt import with_codebook
from vqtool.codebooks.refit import fit_codebook, measure_fit
from vqtool.codebooks.seeding import SEEDINGS, afk_mc2
from vqtool.codebooks.vectors import sample_latents
from vqtool.errors import FormatError, VqtoolError
from vqtool.images import find_images

POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 1.0]], np.float32)


def distances(points, chosen):
    """Squared distances (N,) to the nearest of the chosen points."""
    return np.square(points[:, None] - points[list(chosen)]).sum(2).min(1)


def chain_law(target, proposal, length):
    """Exact law (N,) of where a Metropolis-Hastings chain with independent proposals ends: its matrix to a power."""
    num = len(target)
    matrix = np.zeros((num, num))
    for i, j in itertools.product(range(num), range(num)):
        if i != j:
            ratio = target[j] * proposal[i] / (target[i] * proposal[j]) if target[i] > 0 else float(target[j] > 0)
            matrix[i, j] = proposal[j] * min(1.0, ratio)
    matrix += np.diag(1 - matrix.sum(1))
    return proposal @ np.linalg.matrix_power(matrix, length - 1)


def seeding_law(points, length):
    """Exact probability of every ordered triple of seeds that AFK-MC2 can choose."""
    num = len(points)
    law = {}
    for first in range(num):
        d = distances(points, [first])
        proposal = 0.5 * d / d.sum() + 0.5 / num
        for second, p2 in enumerate(chain_law(d, proposal, length)):
            target = distances(points, [first, second])
            for third, p3 in enumerate(chain_law(target, proposal, length)):
                law[first, second, third] = p2 * p3 / num
    return law


@pytest.mark.parametrize("length", [1, 2, 5])
def test_afk_mc2_has_the_law_of_its_markov_chain(length):
    """Chi-square of 10,000 seedings against the enumerated chain; false-alarm rate 1e-6 for each length."""
    from scipy.stats import chi2

    law = seeding_law(POINTS, length)
    assert sum(law.values()) == pytest.approx(1)
    noise = np.random.default_rng(length)
    place = {tuple(point): i for i, point in enumerate(POINTS.tolist())}
    counts = dict.fromkeys(law, 0)
    for _ in range(10_000):
        counts[tuple(place[tuple(seed)] for seed in afk_mc2(POINTS, 3, noise, chain_length=length).tolist())] += 1
    often = [triple for triple in law if 10_000 * law[triple] >= 5]
    rare = [triple for triple in law if 10_000 * law[triple] < 5]
    expected = [10_000 * law[triple] for triple in often] + [10_000 * sum(law[triple] for triple in rare)]
    found = [counts[triple] for triple in often] + [sum(counts[triple] for triple in rare)]
    assert sum(found) == 10_000
    statistic = sum((f - e) ** 2 / e for f, e in zip(found, expected, strict=True) if e > 0)
    assert statistic < chi2.isf(1e-6, sum(e > 0 for e in expected) - 1)


def test_long_chains_of_afk_mc2_approach_k_means_plus_plus():
    """With m = 200 the exact law is within 0.1 % of d^2 sampling, so the cheap method may replace the exact one."""
    law = seeding_law(POINTS, 200)
    for first, second, third in law:
        one, two = distances(POINTS, [first]), distances(POINTS, [first, second])
        expected = one[second] / one.sum() * two[third] / two.sum() / len(POINTS)
        assert law[first, second, third] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("seeding", sorted(SEEDINGS))
def test_seeds_are_distinct_points_and_depend_on_the_noise_alone(seeding):
    points = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    seeds = SEEDINGS[seeding](points, 50, np.random.default_rng(1))
    assert seeds.shape == (50, 4)
    assert len(np.unique(seeds, axis=0)) == 50
    assert {tuple(seed) for seed in seeds.tolist()} <= {tuple(point) for point in points.tolist()}
    assert np.array_equal(SEEDINGS[seeding](points, 50, np.random.default_rng(1)), seeds)
    assert not np.array_equal(SEEDINGS[seeding](points, 50, np.random.default_rng(2)), seeds)


def test_afk_mc2_takes_points_that_are_all_the_same():
    assert afk_mc2(np.ones((5, 2), np.float32), 3, np.random.default_rng(0)).tolist() == [[1, 1]] * 3


def blobs(num_clusters, each=40, dim=3):
    noise = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(num_clusters, dim, generator=noise)
    return centres, (centres[:, None] + 0.1 * torch.randn(num_clusters, each, dim, generator=noise)).flatten(0, 1)


@pytest.mark.parametrize("seeding", sorted(SEEDINGS))
def test_codes_are_the_means_of_well_separated_clusters(seeding):
    _, vectors = blobs(8)
    codebook = fit_codebook(vectors, 8, seeding=seeding, noise=np.random.default_rng(0))
    means = vectors.reshape(8, 40, 3).mean(1)
    assert codebook.dtype == torch.float32
    assert torch.allclose(codebook[torch.cdist(means, codebook).argmin(1)], means, atol=1e-4)


def test_the_fit_is_as_close_as_that_of_scikit_learn():
    vectors = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    codebook = fit_codebook(vectors, 20, seeding="k-means++", noise=np.random.default_rng(0))
    reference = KMeans(20, n_init=1, random_state=0).fit(vectors.numpy())
    assert measure_fit(vectors, codebook).error == pytest.approx(reference.inertia_ / 600, rel=0.03)


def test_many_vectors_are_fitted_in_mini_batches(monkeypatch):
    from vqtool.codebooks import refit

    monkeypatch.setattr(refit, "MINI_BATCH_FROM", 100)
    _, vectors = blobs(8)
    codebook = fit_codebook(vectors, 8, seeding="k-means++", noise=np.random.default_rng(0))
    assert measure_fit(vectors, codebook).error < 0.1  # the clusters' own is 3 * 0.1^2


def test_the_fit_is_measured_as_defined():
    """Vectors 0, 1, 5 on codes 0, 4, 100: two of three in use, shares 2/3 and 1/3, squared errors 0, 1, 1."""
    fit = measure_fit(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [4.0], [100.0]]))
    assert fit.usage == pytest.approx(2 / 3)
    assert fit.error == pytest.approx(2 / 3)
    assert fit.perplexity == pytest.approx(np.exp(np.log(3) - 2 / 3 * np.log(2)))


def test_fewer_distinct_vectors_than_codes_are_refused_with_the_remedy():
    vectors = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
    with pytest.raises(VqtoolError, match=r"3 distinct vectors cannot make 4 codes: give more images"):
        fit_codebook(vectors, 4, seeding="k-means++", noise=np.random.default_rng(0))
    fitted = fit_codebook(vectors, 3, seeding="k-means++", noise=np.random.default_rng(0))
    assert sorted(fitted.flatten().tolist()) == [0, 1, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(bad):
    with pytest.raises(VqtoolError, match="not finite"):
        fit_codebook(torch.tensor([[0.0], [bad]]), 2, seeding="afk-mc2", noise=np.random.default_rng(0))


def test_refitting_brings_every_code_into_use_and_keeps_the_networks(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.codebook.copy_(100 + torch.arange(16.0)[:, None] * torch.ones(4))  # far from all latents: one in use
    items = find_images([write_pictures(tmp_path / "imgs", 30)])
    vectors = sample_latents(items, tokenizer, (16, 16), 120, np.random.default_rng(0))
    before = measure_fit(vectors, tokenizer.codebook)
    new = with_codebook(tokenizer, fit_codebook(vectors, 24, seeding="k-means++", noise=np.random.default_rng(0)))
    after = measure_fit(vectors, new.codebook)
    assert before.usage == pytest.approx(1 / 16)
    assert after.usage == 1
    assert after.error < before.error
    assert (new.codebook_size, tokenizer.codebook_size) == (24, 16)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(new.latents(images), tokenizer.latents(images))


def test_vectors_come_evenly_from_the_images_and_are_what_the_encoder_makes(tmp_path):
    tokenizer = build_tokenizer()
    items = find_images([write_pictures(tmp_path / "imgs", 5)])
    with torch.no_grad():
        everything = sample_latents(items, tokenizer, (16, 16), 1000, np.random.default_rng(0))  # as many as there are
        some = sample_latents(items, tokenizer, (16, 16), 10, np.random.default_rng(0))
    assert everything.shape == (20, 4)
    assert some.shape == (10, 4)
    origin = torch.cdist(some, everything, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert origin.values.max() < 1e-5
    assert torch.bincount(origin.indices // 4, minlength=5).tolist() == [2] * 5


def test_a_bad_image_is_left_out_of_the_vectors_or_raises(tmp_path):
    tokenizer = build_tokenizer()
    folder = write_pictures(tmp_path / "imgs", 3)
    (folder / "01.png").write_bytes(b"no image")
    items, bad = find_images([folder]), []
    vectors = sample_latents(
        items, tokenizer, (16, 16), 99, np.random.default_rng(0), on_error=lambda item, error: bad.append(item.id)
    )
    assert vectors.shape == (8, 4)
    assert bad == ["01"]
    with pytest.raises(FormatError, match=r"01\.png"):
        sample_latents(items, tokenizer, (16, 16), 99, np.random.default_rng(0))
