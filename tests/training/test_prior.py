"""Training of priors: what is learnt with each loss and denoiser, a killed run, and how runs are planned."""

import json
import math
import re
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from support import prior_run
from support.exact import grid_spec
from support.matrices import build_kernel
from support.two import run_in_two

import vqtool
from vqtool import artifacts, conditions, denoisers
from vqtool.diffusion import kernels
from vqtool.errors import VqtoolError, VqtoolWarning
from vqtool.training import building
from vqtool.training import prior as training
from vqtool.training._weights import checkpoint_blocks
from vqtool.training.clock import Length, LoopConfig
from vqtool.training.data import GridData
from vqtool.training.objectives import PriorLoss, validate
from vqtool.training.runs import MachineOptions, RunFiles

# "bound" and "elbo" are too noisy for so short a run; "reweighted-elbo" never learns from a grid that is all mask.
LEARNT = [
    ("mask-replace", "reweighted"),
    ("absorbing", "reweighted"),
    ("uniform", "reweighted"),
    ("absorbing", "mlm"),
    ("absorbing", "mdlm"),
]


@pytest.mark.parametrize(("kernel", "loss"), LEARNT)
def test_a_tiny_prior_learns_four_pictures_and_which_label_has_which(tmp_path, kernel, loss):
    settings = {"num_steps": 250, "learning_rate": 3e-3, "save_seconds": 1e9}
    prior = prior_run.train(tmp_path, kernel=kernel, loss={"loss": loss}, **settings)
    condition = prior.conditioner.encode(["up", "down"] * 32)
    # One cell a call, or many steps: cells that open together may belong to two pictures.
    options = {"steps": 40} if kernel == "uniform" else {"sampler": "purity", "steps": 6}
    drawn = vqtool.sample(prior, 64, condition=condition, **options).numpy()
    same = (drawn[:, None] == prior_run.PICTURES[None]).all((2, 3))  # (64, 4)
    wanted = np.where(np.arange(64)[:, None] % 2 == 0, [[1, 1, 0, 0]], [[0, 0, 1, 1]]).astype(bool)
    assert (same & wanted).any(1).mean() > 0.8
    assert same.any(0).all()
    assert prior.summary["num_grids"] == 16


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": {"loss": "bound", "times": "importance", "auxiliary_weight": 0.1}, "diffusion": 8}],
    ids=["stratified", "importance"],
)
def test_a_killed_run_that_is_resumed_has_the_losses_of_one_that_was_not(tmp_path, settings):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    prior = prior_run.train(whole, **settings)
    process = subprocess.Popen([sys.executable, "-m", "support.prior_run", str(killed), json.dumps(settings)])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (killed / "state.safetensors").exists() and artifacts.read_header(killed / "state.safetensors").summary[
            "step"
        ] >= 10:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert len(prior_run.read_log(killed)) < 40
    resumed = prior_run.train(killed, resume=True, **settings)
    assert prior_run.read_log(killed) == prior_run.read_log(whole)
    for name, tensor in prior.denoiser.state_dict().items():
        assert torch.equal(resumed.denoiser.state_dict()[name], tensor)


def test_what_importance_has_seen_is_saved_with_the_run(tmp_path):
    prior_run.train(tmp_path, loss={"times": "importance"}, diffusion=8)
    _, tensors = artifacts.load(tmp_path / "state.safetensors", "training-state")
    assert int(tensors["memory.count"].sum()) == 40 * 16
    assert bool((tensors["memory.square"] > 0).all())


CONDITIONS = [(name, kind) for name in denoisers.NAMES for kind in denoisers.module(name).CONDITIONS]


@pytest.mark.parametrize(("name", "kind"), CONDITIONS)
def test_every_denoiser_learns_with_every_condition_that_it_takes(tmp_path, name, kind):
    torch.set_num_threads(1)
    grids = prior_run.batch(4)
    conditioner = conditions.build(kind, grids.labels, grids.labels)
    data = GridData(
        grids.tokens, conditioner.encode(grids.labels if kind != "none" else [None] * 16), grid_spec((2, 3))
    )
    num_codes, parts = (8, {"num_parts": 1}) if name == "maskbit" else (7, {})  # whose codes are bits
    forward = build_kernel("mask-replace", codebook_size=num_codes, num_steps=20)
    prior = building.build_prior(
        forward, conditioner, data.grid_spec, "tiny", seed=0, tokens=data.tokens, denoiser=name, **parts
    )
    assert prior.parameterisation == denoisers.module(name).PARAMETERISATION
    fresh = float(validate(prior.denoiser, prior, data, 1))
    trained = training.fit(
        prior,
        data,
        loss=PriorLoss(),
        run=LoopConfig(40, 16, 2e-3, warmup_steps=3, save_seconds=1e9),
        state_path=tmp_path / "state.safetensors",
        log_path=tmp_path / "log.jsonl",
    )
    assert trained.denoiser_name == name
    assert float(validate(trained.denoiser, trained, data, 1)) < 0.9 * fresh


def test_a_run_with_dropout_that_is_resumed_has_the_losses_of_one_that_was_not(tmp_path):
    logs = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()

    def stop(step, metrics):
        if step == 7:
            raise RuntimeError

    settings = {"num_steps": 12, "dropout": 0.2}
    prior_run.train(tmp_path / "whole", **settings)
    with pytest.raises(RuntimeError):
        prior_run.train(tmp_path / "stopped", report=stop, **settings)
    torch.rand(5)  # what others draw does not matter
    prior_run.train(tmp_path / "stopped", resume=True, **settings)
    (tmp_path / "without").mkdir()
    prior_run.train(tmp_path / "without", num_steps=12)
    logs = [prior_run.read_log(tmp_path / name) for name in ("whole", "stopped", "without")]
    assert logs[0] == logs[1]
    # The gates of a fresh network are shut.
    assert [log[0]["loss"] for log in logs] == [logs[0][0]["loss"]] * 3
    assert logs[0][-1]["loss"] != logs[2][-1]["loss"]


@pytest.mark.parametrize("kernel", ["absorbing", "mask-replace"])
def test_a_batch_in_parts_has_the_losses_of_one_that_is_whole_and_its_state_can_be_taken_up_by_either(tmp_path, kernel):
    def stop(step, metrics):
        if step == 7:
            raise RuntimeError

    for name in ("whole", "parts", "both"):
        (tmp_path / name).mkdir()
    settings = {"kernel": kernel, "num_steps": 12}
    prior_run.train(tmp_path / "whole", **settings)
    prior_run.train(tmp_path / "parts", accumulate=4, **settings)
    with pytest.raises(RuntimeError):
        prior_run.train(tmp_path / "both", accumulate=2, report=stop, **settings)
    prior_run.train(tmp_path / "both", resume=True, **settings)
    logs = {name: prior_run.read_log(tmp_path / name) for name in ("whole", "parts", "both")}
    for name in ("parts", "both"):
        for mine, theirs in zip(logs[name], logs["whole"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


def test_blocks_that_are_computed_again_give_the_same_losses_with_their_dropout(tmp_path):
    for name in ("kept", "again"):
        (tmp_path / name).mkdir()
        prior_run.train(tmp_path / name, num_steps=8, dropout=0.2, checkpoint=name == "again")
    kept, again = (prior_run.read_log(tmp_path / name) for name in ("kept", "again"))
    assert len(kept) == 8
    assert again == kept


def test_blocks_are_computed_again_where_there_are_some():
    with pytest.raises(VqtoolError, match="`checkpoint`: this network has no blocks to compute again; leave it out"):
        checkpoint_blocks(torch.nn.Linear(1, 1))


def test_a_batch_that_parts_cannot_share_is_refused(tmp_path):
    with pytest.raises(VqtoolError, match=r"a batch of 16 cannot be shared evenly by 1 process, 3 parts each"):
        prior_run.train(tmp_path, accumulate=3)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_either_takes_up_the_state_of_the_other(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    settings = {"kernel": "absorbing", "num_steps": 12, "accumulate": 2}
    prior_run.train(tmp_path / "one", **settings)
    done = run_in_two("support.prior_run", tmp_path / "two", json.dumps(settings))
    assert done.returncode == 0, done.stderr.decode()
    one, two = (prior_run.read_log(tmp_path / name) for name in ("one", "two"))
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    prior_run.train(tmp_path / "two", resume=True, **settings)


def test_training_with_dropout_leaves_the_random_numbers_of_others_alone(tmp_path):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    prior_run.train(tmp_path, num_steps=2, dropout=0.2)
    assert torch.equal(torch.rand(2), wanted)


def test_a_state_of_before_a_setting_of_the_network_came_is_taken_up(tmp_path):
    prior_run.train(tmp_path, num_steps=3)
    path = tmp_path / "state.safetensors"
    header, tensors = artifacts.load(path)
    for name in ("dropout", "token_width", "caption_width", "shared_modulation"):
        assert not header.config["settings"]["size"].pop(name)
    assert header.config["settings"]["size"].pop("num_parts") == 1
    given = {"kind": header.kind, "config": header.config, "summary": header.summary, "tensors": tensors}
    artifacts.save(path, force=True, **given)
    prior_run.train(tmp_path, num_steps=3, resume=True)
    with pytest.raises(VqtoolError, match="`size` is not what the run began with"):
        prior_run.train(tmp_path, num_steps=3, resume=True, dropout=0.2)


def test_dropout_is_refused_where_the_denoiser_has_none():
    grids = np.zeros((4, 8, 8), np.int64)
    kernel = kernels.build("absorbing", codebook_size=4, num_steps=10)
    with pytest.raises(VqtoolError, match=r"`dropout` 0\.1: the denoiser unet has none; leave it out"):
        building.build_prior(
            kernel,
            conditions.build("none"),
            grid_spec((8, 8)),
            "tiny",
            seed=0,
            tokens=grids,
            denoiser="unet",
            dropout=0.1,
        )


def test_some_grids_are_held_out_where_there_are_enough_and_their_bound_is_logged(tmp_path):
    prior = prior_run.train(tmp_path, copies=60, num_steps=200, batch_size=2, save_seconds=1e9)
    assert prior.summary["num_held_out"] == 7
    assert prior.summary["num_grids"] == 233
    log = prior_run.read_log(tmp_path)
    assert [line["step"] for line in log if "validation_bound" in line] == [*range(25, 201, 25)]
    assert math.isfinite(prior.summary["validation_bound"])


def test_the_best_averaged_weights_are_kept_also_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "VALIDATION_STEPS", 10)
    monkeypatch.setattr(training, "MIN_VALIDATIONS", 1)
    seen, bounds = [], iter([3.0, 1.0, 2.0, 1.0, 0.0])

    def look(model, *given, **named):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return torch.tensor(next(bounds))

    monkeypatch.setattr(training, "validate", look)
    settings = {"copies": 60, "num_steps": 35, "keep_best": True}

    def stop(step, metrics):
        if step == 25:
            raise RuntimeError

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = prior_run.train(tmp_path / "whole", **settings)  # its fifth look is the one at the end
    bounds = iter([3.0, 1.0])
    with pytest.raises(RuntimeError):
        prior_run.train(tmp_path / "stopped", report=stop, **settings)
    bounds = iter([2.0, 1.0, 0.0])
    resumed = prior_run.train(tmp_path / "stopped", resume=True, **settings)
    for trained in (whole, resumed):
        assert trained.summary["kept_step"] == 20
        for name, tensor in trained.denoiser.state_dict().items():
            assert torch.equal(tensor, seen[1][name])
    log = prior_run.read_log(tmp_path / "whole")
    lines = {line["step"]: line["validation_bound"] for line in log if "validation_bound" in line}
    assert lines == {10: 3.0, 20: 1.0, 30: 2.0, 35: 1.0}


@pytest.mark.parametrize(
    ("different", "num", "told"),
    [
        (1, 1, ["one grid to learn from: the prior can learn to draw that one and no other"]),
        (1, 30, ["30 grids that are all the same to learn from: the prior can learn to draw that one and no other"]),
        (2, 5, ["5 grids to learn from, of which only 2 are different"]),
        (3, 5, []),
    ],
)
def test_grids_that_are_copies_of_each_other_are_told(different, num, told):
    tokens = np.repeat(np.arange(6).reshape(1, 2, 3), num, axis=0)
    tokens[:, 0, 0] = np.arange(num) % different
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VqtoolWarning)
        training._warn_of_copies(GridData(tokens, torch.zeros(num), grid_spec((2, 3))))
    assert [str(each.message) for each in caught] == told


@pytest.mark.parametrize(
    ("summary", "is_new", "expected"),
    [
        ({"steps": 240}, True, []),
        ({"steps": 5, "kept_step": 5}, True, ["a new network draws noise after 5 steps: `resume` with more `minut.*"]),
        ({"steps": 5, "kept_step": 5}, False, []),
        ({"steps": 240, "kept_step": 240}, True, []),
        ({"steps": 240, "kept_step": 200}, True, [r"the weights of step 200 of 240 are written, .* was lowest"]),
        ({"steps": 240, "kept_step": 30}, False, [r"the weights of step 30 of 240 are written, .* was lowest"]),
        (
            {"steps": 240, "kept_step": 30},
            True,
            [r".*lowest; so early they may draw unfinished pictures: with `keep` l.*"],
        ),
        (
            {"steps": 90, "kept_step": 60, "share": 0.375},
            True,
            [
                r"ended after 90 steps, 38% of the run; `resume` without `early_stop` goes on",
                r"the weights of step 60 .*",
            ],
        ),
    ],
)
def test_it_is_told_which_weights_a_run_leaves_and_that_early_ones_draw_unfinished_pictures(summary, is_new, expected):
    told = []
    training.tell_kept(summary, told.append, is_new=is_new)
    assert len(told) == len(expected)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, told, strict=True))


def test_a_run_that_has_turned_is_told_once_ends_early_and_can_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "plan_validation", lambda num_steps, batch_size: (2, 8))
    course = [5.0, 4.0, 4.2, 4.2, 4.01, 4.2, 4.3, 4.4, 4.5, 4.6]  # the fifth is less than 2 % above the best

    def run(folder, values, **settings):
        shown = iter(values)
        monkeypatch.setattr(training, "validate", lambda *given, **named: torch.tensor(next(shown)))
        (tmp_path / folder).mkdir(exist_ok=True)
        return prior_run.train(tmp_path / folder, copies=60, num_steps=18, keep_best=True, **settings)

    told = "validation_bound was 4 at step 4 and is 4.2 at step 12: the run learns by heart"
    with pytest.warns(VqtoolWarning, match=told) as warned:
        ended = run("early", course, early_stop=True)
    assert len(warned) == 1
    assert (ended.summary["steps"], ended.summary["kept_step"]) == (14, 4)
    again = run("early", [0.0], early_stop=True, resume=True)  # over as it is: nothing is measured but what is written
    assert (again.summary["steps"], again.summary["kept_step"]) == (14, 4)
    with pytest.warns(VqtoolWarning, match="is 4.4 at step 16: the run learns by heart"):
        gone_on = run("early", course[7:], resume=True)
    with pytest.warns(VqtoolWarning, match=told):
        whole = run("whole", course)
    for made in (gone_on, whole):
        assert (made.summary["steps"], made.summary["kept_step"]) == (18, 4)
    for name, tensor in whole.denoiser.state_dict().items():
        assert torch.equal(gone_on.denoiser.state_dict()[name], tensor)
        assert torch.equal(ended.denoiser.state_dict()[name], tensor)


def test_without_a_word_the_best_is_kept_where_grids_are_held_out_and_a_resumed_run_keeps_what_it_kept(tmp_path):
    files = RunFiles(tmp_path / "p.safetensors")
    some = object()
    assert training.choose_keep(training.PriorRunOptions(), files, some) == "best"
    assert training.choose_keep(training.PriorRunOptions(), files, None) == "last"
    assert training.choose_keep(training.PriorRunOptions(keep="last"), files, some) == "last"
    prior_run.train(tmp_path, num_steps=2)
    (tmp_path / "state.safetensors").rename(tmp_path / "p.state.safetensors")
    assert training.choose_keep(training.PriorRunOptions(), RunFiles(files.output, resume=True), some) == "last"


def test_the_best_can_be_kept_only_where_grids_are_held_out(tmp_path):
    with pytest.raises(
        VqtoolError, match="`keep` best goes with 200 grids or more, of which some are held out to tell; "
    ):
        prior_run.train(tmp_path, keep_best=True)


def test_a_split_is_a_partition_and_the_same_every_time():
    tokens = np.arange(300).reshape(-1, 1, 1)
    data = GridData(tokens, torch.arange(300), grid_spec((1, 1)))
    kept, held_out = data.split(4)
    assert sorted([*kept.tokens.flatten(), *held_out.tokens.flatten()]) == list(range(300))
    assert kept.conditions.tolist() == kept.tokens.flatten().tolist()
    assert np.array_equal(data.split(4)[1].tokens, held_out.tokens)
    assert kept.digest() != data.digest()


def test_a_fresh_prior_predicts_each_token_as_often_as_it_is_found():
    tokens = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2]).reshape(10, 1, 1)
    kernel = kernels.build("absorbing", codebook_size=4, num_steps=10)
    prior = building.build_prior(kernel, conditions.build("none"), grid_spec((1, 1)), "tiny", seed=0, tokens=tokens)
    found = prior.log_x0(torch.full((1, 1, 1), 4), torch.tensor([10])).exp().flatten()
    torch.testing.assert_close(found, torch.tensor([3.5, 2.5, 5.5, 0.5]) / 12)


def test_a_run_is_measured_eight_times_at_least_and_at_a_fiftieth_of_its_cost():
    assert training.plan_validation(8000, 512) == (200, 256)
    assert training.plan_validation(136, 64) == (17, 8)
    assert training.plan_validation(1600, 64) == (200, 32)
    assert training.plan_validation(3, 1) == (1, 8)
    grids = GridData(np.arange(300).reshape(-1, 1, 1), torch.arange(300), grid_spec((1, 1)))
    assert grids.thin(4).tokens.flatten().tolist() == [0, 100, 199, 299]
    assert np.array_equal(grids.thin(1000).tokens, grids.tokens)


def test_sizes_and_lengths_follow_data_and_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert building.choose_size("transformer", 300, 64) == "tiny"
    assert building.choose_size("transformer", 5000, 64) == "small"
    assert training.choose_default(100, 50) == Length(600, 10.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert building.choose_size("transformer", 100_000, 256) == "large"
    assert building.choose_size("vq-diffusion", 100_000, 256) == "small"  # the largest of these names
    assert training.choose_default(10, 1000) == Length(3, 30.0)
    assert training.choose_default(1, 1000).steps == 1


def test_bfloat16_and_compiling_are_for_gpus(monkeypatch):
    def plan(**machine):
        run, rest = training.PriorRunOptions(batch_size=4), {"learning_rate": 1e-3, "seed": 0}
        config = training.choose_run(Length(50), run=run, machine=MachineOptions(**machine), **rest)
        assert config.tf32 == machine.get("tf32", config.bf16)
        return config.bf16, config.compile

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan() == plan(bf16=False) == (False, False)
    for name in ("bf16", "tf32", "compile"):
        with pytest.raises(VqtoolError, match=f"`{name}` goes with a CUDA GPU, and there is none"):
            plan(**{name: True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (plan(), plan(bf16=False)) == ((True, False), (False, False))
    assert plan(compile=True) == plan(bf16=True, compile=True) == (True, True)
    assert plan(bf16=False, compile=True) == (False, True)
    assert plan(bf16=False, tf32=True) == (False, False)


def test_a_condition_that_a_denoiser_does_not_take_is_refused_and_the_error_names_those_that_do():
    with pytest.raises(
        VqtoolError, match=r"`denoiser` vq-diffusion is not trained with `condition` caption, only with"
    ):
        building.check_condition("vq-diffusion", "caption")
    with pytest.raises(VqtoolError, match="denoisers that take caption: transformer"):
        building.check_condition("vq-diffusion", "caption")
