"""Grids larger than those of training: tiles against brute force, and what must not change."""

import itertools

import pytest
import torch
from support.exact import exact_prior, random_prior

import vqtool
from vqtool import samplers
from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.diffusion import kernels
from vqtool.diffusion.guidance import guide
from vqtool.errors import VqtoolError
from vqtool.samplers._tiles import Tiling

TILE = (4, 6)  # of random_prior
MANY = 10_000  # cells that pass the network together


def states(prior, grid_size, num=1, seed=0):
    """Noisy grids: tokens and masks."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(prior.kernel.codebook_size + 1, (num, *grid_size), generator=generator)


def brute_force(prior, x_t, t, starts, condition=None):
    """The weighted geometric mean, cell by cell, of tiles at (top, left): (H, W, K) float64 probabilities."""
    (h, w), (height, width) = TILE, x_t.shape
    result = torch.zeros(height, width, prior.kernel.codebook_size, dtype=torch.float64)
    for row, column in itertools.product(range(height), range(width)):
        logs, weights = [], []
        for top, left in starts:
            r, c = row - top, column - left
            if 0 <= r < h and 0 <= c < w:
                law = prior.log_x0(x_t[None, top : top + h, left : left + w], t, condition)[0, r, c]
                logs.append(law.double())
                weights.append(min(r + 1, h - r) * min(c + 1, w - c))
        powers = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        product = torch.stack([law.exp() ** power for law, power in zip(logs, powers, strict=True)]).prod(0)
        result[row, column] = product / product.sum()
    return result


@pytest.mark.parametrize("max_cells", [1, 3 * 24, MANY])
def test_tiles_are_combined_as_a_product_of_experts(max_cells):
    prior, t = random_prior(), torch.tensor([9])
    x_t = states(prior, (7, 12))
    tiles = Tiling((7, 12), TILE, None, max_cells=max_cells)
    starts = [(top, left) for top in (0, 1, 3) for left in (0, 3, 6)]
    assert tiles.corners == starts
    law = tiles.log_x0(prior, x_t, t, None)[0].double().exp()
    assert torch.allclose(law, brute_force(prior, x_t[0], t, starts), atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 24, 60])
def test_some_cells_of_a_large_grid_have_the_law_that_they_have_among_all(count):
    prior, t = random_prior(), torch.tensor([9, 4])
    x_t = states(prior, (7, 12), 2)
    tiles = Tiling((7, 12), TILE, None, max_cells=5 * 24)
    cells = torch.stack([torch.randperm(84, generator=torch.Generator().manual_seed(row))[:count] for row in (1, 2)])
    whole = tiles.log_x0(prior, x_t, t, None).flatten(1, 2)
    wanted = whole.gather(1, cells[..., None].expand(-1, -1, whole.shape[-1]))
    assert torch.allclose(tiles.log_x0(prior, x_t, t, None, cells), wanted, atol=1e-5)


def test_a_cell_of_one_tile_has_that_tiles_law_exactly():
    prior, t = random_prior(), torch.tensor([9])
    x_t = states(prior, (4, 12))
    law = Tiling((4, 12), TILE, None, max_cells=24).log_x0(prior, x_t, t, None)
    assert torch.equal(law[:, :, :3], prior.log_x0(x_t[:, :, :6], t)[:, :, :3])
    assert torch.equal(law[:, :, 9:], prior.log_x0(x_t[:, :, 6:], t)[:, :, 3:])
    assert torch.allclose(law.exp().sum(-1), torch.ones(()), atol=1e-6)


class Blind(Denoiser):
    """Says the same of every cell, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def encode_condition(self, condition):
        return EncodedCondition()

    def set_frequencies(self, frequencies):
        raise NotImplementedError

    def forward(self, x_t, t, condition=None, cells=None):
        shape = x_t.shape if cells is None else cells.shape
        return self.logits.expand(*shape, -1)


@pytest.mark.parametrize("overlap", [None, 0, 1, 3])
def test_a_denoiser_that_ignores_its_surroundings_keeps_its_law_at_every_cell(overlap):
    prior = exact_prior(torch.ones(3**4), (2, 2), kernels.build("absorbing", codebook_size=3, num_steps=5))
    law = torch.tensor([0.7, 0.2, 0.1]).log()
    blind = vqtool.Prior(prior.kernel, Blind(law), "exact", prior.conditioner, random_prior().grid_spec, "direct")
    tiles = Tiling((9, 17), TILE, overlap, max_cells=100)
    x_t = torch.full((2, 9, 17), 3)
    assert torch.allclose(tiles.log_x0(blind, x_t, torch.tensor([3, 5]), None), law, atol=1e-6)


def test_tiles_that_exclude_each_others_tokens_still_leave_a_law():
    kernel = kernels.build("absorbing", codebook_size=2, num_steps=4)
    prior = exact_prior([1, 0, 0, 1], (1, 2), kernel)  # both cells alike
    x_t = torch.tensor([[[0, 2, 1]]])  # 0 on the left, 1 on the right: the middle cell cannot please both
    law = Tiling((1, 3), (1, 2), None, max_cells=100).log_x0(prior, x_t, torch.tensor([2]), None).exp()
    assert torch.allclose(law[0, 0, 1], torch.tensor([0.5, 0.5], dtype=law.dtype), atol=1e-4)


def test_guiding_tiles_before_they_are_combined_is_guiding_what_they_say_together():
    prior, t = random_prior(kind="class"), torch.tensor([9])
    x_t = states(prior, (4, 9))
    condition, null = prior.encode_condition(torch.tensor([1]), 1), prior.encode_condition(None, 1)
    tiles = Tiling((4, 9), TILE, None, max_cells=24)
    after = guide(tiles.log_x0(prior, x_t, t, condition), tiles.log_x0(prior, x_t, t, null), 3.0)
    starts = [(0, 0), (0, 3)]
    told, untold = (brute_force(prior, x_t[0], t, starts, each) for each in (condition, null))
    before = untold * (told / untold) ** 3
    assert torch.allclose(after[0].double().exp(), before / before.sum(-1, keepdim=True), atol=1e-4)


@pytest.mark.parametrize("size", [*itertools.product((4, 5, 8, 31), (6, 7, 13, 40))])
@pytest.mark.parametrize("overlap", [None, 0, 3])
def test_every_cell_is_covered_and_the_exponents_of_a_cell_add_up_to_1(size, overlap):
    tiles = Tiling(size, TILE, overlap, max_cells=100)
    weights = tiles._weights
    assert torch.allclose(weights.sum(0), torch.ones(size), atol=1e-6)
    assert ((weights > 0).flatten(1).sum(1) == 24).all()
    assert len(set(tiles.corners)) == len(tiles)
    for axis, length in enumerate(TILE):
        starts = torch.tensor(sorted({corner[axis] for corner in tiles.corners}))
        steps = starts.diff()
        assert (int(starts[0]), int(starts[-1]) + length) == (0, size[axis])
        assert len(steps) == 0 or steps.max() - steps.min() <= 1
        assert len(steps) == 0 or length - steps.max() >= (length // 2 if overlap is None else overlap)


def runnable(name):
    """A small prior, and few calls of a sampler that can be told."""
    return {"codebook_size": 7, "num_steps": 12}, {} if name in ("entropy", "first-hitting") else {"steps": 4}


@pytest.mark.parametrize("name", samplers.NAMES)
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (4, 11), (13, 6)])
def test_every_sampler_fills_grids_of_every_size(name, size):
    options, chosen = runnable(name)
    prior = random_prior("absorbing", **options)
    grids = vqtool.sample(prior, 2, sampler=name, grid_size=size, seed=5, **chosen)
    assert grids.shape == (2, *size)
    assert grids.max() < 7


@pytest.mark.parametrize("name", [name for name in samplers.NAMES if not samplers.find(name).NEEDS_MASK])
def test_kernels_without_a_mask_fill_large_grids_too(name):
    grids = vqtool.sample(random_prior("uniform"), 2, sampler=name, grid_size=(5, 11), steps=3)
    assert grids.max() < 11


@pytest.mark.parametrize("name", samplers.NAMES)
def test_the_training_grid_by_name_changes_nothing(name):
    options, chosen = runnable(name)
    prior = random_prior("absorbing", **options)
    plain = vqtool.sample(prior, 3, sampler=name, **chosen)
    assert torch.equal(plain, vqtool.sample(prior, 3, sampler=name, grid_size=TILE, **chosen))


def test_one_tile_is_the_priors_own_prediction_bit_for_bit():
    prior, t = random_prior(), torch.tensor([3, 8])
    x_t = states(prior, TILE, 2)
    assert torch.equal(Tiling(TILE, TILE, None, max_cells=100).log_x0(prior, x_t, t, None), prior.log_x0(x_t, t))


@pytest.mark.parametrize("name", samplers.NAMES)
def test_samples_of_large_grids_do_not_depend_on_the_batch(name):
    options, chosen = runnable(name)
    prior = random_prior("absorbing", kind="class", **options)
    arguments = {"sampler": name, "grid_size": (7, 8), "condition": torch.tensor([1]), "cfg_scale": 2.0, **chosen}
    together = vqtool.sample(prior, 5, **arguments)
    assert torch.equal(together, vqtool.sample(prior, 5, batch_size=2, **arguments))
    assert torch.equal(together[3:], vqtool.sample(prior, 2, start=3, batch_size=1, **arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_size": (3, 6)}, "`grid_size` 3x6: smaller than the 4x6 cells"),
        ({"grid_size": (8, 5)}, "`grid_size` 8x5: smaller than the 4x6 cells"),
        ({"grid_size": (8, 8), "overlap": 4}, "`overlap` 4: tiles of 4x6 cells share 0 to 3 cells"),
        ({"grid_size": (8, 8), "overlap": -1}, "`overlap` -1"),
    ],
)
def test_grids_that_tiles_cannot_cover_are_refused(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        vqtool.sample(random_prior(), 1, steps=2, **arguments)


def test_an_observer_sees_every_call_and_the_end_and_changes_nothing():
    prior, seen = random_prior("absorbing"), []
    grids = vqtool.sample(
        prior, 5, steps=6, batch_size=3, sampler="purity", observe=lambda walk, x_t: seen.append((walk.samples, x_t))
    )
    assert torch.equal(grids, vqtool.sample(prior, 5, steps=6, batch_size=3, sampler="purity"))
    assert [numbers for numbers, _ in seen] == [range(3)] * 7 + [range(3, 5)] * 7
    assert [int((x_t[0] == 11).sum()) for _, x_t in seen[:7]] == [24, 20, 16, 12, 8, 4, 0]
    assert torch.equal(torch.cat([seen[6][1], seen[13][1]]), grids)


def test_stretching_asks_the_network_for_the_whole_grid_at_once():
    prior, t = random_prior("absorbing"), torch.tensor([9])
    x_t = states(prior, (7, 12))
    tiles = samplers.build_tiling(prior, (7, 12), grid_mode="stretch")
    assert torch.equal(tiles.log_x0(prior, x_t, t, None), prior.log_x0(x_t, t))
    assert vqtool.sample(prior, 2, steps=3, grid_size=(3, 9), grid_mode="stretch").shape == (2, 3, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_mode": "windows"}, "`grid_mode` windows: unknown; known are tiles, stretch"),
        ({"grid_mode": "stretch", "overlap": 2}, "`overlap` is about tiles"),
        ({"grid_size": TILE, "overlap": 2}, "`overlap` is about grids larger than those of training"),
        ({"grid_size": TILE, "grid_mode": "stretch"}, "`grid_mode` is about grids larger than those of training"),
    ],
)
def test_modes_that_do_not_go_with_the_rest_are_refused(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        vqtool.sample(random_prior(), 1, steps=2, **{"grid_size": (8, 8), **arguments})


def test_a_denoiser_of_fixed_positions_is_not_stretched():
    prior = exact_prior(torch.ones(2**4), (2, 2), kernels.build("absorbing", codebook_size=2, num_steps=5))
    with pytest.raises(VqtoolError, match="exact, knows the positions of its training grid only"):
        vqtool.sample(prior, 1, grid_size=(3, 3), grid_mode="stretch")
