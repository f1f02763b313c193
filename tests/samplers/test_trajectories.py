"""How samples came about: states from the first to the last, whatever the batch, and their pictures."""

import numpy as np
import pytest
import torch
from support.commands import build_tokenizer
from support.exact import random_prior

import vqtool
from vqtool import samplers
from vqtool.images import to_uint8
from vqtool.samplers.trajectories import GREY, MAX_FRAMES, Trajectory, decode_masked, draw_frames


def film(prior, num=5, **arguments):
    trajectory = Trajectory(range(num))
    grids = vqtool.sample(prior, num, observe=trajectory.observe, **arguments)
    return trajectory.grids(), grids


@pytest.mark.parametrize("name", samplers.NAMES)
def test_frames_lead_from_what_a_sampler_begins_with_to_its_grids_whatever_the_batch(name):
    prior = random_prior("absorbing", codebook_size=7, num_steps=12)
    options = {"entropy_budget": 3.0} if name == "entropy" else {}
    frames, grids = film(prior, sampler=name, **options)
    assert (frames[0] == 7).all()
    assert torch.equal(frames[-1], grids)
    shown = (frames < 7).flatten(1).sum(1)
    assert len(frames) > 2
    assert int(shown[1:-1].max()) > 0
    again, _ = film(prior, sampler=name, batch_size=2, **options)
    assert torch.equal(frames, again)


def test_kernels_without_a_mask_are_filmed_too():
    frames, grids = film(random_prior("uniform"), steps=6)
    assert torch.equal(frames[-1], grids)
    assert int(frames.max()) < 11


class Walk:
    samples = range(3, 5)

    @staticmethod
    def tokens(x_t):
        return x_t


def test_long_walks_are_thinned_out_evenly_and_keep_both_ends():
    trajectory = Trajectory(range(3, 5))
    for state in range(1000):
        x_t = torch.tensor([[[state]], [[min(state, 2)]]])
        trajectory.observe(Walk, x_t)
        trajectory.observe(Walk, x_t)  # nothing has changed: not kept
    states = trajectory.grids().flatten(1)  # (F, 2)
    long = states[:, 0]
    assert len(long) <= MAX_FRAMES + 1
    assert (int(long[0]), int(long[-1])) == (0, 999)
    assert set(long[:-1].diff().tolist()) == {32}
    assert states[:, 1].unique(return_counts=True)[1].min() >= len(long) // 4  # the short one stands at each state


def test_samples_of_others_are_not_kept_and_none_seen_are_no_frames():
    trajectory = Trajectory(range(10, 12))
    assert trajectory.seen == []
    assert trajectory.grids().shape[0] == 0
    trajectory.observe(Walk, torch.zeros(2, 1, 1, dtype=torch.int64))
    assert trajectory.seen == []


def test_masked_cells_are_grey_and_whole_grids_as_they_decode():
    tokenizer = build_tokenizer()
    grid = torch.randint(16, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    assert np.array_equal(decode_masked(grid, tokenizer), to_uint8(tokenizer.decode(grid)))
    grid[0, 1, 2] = 16
    images = decode_masked(grid, tokenizer)
    assert (images[0, :, 8:16, 16:24] == GREY).all()
    assert images[0, :, :8].std() > 0
    assert np.array_equal(images[1], to_uint8(tokenizer.decode(grid[1:]))[0])


def test_frames_are_sheets_of_one_size():
    sheets = draw_frames(torch.full((3, 2, 3, 4), 16), build_tokenizer(), ["an ant", "a bee"])
    assert len(sheets) == 3
    assert len({sheet.size for sheet in sheets}) == 1
