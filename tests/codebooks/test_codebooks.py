"""Seeding against its exact law, k-means against scikit-learn, and what is said of vectors that cannot be fitted."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from support.commands import TINY, build_tokenizer, write_pictures

from vqtool.codebooks import fitting
from vqtool.codebooks.fitting import K_MEANS, fit_codebook, measure_fit
from vqtool.codebooks.rebuilt import same_latents, with_codebook, with_codes
from vqtool.codebooks.seeding import SEEDINGS, afk_mc2
from vqtool.codebooks.vectors import sample_latents
from vqtool.errors import FormatError, VqtoolError
from vqtool.images import find_images
from vqtool.tokenizers import Tokenizer

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


def test_equal_points_are_seeds_only_once_while_others_are_left():
    """Far from the origin, where a difference of squares in float32 says nothing: 8 spots, each 50 times."""
    spots = 1000 + np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    seeds = afk_mc2(np.repeat(spots, 50, 0), 8, np.random.default_rng(0))
    assert sorted(seeds[:, 0].tolist()) == sorted(spots[:, 0].tolist())


def test_afk_mc2_reads_vectors_from_a_file(tmp_path):
    points = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
    points.tofile(tmp_path / "points")
    mapped = np.memmap(tmp_path / "points", np.float32, "r", shape=points.shape)
    seeds = [afk_mc2(vectors, 20, np.random.default_rng(1)) for vectors in (points, mapped)]
    np.testing.assert_array_equal(*seeds)


def test_afk_mc2_seeds_as_well_as_scikit_learn_seeds():
    """After Lloyd the inertias are within 2 %, over three seeds each."""
    points = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    mean = {
        name: np.mean(
            [
                KMeans(64, init=seeding(points, 64, np.random.default_rng(seed)), n_init=1).fit(points).inertia_
                for seed in range(3)
            ]
        )
        for name, seeding in SEEDINGS.items()
    }
    assert mean["afk-mc2"] == pytest.approx(mean["k-means++"], rel=0.02)


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
    monkeypatch.setattr(fitting, "MINI_BATCH_FROM", 100)
    _, vectors = blobs(8)
    codebook = fit_codebook(vectors, 8, seeding="k-means++", noise=np.random.default_rng(0))
    assert measure_fit(vectors, codebook).error < 0.1  # the clusters' own is 3 * 0.1^2


def test_mini_batches_come_near_lloyd():
    vectors = torch.randn(6000, 4, generator=torch.Generator().manual_seed(0))
    errors = [
        measure_fit(
            vectors, fit_codebook(vectors, 30, seeding="afk-mc2", noise=np.random.default_rng(0), k_means=method)
        ).error
        for method in K_MEANS
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_a_fit_in_blocks_is_the_fit(monkeypatch):
    vectors, codebook = torch.randn(100, 4), torch.randn(8, 4)
    whole = measure_fit(vectors, codebook)
    monkeypatch.setattr(fitting, "BLOCK_ROWS", 7)
    parts = measure_fit(vectors, codebook)
    assert (parts.usage, parts.perplexity) == (whole.usage, whole.perplexity)
    assert parts.error == pytest.approx(whole.error, rel=1e-6)


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


def test_vectors_in_a_file_are_those_in_memory(tmp_path):
    tokenizer = build_tokenizer()
    items = find_images([write_pictures(tmp_path / "imgs", 5)])
    common = (items, tokenizer, (16, 16), 15)
    inside = sample_latents(*common, np.random.default_rng(0))
    outside = sample_latents(*common, np.random.default_rng(0), file=tmp_path / "vectors")
    assert torch.equal(inside, outside)
    assert (tmp_path / "vectors").stat().st_size == 15 * 4 * 4
    with pytest.raises(VqtoolError, match="gone/vectors: cannot be written"):
        sample_latents(*common, np.random.default_rng(0), file=tmp_path / "gone" / "vectors")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path):
    items = find_images([write_pictures(tmp_path / "imgs", 2)])
    with pytest.raises(VqtoolError, match="/dev/full: cannot be written: No space left"):
        sample_latents(items, build_tokenizer(), (16, 16), 8, np.random.default_rng(0), file=Path("/dev/full"))


def with_lookup(lookup, num_full_codes=None):
    """A tokenizer with the networks of the small one and a lookup of random codes."""
    noise = torch.Generator().manual_seed(1)
    networks = {name: tensor for name, tensor in build_tokenizer().state_dict().items() if name != "codebook"}
    tokenizer = Tokenizer(TINY, lookup=lookup, num_full_codes=num_full_codes).eval()
    rows = num_full_codes or 16
    full = torch.nn.functional.normalize(torch.randn(rows, 4, generator=noise), dim=1)
    codes = {"codebook": full[:16]}
    if num_full_codes:
        codes["code_map"] = torch.arange(rows) % 16
    if lookup == "projection":
        codes |= {"projection": full, "projection_bias": 0.1 * torch.randn(rows, generator=noise)}
    elif num_full_codes:
        codes["full_codebook"] = full
    tokenizer.load_state_dict(networks | codes)
    return tokenizer


@pytest.mark.parametrize("num_full_codes", [None, 40])
@pytest.mark.parametrize("lookup", ["nearest", "cosine", "projection"])
def test_some_codes_of_any_tokenizer_decode_and_encode_as_all_of_them_do(lookup, num_full_codes):
    """The token kept is that of all codes wherever that is kept; with a code map, wherever its first full code won."""
    tokenizer, kept = with_lookup(lookup, num_full_codes), np.array([2, 3, 5, 8, 13])
    few = with_codes(tokenizer, kept)
    grid = torch.randint(5, (2, 2, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(few.decode(grid), tokenizer.decode(torch.from_numpy(kept)[grid]))
    assert same_latents(few, tokenizer)
    vectors = torch.nn.functional.normalize(torch.randn(500, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    tokens, fewer = tokenizer.look_up(vectors), torch.from_numpy(kept)[few.look_up(vectors)]
    if lookup == "projection":
        full = (vectors @ tokenizer.projection.T + tokenizer.projection_bias).argmax(1)
    else:
        codes = tokenizer.codebook if num_full_codes is None else tokenizer.full_codebook
        full = torch.cdist(vectors, codes).argmin(1)
    first = (full < 16) & torch.isin(full, torch.from_numpy(kept))
    assert first.sum() > 20
    assert torch.equal(tokens[first], fewer[first])


def test_codes_on_the_sphere_stay_on_it_and_a_code_map_ends(tmp_path):
    tokenizer = with_lookup("cosine", 40)
    new = with_codebook(tokenizer, 3 * tokenizer.codebook[:4])
    assert torch.allclose(new.codebook, tokenizer.codebook[:4])
    assert (new.num_full_codes, new.codebook_size, new.lookup) == (None, 4, "cosine")
    images = 2 * torch.rand(3, 3, 16, 16) - 1
    assert torch.equal(new.latents(images), tokenizer.latents(images))
    assert torch.equal(
        new.encode(images), torch.cdist(tokenizer.latents(images).flatten(0, 2), new.codebook).argmin(1).view(3, 2, 2)
    )


def test_latents_are_compared_by_encoding():
    tokenizer = build_tokenizer()
    assert same_latents(tokenizer, with_codebook(tokenizer, torch.zeros(3, 4)))
    assert not same_latents(tokenizer, build_tokenizer(seed=1))
    assert not same_latents(tokenizer, with_lookup("cosine"))
