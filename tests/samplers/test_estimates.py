"""What sampling takes, said before: against runs."""

import pytest
import torch
from support.exact import random_prior

from vqtool import samplers
from vqtool.samplers import estimates


def real_calls(prior, num, **arguments):
    batches = list(samplers.sample_batches(prior, num, **arguments))
    return sum(batch.num_calls * len(batch.samples) for batch in batches) / num


@pytest.mark.parametrize("name", samplers.NAMES)
@pytest.mark.parametrize("size", [(4, 6), (5, 8)])
def test_a_run_takes_as_many_calls_as_its_rehearsal_said(name, size):
    prior = random_prior("absorbing", kind="class", codebook_size=7, num_steps=12)
    arguments = {
        "sampler": name,
        "seed": 3,
        "grid_size": size,
        "condition": lambda numbers: torch.ones(len(numbers), dtype=torch.int64),
        "cfg_scale": 2.0,
        "cfg_interval": (0.2, 0.8),
    }
    least, most = estimates.count_calls(prior, range(100, 104), **arguments)
    real = real_calls(prior, 4, start=100, **arguments)
    assert least <= real <= most
    if name != "entropy":  # it alone calls as often as the predictions say
        assert least == most


def test_guidance_by_a_second_prior_is_rehearsed_too():
    prior, weak = random_prior(), random_prior(scale=0.1)
    arguments = {"steps": 5, "cfg_scale": 2.0, "guide_with": weak}
    assert estimates.count_calls(prior, range(8), **arguments) == (10, 10)
    assert real_calls(prior, 2, **arguments) == 10


def test_a_batch_is_as_large_as_useful_and_memory_allows_in_whole_groups():
    prior = random_prior()
    windows = samplers.build_tiling(prior, (4, 6))
    assert windows.microbatch == 10  # of 256 cells
    assert estimates.find_batch_size(prior, windows, 10_000, 10**12) == 16384 // 24 // 10 * 10
    assert estimates.find_batch_size(prior, windows, 50, 10**12) == 50
    assert estimates.find_batch_size(prior, windows, 10_000, 0) == 10
    sizes = [estimates.find_batch_size(prior, windows, 10_000, free) for free in range(10**6, 10**7, 10**6)]
    assert sizes == sorted(sizes)
    for size, free in zip(sizes, range(10**6, 10**7, 10**6), strict=True):
        assert size == 10 or estimates.estimate_memory(prior, windows, size) <= free / 2
    assert estimates.find_batch_size(prior, windows, 10_000, 10**12, most=64) == 60
    assert estimates.find_batch_size(prior, windows, 10_000, 10**12, most=5) == 10
    assert estimates.find_batch_size(prior, windows, 50, 10**12, most=64) == 50
    large = samplers.build_tiling(prior, (64, 96))
    assert estimates.find_batch_size(prior, large, 100, 10**12) == 16384 // (64 * 96)


def test_a_larger_codebook_canvas_and_batch_take_more_memory():
    small, large = random_prior(), random_prior(codebook_size=509)
    windows = samplers.build_tiling(small, (4, 6))
    assert estimates.estimate_memory(small, windows, 8) < estimates.estimate_memory(large, windows, 8)
    assert estimates.estimate_memory(small, windows, 8) < estimates.estimate_memory(small, windows, 80)
    canvas = samplers.build_tiling(small, (40, 60))
    assert estimates.estimate_memory(small, windows, 8) < estimates.estimate_memory(small, canvas, 8)


def test_a_call_is_timed_and_free_memory_found():
    prior = random_prior()
    assert 0 < estimates.time_call(prior, samplers.build_tiling(prior, (5, 7))) < 10
    assert estimates.find_free_memory(prior.device) > 10**6
