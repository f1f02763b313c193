"""Windows of pictures: where they lie, what the prior sees of them, and that nothing else of a picture changes."""

import numpy as np
import pytest
from support.editing_run import SIZE, make_work, save_prior  # noqa: F401

import vqtool as library
from vqtool.errors import VqtoolError
from vqtool.samplers._windows import Window, canvas_window, whole_window, window_around

FACTOR, KNOWN = 8, (64, 64)


def box(shape, top, left, height, width):
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize(
    ("shape", "mask", "margin", "expected"),
    [
        ((400, 600), (100, 200, 20, 30), 0, Window(78, 183, 64, 64, (64, 64))),  # pixel by pixel
        ((400, 600), (0, 0, 20, 30), 0, Window(0, 0, 64, 64, (64, 64))),  # at a corner
        ((400, 600), (380, 590, 20, 10), 0, Window(336, 536, 64, 64, (64, 64))),
        ((400, 600), (100, 200, 20, 60), 0, Window(50, 170, 120, 120, (64, 64))),  # twice the mask, shrunk
        ((400, 600), (100, 200, 20, 30), 10, Window(60, 165, 100, 100, (64, 64))),  # with its soft edge
        ((400, 600), (50, 200, 300, 20), 0, Window(0, 10, 400, 400, (64, 64))),  # less context, in the prior's shape
        ((400, 600), (10, 10, 20, 500), 0, Window(0, 0, 400, 600, (64, 96))),  # longer: cells beyond the prior's
        ((64, 64), (10, 10, 40, 40), 0, Window(0, 0, 64, 64, (64, 64))),  # a picture of the prior's own size
        ((32, 48), (10, 10, 9, 9), 0, Window(0, 0, 32, 32, (64, 64))),  # smaller: enlarged
        ((40, 400), (10, 100, 20, 100), 0, Window(0, 50, 40, 200, (64, 320))),
        ((15, 400), (5, 100, 8, 20), 0, Window(0, 90, 15, 40, (64, 168))),  # no longer than twice the mask
    ],
)
def test_a_window_lies_around_the_mask_inside_of_the_picture(shape, mask, margin, expected):
    found = window_around(box(shape, *mask), KNOWN, FACTOR, margin=margin)
    assert found == expected


def test_more_context_makes_larger_windows_up_to_the_picture():
    mask, sides = box((400, 600), 100, 200, 40, 40), []
    for context in (1, 2, 4, 100):
        window = window_around(mask, KNOWN, FACTOR, context=context)
        assert window.cut_mask(mask).sum() == mask.sum()
        sides.append(window.height)
    assert sides == [64, 80, 160, 400]


@pytest.mark.parametrize("seed", range(40))
def test_every_mask_lies_in_its_window_and_every_other_pixel_stays(seed):
    noise = np.random.default_rng(seed)
    shape = tuple(noise.integers(9, 300, 2).tolist())
    top, left = (int(noise.integers(0, side)) for side in shape)
    mask = box(shape, top, left, int(noise.integers(1, shape[0])), int(noise.integers(1, shape[1])))
    feather = int(noise.integers(0, 9))
    known = (int(noise.integers(1, 9)) * FACTOR, int(noise.integers(1, 9)) * FACTOR)
    window = window_around(mask, known, FACTOR, margin=feather)
    assert window.cut_mask(mask).sum() == mask.sum()
    assert window.top >= 0 <= window.left
    assert window.top + window.height <= shape[0]
    assert window.left + window.width <= shape[1]
    assert all(side % FACTOR == 0 and side >= least for side, least in zip(window.size, known, strict=True))
    picture = noise.integers(0, 256, (3, *shape), dtype=np.uint8)
    made = np.full((3, *window.size), 77, np.uint8)
    result = window.put_back(made, picture, mask, feather)
    (rows, columns), far = np.nonzero(mask), np.ones(shape, bool)
    spans = (slice(max(0, ends.min() - feather), ends.max() + feather + 1) for ends in (rows, columns))
    far[tuple(spans)] = False
    assert (result[:, mask] == 77).all()
    assert np.array_equal(result[:, far], picture[:, far])


def test_a_whole_picture_is_fitted_as_the_priors_own_were():
    assert whole_window((400, 600), KNOWN, FACTOR, "stretch") == Window(0, 0, 400, 600, (64, 64))
    assert whole_window((400, 600), KNOWN, FACTOR, "pad") == Window(-100, 0, 600, 600, (64, 64))
    assert whole_window((400, 600), KNOWN, FACTOR, "crop") == Window(0, 0, 400, 600, (64, 96))
    picture = np.full((3, 400, 600), 9, np.uint8)
    window = whole_window((400, 600), KNOWN, FACTOR, "pad")
    seen = window.cut(picture)
    assert (seen[:, :8] == 255).all()
    assert (seen[:, 24:40] == 9).all()
    inner = slice(24, -24)  # pixels, of which one that the prior sees covers 9: at the edge they mix with the border
    assert np.array_equal(window.put_back(seen, picture, None)[:, inner], picture[:, inner])
    assert canvas_window((64, 128), (64, 64), KNOWN, FACTOR).size == (64, 128)
    assert canvas_window((400, 800), (400, 600), KNOWN, FACTOR).size == (64, 128)


@pytest.mark.parametrize("shape", [(100, 150), (33, 47), (20, 90)])
@pytest.mark.parametrize(
    "change", [{"mask": "box:3,4,9,11"}, {"strength": 0.6}, {"sides": {"left": 1, "bottom": "7px"}}]
)
def test_images_of_any_size_come_back_in_their_size(work, shape, change):
    prior = library.load_prior("prior.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *shape), dtype=np.uint8)
    made = library.edit(prior, images, variants=2, sampler="purity", steps=2, **change)
    if "sides" in change:
        cell = round(8 * min(shape[0] / SIZE[0], shape[1] / SIZE[1]))
        assert made.shape == (4, 3, shape[0] + 7, shape[1] + cell)
        assert np.array_equal(made[:, :, : shape[0], cell:], images.repeat(2, axis=0))
        return
    assert made.shape == (4, 3, *shape)
    far = ~box(shape, 3, 4, 9, 11)
    if "mask" in change:
        assert np.array_equal(made[:, :, far], images.repeat(2, axis=0)[:, :, far])
    assert (made != images.repeat(2, axis=0)).any()


def test_masks_of_pixels_and_of_cells_are_those_of_the_picture(work):
    prior, shape = library.load_prior("prior.safetensors"), (64, 96)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *shape), dtype=np.uint8)
    cells, pixels = np.zeros((4, 6), bool), np.zeros(shape, bool)
    cells[1, 2:4], pixels[16:32, 32:64] = True, True
    by_cells, by_pixels = (library.edit(prior, images, mask, sampler="purity", steps=2) for mask in (cells, pixels))
    assert np.array_equal(by_cells, by_pixels)
    assert np.array_equal(by_cells[:, :, ~pixels], images[:, :, ~pixels])
    own = np.stack([box(shape, 2, 3, 8, 8), box(shape, 50, 70, 9, 9)])
    made = library.edit(prior, images, own, sampler="purity", steps=2)
    assert all(np.array_equal(new[:, ~mask], old[:, ~mask]) for new, old, mask in zip(made, images, own, strict=True))
    with pytest.raises(VqtoolError, match="bool of"):
        library.edit(prior, images, np.zeros((5, 5), bool))
    with pytest.raises(VqtoolError, match="nothing to make anew"):
        library.edit(prior, images, np.zeros(shape, bool))
