"""The training loop: its arithmetic by hand, and runs that are killed, interrupted and resumed."""

import math
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training_run import read_log, train
from support.two import run_in_two
from torch import nn

from vqtool import artifacts
from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning
from vqtool.tokenizers import Tokenizer
from vqtool.training import loop
from vqtool.training._log import RunLog, describe_stop
from vqtool.training._order import step_items
from vqtool.training.clock import LoopConfig, Moment, ema_decay, learning_rate


def test_the_learning_rate_warms_up_linearly_and_falls_along_a_cosine():
    config = LoopConfig(num_steps=100, batch_size=1, learning_rate=2.0, warmup_steps=4)

    def rate(step, config):
        return learning_rate(config.length.moment(step, 0.0), config)

    cosine = [0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(100)]
    warm = [0.25, 0.5, 0.75, *[1.0] * 97]
    assert [rate(step, config) for step in range(100)] == pytest.approx(
        [2.0 * w * c for w, c in zip(warm, cosine, strict=True)]
    )
    assert rate(50, config) == pytest.approx(1.0)
    assert rate(100, config) == 0
    assert rate(0, LoopConfig(num_steps=1, batch_size=1, learning_rate=2.0, warmup_steps=0)) == 2.0


@pytest.mark.parametrize(("num_items", "batch_size"), [(10, 4), (10, 10), (3, 8), (1, 2), (7, 1)])
def test_every_epoch_visits_every_item_once(num_items, batch_size):
    steps = range(4 * num_items // math.gcd(num_items, batch_size))
    pairs = [step_items(step, num_items, batch_size, seed=3) for step in steps]
    indices, samples = (np.concatenate(part) for part in zip(*pairs, strict=True))
    assert samples.tolist() == list(range(len(samples)))
    epochs = indices[: len(indices) // num_items * num_items].reshape(-1, num_items)
    assert len(epochs) >= 4
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_items), (len(epochs), 1)))
    if num_items == 10:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)  # 10! orders: no chance of a repeat


def test_the_items_of_a_step_depend_on_seed_and_step_alone():
    first = step_items(17, 50, 8, seed=1)
    step_items(0, 50, 8, seed=2)
    assert all(map(np.array_equal, step_items(17, 50, 8, seed=1), first))
    assert not np.array_equal(step_items(17, 50, 8, seed=2)[0], first[0])


class Line(nn.Module):
    """y = weight * x, with a buffer that counts its calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0]]))
        self.bias = nn.Parameter(torch.tensor([2.0]))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return self.weight * x + self.bias


class Clock:
    """Seconds that pass while a step is taken, and at no other time."""

    def __init__(self, seconds=lambda step: 1.0):
        self.now, self.seconds = 1000.0, seconds

    def __call__(self):
        return self.now

    def timed(self, objective):
        def slow(model, indices, samples, moment):
            self.now += self.seconds(moment.step)
            return objective(model, indices, samples, moment)

        return slow


def run(model, objective, folder, *, resume=False, num_items=5, data=None, clock=None, more=None, **settings):
    config = LoopConfig(**{"num_steps": 6, "batch_size": 2, "warmup_steps": 0, **settings})
    if clock is not None:
        objective, more = clock.timed(objective), {"clock": clock, **(more or {})}
    return loop.run(
        model,
        objective,
        num_items=num_items,
        config=config,
        state_path=folder / "state.safetensors",
        log_path=folder / "log.jsonl",
        data=data or {},
        settings={},
        resume=resume,
        **(more or {}),
    )


def pull_up(model, indices, samples, step):
    """Gradients of -1 for weight and bias: Adam then moves both by the learning rate."""
    return -model(torch.ones(1, 1)).sum(), {"seen": torch.tensor(float(len(indices)))}


def test_ema_weights_are_averages_as_worked_out_by_hand(tmp_path):
    """After step n the average moves by 1 - min(decay, (1 + n) / (10 + n)) towards the weights."""
    weights, model = [], Line()

    def objective(model, *rest):
        weights.append(model.weight.item())
        return pull_up(model, *rest)

    settings = {"num_steps": 6, "learning_rate": 0.1, "ema_decay": 0.3, "weight_decay": 0.0}
    result = run(model, objective, tmp_path, **settings)
    weights.append(model.weight.item())
    average = weights[0]
    for step, weight in enumerate(weights[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert result.model.weight.item() == pytest.approx(average, rel=1e-6)
    assert average != pytest.approx(weights[-1], rel=1e-3)  # the test could not tell otherwise
    assert result.model.calls.item() == 6  # buffers are copied, not averaged
    assert not result.model.training
    rates = [0.1 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert np.diff(weights) == pytest.approx(rates, rel=1e-4)


def test_weight_decay_shrinks_matrices_and_spares_vectors(tmp_path):
    def flat(model, *_):
        return 0.0 * model(torch.ones(1, 1)).sum(), {}

    settings = {"learning_rate": 0.1, "weight_decay": 0.5, "num_steps": 1}
    model = Line()
    run(model, flat, tmp_path, **settings)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 0.5)
    assert model.bias.item() == 2.0


def test_gradients_are_clipped_to_the_norm_and_logged_unclipped(tmp_path):
    """Gradients (30, 40) have norm 50; Adam sees (0.6, 0.8): its first moments are 1 - 0.9 times what it sees."""

    def steep(model, *_):
        return 30 * model.weight.sum() + 40 * model.bias.sum(), {}

    run(Line(), steep, tmp_path, num_steps=1, clip_norm=1.0, betas=(0.9, 0.99))
    assert read_log(tmp_path)[0]["gradient_norm"] == pytest.approx(50)
    _, state = artifacts.load(tmp_path / "state.safetensors")
    moments = sorted(state[f"optimizer.{i}.exp_avg"].item() for i in (0, 1))
    assert moments == pytest.approx([0.06, 0.08], rel=1e-4)


def test_the_log_has_a_line_every_so_many_steps_and_one_for_the_last(tmp_path):
    result = run(Line(), pull_up, tmp_path, log_steps=4, num_steps=6)
    assert [line["step"] for line in read_log(tmp_path)] == [4, 6]
    assert read_log(tmp_path)[0]["seen"] == 2
    assert result.summary["steps"] == 6
    assert result.summary["loss"] == read_log(tmp_path)[-1]["loss"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state_before_it(tmp_path, bad):
    def objective(model, indices, samples, moment):
        return model(torch.ones(1, 1)).sum() * (bad if moment.step == 3 else 1.0), {}

    with pytest.raises(VqtoolError, match=rf"became {bad} at step 4: .*smaller `learning_rate`; .*state\.safetensors"):
        run(Line(), objective, tmp_path, save_seconds=0.0, log_steps=100)
    header, tensors = artifacts.load(tmp_path / "state.safetensors")
    assert header.summary["step"] == 3
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    def objective(model, *_):
        return (model.weight - 1).abs().sqrt().sum(), {}  # 0, with an infinite slope

    with pytest.raises(
        VqtoolError, match=r"norm of the gradient became (nan|inf) at step 1: .*smaller `learning_rate`$"
    ):
        run(Line(), objective, tmp_path)


def test_a_batch_that_processes_cannot_share_evenly_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(VqtoolError, match="a batch of 4 cannot be shared evenly by 3 processes"):
        run(Line(), pull_up, tmp_path, batch_size=4)


def test_a_run_can_be_started_from_a_thread(tmp_path):
    """Where signals cannot be caught, Ctrl-C is the caller's."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run(Line(), pull_up, tmp_path)))
    thread.start()
    thread.join()
    assert results[0].summary["steps"] == 6


def test_timing_steps_leaves_the_model_as_it_was():
    model = Line()
    seconds = loop.measure_step_seconds(model, pull_up, num_items=5, config=LoopConfig(1, 2))
    assert 0 < seconds < 10
    assert (model.weight.item(), model.bias.item(), model.calls.item()) == (1.0, 2.0, 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log and weights of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer, _ = train(folder)
    return read_log(folder), tokenizer.state_dict()


def assert_same(folder, tokenizer, whole):
    """Every loss and metric of every step, and the weights at the end, bit for bit."""
    log, weights = whole
    assert len(log) == 60
    assert read_log(folder) == log
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tokenizer.state_dict().items())


def test_a_killed_run_resumes_with_the_losses_of_one_that_was_not(tmp_path, whole):
    process = subprocess.Popen([sys.executable, "-m", "support.training_run", tmp_path, '{"pause": 0.05}'])
    log, deadline = tmp_path / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 20):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed_at = artifacts.read_header(tmp_path / "state.safetensors").summary["step"]
    assert 18 <= killed_at < 60
    with log.open("a") as file:
        file.write('{"step": 61, "lo')  # what a kill in the middle of a line leaves
    tokenizer, summary = train(tmp_path, resume=True)
    assert_same(tmp_path, tokenizer, whole)
    assert summary["loss"] == whole[0][-1]["loss"]


def test_a_damaged_line_of_the_log_is_told_and_kept_and_the_run_goes_on(tmp_path):
    train(tmp_path, num_steps=60)
    log = tmp_path / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"loss":', b'"loss"\xff')
    log.write_bytes(b"".join([*lines, b'{"step": 61, "loss": 1', b"[]\n"]))
    with pytest.warns(VqtoolWarning, match=r"log\.jsonl: damaged lines are skipped: 2$"):
        train(tmp_path, resume=True)
    assert log.read_bytes().splitlines(keepends=True) == lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"summary": {"step": "x"}}, "how far it is: step: a number is expected, not 'x'"),
        ({"summary": {"step": 3, "seconds": 1.0}}, "how far it is: values is missing"),
        ({"tensors": {}}, "damaged: its tensors do not fit the run"),
        ({"moments": torch.zeros(7)}, r"damaged: its tensors do not fit the run: a moment of shape \(7,\)"),
    ],
)
def test_a_forged_state_is_refused_in_one_line(tmp_path, change, message):
    run(Line(), pull_up, tmp_path)
    path = tmp_path / "state.safetensors"
    header, tensors = artifacts.load(path)
    given = {"summary": header.summary, "tensors": tensors, **change}
    if "moments" in given:
        given["tensors"] = {**tensors, "optimizer.0.exp_avg": given.pop("moments")}
    artifacts.save(path, kind="training-state", config=header.config, force=True, **given)
    with pytest.raises(FormatError, match=rf"state\.safetensors: {message}"):
        run(Line(), pull_up, tmp_path, resume=True)


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", 0)
    log._file.close()
    log._file = Path("/dev/full").open("wb")  # noqa: SIM115
    with pytest.raises(VqtoolError, match=r"log\.jsonl: cannot be written: No space left on device"):
        log.write({"step": 1})
    log.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_an_interrupted_run_saves_its_state_says_so_and_resumes(tmp_path, whole, number):
    def report(step, metrics):
        if step == 23:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(
        KeyboardInterrupt, match=r"after step 2[34] of 60; the state is in .*state\.safetensors.*`resume`"
    ):
        train(tmp_path, report=report, save_seconds=1e9)
    assert signal.getsignal(number) is before
    tokenizer, _ = train(tmp_path, resume=True)
    assert_same(tmp_path, tokenizer, whole)


def test_a_run_that_begins_over_another_is_what_a_resume_goes_on_with(tmp_path, whole):
    def stop(step, metrics):
        raise RuntimeError("killed")

    train(tmp_path, num_steps=2)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, report=stop)
    tokenizer, _ = train(tmp_path, resume=True)
    assert_same(tmp_path, tokenizer, whole)


def test_a_second_ctrl_c_does_not_wait_for_the_end_of_the_step(tmp_path):
    def report(step, metrics):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one has to be raised at once")

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train(tmp_path, report=report)


def test_a_finished_run_that_is_resumed_gives_its_result_again(tmp_path, whole):
    _, first = train(tmp_path)
    tokenizer, summary = train(tmp_path, resume=True)
    assert_same(tmp_path, tokenizer, whole)
    assert summary == first


def test_settings_that_change_no_number_may_differ_on_resume(tmp_path):
    train(tmp_path, num_steps=3)
    train(tmp_path, num_steps=3, resume=True, save_seconds=9.0, log_steps=2, preview_steps=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 2}, "`batch_size` was 4 when the run began, now it is 2"),
        ({"learning_rate": 0.5}, "`learning_rate` was 0.001 when the run began, now it is 0.5"),
        ({"seed": 1}, "`seed` was 0 when the run began, now it is 1"),
    ],
)
def test_a_resume_with_other_settings_is_refused_naming_both(tmp_path, changes, message):
    train(tmp_path, num_steps=3)
    log = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(MismatchError, match=f"{message}: resume with the settings and data of the start"):
        train(tmp_path, resume=True, **{"num_steps": 3, **changes})
    assert (tmp_path / "log.jsonl").read_bytes() == log


BY_CLOCK = {"num_steps": None, "minutes": 1.0}  # of a clock that says a second a step: 60 steps


def test_a_run_by_minutes_ends_on_time_whatever_its_steps_take_and_its_rate_follows_the_clock(tmp_path):
    def seconds(step):  # other work comes, and goes
        return 5.0 if 10 <= step < 15 else 1.0

    rates, shares, model = [], [], Line()

    def objective(model, indices, samples, moment):
        shares.append(moment.share)
        rates.append(model.weight.item())
        return pull_up(model, indices, samples, moment)

    told = []

    @contextmanager
    def progress(description, total, unit, *, done, detail):
        told.append(total)
        yield lambda n, total: told.append(total)

    clock = Clock(seconds)
    settings = {**BY_CLOCK, "learning_rate": 0.1, "weight_decay": 0.0}
    summary = run(model, objective, tmp_path, clock=clock, more={"progress": progress}, **settings).summary
    used = np.cumsum([seconds(step) for step in range(40)])
    assert (summary["steps"], summary["seconds"], clock.now) == (40, 60.0, 1060.0)
    assert shares == pytest.approx([0.0, *used[:-1] / 60])
    expected = [0.1 * 0.5 * (1 + math.cos(math.pi * share)) for share in shares]
    assert np.diff([*rates, model.weight.item()]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert told[:3] == [None, 60, 60]
    assert (told[15], told[-1]) == (26, 40)  # 15 steps in 35 s


def test_progress_never_has_more_steps_than_there_are(tmp_path):
    told = []

    @contextmanager
    def progress(description, total, unit, *, done, detail):
        yield lambda n, total: told.append(total)

    summary = run(Line(), pull_up, tmp_path, clock=Clock(lambda step: 27.0), more={"progress": progress}, **BY_CLOCK)
    assert (summary.summary["steps"], told) == (3, [2, 2, 3])  # the last one ends 21 s late


def test_an_interrupted_run_is_said_to_have_no_fewer_steps_than_were_taken_and_none_where_nothing_is_known():
    def said(*moment, by_clock=True):
        return describe_stop(Moment(*moment), by_clock=by_clock, state_path=Path("s")).split(";")[0]

    assert said(2, 0.9, 1.4) == "stopped after step 2 of about 2"
    assert said(2, 0.2, 9.6) == "stopped after step 2 of about 10"
    assert said(2, 0.2, 10, by_clock=False) == "stopped after step 2 of 10"
    assert said(0, 0.0, math.inf) == "stopped after step 0"


def test_a_run_by_minutes_that_is_resumed_uses_the_minutes_that_are_left(tmp_path):
    def stop(step, metrics):
        if step == 23:
            signal.raise_signal(signal.SIGINT)

    settings = {**BY_CLOCK, "warmup_steps": 100, "warmup_share": 0.1, "ema_decay": 0.9995, "ema_share": 0.1}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    expected = run(Line(), pull_up, whole, clock=Clock(), **settings).model.state_dict()
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 2[34] of about 60; the state is in"):
        run(Line(), pull_up, stopped, clock=Clock(), more={"report": stop}, **settings)
    resumed = run(Line(), pull_up, stopped, clock=Clock(), resume=True, **settings)
    assert (resumed.summary["steps"], resumed.summary["seconds"]) == (60, 60.0)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert read_log(stopped) == read_log(whole)


def test_averages_and_warm_up_go_by_the_steps_that_a_run_comes_to():
    config = LoopConfig(None, 1, 1.0, minutes=1.0, warmup_share=0.1, ema_decay=0.9995, ema_share=0.1, ema_rises=False)
    assert config.length.moment(0, 0.0) == (0, 0.0, math.inf)
    for step, seconds, warm, decay in (
        (0, 0.0, 0.01, 0.9995), (4, 3.0, 5 / 8, 0.9), (4, 0.3, 5 / 80, 1 - 1 / 80), (50, 30.0, 1.0, 0.9)
    ):  # fmt: skip
        moment = config.length.moment(step, seconds)
        cosine = 0.5 * (1 + math.cos(math.pi * seconds / 60))
        assert learning_rate(moment, config) == pytest.approx(warm * cosine)
        assert ema_decay(moment, config) == pytest.approx(decay)
    assert LoopConfig(8, 1, minutes=1.0).length.moment(4, 45.0) == (4, 0.75, pytest.approx(16 / 3))
    assert LoopConfig(8, 1, minutes=1.0).length.moment(4, 15.0) == (4, 0.5, 8)


@pytest.mark.parametrize("num_steps", [30, 90])
def test_a_run_that_is_resumed_with_other_steps_goes_on_as_one_of_that_length(tmp_path, num_steps):
    """The steps after the interruption are those of a run of the new length: their rates say so."""

    def stop(step, metrics):
        if step == 20:
            raise RuntimeError

    settings = {"learning_rate": 0.1, "weight_decay": 0.0, "save_seconds": 0.0, "num_items": 3}
    with pytest.raises(RuntimeError):
        run(Line(), pull_up, tmp_path, num_steps=60, more={"report": stop}, **settings)
    weights, model = [], Line()

    def objective(model, *given):
        weights.append(model.weight.item())
        return pull_up(model, *given)

    first = artifacts.read_header(tmp_path / "state.safetensors").summary["step"]
    assert run(model, objective, tmp_path, num_steps=num_steps, resume=True, **settings).summary["steps"] == num_steps
    rates = [0.1 * 0.5 * (1 + math.cos(math.pi * step / num_steps)) for step in range(first, num_steps)]
    assert np.diff([*weights, model.weight.item()]) == pytest.approx(rates, rel=1e-3, abs=1e-6)
    assert [line["step"] for line in read_log(tmp_path)] == [*range(1, num_steps + 1)]


def test_a_resume_with_other_data_is_refused(tmp_path):
    run(Line(), pull_up, tmp_path, data={"images": "one"})
    with pytest.raises(MismatchError, match="not the images that the run began with"):
        run(Line(), pull_up, tmp_path, data={"images": "other"}, resume=True)


def test_a_resume_without_a_state_or_from_another_file_is_refused(tmp_path):
    with pytest.raises(VqtoolError, match=r"state\.safetensors: nothing to resume from.*without `resume`"):
        run(Line(), pull_up, tmp_path, resume=True)
    artifacts.save(tmp_path / "state.safetensors", kind="prior", config={}, tensors={})
    with pytest.raises(FormatError, match="a prior, but a training-state is needed"):
        run(Line(), pull_up, tmp_path, resume=True)


def test_previews_are_drawn_with_the_averaged_model_every_so_many_steps(tmp_path):
    drawn = []

    def preview(tokenizer, step):
        assert isinstance(tokenizer, Tokenizer)
        assert not tokenizer.training
        drawn.append(step)

    train(tmp_path, num_steps=7, preview_steps=3, preview=preview)
    assert drawn == [3, 6]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path, whole):
    """Sums over processes round differently: losses agree to 1e-4, which fails where noise or data differ."""
    done = run_in_two("support.training_run", tmp_path, "{}")
    assert done.returncode == 0, done.stderr.decode()
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert losses == pytest.approx([line["loss"] for line in whole[0]], rel=1e-4)


def test_where_memory_runs_out_it_is_said_what_takes_less(tmp_path):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = Line()
    with pytest.raises(VqtoolError, match=r"out of memory in a step of 2: give a smaller `batch_size`$"):
        run(model, full, tmp_path)
    model.blocks = nn.ModuleList()
    with pytest.raises(VqtoolError, match=r"`batch_size`, or work through it in parts \(`accumulate`\), or keep less"):
        run(model, full, tmp_path)
