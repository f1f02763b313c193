"""Networks of which each process holds a part: the numbers are those of whole ones, and so are the files."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support import prior_run
from support.exact import grid_spec
from support.matrices import build_kernel
from support.shaken import shaken
from support.two import FSDP, run_in_two
from torch.distributed.tensor import DTensor

from vqtool import conditions, denoisers
from vqtool.errors import VqtoolError
from vqtool.training._splitting import like, load, split, whole
from vqtool.training._weights import clip
from vqtool.training.adapters import TuningOptions
from vqtool.training.building import build_prior
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.objectives import PriorLoss, PriorObjective

WITH_BLOCKS = ("transformer", "vq-diffusion", "halton-maskgit", "titok", "maskbit", "muse")
CASES = [(name, kind) for name in WITH_BLOCKS for kind in denoisers.module(name).CONDITIONS]
REFUSED = "this network has no blocks that processes could hold parts of"


@pytest.fixture
def group():
    """A group of one process, whose networks are of one part, gathered all the same."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def build(name, kind):
    """A prior with noise for weights, and the objective of a step on 16 grids."""
    grids = prior_run.batch(4)
    conditioner = conditions.build(kind, grids.labels, grids.labels)
    texts = conditioner.encode(grids.labels if kind != "none" else [None] * 16)
    num_codes, parts = (8, {"num_parts": 1}) if name == "maskbit" else (7, {})
    kernel = build_kernel("mask-replace", codebook_size=num_codes, num_steps=20)
    spec = grid_spec((2, 3))
    prior = build_prior(
        kernel, conditioner, spec, "tiny", seed=0, tokens=grids.tokens, denoiser=name, **parts
    )  # fmt: skip
    noise = torch.Generator().manual_seed(1)
    for parameter in prior.denoiser.requires_grad_(False).parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    data = GridData(grids.tokens, texts, spec)
    return prior, PriorObjective(prior, data, PriorLoss(), LoopConfig(10, 16, compile=True))  # all cells at once


def step(model, objective):
    """Loss, norm and gradients of a step; where all are scaled down."""
    loss, _ = objective(model, np.arange(16), np.arange(16), 0)
    loss.backward()
    norm = clip(model, 0.1)
    gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), norm, gradients


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_split_network_has_the_loss_and_gradients_of_a_whole_one(group, name, kind):
    prior, objective = build(name, kind)
    expected = step(prior.denoiser.train().requires_grad_(True), objective)
    prior, objective = build(name, kind)
    split(prior.denoiser.train().requires_grad_(True), torch.device("cpu"))
    assert all(isinstance(parameter, DTensor) for parameter in prior.denoiser.parameters())
    assert_same(step(prior.denoiser, objective), expected)


@pytest.mark.parametrize("tuning", [{"lora": 2}, {"train": "null"}, {"freeze": "embedding,head"}], ids=str)
def test_what_a_split_network_learns_in_part_is_what_a_whole_one_learns(group, tuning):
    results = []
    for splits in (False, True):
        prior, objective = build("transformer", "class")
        TuningOptions(**tuning).begin(prior.denoiser.train(), [], seed=0)
        if splits:
            split(prior.denoiser, torch.device("cpu"))
        results.append(step(prior.denoiser, objective))
    assert_same(*results)


def test_weights_go_into_a_split_network_and_come_out_whole(group):
    (mine, _), (theirs, _) = build("transformer", "class"), build("transformer", "none")
    wanted = {name: torch.rand(tensor.shape) for name, tensor in mine.denoiser.state_dict().items()}
    split(mine.denoiser, torch.device("cpu"))
    load(mine.denoiser, wanted)
    assert all(torch.equal(whole(tensor), wanted[name]) for name, tensor in mine.denoiser.state_dict().items())
    one = next(mine.denoiser.parameters())
    assert torch.equal(whole(like(torch.ones(one.shape), one)), torch.ones(one.shape))
    with pytest.raises(RuntimeError, match="Missing key"):
        load(mine.denoiser, theirs.denoiser.state_dict())


@pytest.mark.parametrize("name", [name for name in denoisers.NAMES if name not in WITH_BLOCKS])
def test_a_network_without_blocks_is_refused(name):
    with pytest.raises(VqtoolError, match=rf"FSDP \(`accelerate launch --use_fsdp`\): {REFUSED}; leave it out"):
        split(shaken(name), torch.device("cpu"))


class _Stop(Exception):
    pass


def stop(step, metrics):
    if step == 5:
        raise _Stop


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one_and_one_with_theirs(tmp_path):
    """In parts, with blocks computed again, and a best that is kept: the losses of one process."""
    settings = {"kernel": "absorbing", "copies": 60, "keep_best": True}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    prior_run.train(tmp_path / "one", num_steps=10, **settings)
    with pytest.raises(_Stop):
        prior_run.train(tmp_path / "two", num_steps=10, report=stop, **settings)
    shared = {**settings, "num_steps": 10, "resume": True, "accumulate": 2, "checkpoint": True}
    done = run_in_two("support.prior_run", tmp_path / "two", json.dumps(shared), **FSDP)
    assert done.returncode == 0, done.stderr.decode()
    left = []
    for name in ("one", "two"):
        left.append(prior_run.train(tmp_path / name, num_steps=13, resume=True, **settings))
    one, two = (prior_run.read_log(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in two] == list(range(1, 14))
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert_same(left[1].denoiser.state_dict(), left[0].denoiser.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "environment"),
    [("prior_run", {}), ("prior_run", FSDP), ("training_run", {})],
    ids=["DDP", "FSDP", "tokenizer"],
)
def test_where_a_process_dies_the_others_end_within_a_minute_and_say_so_in_a_line(tmp_path, run, environment):
    settings = {"num_steps": 10**6, "dies": True}
    done = run_in_two(f"support.{run}", tmp_path, json.dumps(settings), **environment)
    assert time.monotonic() - float((tmp_path / "died").read_text()) < 60
    assert done.returncode != 0
    assert "process 0 of 2 cannot go on, most likely since another one has ended" in done.stderr.decode()
    assert "state.safetensors: `resume` goes on from there" in done.stderr.decode()


@pytest.mark.slow
def test_a_tokenizer_is_refused_in_one_line(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    output = tmp_path / "mine.safetensors"
    done = run_in_two("vqtool", "train-tokenizer", tmp_path, "--size", 16, "-o", output, **FSDP)
    assert done.returncode == 1
    errors = [line for line in done.stderr.decode().splitlines() if "error" in line.lower()]
    assert errors
    assert all("is for priors: a tokenizer fits every GPU whole; start without it" in line for line in errors)
    assert not output.exists()
