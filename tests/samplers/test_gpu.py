"""Samplers on a GPU against the same on the CPU: the same noise, so the same tokens."""

import pytest
import torch
from support.exact import random_prior
from support.walks import GUIDANCE, SIZE, draw, kernel_for, some_known, some_source

from vqtool import samplers
from vqtool.samplers import Walk
from vqtool.samplers._machine import Machine

pytestmark = pytest.mark.gpu

NUM = 8
KERNELS = ("mask-replace", "absorbing", "uniform")


def draw_on(device, kernel="mask-replace", kind="none", *, num=NUM, **chosen):
    return draw(random_prior(kernel, kind).to(device), num, steps=6, **chosen)


def assert_same(gpu, *prior, **chosen):
    """All grids but at most one are the same: a token changes where rounding decides, and all that follows with it."""
    different = (draw_on(gpu, *prior, **chosen) != draw_on("cpu", *prior, **chosen)).flatten(1).any(1)
    assert int(different.sum()) <= 1


@pytest.mark.parametrize("kind", ["none", "class", "caption"])
@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_every_sampler_draws_the_tokens_of_the_cpu(gpu, sampler, kind):
    more = {} if kind == "none" else {"cfg_scale": 2.0, "truncation": 0.9, "temperature": 0.9}
    assert_same(gpu, kernel_for(sampler), kind, sampler=sampler, **more)


@pytest.mark.parametrize("rule", ["mixture", "plug-in"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sampler", ["ancestral", "psi"])
def test_every_kernel_draws_the_tokens_of_the_cpu(gpu, sampler, kernel, rule):
    assert_same(gpu, kernel, sampler=sampler, rule=rule)


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
@pytest.mark.parametrize("sampler", ["ancestral", "purity"])
def test_guidance_of_every_kind_draws_the_tokens_of_the_cpu(gpu, sampler, guidance):
    assert_same(gpu, "mask-replace", "class", sampler=sampler, **guidance)


@pytest.mark.parametrize(
    "editing",
    [
        {"known": some_known(NUM)},
        {"source": some_source(NUM), "strength": 0.6},
        {"grid_size": (7, 12)},
        {"grid_size": (7, 12), "grid_mode": "stretch"},
    ],
    ids=["known", "source", "tiles", "stretch"],
)
@pytest.mark.parametrize("sampler", ["ancestral", "psi", "purity", "halton", "entropy"])
def test_editing_and_larger_grids_draw_the_tokens_of_the_cpu(gpu, sampler, editing):
    assert_same(gpu, "mask-replace", "none", sampler=sampler, **editing)


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_samples_on_a_gpu_depend_on_seed_and_number_only(gpu, sampler):
    prior, chosen = (kernel_for(sampler), "class"), {"sampler": sampler, "cfg_scale": 2.0, "exact": True}
    whole = draw_on(gpu, *prior, **chosen, num=7, batch_size=7)
    for batch_size in (1, 3):
        assert torch.equal(draw_on(gpu, *prior, **chosen, num=7, batch_size=batch_size), whole)


def test_predictions_in_bfloat16_are_near_those_in_float32(gpu):
    if gpu.type == "cpu":
        pytest.skip("needs a CUDA device")
    prior, found = random_prior(kind="class").to(gpu), []
    noise = torch.Generator().manual_seed(0)
    x_t, t = torch.randint(12, (NUM, *SIZE), generator=noise).to(gpu), torch.arange(1, NUM + 1, device=gpu)
    for precision in ("fp32", "bf16"):
        walk = Walk(
            prior, range(NUM), torch.arange(NUM) % 3, seed=0, grid_size=SIZE, settings=samplers.Settings(),
            machine=Machine(exact=False, precision=precision),
        )  # fmt: skip
        with torch.no_grad():
            found.append(walk.log_x0(x_t, t))
    assert found[1].dtype == torch.float32
    assert not torch.equal(*found)
    assert float((found[0].exp() - found[1].exp()).abs().mean()) < 0.01
