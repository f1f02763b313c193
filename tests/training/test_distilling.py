"""Distillation: a mixture reaches in one call what no product can, by enumeration; students are priors like any."""

import numpy as np
import pytest
import torch
from support.exact import exact_prior, random_prior
from support.laws import build

import vqtool
from vqtool.errors import VqtoolError
from vqtool.priors import load_prior
from vqtool.training import loop
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.distilling import DistillOptions, MixtureObjective, build_student, distill_prior


def law_of_one_call(student):
    """(4,): AA, AB, BA, BB of one call of a student of two cells of two tokens, over all its latents."""
    network, count = student.denoiser, student.denoiser.num_latents
    x_t, t = torch.full((count, 1, 2), 2), torch.full((count,), student.kernel.num_steps)
    condition = network.encode_condition(student.conditioner.null(count))
    with torch.no_grad():
        p = network(x_t, t, network.mix(condition, (torch.arange(count) + 0.5) / count)).double().softmax(-1)[:, 0]
    return torch.einsum("la,lb->lab", p[:, 0], p[:, 1]).mean(0).flatten()


def test_a_mixture_reaches_in_one_call_what_no_product_can(tmp_path):
    """AA or BB, half of the time each: a product that has both has AB and BA as often."""
    torch.set_num_threads(1)
    law = torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    teacher = random_prior(
        "absorbing", grid_size=(1, 2), codebook_size=2, num_steps=4, scale=0.1, num_layers=1, width=16
    )
    exact = exact_prior(law, (1, 2), teacher.kernel)
    grids = vqtool.sample(exact, 256, sampler="fewer", steps=2, batch_size=256)
    options = DistillOptions(calls=1, num_latents=8, draws=8, batch_size=16)
    student = build_student(teacher, 8, 1, seed=0)
    student.denoiser.requires_grad_(True)
    data = GridData(grids.numpy().astype(np.int64), teacher.conditioner.null(256), teacher.grid_spec)
    result = loop.run(
        student.denoiser, MixtureObjective(student, data, options, 0), num_items=256,
        config=LoopConfig(120, 16, 2e-2, warmup_steps=5, ema_decay=0.9, save_seconds=1e9, log_steps=1000),
        state_path=tmp_path / "s", log_path=tmp_path / "l", data={}, settings={},
    )  # fmt: skip
    assert result.summary["steps"] == 120
    found = law_of_one_call(student)
    assert float(found[1] + found[2]) < 0.2  # of a product with AA and BB alike: half
    assert abs(float(found[0]) - 0.5) < 0.15
    drawn = vqtool.sample(student, 2048, steps=1, batch_size=2048).flatten(1)
    mixed = float((drawn[:, 0] != drawn[:, 1]).double().mean())
    assert abs(mixed - float(found[1] + found[2])) < 0.04


def test_a_student_is_saved_and_sampled_as_any_prior_and_refuses_more_calls(tmp_path):
    teacher = random_prior("mask-replace", "class").save(tmp_path / "t.safetensors")
    settings = {"calls": 2, "num": 6, "num_latents": 4, "draws": 2, "batch_size": 3, "steps": 2, "teacher_calls": 3}
    distill_prior(tmp_path / "t.safetensors", tmp_path / "s.safetensors", **settings)
    student = load_prior(tmp_path / "s.safetensors")
    assert student.summary["calls"] == 2
    assert student.summary["teacher"] == student.parent == teacher.fingerprint
    assert student.history[-1]["step"] == "distill"
    condition = student.conditioner.encode(["ant", "bee", "cat"])
    drawn = vqtool.sample(student, 3, condition=condition)  # by its own two calls
    assert torch.equal(drawn, vqtool.sample(student, 3, condition=condition, sampler="ancestral", steps=2))
    assert torch.equal(drawn[1:], vqtool.sample(student, 2, start=1, condition=condition[1:]))
    for options in ({"steps": 3}, {"sampler": "purity", "steps": 5}, {"sampler": "entropy", "entropy_budget": 0.01}):
        with pytest.raises(VqtoolError, match=r"student, made for 2 network calls a grid, not .*`steps` 2 or fewer"):
            vqtool.sample(student, 2, condition=condition[:1], **options)
    with pytest.raises(VqtoolError, match="is a student itself: distil its teacher"):
        build_student(student, 4, 2, seed=0)


def test_what_cannot_be_distilled_is_refused():
    kernel = build("absorbing", "linear", 2, 4)
    with pytest.raises(VqtoolError, match="`calls` 21: the teacher's kernel has 20 steps"):
        build_student(random_prior(), 4, 21, seed=0)
    prior = exact_prior(torch.ones(4), (1, 2), kernel)
    prior.denoiser.config = object()
    with pytest.raises(VqtoolError, match="the denoiser exact has no place for latents; transformer has"):
        build_student(prior, 4, 2, seed=0)


def test_a_student_of_which_each_process_holds_a_part_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        VqtoolError, match=r"FSDP \(`accelerate launch --use_fsdp`\) is for train-prior: distil without"
    ):
        build_student(random_prior(), 4, 2, seed=0)
