"""The training loop: accelerate, EMA weights, warm-up + cosine, clipping, JSON-lines log, exact resume.

Nothing in a run depends on hidden state. Which items step n sees and which noise it draws follow from (seed, n); the
state file holds weights, EMA weights, codebook statistics and optimiser moments, a step number and the time used. A run
that is killed and resumed therefore has the losses of one that was not, where its length is a number of steps; one by
minutes goes on with the minutes that are left.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtool import distributed
from vqtool.errors import VqtoolError
from vqtool.progress import Advance, Progress, silent
from vqtool.signals import Interrupted
from vqtool.training._log import Account, Report, RunLog, check_finite, describe_stop
from vqtool.training._order import Order, step_items
from vqtool.training._run import Objective, Run
from vqtool.training._signals import interruptible
from vqtool.training._validation import Validation
from vqtool.training.clock import LoopConfig

Keep = Callable[[nn.Module, Mapping[str, Any]], object]
Preview = Callable[[nn.Module, int], None]


@dataclass(frozen=True)
class LoopResult:
    """What a run leaves."""

    model: nn.Module  # EMA weights, on the CPU, in eval mode
    summary: dict[str, Any]  # steps, seconds, last losses; kept_step where the best weights are kept


def run(
    model: nn.Module,
    objective: Objective,
    *,
    num_items: int,
    config: LoopConfig,
    state_path: Path,
    log_path: Path,
    data: Mapping[str, str],
    settings: Mapping[str, Any],
    resume: bool = False,
    memory: nn.Module | None = None,
    validation: Validation | None = None,
    preview: Preview | None = None,
    keep: Keep | None = None,
    report: Report | None = None,
    progress: Progress = silent,
    told: Sequence[str] = ("loss",),
    order: Order = step_items,
    clock: Callable[[], float] = time.monotonic,
) -> LoopResult:
    """Train a model.

    Args:
        model: what is trained; its buffers are saved and resumed too.
        objective: (model, indices (b,), samples (b,), moment) -> (loss, metrics). `indices` says which items;
            `samples` is each one's number in the whole run, the key of its noise. The model it is handed may be
            wrapped: call it, do not reach into it.
        num_items: how many items there are to learn from.
        config: of the run.
        state_path: file that the run can be resumed from.
        log_path: JSON-lines log, a line a step.
        data: digests of what is learnt from; a resume needs the same.
        settings: what the run is made from, by the names that users know; a resume needs the same.
        resume: go on from `state_path`.
        memory: what the objective remembers from step to step: buffers, saved and resumed with the model.
        validation: when the EMA model is looked at, and what is measured of it.
        preview: draws a picture of the progress with the EMA model, every `config.preview_steps` steps, in the main
            process.
        keep: is given (EMA weights, summary) whenever the model was looked at and these are those to keep, in the main
            process: what it writes is there if the run is interrupted.
        report: is told (step, metrics) after each logged step.
        progress: shows the steps.
        told: names of the metrics that are shown with the progress.
        order: of the items.
        clock: seconds, for a run by minutes.

    Returns:
        The EMA model and a summary for the artifact's header; `share` is how much of a run that ended early is over.

    Raises:
        VqtoolError: processes cannot share a batch, memory ran out, the loss is not finite, or another process ended.
        KeyboardInterrupt: after Ctrl-C, with the state saved; its text says so.
    """
    if config.batch_size % (distributed.world_size() * config.accumulate):
        world = distributed.world_size()
        by = f"{world} process{'es' if world > 1 else ''}"
        parts = f", {config.accumulate} parts each (`accumulate`)" if config.accumulate > 1 else ""
        raise VqtoolError(f"a batch of {config.batch_size} cannot be shared evenly by {by}{parts}")
    training = Run(model, config, memory, validation, clock)
    fixed = {name: value for name, value in asdict(config).items() if name in _FIXED}
    fixed |= {} if config.tf32 == config.bf16 else {"tf32": config.tf32}  # else as states of earlier versions have it
    length = {"steps": config.num_steps, "minutes": config.minutes}
    identity = {"data": data, "settings": {**settings, **fixed}, **length}
    if resume:
        training.load(state_path, identity)
    elif state_path.exists():  # of an earlier run, which a resume would go on with while the log is of this one
        training.save(state_path, identity)
    log = RunLog(log_path, training.step)
    account = Account(log, training.course, report, told)
    try:
        with (
            _explained(training, state_path),
            progress("train", config.num_steps, "steps", done=training.step, detail=account.detail) as advance,
        ):
            _take_steps(
                training, partial(training.take_step, objective, num_items, order), account, advance,
                save=partial(training.save, state_path, identity), keep=keep, preview=preview, state_path=state_path,
            )  # fmt: skip
    finally:
        log.close()
    return LoopResult(training.whole(training.kept).cpu().eval(), training.summary)


@contextmanager
def _explained(training: Run, state_path: Path) -> Iterator[None]:
    """Say in one line that memory ran out, or that another process is gone: those that are left do not wait for it.

    Raises:
        VqtoolError: one of both happened.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        less = ", or work through it in parts (`accumulate`), or keep less (`checkpoint`)"
        less = less if hasattr(training.bare, "blocks") else ""
        raise VqtoolError(
            f"out of memory in a step of {training.config.batch_size}: give a smaller `batch_size`{less}"
            f"{_go_on(state_path)}"
        ) from error
    except RuntimeError as error:
        if distributed.world_size() == 1:
            raise
        raise VqtoolError(
            f"process {distributed.rank()} of {distributed.world_size()} cannot go on, most likely since another one "
            f"has ended, whose own words say why{_go_on(state_path)} ({str(error).splitlines()[0]})"
        ) from error


def _go_on(state_path: Path) -> str:
    return f"; the state is in {state_path}: `resume` goes on from there" if state_path.exists() else ""


def _take_steps(
    training: Run,
    take_step: Callable[[], dict[str, Tensor]],
    account: Account,
    advance: Advance,
    *,
    save: Callable[[], None],
    keep: Keep | None,
    preview: Preview | None,
    state_path: Path,
) -> None:
    """Take the steps that are left; the arguments are made of those of `run`."""
    config = training.config
    draws, is_main = preview is not None and config.preview_steps > 0, distributed.is_main_process()
    training.start_clock()
    with interruptible() as interrupted:
        while not training.is_over:
            metrics = take_step()
            training.tick()
            moment = training.moment
            is_due = training.course.is_due(moment)
            measured = training.look() if is_due else {}
            logs = is_due or moment.step % config.log_steps == 0 or moment.is_last
            # Several processes talk to each other in steps that are logged and in no others.
            talks = logs or distributed.world_size() == 1
            stop = interrupted() if talks else 0
            keeps = keep is not None and is_due and training.has_new_to_keep
            is_late = talks and distributed.broadcast(training.seconds_unsaved > config.save_seconds)
            saves = bool(stop) or keeps or is_late
            if saves or logs:
                training.note({**metrics, **measured})
                check_finite(training.values, moment.step, state_path)
            if logs:
                account.tell(moment.step, training.values, training.seconds, measured)
            advance(1) if config.minutes is None else advance(1, total=max(moment.step, round(moment.num_steps)))
            if preview is not None and draws and moment.step % config.preview_steps == 0:
                shown = training.whole(training.ema)
                if is_main:
                    preview(shown.to(training.accelerator.device), moment.step)
            if saves:
                save()
            if keeps and keep is not None:  # after the state: without that one nobody could go on with it
                kept = training.whole(training.kept)
                if is_main:
                    keep(kept, training.summary)
            if stop:
                raise Interrupted(
                    stop, describe_stop(moment, by_clock=config.minutes is not None, state_path=state_path)
                )
        save()


# Fields of LoopConfig that change the numbers of a run; the others may differ on resume.
_FIXED = ("batch_size", "learning_rate", "weight_decay", "betas", "clip_norm", "seed", "bf16", "compile")


def measure_step_seconds(
    model: nn.Module,
    objective: Objective,
    *,
    num_items: int,
    config: LoopConfig,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of a clock that one step takes here: the median of a few on a copy of the model, after a warm-up.

    For benchmarks; no run needs it. On a GPU it is the median of tens of steps, which do not wait for each other, as
    in a run.
    """
    trial = Run(copy.deepcopy(model), config)
    together = 1 if trial.accelerator.device.type == "cpu" else 10
    seconds = []
    for _ in range(8):
        start = clock()
        for _ in range(together):
            loss = trial.take_step(objective, num_items)["loss"]
        float(loss)
        seconds.append((clock() - start) / together)
    # All processes have to come to the same length of the run.
    return distributed.broadcast(float(np.median(seconds[2:])))
