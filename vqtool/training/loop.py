"""The training loop: accelerate, EMA weights, warm-up + cosine, clipping, JSON-lines log, exact resume.

Nothing in a run depends on hidden state. Which items step n sees and which noise it draws follow from (seed, n); the
state file holds weights, EMA weights, codebook statistics and optimiser moments, a step number and the time used. A run
that is killed and resumed therefore has the losses of one that was not, where its length is a number of steps; one by
minutes goes on with the minutes that are left.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqtool import artifacts, distributed, rng
from vqtool.errors import FormatError, VqtoolError
from vqtool.progress import Advance, Progress, silent
from vqtool.signals import Interrupted
from vqtool.training._identity import Reached, check_identity
from vqtool.training._log import Account, Report, RunLog, check_finite, describe_stop
from vqtool.training._order import Indices, Order, step_items
from vqtool.training._signals import interruptible
from vqtool.training._validation import Course, Validation
from vqtool.training._weights import build_optimizer, checkpoint_blocks, update_ema
from vqtool.training.clock import LoopConfig, Moment, ema_decay, learning_rate
from vqtool.trust import parse_record

STATE_KIND = "training-state"

Objective = Callable[[nn.Module, Indices, Indices, Moment], tuple[Tensor, dict[str, Tensor]]]
Keep = Callable[[nn.Module, Mapping[str, Any]], object]
Preview = Callable[[nn.Module, int], None]


@dataclass(frozen=True)
class LoopResult:
    """What a run leaves."""

    model: nn.Module  # EMA weights, on the CPU, in eval mode
    summary: dict[str, Any]  # steps, seconds, last losses; kept_step where the best weights are kept


class _Run:
    """Model, EMA and optimiser of a run, and their way to and from the state file."""

    def __init__(
        self,
        model: nn.Module,
        config: LoopConfig,
        memory: nn.Module | None = None,
        validation: Validation | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._clock = clock
        self.start_clock()
        self.memory = memory or nn.Module()
        self.validation = validation
        self.course = Course(validation)
        distributed.join_group()
        self.accelerator = Accelerator(cpu=not distributed.has_gpu(), mixed_precision="bf16" if config.bf16 else "no")
        self.bare = model.to(self.accelerator.device)
        self.ema = copy.deepcopy(self.bare).eval().requires_grad_(False)
        self._keeps_best = validation is not None and validation.keep_best
        self.best = copy.deepcopy(self.ema) if self._keeps_best else nn.Module()
        self.bare.train()
        self.optimizer = build_optimizer(
            self.bare, config.learning_rate, config.betas, config.weight_decay, decays_all=config.decays_all
        )
        if config.checkpoint:
            checkpoint_blocks(self.bare)
        if config.compile:
            self.bare.compile()
        self.model, self.prepared = self.accelerator.prepare(self.bare, self.optimizer)
        self.step = 0
        self.seconds = 0.0
        self.values: dict[str, float] = {}  # of the last logged step

    @property
    def moment(self) -> Moment:
        """How far the run is."""
        return self.config.length.moment(self.step, self.seconds)

    def start_clock(self) -> None:
        """Count the time from now on."""
        self._counted = self._saved = self._clock()

    def tick(self) -> None:
        """Count the time that was used; by minutes, processes go by that of the main one, in steps that are logged."""
        together = self.config.minutes is not None and distributed.world_size() > 1
        if together and self.step % self.config.log_steps:
            return
        now = self._clock()
        seconds, self._counted = self.seconds + now - self._counted, now
        self.seconds = distributed.broadcast(seconds) if together else seconds

    @property
    def seconds_unsaved(self) -> float:
        """Since the state was saved."""
        return self._counted - self._saved

    @property
    def is_over(self) -> bool:
        """Whether no step is left to take."""
        return self.moment.is_last or self.course.is_over(self.values)

    @property
    def kept(self) -> nn.Module:
        """The averaged weights that the run would leave if it ended now."""
        return self.best if self._keeps_best and self.course.best_step else self.ema

    @property
    def has_new_to_keep(self) -> bool:
        """Whether the last look, with more to come, found weights that are worth more than a file of earlier ones."""
        is_new = self.kept is not self.best or self.course.best_step == self.step
        return is_new and not self.moment.is_last and self.accelerator.is_main_process

    @property
    def summary(self) -> dict[str, Any]:
        """What a header says of the run."""
        found = {"steps": self.step, "seconds": round(self.seconds, 1), **self.values}
        if self.kept is self.best:
            found["kept_step"] = self.course.best_step
        return found if self.moment.is_last else {**found, "share": round(self.moment.share, 4)}

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write everything that the next step depends on (main process only)."""
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.bare.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        tensors |= {f"memory.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        summary = {"step": self.step, "seconds": self.seconds, "values": self.values}
        course = self.course
        if course.best_step:
            summary["best"] = [course.best_step, course.best_value]
        summary["looks"] = [course.last_step, course.since_best, course.size]
        artifacts.save(path, kind=STATE_KIND, config=identity, tensors=tensors, summary=summary, force=True)
        self._saved = self._clock()

    def load(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Take up a run where its state file left it.

        Raises:
            MismatchError: the state is of a run on other data or with other settings.
        """
        if not path.exists():
            raise VqtoolError(f"{path}: nothing to resume from: the file does not exist; start without `resume`")
        header, tensors = artifacts.load(path, STATE_KIND)
        check_identity(path, json.loads(json.dumps(identity)))
        reached = parse_record(Reached, header.summary, f"{path}: how far it is")

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        try:
            for prefix, module in (("model.", self.bare), ("ema.", self.ema), ("memory.", self.memory)):
                module.load_state_dict(part(prefix))
            self.best.load_state_dict(part("best."))
            self._load_moments(part("optimizer."))
        except (RuntimeError, LookupError, ValueError) as error:
            raise FormatError(f"{path}: damaged: its tensors do not fit the run: {error}") from error
        self.step, self.seconds, self.values = reached.step, reached.seconds, dict(reached.values)
        self.course = Course(self.validation, *(reached.best or (0, math.inf)), *(reached.looks or (reached.step,)))

    def _load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        learned = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, key = name.partition(".")
            if key != "step" and tensor.shape != learned[int(index)].shape:
                raise ValueError(
                    f"a moment of shape {tuple(tensor.shape)} of {tuple(learned[int(index)].shape)} numbers"
                )
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def take_step(self, objective: Objective, num_items: int, order: Order = step_items) -> dict[str, Tensor]:
        """One step of the optimiser; the loss and metrics of this process's part of the batch."""
        config, moment = self.config, self.moment
        indices, samples = order(self.step, num_items, config.batch_size, config.seed)
        own = distributed.own_range(config.batch_size)
        for group in self.prepared.param_groups:
            group["lr"] = learning_rate(moment, config)
        indices, samples = indices[own.start : own.stop], samples[own.start : own.stop]
        results = []
        for part, rows in enumerate(np.split(np.arange(len(indices)), config.accumulate)):
            waits = part + 1 < config.accumulate  # with the exchange of gradients, for the last part
            with self.accelerator.no_sync(self.model) if waits else nullcontext():
                with self._seeded(part), self.accelerator.autocast():
                    loss, metrics = objective(self.model, indices[rows], samples[rows], moment)
                self.accelerator.backward(loss / config.accumulate)
            results.append({"loss": loss.detach(), **metrics})
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.prepared.step()
        self.prepared.zero_grad()
        update_ema(self.ema, self.bare, ema_decay(moment, config))
        self.step += 1
        metrics = results[0]
        if config.accumulate > 1:
            metrics = {name: torch.stack([result[name] for result in results]).mean(0) for name in metrics}
        return {**metrics, "gradient_norm": norm}

    def note(self, metrics: Mapping[str, Tensor]) -> None:
        """Keep metrics as numbers, averaged over the processes: the only time that a step waits for them."""
        if distributed.world_size() > 1:
            metrics = {name: self.accelerator.reduce(value.float(), "mean") for name, value in metrics.items()}
        self.values = {name: float(value) for name, value in metrics.items()}

    @contextmanager
    def _seeded(self, part: int) -> Iterator[None]:
        """Let torch's own noise, which dropout alone draws, follow from seed, step, process and part of the batch."""
        if not any(isinstance(module, nn.Dropout) and module.p for module in self.bare.modules()):
            yield
            return
        number = (self.step * distributed.world_size() + distributed.rank()) * self.config.accumulate + part
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
            torch.manual_seed(int(rng.generator(self.config.seed, number, stream=rng.DROPOUT).integers(2**63)))
            yield

    @torch.no_grad()
    def look(self) -> dict[str, Tensor]:
        """What is measured of the EMA model; the best is kept."""
        with self.accelerator.autocast():
            measured = self.course.look(self.step, self.ema)
        if self._keeps_best and self.course.best_step == self.step:
            self.best.load_state_dict(self.ema.state_dict())
        return measured


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
        KeyboardInterrupt: after Ctrl-C, with the state saved; its text says so.
    """
    if config.batch_size % (distributed.world_size() * config.accumulate):
        parts = f", {config.accumulate} parts each (`accumulate`)" if config.accumulate > 1 else ""
        raise VqtoolError(
            f"a batch of {config.batch_size} cannot be shared evenly by {distributed.world_size()} processes{parts}"
        )
    training = _Run(model, config, memory, validation, clock)
    fixed = {name: value for name, value in asdict(config).items() if name in _FIXED}
    length = {"steps": config.num_steps, "minutes": config.minutes}
    identity = {"data": data, "settings": {**settings, **fixed}, **length}
    if resume:
        training.load(state_path, identity)
    elif state_path.exists():  # of an earlier run, which a resume would go on with while the log is of this one
        training.save(state_path, identity)
    log = RunLog(log_path, training.step)
    account = Account(log, training.course, report, told)
    try:
        with progress("train", config.num_steps, "steps", done=training.step, detail=account.detail) as advance:
            _take_steps(
                training, partial(training.take_step, objective, num_items, order), account, advance,
                save=partial(training.save, state_path, identity), keep=keep, preview=preview, state_path=state_path,
            )  # fmt: skip
    finally:
        log.close()
    return LoopResult(training.kept.cpu().eval(), training.summary)


def _take_steps(
    training: _Run,
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
    draws = preview is not None and config.preview_steps > 0 and distributed.is_main_process()
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
            saves = bool(stop) or keeps or (talks and training.seconds_unsaved > config.save_seconds)
            if saves or logs:
                training.note({**metrics, **measured})
                check_finite(training.values, moment.step, state_path)
            if logs:
                account.tell(moment.step, training.values, training.seconds, measured)
            advance(1) if config.minutes is None else advance(1, total=max(moment.step, round(moment.num_steps)))
            if preview is not None and draws and moment.step % config.preview_steps == 0:
                preview(training.ema, moment.step)
            if saves:
                save()
            if keeps and keep is not None:  # after the state: without that one nobody could go on with it
                keep(training.kept, training.summary)
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
    trial = _Run(copy.deepcopy(model), config)
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
