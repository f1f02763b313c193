"""The training loop: accelerate, EMA weights, warm-up + cosine, clipping, JSON-lines log, exact resume.

Nothing in a run depends on hidden state. Which items step n sees and which noise it draws follow from (seed, n); the
state file holds weights, EMA weights, codebook statistics and optimiser moments, and a step number. A run that is
killed and resumed therefore has the losses of one that was not.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtool import artifacts, distributed, rng
from vqtool.errors import FormatError, VqtoolError, warn
from vqtool.progress import Progress, silent
from vqtool.signals import Interrupted
from vqtool.training._identity import Reached, check_identity, read_identity
from vqtool.training._log import RunLog
from vqtool.training._order import step_items
from vqtool.training._signals import interruptible
from vqtool.training._validation import Course, Validation
from vqtool.training._weights import build_optimizer, checkpoint_blocks, update_ema
from vqtool.trust import parse_record

STATE_KIND = "training-state"

Indices = NDArray[np.int64]
Objective = Callable[[nn.Module, Indices, Indices, int], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class LoopConfig:
    """How a run goes."""

    num_steps: int
    batch_size: int  # items a step over all processes
    learning_rate: float = 1e-3  # at the end of the warm-up; falls to 0 along a cosine
    warmup_steps: int = 100
    weight_decay: float = 0.01  # on matrices and kernels, not on biases, gains and what a module names `undecayed`
    betas: tuple[float, float] = (0.9, 0.96)
    ema_decay: float = 0.999  # of the weights, a step
    ema_rises: bool = True  # to this over the first steps, so that fresh weights are soon forgotten
    clip_norm: float = 1.0  # largest norm of the gradient
    seed: int = 0
    save_seconds: float = 120.0  # how often the state is written
    preview_steps: int = 0  # how often a preview is drawn; 0 is never
    log_steps: int = 1  # how often a line is logged
    accumulate: int = 1  # parts that each process works through its share of a batch in
    checkpoint: bool = False  # whether what blocks compute on the way is computed again for the gradient, not kept
    bf16: bool = False  # mixed precision, for GPUs
    compile: bool = False  # with torch.compile
    minutes: float | None = None  # where the length was asked for in these; a resumed run keeps what it began with


@dataclass(frozen=True)
class LoopResult:
    """What a run leaves."""

    model: nn.Module  # EMA weights, on the CPU, in eval mode
    summary: dict[str, Any]  # steps, seconds, last losses; kept_step where the best weights are kept


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up to `config.learning_rate`, then a half cosine to 0 at `config.num_steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.num_steps))


class _Run:
    """Model, EMA and optimiser of a run, and their way to and from the state file."""

    def __init__(
        self,
        model: nn.Module,
        config: LoopConfig,
        memory: nn.Module | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.config = config
        self.memory = memory or nn.Module()
        self.validation = validation
        self.course = Course(validation)
        distributed.join_group()
        self.accelerator = Accelerator(cpu=not distributed.has_gpu(), mixed_precision="bf16" if config.bf16 else "no")
        self.bare = model.to(self.accelerator.device)
        self.ema = copy.deepcopy(self.bare).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.ema) if validation is not None and validation.keep_best else nn.Module()
        self.bare.train()
        self.optimizer = build_optimizer(self.bare, config.learning_rate, config.betas, config.weight_decay)
        if config.checkpoint:
            checkpoint_blocks(self.bare)
        if config.compile:
            self.bare.compile()
        self.model, self.prepared = self.accelerator.prepare(self.bare, self.optimizer)
        self.step = 0
        self.seconds = 0.0
        self.values: dict[str, float] = {}  # of the last logged step

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
        if self.course.best_step:
            summary["best"] = [self.course.best_step, self.course.best_value]
        artifacts.save(path, kind=STATE_KIND, config=identity, tensors=tensors, summary=summary, force=True)

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
        self.course = Course(self.validation, *(reached.best or ()))

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

    def take_step(self, objective: Objective, num_items: int) -> dict[str, Tensor]:
        """One step of the optimiser; the loss and metrics of this process's part of the batch."""
        config = self.config
        indices, samples = step_items(self.step, num_items, config.batch_size, config.seed)
        own = distributed.own_range(config.batch_size)
        for group in self.prepared.param_groups:
            group["lr"] = learning_rate(self.step, config)
        indices, samples = indices[own.start : own.stop], samples[own.start : own.stop]
        results = []
        for part, rows in enumerate(np.split(np.arange(len(indices)), config.accumulate)):
            waits = part + 1 < config.accumulate  # with the exchange of gradients, for the last part
            with self.accelerator.no_sync(self.model) if waits else nullcontext():
                with self._seeded(part), self.accelerator.autocast():
                    loss, metrics = objective(self.model, indices[rows], samples[rows], self.step)
                self.accelerator.backward(loss / config.accumulate)
            results.append({"loss": loss.detach(), **metrics})
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.prepared.step()
        self.prepared.zero_grad()
        rising = (1 + self.step) / (10 + self.step) if config.ema_rises else 1.0
        update_ema(self.ema, self.bare, min(config.ema_decay, rising))
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
    def validate(self) -> dict[str, Tensor]:
        """What is measured of the EMA model, where it is time for that; the best is kept."""
        validation = self.validation
        if validation is None:
            return {}
        last = validation.keep_best and self.step == self.config.num_steps
        if self.step % validation.every and not last:
            return {}
        with self.accelerator.autocast():
            value = validation.measure(self.ema)
        if self.course.note(self.step, float(value)) and validation.keep_best:
            self.best.load_state_dict(self.ema.state_dict())
        return {validation.name: value}


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
    preview: Callable[[nn.Module, int], None] | None = None,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
    progress: Progress = silent,
    told: Sequence[str] = ("loss",),
) -> LoopResult:
    """Train a model.

    Args:
        model: what is trained; its buffers are saved and resumed too.
        objective: (model, indices (b,), samples (b,), step) -> (loss, metrics). `indices` says which items;
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
        validation: what is measured of the EMA model now and then.
        preview: draws a picture of the progress with the EMA model, every `config.preview_steps` steps, in the main
            process.
        report: is told (step, metrics) after each logged step.
        progress: shows the steps.
        told: names of the metrics that are shown with the progress.

    Returns:
        The EMA model and a summary for the artifact's header.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with the state saved; its text says so.
    """
    if config.batch_size % (distributed.world_size() * config.accumulate):
        parts = f", {config.accumulate} parts each (`accumulate`)" if config.accumulate > 1 else ""
        raise VqtoolError(
            f"a batch of {config.batch_size} cannot be shared evenly by {distributed.world_size()} processes{parts}"
        )
    training = _Run(model, config, memory, validation)
    fixed = {_FIXED[name]: value for name, value in asdict(config).items() if name in _FIXED}
    identity = {"data": data, "settings": {**settings, **fixed}, "minutes": config.minutes}
    if resume:
        training.load(state_path, identity)
        identity["minutes"] = read_identity(state_path).minutes
    elif state_path.exists():  # of an earlier run, which a resume would go on with while the log is of this one
        training.save(state_path, identity)
    log = RunLog(log_path, training.step)

    last_measured: dict[str, float] = {}

    def detail() -> str:
        values = last_measured | training.values
        return ", ".join(f"{name} {values[name]:.4g}" for name in told if name in values)

    draws = preview is not None and config.preview_steps > 0 and distributed.is_main_process()
    try:
        with (
            interruptible() as interrupted,
            progress("train", config.num_steps, "steps", done=training.step, detail=detail) as advance,
        ):
            saved = last = time.monotonic()
            while training.step < config.num_steps and not training.course.is_over(training.step, training.values):
                metrics = training.take_step(objective, num_items)
                measured = training.validate()
                now = time.monotonic()
                training.seconds, last = training.seconds + now - last, now
                logs = bool(measured) or training.step % config.log_steps == 0 or training.step == config.num_steps
                # Several processes talk to each other in steps that are logged and in no others.
                talks = logs or distributed.world_size() == 1
                stop = interrupted() if talks else 0
                saves = bool(stop) or (talks and now - saved > config.save_seconds)
                if saves or logs:
                    training.note({**metrics, **measured})
                    _check_finite(training.values, training.step, state_path)
                last_measured |= {name: training.values[name] for name in measured}
                if measured and (turn := training.course.describe_turn(training.step, training.values)):
                    warn(turn)
                if logs:
                    log.write({"step": training.step, **training.values, "seconds": round(training.seconds, 3)})
                    if report is not None:
                        report(training.step, training.values)
                advance(1)
                if preview is not None and draws and training.step % config.preview_steps == 0:
                    preview(training.ema, training.step)
                if saves:
                    training.save(state_path, identity)
                    saved = time.monotonic()
                if stop:
                    raise Interrupted(
                        stop,
                        f"stopped after step {training.step} of {config.num_steps}; the state is in {state_path}: "
                        "the same command with `resume` goes on from there",
                    )
            training.save(state_path, identity)
    finally:
        log.close()
    summary = {"steps": training.step, "seconds": round(training.seconds, 1), **training.values}
    if validation is not None and validation.keep_best and training.course.best_step:
        return LoopResult(training.best.cpu().eval(), {**summary, "kept_step": training.course.best_step})
    return LoopResult(training.ema.cpu().eval(), summary)


# Fields of LoopConfig that change the numbers of a run, by what users call them; the others may differ on resume.
_FIXED = {
    "num_steps": "steps",
    **{
        name: name
        for name in (
            "batch_size", "learning_rate", "warmup_steps", "weight_decay", "betas", "ema_decay", "clip_norm", "seed",
            "bf16", "compile",
        )
    },
}  # fmt: skip


def _check_finite(values: Mapping[str, float], step: int, state_path: Path) -> None:
    for name, word in (("loss", "the loss"), ("gradient_norm", "the norm of the gradient")):
        if not math.isfinite(values[name]):
            kept = f"; the state before that is in {state_path}" if state_path.exists() else ""
            raise VqtoolError(
                f"{word} became {values[name]} at step {step}: start anew with a smaller `learning_rate`{kept}"
            )


def measure_step_seconds(
    model: nn.Module,
    objective: Objective,
    *,
    num_items: int,
    config: LoopConfig,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of a clock that one step takes here: the median of a few on a copy of the model, after a warm-up.

    On a GPU it is the median of tens of steps, which do not wait for each other, as in a run.
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
