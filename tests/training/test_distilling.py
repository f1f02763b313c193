"""Distillation: a student reaches in one call what no product can, by enumeration; students are priors like any."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.exact import exact_prior, random_prior
from support.laws import build

import vqtool
from vqtool import denoisers
from vqtool.errors import MismatchError, VqtoolError
from vqtool.priors import load_prior
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.distilling import DistillOptions, Pair, build_student, distill, distill_prior

AA_OR_BB = torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=torch.float64)


def law_of_one_call(student, count=512):
    """(4,): AA, AB, BA, BB of one call of a student of two cells of two tokens, over quantiles of its latent."""
    network = student.denoiser
    x_t, t = torch.full((count, 1, 2), 2), torch.full((count,), student.kernel.num_steps)
    latent = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    condition = network.encode_condition(student.conditioner.null(count))
    with torch.no_grad():
        p = network(x_t, t, network.mix(condition, latent)).double().softmax(-1)[:, 0]
    return torch.einsum("la,lb->lab", p[:, 0], p[:, 1]).mean(0).flatten()


def variation(law, other):
    return 0.5 * float((law - other).abs().sum(-1).min())


def test_a_student_reaches_in_one_call_what_no_product_can(tmp_path):
    """AA or BB, half of the time each: the nearest product is off by 2 sqrt(.5) (1 - sqrt(.5)) = .414."""
    torch.set_num_threads(1)
    p = torch.linspace(0, 1, 201, dtype=torch.float64)
    a, b = (torch.stack([each, 1 - each], -1) for each in torch.meshgrid(p, p, indexing="ij"))
    assert variation(torch.einsum("xya,xyb->xyab", a, b).flatten(2), AA_OR_BB) == pytest.approx(0.414, abs=2e-3)
    teacher = random_prior(
        "absorbing", grid_size=(1, 2), codebook_size=2, num_steps=4, scale=0.3, num_layers=1, width=16
    )
    exact = exact_prior(AA_OR_BB, (1, 2), teacher.kernel)
    grids = vqtool.sample(exact, 256, sampler="fewer", steps=2, batch_size=256)
    data = GridData(grids.numpy().astype(np.int64), teacher.conditioner.null(256), teacher.grid_spec)
    student = distill(
        build_student(teacher, 1, 1, seed=0), data, DistillOptions(calls=1, latent_size=1),
        LoopConfig(300, 16, 3e-3, warmup_steps=5, ema_decay=0.9, save_seconds=1e9, log_steps=1000),
        state_path=tmp_path / "s", log_path=tmp_path / "l",
    )  # fmt: skip
    assert student.summary["steps"] == 300
    found = law_of_one_call(student)
    assert variation(found, AA_OR_BB) < 0.15
    assert found[1:3].sum() < 0.12  # AB and BA: of the product with AA as often as BB half
    drawn = vqtool.sample(student, 2048, steps=1, batch_size=2048).flatten(1)
    mixed = float((drawn[:, 0] != drawn[:, 1]).double().mean())
    assert abs(mixed - float(found[1:3].sum())) < 0.03  # 4 standard deviations


def test_the_divergence_is_that_of_the_normal_law_that_the_encoder_names():
    student = build_student(random_prior(grid_size=(2, 2)), 3, 2, seed=0)
    pair = Pair(student.denoiser, seed=0)
    x_0, t = torch.randint(11, (5, 2, 2)), torch.full((5,), 20)
    x_t = torch.full_like(x_0, 11)
    condition = student.conditioner.null(5)
    with torch.no_grad():
        found = pair(x_0, x_t, t, condition, torch.zeros(5, 3))[1]
        pair.leave.weight.zero_()
        pair.leave.bias.copy_(torch.tensor([1.0, -0.5, 0.0, 0.2, -1.0, 0.0]))
        known = pair(x_0, x_t, t, condition, torch.zeros(5, 3))[1]
    assert found.min() > 0
    mean = 3 * (torch.tensor([1.0, -0.5, 0.0]) / 3).tanh()
    law = torch.distributions.Normal(mean, torch.tensor([0.2, -1.0, 0.0]).exp())
    expected = torch.distributions.kl_divergence(law, torch.distributions.Normal(torch.zeros(3), torch.ones(3))).sum()
    torch.testing.assert_close(known, expected.expand(5))


def test_a_student_is_saved_and_sampled_as_any_prior_and_refuses_more_calls(tmp_path):
    teacher = random_prior("mask-replace", "class").save(tmp_path / "t.safetensors")
    settings = {"calls": 2, "num": 6, "latent_size": 4, "batch_size": 3, "steps": 2, "teacher_calls": 3}
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


def test_a_student_of_a_table_of_latents_is_still_sampled():
    """As version 0.2 made them: the row that the quantile of the first number falls on is added."""
    prior = random_prior("absorbing", grid_size=(2, 2))
    config = {**vars(prior.denoiser.config), "num_latents": 4}
    network = denoisers.build("transformer", config)
    network.take_over(prior.denoiser)
    assert network.latent_size == 1
    quantiles = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    mixed = network.mix(network.encode_condition(prior.conditioner.null(4)), torch.special.ndtri(quantiles)[:, None])
    torch.testing.assert_close(mixed.embedding, network.latents.weight)
    student = replace(prior, denoiser=network, summary={"calls": 2})
    assert vqtool.sample(student, 2, steps=2).max() < 11


def test_a_student_learns_from_grids_that_were_drawn_before(tmp_path):
    teacher = random_prior("absorbing", "class").save(tmp_path / "t.safetensors")
    vqtool.sample_to_file(teacher, tmp_path / "drawn.h5", 6, labels=["ant", "cat"])
    settings = {"calls": 2, "latent_size": 4, "batch_size": 3, "steps": 2, "grids": tmp_path / "drawn.h5"}
    student = distill_prior(tmp_path / "t.safetensors", tmp_path / "s.safetensors", **settings)
    assert student.parent == teacher.fingerprint
    assert student.sampling == {"sampler": "ancestral", "steps": 2}
    vqtool.sample_to_file(teacher, tmp_path / "sharp.h5", 6, labels=["ant"], sampler="remask", steps=2)
    sharp = distill_prior(
        tmp_path / "t.safetensors", tmp_path / "r.safetensors", **settings | {"grids": tmp_path / "sharp.h5"}
    )
    assert sharp.sampling == {"sampler": "purity", "steps": 2}
    with pytest.raises(VqtoolError, match="`teacher_calls` is for grids that the teacher draws"):
        distill_prior(tmp_path / "t.safetensors", tmp_path / "n.safetensors", **settings, teacher_calls=2)
    small = random_prior("absorbing", "class", grid_size=(2, 2))
    replace(small, grid_spec=replace(small.grid_spec, tokenizer_fingerprint="")).save(tmp_path / "small.safetensors")
    with pytest.raises(MismatchError, match=r"drawn.h5: grids of 4x6 cells, and the teacher draws 2x2"):
        distill_prior(tmp_path / "small.safetensors", tmp_path / "n.safetensors", **settings)


def test_what_cannot_be_distilled_is_refused():
    kernel = build("absorbing", "linear", 2, 4)
    with pytest.raises(VqtoolError, match="`calls` 21: the teacher's kernel has 20 steps"):
        build_student(random_prior(), 4, 21, seed=0)
    prior = exact_prior(torch.ones(4), (1, 2), kernel)
    prior.denoiser.config = object()
    with pytest.raises(VqtoolError, match="the denoiser exact has no place for a latent; transformer has"):
        build_student(prior, 4, 2, seed=0)


def test_a_student_of_which_each_process_holds_a_part_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        VqtoolError, match=r"FSDP \(`accelerate launch --use_fsdp`\) is for train-prior: distil without"
    ):
        build_student(random_prior(), 4, 2, seed=0)
