"""`cfg_refresh`: what guidance compares with is kept for some calls, sample by sample."""

from dataclasses import replace

import pytest
import torch
from support.exact import random_prior
from support.walks import draw

from vqtool.errors import VqtoolError
from vqtool.samplers import Method, sample_batches

GUIDED = {"cfg_scale": 3.0}


def test_in_every_call_is_what_guidance_does_anyway():
    expected, found = (
        draw(random_prior(kind="class"), 5, steps=6, **GUIDED, **own) for own in ({}, {"cfg_refresh": 1})
    )
    assert torch.equal(found, expected)


def test_fewer_calls_are_made_and_counted():
    for refresh, calls in ((1, 16), (2, 12), (4, 10), (8, 9), (100, 9)):
        prior = random_prior(kind="class")
        condition = prior.conditioner.encode(["ant", "bee"])
        batches = sample_batches(prior, 2, condition=condition, sampler="fewer", steps=8, cfg_refresh=refresh, **GUIDED)
        assert [batch.num_calls for batch in batches] == [calls]


def test_a_reference_that_never_changes_can_be_kept():
    """Oracle: a second prior that sees nothing and says the same in every call."""
    prior, second = random_prior("absorbing", kind="class"), random_prior("absorbing")
    forward = second.denoiser.forward
    second.denoiser.forward = lambda x_t, t, condition=None, cells=None: forward(
        torch.zeros_like(x_t), torch.ones_like(t), condition, cells
    )
    expected, found = (
        draw(prior, 4, steps=6, sampler="fewer", cfg_scale=2.0, guide_with=second, cfg_refresh=each) for each in (1, 50)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("sampler", ["ancestral", "purity", "entropy"])
def test_a_sample_is_the_same_in_every_batch(sampler):
    how = {"sampler": sampler, "cfg_refresh": 3, **GUIDED}
    whole, single = (draw(random_prior(kind="class"), 5, steps=6, batch_size=size, **how) for size in (5, 1))
    assert torch.equal(whole, single)


def test_without_guidance_there_is_nothing_to_keep():
    with pytest.raises(VqtoolError, match="`cfg_refresh` is about guidance, and there is none"):
        Method.build(random_prior(kind="class"), has_condition=True, cfg_refresh=2)
    with pytest.raises(VqtoolError, match="`cfg_refresh` 0: must be 1 or more"):
        Method.build(random_prior(kind="class"), has_condition=True, cfg_refresh=0, **GUIDED)


def test_it_leaves_the_published_guidance_of_a_prior_as_it_is():
    prior = replace(random_prior(kind="class"), sampling={"cfg_scale": 3.0, "cfg_schedule": "linear"})
    settings = Method.build(prior, has_condition=True, cfg_refresh=2).settings
    assert (settings.cfg_scale, settings.cfg_schedule, settings.cfg_refresh) == (3.0, "linear", 2)
    for other in ({"null": "zero-shot"}, {"guide_with": random_prior(kind="class", scale=0.6)}, {"negative": "bee"}):
        settings = Method.build(prior, has_condition=True, **other).settings
        assert (settings.cfg_scale, settings.cfg_schedule) == (3.0, "linear")
        (name,) = other
        assert getattr(settings, name) is not None
    with pytest.raises(VqtoolError, match="`cfg_schedule` is about guidance, and there is none"):
        Method.build(prior, has_condition=True, cfg_schedule="cosine")
