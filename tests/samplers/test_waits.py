"""Without a GPU: no step of a walk would wait for one, copy to or from it, or mix its tensors with the CPU's."""

import pytest
import torch
from support.exact import random_prior
from support.pretended_gpu import PretendedGpu
from support.walks import GUIDANCE, draw, kernel_for, some_known, some_source

import vqtool
from vqtool import samplers
from vqtool.errors import NotFiniteError
from vqtool.samplers import ancestral

NUM = 4
FALLING = {"temperature": (1.5, 0.5), "cfg_scale": 2.0, "cfg_schedule": "linear", "known": some_known(NUM)}
ONE_A_CALL = {"entropy"}  # how many calls it takes, only its predictions tell


def walk(place, kernel, kind, **chosen):
    """Grids of a random prior, and the waits between the first call of the denoiser and the last."""
    prior, calls = random_prior(kernel, kind).to(place[0]), []
    forward = prior.denoiser.forward

    def watch(*inputs):
        calls.append(len(place[1]))
        return forward(*inputs)

    prior.denoiser.forward = watch
    grids = draw(prior, NUM, steps=4, **chosen)
    return grids, place[1][calls[0] : calls[-1]], len(calls)


def assert_never_waits(kernel, kind="none", **chosen):
    expected, _, num_calls = walk(("cpu", []), kernel, kind, **chosen)
    with PretendedGpu() as gpu:
        grids, waits, _ = walk(("cuda:0", gpu.waits), kernel, kind, **chosen)
    assert torch.equal(grids, expected)
    if chosen.get("sampler") in ONE_A_CALL:
        assert len(waits) <= 2 * num_calls  # its answer, and the times that follow from it
    else:
        assert waits == []


@pytest.mark.parametrize("kind", ["none", "class", "caption"])
@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_no_sampler_waits_for_a_gpu_in_its_steps(sampler, kind):
    more = {} if kind == "none" else {"cfg_scale": 2.0, "truncation": 0.9, "temperature": 0.9}
    assert_never_waits(kernel_for(sampler), kind, sampler=sampler, **more)


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_no_sampler_waits_for_a_gpu_if_it_is_exact(sampler):
    assert_never_waits(kernel_for(sampler), sampler=sampler, exact=True)


@pytest.mark.parametrize("sampler", ["ancestral", "purity", "first-hitting"])
def test_no_sampler_waits_for_a_gpu_to_keep_keys_and_values(sampler):
    assert_never_waits(kernel_for(sampler), "class", sampler=sampler, cache=2, cfg_scale=2.0)


@pytest.mark.parametrize("rule", ["mixture", "plug-in"])
@pytest.mark.parametrize("kernel", ["mask-replace", "absorbing", "uniform"])
@pytest.mark.parametrize("sampler", ["ancestral", "psi"])
def test_no_kernel_makes_a_walk_wait(sampler, kernel, rule):
    assert_never_waits(kernel, sampler=sampler, rule=rule)


@pytest.mark.parametrize("guidance", [*GUIDANCE.values(), FALLING], ids=[*GUIDANCE, "temperatures"])
@pytest.mark.parametrize("sampler", ["ancestral", "purity"])
def test_no_guidance_makes_a_walk_wait(sampler, guidance):
    assert_never_waits("mask-replace", "class", sampler=sampler, **guidance)


@pytest.mark.parametrize(
    "editing",
    [
        {"known": some_known(NUM)},
        {"source": some_source(NUM), "strength": 0.6},
        {"grid_size": (5, 9)},
        {"grid_size": (5, 9), "grid_mode": "stretch"},
    ],
    ids=["known", "source", "tiles", "stretch"],
)
@pytest.mark.parametrize("sampler", ["ancestral", "psi", "purity", "halton", "entropy"])
def test_no_editing_makes_a_walk_wait(sampler, editing):
    assert_never_waits("mask-replace", "none", sampler=sampler, **editing)


@pytest.mark.parametrize("sampler", ["ancestral", "psi"])
def test_a_step_that_looked_at_too_few_cells_is_told_and_the_batch_is_drawn_again(monkeypatch, sampler):
    expected, *_ = walk(("cpu", []), "absorbing", "none", sampler=sampler)
    seen, mark = [], samplers.Walk.mark_incomplete
    monkeypatch.setattr(ancestral, "expect", lambda changing, num_cells, deviations=4: 2)
    monkeypatch.setattr(samplers.Walk, "mark_incomplete", lambda walk, on: (seen.append(walk), mark(walk, on)))
    with PretendedGpu() as gpu:
        grids, *_ = walk(("cuda:0", gpu.waits), "absorbing", "none", sampler=sampler)
    assert torch.equal(grids, expected)
    assert [each.is_careful for each in dict.fromkeys(seen)] == [False, True]


def test_predictions_that_are_no_numbers_are_refused_on_a_gpu_too():
    with PretendedGpu():
        prior = random_prior().to("cuda:0")
        prior.denoiser.requires_grad_(False).head.weight.fill_(torch.nan)
        with pytest.raises(NotFiniteError, match="a prior is damaged"):
            vqtool.sample(prior, 2, steps=3, precision="fp32")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.stack([x, torch.zeros(3)]),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_a_mixture_of_devices_is_seen(wrong):
    with PretendedGpu(), pytest.raises(RuntimeError, match="the CPU and of the GPU together"):
        wrong(torch.zeros(3, device="cuda:0"))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x.copy_(torch.ones(3)),
    ],
)
def test_every_kind_of_wait_and_copy_is_noted(wait):
    with PretendedGpu() as gpu:
        x = torch.ones(3, device="cuda:0") * 2
        assert gpu.waits == []
        wait(x)
    assert len(gpu.waits) == 1
