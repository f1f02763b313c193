"""Sampling to files and editing from Python: the same as the commands do, and what cannot be."""

import numpy as np
import pytest
import torch
from support.editing_run import make_work, save_prior, tokens  # noqa: F401
from support.exact import random_prior

import vqtool as library
from vqtool import progress
from vqtool.errors import VqtoolError, VqtoolWarning
from vqtool.grids import read_grids
from vqtool.grids.resume import Journal
from vqtool.images import find_images, read_batches
from vqtool.samplers import NAMES
from vqtool.samplers.runs import Summary


def test_a_file_holds_what_sample_draws_and_progress_gets_done_and_total(tmp_path):
    prior, seen = random_prior(kind="class"), []
    report = progress.call(lambda done, total: seen.append((done, total)))
    how = {"sampler": "purity", "steps": 4, "cfg_scale": 2.0, "seed": 5}
    path = tmp_path / "x.h5"
    done = library.sample_to_file(prior, path, 5, labels=["bee", "ant"], batch_size=2, progress=report, **how)
    labels = ["bee", "ant", "bee", "ant", "bee"]
    drawn = library.sample(prior, 5, condition=library.condition(prior, labels=labels), **how)
    header, batch = read_grids(path)
    assert np.array_equal(batch.tokens, drawn.numpy())
    assert batch.labels == labels
    assert (done.num, done.num_calls) == (5, 8)
    assert (seen[-1], seen[0]) == ((40, 40), (0, None))
    assert seen[1] == (4, 40)  # of two grids; a step is two calls under guidance
    assert [calls for calls, _ in seen] == sorted(calls for calls, _ in seen)
    assert {total for _, total in seen[1:]} == {40}
    record = header.history[-1]
    assert {name: record[name] for name in how} == how
    with pytest.raises(VqtoolError, match=r"x\.h5: exists"):
        library.sample_to_file(prior, path, 5)


@pytest.mark.parametrize("sampler", NAMES)
def test_progress_knows_the_calls_of_one_canvas_from_the_second_on(tmp_path, sampler):
    """Oracle: a canvas of several tiles whose calls are counted when it is done."""
    prior, seen = random_prior("absorbing"), []
    report = progress.call(lambda done, total: seen.append((done, total)))
    height, width = prior.grid_spec.grid_size
    how = {"sampler": sampler, "grid_size": (height, 2 * width), "progress": report}
    done = library.sample_to_file(prior, tmp_path / "x.h5", 1, **how)
    calls, totals = zip(*seen, strict=True)
    assert (seen[0], seen[-1]) == ((0, None), (done.num_calls, done.num_calls))
    assert sorted({*calls}) == [*range(int(done.num_calls) + 1)]
    assert all(total is not None for total in totals[1:])
    if sampler != "entropy":  # which goes by what it sees
        assert set(totals[1:]) == {done.num_calls}


def test_a_dry_run_counts_the_calls_and_writes_nothing(tmp_path):
    told = []
    done = library.sample_to_file(random_prior(), tmp_path / "x.h5", 5, steps=4, dry_run=True, notify=told.append)
    assert (done.num, done.num_calls) == (0, 4)
    assert "s for 5 grids; nothing is written" in told[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_that_resumes_counts_what_is_left(tmp_path):
    arguments = {"steps": 4, "batch_size": 2}
    whole = library.sample_to_file(random_prior(), tmp_path / "whole.h5", 5, **arguments)
    assert whole.num == 5
    header, batch = read_grids(tmp_path / "whole.h5")
    with Journal(tmp_path / "x.partial.h5", header) as journal:
        journal.write(batch[:2])
    told = []
    dry = {"dry_run": True, "notify": told.append}
    library.sample_to_file(random_prior(), tmp_path / "x.h5", 5, resume="auto", **arguments, **dry)
    assert "2 of 5 are kept of an earlier run" in told
    assert "s for 3 grids; nothing is written" in told[-1]
    with Journal(tmp_path / "x.partial.h5", header, resume=True) as journal:
        journal.write(batch[2:])
    library.sample_to_file(random_prior(), tmp_path / "x.h5", 5, resume=True, **arguments, **dry)
    assert told[-1] == "5 of 5 are kept of an earlier run"
    library.sample_to_file(random_prior(), tmp_path / "x.h5", 5, **arguments, **dry)
    assert "s for 5 grids" in told[-1]


@pytest.mark.parametrize(
    ("kind", "texts", "message"),
    [
        ("class", {"labels": ["bee"], "captions": ["a bee"]}, "`labels` and `captions` are given: one of them"),
        ("class", {"labels": "bee"}, "`labels` 'bee': a list of texts is expected"),
        ("class", {"labels": ["bee", 3]}, "a list of texts is expected"),
        ("class", {"labels": ["wasp"]}, "unknown label 'wasp'"),
        ("class", {"captions": ["a bee"]}, "`captions` does not go with this prior, which takes labels: use `labels`"),
        ("caption", {"labels": ["bee"]}, "`labels` does not go with this prior, which takes captions"),
        ("none", {"labels": ["bee"]}, "which takes no condition"),
        ("none", {}, "`labels` or `captions` have to say what to draw"),
    ],
)
def test_conditions_that_cannot_be_are_refused(kind, texts, message):
    with pytest.raises(VqtoolError, match=message):
        library.condition(random_prior(kind=kind), **texts)


def test_a_caption_that_is_too_long_is_told():
    prior = random_prior(kind="caption")
    with pytest.warns(VqtoolWarning, match="longer than the prior can read"):
        rows = library.condition(prior, captions=["an elephant with a very long trunk"])
    assert torch.equal(rows, prior.conditioner.encode(["an elephant with a very long trunk"]))


def some_grids(num=3, size=(4, 6), seed=0):
    return torch.randint(0, 16, (num, *size), generator=torch.Generator().manual_seed(seed))


def test_inpainting_by_name_and_by_array_is_sampling_with_known_tokens():
    prior, grids = random_prior(codebook_size=16), some_grids()
    known = grids.clone()
    known[:, :, :3] = 16
    drawn = library.sample(prior, 6, sampler="purity", known=known.repeat_interleave(2, 0), seed=3)
    left = np.zeros((4, 6), bool)
    left[:, :3] = True
    for mask in ("left-half", left, left.repeat(8, 0).repeat(8, 1), np.stack([left] * 3)):
        made = library.edit(prior, grids, mask, variants=2, sampler="purity", seed=3, batch_size=4)
        assert torch.equal(made, drawn)
    assert torch.equal(library.edit(prior, known, variants=2, sampler="purity", seed=3), drawn)  # complete
    assert torch.equal(library.edit(prior, grids.numpy(), "left-half", variants=2, sampler="purity", seed=3), drawn)


def test_a_strength_starts_near_the_picture_everywhere_or_in_the_mask():
    prior, grids = random_prior("absorbing", codebook_size=16), some_grids(8)
    varied = library.edit(prior, grids, strength=0.4)
    assert torch.equal(varied, library.sample(prior, 8, source=grids, strength=0.4))
    assert torch.equal(library.edit(prior, grids, strength=0.0), grids)
    near, anew = (library.edit(prior, grids, "left-half", strength=strength) for strength in (0.4, None))
    for made in (near, anew):
        assert torch.equal(made[:, :, 3:], grids[:, :, 3:])
    same = [(made[:, :, :3] == grids[:, :, :3]).double().mean() for made in (near, anew)]
    assert same[0] > same[1] + 0.2


def test_outpainting_adds_cells_and_images_keep_their_pixels(work):
    prior, grids = library.load_prior("prior.safetensors"), some_grids()
    made = library.edit(prior, grids, sides={"left": 2, "top": "8px"}, sampler="purity")
    assert made.shape == (3, 5, 8)
    assert torch.equal(made[:, 1:, 2:], grids)
    images = next(read_batches(find_images(["imgs"]), (32, 48), 9)).images
    larger = library.edit(prior, images, sides={"bottom": 1}, sampler="purity")
    assert (larger.shape, larger.dtype) == ((3, 3, 40, 48), np.uint8)
    assert np.array_equal(larger[:, :, :32], images)
    mended = library.edit(prior, images, "center", variants=2, sampler="purity")
    changed = (mended[::2] != images).any((0, 1))
    assert changed[8:24, 12:36].mean() > 0.9
    assert not changed[:8].any()


def test_captions_of_the_call_are_taken_in_turn():
    prior, grids = random_prior(kind="caption", codebook_size=16), some_grids(2)
    made = library.edit(prior, grids, "left-half", captions=["an ant", "a bee"], cfg_scale=2.0)
    known = torch.where(torch.arange(6) < 3, 16, grids)
    condition = library.condition(prior, captions=["an ant", "a bee"])
    assert torch.equal(made, library.sample(prior, 2, known=known, condition=condition, cfg_scale=2.0))


@pytest.mark.parametrize(
    ("pictures", "arguments", "message"),
    [
        (some_grids()[0], {"mask": "center"}, r"`pictures` has shape \(4, 6\)"),
        (some_grids().float(), {"mask": "center"}, "type torch.float32"),
        (np.zeros((3, 32, 48), np.uint8), {"mask": "center"}, "integer tokens or .* uint8 images are expected"),
        (some_grids() + 9, {"mask": "center"}, "`pictures` has tokens from 9 to 24: 0 to 16 are possible"),
        (some_grids(), {}, "pictures: has no masked cells to fill"),
        (some_grids(), {"mask": "middle"}, "neither a file nor one of"),
        (some_grids(), {"mask": np.zeros((4, 5), bool)}, r"`mask` has shape \(4, 5\)"),
        (some_grids(), {"mask": np.zeros((4, 6))}, "type float64: bool of"),
        (some_grids(), {"mask": "center", "sides": {"left": 1}}, "`mask` and `sides` both"),
        (some_grids(), {"strength": 0.5, "sides": {"left": 1}}, "does not go with `sides`"),
        (some_grids(), {"strength": 1.5}, "`strength` 1.5: must lie in 0"),
        (some_grids(), {"sides": {"front": 1}}, "`sides` front: unknown; known are top, bottom"),
        (some_grids(), {"sides": {"left": 0}}, "nothing is added: say how much with `left`"),
        (some_grids(), {"mask": "center", "variants": 0}, "`variants` 0: at least 1"),
        (some_grids(), {"mask": "center", "feather": 2, "paste": False}, "`paste` is off"),
        (some_grids(), {"mask": "center", "feather": -1}, "`feather` -1: 0 to 256"),
        (some_grids(size=(4, 4)), {"mask": "center"}, "makes grids of 4x4, but the prior knows those of 4x6"),
        (torch.full((2, 4, 6), 16), {"strength": 0.5}, "`source` has tokens from 16 to 16"),
    ],
)
def test_what_cannot_be_edited_is_refused(pictures, arguments, message):
    with pytest.raises(VqtoolError, match=message):
        library.edit(random_prior(codebook_size=16), pictures, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known": torch.zeros(2, 4, 6)}, "`known` has shape .* type torch.float32"),
        ({"known": torch.zeros(2, 4, 5, dtype=torch.int64)}, r"`known` has shape \(2, 4, 5\)"),
        ({"known": torch.full((2, 4, 6), 12)}, "`known` has tokens from 12 to 12: 0 to 11 are possible"),
        ({"known": torch.full((2, 4, 6), -1)}, "`known` has tokens from -1"),
        ({"known": [[1]]}, "`known` has type list: a tensor of 1 or 2 rows is expected"),
        ({"source": torch.full((1, 4, 6), 11)}, "`source` has tokens from 11"),
        ({"source": lambda samples: torch.full((9, 4, 6), 1)}, r"`source` has shape \(9, 4, 6\)"),
        ({"condition": torch.zeros(2, 3, dtype=torch.int64)}, "`condition` has shape .* this prior takes"),
        ({"condition": "a bee"}, "`condition` has type str"),
    ],
)
def test_rows_of_a_wrong_shape_or_range_are_refused(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        library.sample(random_prior(kind="class"), 2, **arguments)


def test_only_a_prior_can_be_sampled():
    with pytest.raises(VqtoolError, match=r"a prior is expected, as from `vqtool.load_prior`, not str"):
        library.sample("prior.safetensors", 2)


def test_a_summary_says_calls_with_three_digits_at_least():
    assert str(Summary(3, 3.6667, 5.0)) == "3.67 network calls a grid, 5.0 s, 0.6 grids/s"
    assert str(Summary(11, 18.1818, 5.0)) == "18.2 network calls a grid, 5.0 s, 2.2 grids/s"
    assert str(Summary(11, 10000.0, 5.0)) == "10000 network calls a grid, 5.0 s, 2.2 grids/s"
