"""Model, averaged weights and optimiser of a run: a step of theirs, and their way to a state file and back."""

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from vqtool import artifacts, distributed, rng
from vqtool.errors import FormatError, VqtoolError
from vqtool.products import rounded
from vqtool.training._identity import Reached, check_identity
from vqtool.training._log import describe_use
from vqtool.training._order import Indices, Order, step_items
from vqtool.training._splitting import gather_again, like, load, split, whole
from vqtool.training._validation import Course, Validation
from vqtool.training._weights import build_optimizer, checkpoint_blocks, clip, compile_network, update_ema
from vqtool.training.clock import LoopConfig, Moment, ema_decay, learning_rate
from vqtool.trust import parse_record

STATE_KIND = "training-state"

Objective = Callable[[nn.Module, Indices, Indices, Moment], tuple[Tensor, dict[str, Tensor]]]
Losses = Iterator[tuple[Tensor, dict[str, Tensor]]]


def in_parts(
    objective: Objective, model: nn.Module, indices: Indices, samples: Indices, moment: Moment, num: int
) -> Losses:
    """The loss and metrics of each of `num` parts of a batch, computed when they are asked for.

    Their means are those of the batch. An objective of which that is not so of itself has this function as a method.
    """
    if hasattr(objective, "in_parts"):
        found: Losses = objective.in_parts(model, indices, samples, moment, num)
        return found
    rows = np.split(np.arange(len(indices)), num)
    return (objective(model, indices[own], samples[own], moment) for own in rows)


class Run:
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
        precision = "bf16" if config.bf16 else "no"
        with distributed.without_fsdp():
            # What buffers hold is the same in all processes: there is nothing to send before each step.
            self.accelerator = Accelerator(
                cpu=not distributed.has_gpu(),
                mixed_precision=precision,
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            )
        device = self.accelerator.device
        self.is_split = distributed.splits_weights()
        self._whole = copy.deepcopy(model) if self.is_split else None  # what parts are put together in, on the CPU
        self.bare = model if self.is_split else model.to(device)
        self.ema = copy.deepcopy(self.bare).eval().requires_grad_(False)
        self._keeps_best = validation is not None and validation.keep_best
        self.best = copy.deepcopy(self.ema) if self._keeps_best else nn.Module()
        self.bare.train()
        if config.checkpoint:
            checkpoint_blocks(self.bare)
        if config.compile:
            compile_network(self.bare, by_block=self.is_split)
        if self.is_split:
            for network in (self.bare, self.ema, *([self.best] if self._keeps_best else [])):
                split(network, device)
        self.optimizer = build_optimizer(
            self.bare, config.learning_rate, config.betas, config.weight_decay, decays_all=config.decays_all
        )
        self.model, self.prepared = self.bare, self.optimizer
        if not self.is_split:
            with warnings.catch_warnings():
                # The name that takes its place is unknown to earlier versions of PyTorch.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
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
        return is_new and not self.moment.is_last

    def whole(self, model: nn.Module) -> nn.Module:
        """A network of the run with all of its weights; all processes have to ask for it, if they hold parts."""
        if self._whole is None:
            return model
        self._whole.cpu().load_state_dict({name: whole(tensor) for name, tensor in model.state_dict().items()})
        return self._whole

    @property
    def summary(self) -> dict[str, Any]:
        """What a header says of the run."""
        found = {"steps": self.step, "seconds": round(self.seconds, 1), **self.values}
        if self.kept is self.best:
            found["kept_step"] = self.course.best_step
        return found if self.moment.is_last else {**found, "share": round(self.moment.share, 4)}

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write everything that the next step depends on (all processes call it, the main one writes)."""
        tensors = {f"model.{name}": tensor for name, tensor in self.bare.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        tensors |= {f"memory.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        if self.is_split:
            tensors = {name: whole(tensor).cpu() for name, tensor in tensors.items()}
        if not self.accelerator.is_main_process:
            return
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
                load(module, part(prefix))
            load(self.best, part("best."))
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
            moments.setdefault(int(index), {})[key] = tensor if key == "step" else like(tensor, learned[int(index)])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def take_step(self, objective: Objective, num_items: int, order: Order = step_items) -> dict[str, Tensor]:
        """One step of the optimiser; the loss and metrics of this process's part of the batch."""
        config, moment = self.config, self.moment
        indices, samples = order(self.step, num_items, config.batch_size, config.seed)
        own = distributed.own_range(config.batch_size)
        for group in self.prepared.param_groups:
            group["lr"] = learning_rate(moment, config)
        indices, samples = indices[own.start : own.stop], samples[own.start : own.stop]
        results: list[dict[str, Tensor]] = []
        losses = in_parts(objective, self.model, indices, samples, moment, config.accumulate)
        for part in range(config.accumulate):
            # With the exchange of gradients, for the last part; what is split is too large to hold all gradients.
            waits = part + 1 < config.accumulate and not self.is_split
            with self.accelerator.no_sync(self.model) if waits else nullcontext():
                with self._seeded(part), self.computing():
                    loss, metrics = next(losses)
                with rounded(self.accelerator.device, tf32=config.tf32):
                    self.accelerator.backward(loss / config.accumulate)
            results.append({"loss": loss.detach(), **metrics})
        norm = clip(self.bare, config.clip_norm)
        self.prepared.step()
        self.prepared.zero_grad()
        update_ema(self.ema, self.bare, ema_decay(moment, config))
        self.step += 1
        metrics = results[0]
        if config.accumulate > 1:
            metrics = {name: torch.stack([result[name] for result in results]).mean(0) for name in metrics}
        return {**metrics, "gradient_norm": norm}

    def note(self, metrics: Mapping[str, Tensor]) -> None:
        """Keep metrics as numbers, averaged over the processes: the only time that a step waits for them.

        In the place of "counts" (K,), how often each code is used, perplexity and usage are kept.
        """
        if distributed.world_size() > 1:
            metrics = {name: self.accelerator.reduce(value.float(), "mean") for name, value in metrics.items()}
        self.values = {}
        for name, value in metrics.items():
            self.values |= describe_use(value.cpu().numpy()) if name == "counts" else {name: float(value)}

    @contextmanager
    def computing(self) -> Iterator[None]:
        """In the precision of the run."""
        with rounded(self.accelerator.device, tf32=self.config.tf32), self.accelerator.autocast():
            yield

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
        with self.computing():
            measured = self.course.look(self.step, self.ema)
        gather_again(self.ema)
        if self._keeps_best and self.course.best_step == self.step:
            self.best.load_state_dict(self.ema.state_dict())
        return measured
