"""Noise: fixed by (seed, stream, index, step) alone, equal to Philox as published, uniform."""

import numpy as np
import pytest
import torch

from vqtool import rng

MASK = 2**64 - 1


def philox(counter, key):
    """Philox-4x64-10 as published (Salmon et al. 2011), in plain integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


def test_the_reference_generator_gives_the_published_known_answers():
    """Random123's kat_vectors, philox4x64 10."""
    assert philox((0, 0, 0, 0), (0, 0)) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    assert philox((MASK,) * 4, (MASK,) * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "stream", "index", "step"), [(0, 0, 0, 0), (1, 2, 3, 4), (rng.MAX_SEED, 4, 2**62, 999)]
)
def test_noise_is_the_high_53_bits_of_philox(seed, stream, index, step):
    blocks = [philox((block, index, step, 0), (seed, stream)) for block in (1, 2, 3)]  # NumPy counts up, then draws
    expected = [(word >> 11) / 2**53 for block in blocks for word in block][:10]
    found = rng.uniform(seed, [index], step, (2, 5), stream=stream)
    assert found.dtype == torch.float64
    assert found.flatten().tolist() == expected


@pytest.mark.parametrize(
    ("seed", "stream", "index", "step"),
    [(0, 0, 0, 0), (1, 2, 3, 4), (rng.MAX_SEED, MASK, 2**63 - 1, 999), (2**33 + 5, 2**32, 2**32 - 1, 2**40 + 1)],
)
def test_integer_arithmetic_gives_the_raw_outputs_of_numpys_generator(seed, stream, index, step):
    own = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array([0, index, step, 0], np.uint64))
    found = rng.philox(seed, stream, torch.tensor([index]), step, 4099)
    assert np.array_equal(found[0].numpy().view(np.uint64), own.random_raw(4099))


@pytest.mark.parametrize("shape", [(), (1,), (6,), (64,)])
def test_noise_of_many_samples_at_once_is_that_of_each_alone(shape):
    indices = [*range(200, 330), 2**62, 5]
    together = rng.uniform(3, indices, 7, shape, stream=2)
    alone = torch.cat([rng.uniform(3, [index], 7, shape, stream=2) for index in indices])
    assert together.dtype == torch.float64
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array, iter])
def test_indices_may_be_a_range_a_list_an_array_or_a_tensor(kind):
    whole = range(3, 90)
    assert torch.equal(rng.uniform(0, kind(list(whole)), 1, (2,)), rng.uniform(0, whole, 1, (2,)))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(), (6,), (2, 16, 16)])
@pytest.mark.parametrize("seed", [0, rng.MAX_SEED])
def test_noise_has_the_same_bits_on_every_device(gpu, seed, shape):
    found = rng.uniform(seed, range(5, 105), 3, shape, stream=2, device=gpu)
    assert found.device.type == gpu.type
    assert torch.equal(found.cpu(), rng.uniform(seed, range(5, 105), 3, shape, stream=2))


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    whole = rng.uniform(7, range(10), 3, (4, 5))
    for size in (1, 3, 10):
        parts = [rng.uniform(7, torch.arange(i, min(i + size, 10)), 3, (4, 5)) for i in range(0, 10, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(rng.uniform(7, [9, 2], 3, (4, 5)), whole[[9, 2]])


def test_a_longer_draw_begins_with_the_shorter_one():
    assert torch.equal(rng.uniform(0, [1], 2, (9,))[:, :4], rng.uniform(0, [1], 2, (4,)))


def test_seeds_streams_indices_and_steps_give_different_noise():
    draws = [
        rng.uniform(seed, [index], step, (2,), stream=stream)[0, 0].item()
        for seed in (0, 1) for stream in (0, 1) for index in (0, 1) for step in (0, 1)
    ]  # fmt: skip
    draws += [
        rng.generator(seed, step, stream=stream).random() for seed in (0, 1) for stream in (0, 1) for step in (0, 1)
    ]
    assert len(set(draws)) == len(draws)


def test_noise_is_uniform_across_samples_steps_and_cells():
    """Chi-square of 200,000 numbers in 256 bins; false-alarm rate 1e-6 (255 degrees of freedom: 380)."""
    noise = torch.cat([rng.uniform(5, range(1000), step, (10,)) for step in range(20)])
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.histc(noise, 256, 0, 1)
    expected = noise.numel() / 256
    assert float(((counts - expected).square() / expected).sum()) < 380


def test_neighbouring_samples_and_steps_are_uncorrelated():
    """Correlation of 100,000 pairs has deviation 0.0032; 5.5 of them: false-alarm rate 4e-8 each."""
    one = rng.uniform(5, range(1000), 0, (100,))
    for other in (rng.uniform(5, range(1, 1001), 0, (100,)), rng.uniform(5, range(1000), 1, (100,))):
        correlation = np.corrcoef(one.flatten(), other.flatten())[0, 1]
        assert abs(correlation) < 5.5 / np.sqrt(one.numel())


def test_empty_batches_and_shapes_are_empty():
    assert rng.uniform(0, [], 0, (2, 3)).shape == (0, 2, 3)
    assert rng.uniform(0, [1, 2], 0, (0, 3)).shape == (2, 0, 3)
    assert rng.uniform(0, [1, 2], 0, ()).shape == (2,)


def test_an_epoch_visits_each_item_once_in_an_order_of_its_own():
    orders = [rng.permutation(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(rng.permutation(1, 1, 50), orders[3])


def test_every_permutation_is_equally_likely():
    """Chi-square over the 6 orders of 3 items in 6,000 epochs; false-alarm rate 1e-6 (5 degrees of freedom: 37)."""
    orders = [tuple(rng.permutation(3, epoch, 3)) for epoch in range(6000)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 37
