"""Schedules: the published numbers, the limits every schedule has to keep, and the names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vqtool import VqtoolError
from vqtool.diffusion import kernels, schedules

GOLDEN = Path(__file__).parents[1] / "golden" / "schedules" / "io.safetensors"
CASES = [(name, kernel) for name, schedule in schedules.SCHEDULES.items() for kernel in schedule.kernels]


def golden(name: str) -> tuple[torch.Tensor, float]:
    with safe_open(GOLDEN, "pt") as file:
        tolerance = json.loads(file.metadata()["meta"])["tensors"][name].get("tolerance", "exact")
        return file.get_tensor(name), 0.0 if tolerance == "exact" else float(tolerance)


@pytest.mark.parametrize("num_steps", [50, 100])
@pytest.mark.parametrize("schedule", ["release", "paper"])
def test_release_and_paper_equal_the_published_tables(schedule, num_steps):
    kernel = kernels.build("mask-replace", schedule=schedule, codebook_size=64, num_steps=num_steps)
    one_step = kernel.transition(torch.arange(num_steps), torch.arange(1, num_steps + 1))
    cumulative = [
        table.roll(-1) for table in (kernel.alpha_bar, kernel.beta_bar, kernel.gamma_bar)
    ]  # theirs ends in t=0
    for label, ours in zip(("at", "bt", "ct", "att", "btt", "ctt"), (*one_step, *cumulative), strict=True):
        theirs, tolerance = golden(f"vqdiffusion_{schedule}_T{num_steps}_{label}")
        assert (ours - theirs).abs().max() <= tolerance, label


def test_release_equals_the_float32_buffers_of_the_network_object():
    kernel = kernels.build("mask-replace", schedule="release", codebook_size=64, num_steps=100)
    alpha, beta, gamma = kernel.transition(torch.arange(100), torch.arange(1, 101))
    ours = {
        "at": alpha, "bt": beta, "ct": gamma, "1_min_ct": 1 - gamma,
        "cumprod_at": kernel.alpha_bar.roll(-1), "cumprod_bt": kernel.beta_bar.roll(-1),
        "cumprod_ct": kernel.gamma_bar.roll(-1), "1_min_cumprod_ct": 1 - kernel.gamma_bar.roll(-1),
    }  # fmt: skip
    for label, values in ours.items():
        theirs, tolerance = golden(f"vqdiffusion_release_T100_log_{label}")
        finite = theirs > -30
        assert (values.log() - theirs)[finite].abs().max() <= tolerance, label
        assert bool((values[~finite] == 0).all()), label


def test_paper_ends_where_the_paper_says():
    kernel = kernels.build("mask-replace", schedule="paper", codebook_size=1024, num_steps=100)
    assert kernel.gamma_bar[-1] == 0.9
    assert float(kernel.beta_bar[-1]) * 1024 == pytest.approx(0.1, abs=1e-5)


def test_release_is_almost_absorbing_at_every_step():
    kernel = kernels.build("mask-replace", schedule="release", codebook_size=1024, num_steps=100)
    assert (kernel.beta_bar[1:] * 1024 - 1e-6).abs().max() < 1e-15


def test_cosine_equals_vqddm_at_100_steps():
    kernel = kernels.build("uniform", schedule="cosine", codebook_size=64, num_steps=100)
    theirs, tolerance = golden("vqddm_T100_alpha_bar")
    assert (kernel.alpha_bar[1:] - theirs).abs().max() <= tolerance
    theirs, tolerance = golden("vqddm_T100_alpha")
    alpha, _, _ = kernel.transition(torch.arange(100), torch.arange(1, 101))
    assert (alpha - theirs).abs().max() <= tolerance


def test_cosine_equals_vqddm_at_4000_steps():
    kernel = kernels.build("uniform", schedule="cosine", codebook_size=64, num_steps=4000)
    index, _ = golden("vqddm_T4000_index")
    theirs, tolerance = golden("vqddm_T4000_alpha_bar_at")
    assert (kernel.alpha_bar[index + 1] - theirs).abs().max() <= tolerance
    theirs, tolerance = golden("vqddm_T4000_alpha_at")
    alpha, _, _ = kernel.transition(index, index + 1)
    assert (alpha - theirs).abs().max() <= tolerance


def test_plain_cosine_is_the_square_of_the_other():
    plain, rooted = (kernels.build("uniform", schedule=name, codebook_size=8) for name in ("cosine-plain", "cosine"))
    torch.testing.assert_close(rooted.alpha_bar**2, plain.alpha_bar, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_steps", [8, 12])
def test_maskgit_cosine_gives_the_mask_counts_of_maskgit_and_amused(num_steps):
    kernel = kernels.build("absorbing", schedule="maskgit-cosine", codebook_size=8, num_steps=num_steps)
    left = 256 * kernel.gamma_bar.flip(0)[1:].numpy()  # after each step
    low, high = np.floor(left - 1e-9), np.floor(left + 1e-9)  # 256 cos(pi / 3) is 127 in float32, 128 in float64
    amused, _ = golden(f"amused_N256_T{num_steps}_masked")
    assert bool(np.all((amused.numpy() == np.maximum(low, 0)) | (amused.numpy() == high)))
    maskgit, _ = golden(f"maskgit_N256_T{num_steps}_remasked")  # never fewer than one
    assert bool(np.all((maskgit.numpy() == np.maximum(low, 1)) | (maskgit.numpy() == np.maximum(high, 1))))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100, 4000])
@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_every_schedule_is_clean_at_0_noise_at_T_and_never_turns_back(name, kernel, num_steps):
    built = kernels.build(kernel, schedule=name, codebook_size=5, num_steps=num_steps)
    assert built.alpha_bar.dtype == built.gamma_bar.dtype == built.beta_bar.dtype == torch.float64
    assert (built.alpha_bar[0], built.beta_bar[0], built.gamma_bar[0]) == (1, 0, 0)
    assert bool((built.alpha_bar.diff() < 0).all() and (built.gamma_bar.diff() >= 0).all())
    assert built.alpha_bar[-1] <= 0.032  # VQ-DDM's clip leaves sqrt(.001) when T = 1
    total = built.alpha_bar + 5 * built.beta_bar + built.gamma_bar
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", schedules.names("absorbing"))
def test_absorbing_schedules_end_all_masked_and_never_replace_to_the_last_bit(name):
    kernel = kernels.build("absorbing", schedule=name, codebook_size=5, num_steps=37)
    assert kernel.gamma_bar[-1] == 1
    assert bool((kernel.beta_bar == 0).all())


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(
        VqtoolError, match=r"unknown schedule 'sine'.*release, paper, linear.*'uniform': linear, cosine"
    ):
        kernels.build("uniform", schedule="sine", codebook_size=5)


def test_a_schedule_that_does_not_fit_the_kernel_is_refused_with_those_that_do():
    with pytest.raises(VqtoolError, match=r"'linear' is defined for absorbing, uniform, not.*: release, paper"):
        kernels.build("mask-replace", schedule="linear", codebook_size=5)
