"""Distillation of a prior into a student of few calls: a mixture of products, which one call can be drawn from.

What it does: cells that a call draws together are independent given the latent that the call draws first, so they can
belong together, which no single product allows: of two cells that are AA or BB one call of a product gives AB a quarter
of the time. The student is the teacher's network with a table of latents beside its embedding of time, and learns from
grids that the teacher draws in many calls; no data are needed.
Equation: the loss at each of the student's times t is -log mean_l prod_i p(x_0^i | x_t, latent_l) over some latents l,
for x_0 that the teacher draws, x_t ~ q(x_t | x_0); the product is over the cells that the kernel has changed.
Source: Hayakawa et al. 2024, Di4C (arXiv:2410.08709), the mixture and distillation by consistency with many calls.
Differs from it: the teacher's grids stand for its law, so that the loss is a likelihood; there is no control variate.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool import denoisers, distributed, rng
from vqtool.artifacts import history_record
from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.diffusion.parameterisations import log_probabilities
from vqtool.diffusion.posterior import replaces
from vqtool.errors import VqtoolError
from vqtool.locks import claims
from vqtool.options import Checked, distribute, option
from vqtool.priors import Prior, load_prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.rng import check_seed
from vqtool.samplers import sample
from vqtool.samplers._texts import in_turn
from vqtool.training import loop
from vqtool.training._order import Indices
from vqtool.training.building import choose_learning_rate
from vqtool.training.clock import Length, LoopConfig, Moment
from vqtool.training.data import GridData, upload
from vqtool.training.runs import RunFiles, RunOptions, choose_length

DROPPED = 0.1  # share of the conditions left out, for guidance
RATE_SHARE = 0.5  # of the learning rate that suits fresh weights


@dataclass(frozen=True, kw_only=True)
class DistillOptions(Checked):
    """What the student is, and what it learns from."""

    calls: int = option(4, "Network calls a grid that it is made for.", minimum=1)
    num: int = option(2048, "Grids that the teacher draws for it.", minimum=1, flag="-n")
    teacher_calls: int | None = option(
        None, "Of the teacher for each of them.", shown="one a cell, at most T", minimum=1, advanced=True
    )
    cfg_scale: float = option(1.0, "Guidance of the teacher, which the student then needs no more.", minimum=0)
    num_latents: int = option(64, "Parts of the mixture.", minimum=2, flag="--latents", advanced=True)
    draws: int = option(8, "Of them that a grid is seen under in a step.", minimum=2, advanced=True)
    batch_size: int = option(32, "Grids a step.", minimum=1, flag="-b", advanced=True)


def build_student(teacher: Prior, num_latents: int, calls: int, *, seed: int) -> Prior:
    """The teacher with a table of latents, fresh ones; all other weights are the teacher's.

    Args:
        teacher: a prior that is no student.
        num_latents: parts of the mixture.
        calls: network calls a grid that the student is made for, at most T.
        seed: of the latents.

    Raises:
        VqtoolError: the denoiser has no place for latents or would be split, the teacher is a student, or T is below
            `calls`.
    """
    if distributed.splits_weights():
        raise VqtoolError("FSDP (`accelerate launch --use_fsdp`) is for train-prior: distil without it")
    if not hasattr(teacher.denoiser.config, "num_latents"):
        raise VqtoolError(f"the denoiser {teacher.denoiser_name} has no place for latents; transformer has")
    if teacher.denoiser.num_latents:
        raise VqtoolError(f"{teacher.location or 'this prior'} is a student itself: distil its teacher")
    if calls > teacher.kernel.num_steps:
        raise VqtoolError(f"`calls` {calls}: the teacher's kernel has {teacher.kernel.num_steps} steps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {**asdict(teacher.denoiser.config), "num_latents": num_latents}
        student = denoisers.build(teacher.denoiser_name, config)
    student.take_over(teacher.denoiser)
    sampling = {"sampler": "ancestral", "steps": calls}
    about = {"calls": calls, "teacher": teacher.fingerprint}
    return replace(
        teacher, denoiser=student, parent=teacher.fingerprint, fingerprint="", location="", sampling=sampling,
        summary=about,
    )  # fmt: skip


def draw_pool(teacher: Prior, options: DistillOptions, seed: int) -> GridData:
    """Grids of the teacher with their conditions: its own examples in turn."""
    examples = teacher.conditioner.examples
    rows = in_turn(teacher, examples) if examples else None
    condition = teacher.conditioner.null(options.num) if rows is None else rows(range(options.num))
    steps = options.teacher_calls or min(math.prod(teacher.cells), teacher.kernel.num_steps)
    scale = {} if options.cfg_scale == 1.0 else {"cfg_scale": options.cfg_scale}
    grids = sample(
        teacher, options.num, condition=condition if rows is not None else None, sampler="ancestral", steps=steps,
        seed=seed, **scale,
    )  # fmt: skip
    return GridData(teacher.split(grids).numpy().astype(np.int64), condition, teacher.grid_spec)


class MixtureObjective:
    """The objective of the training loop: -log of a mixture of products, see above.

    Args:
        student: that learns.
        data: grids of the teacher.
        options: the calls, which say at what times it learns, and how many latents a grid is seen under.
        seed: of times, noise and latents.
    """

    def __init__(self, student: Prior, data: GridData, options: DistillOptions, seed: int) -> None:
        self._prior, self._data, self._options, self._seed = student, data, options, seed
        last = student.kernel.num_steps
        self._times = torch.linspace(last, 0, options.calls + 1).round().long()[:-1]
        self._masks_only = not replaces(student.kernel)

    def __call__(
        self, model: nn.Module, indices: Indices, samples: Indices, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step, nats a cell, and what is logged of it."""
        device, kernel, draws = next(model.parameters()).device, self._prior.kernel, self._options.draws
        rows, numbers = upload(np.stack([indices, samples]), device)
        x_0, condition = self._data.place(device).rows(rows)
        noise = rng.uniform(self._seed, numbers, 0, (2 + draws + x_0[0].numel(),), stream=rng.TRAINING, device=device)
        t = self._times.to(device)[(noise[:, 0] * len(self._times)).long()]
        x_t = kernel.sample(x_0, t, noise[:, 2 + draws :].view_as(x_0))
        dropped = (noise[:, 1] < DROPPED).view(-1, *[1] * (condition.ndim - 1))
        condition = torch.where(dropped, self._prior.conditioner.null(1).to(device), condition)
        network: Any = getattr(model, "module", model)
        encoded = network.encode_condition(self._prior.read_texts(condition))
        mixed = network.mix(_repeat(encoded, draws), noise[:, 2 : 2 + draws].flatten())
        x_t, t = x_t.repeat_interleave(draws, 0), t.repeat_interleave(draws, 0)
        log_x0 = log_probabilities(model(x_t, t, mixed), x_t, t, kernel, self._prior.parameterisation)
        entropy = F.nll_loss(
            log_x0.flatten(0, -2), x_0.repeat_interleave(draws, 0).flatten(), reduction="none"
        ).view_as(x_t)
        changed = x_t == kernel.mask_id if self._masks_only else torch.ones_like(x_t, dtype=torch.bool)
        each = (entropy * changed).flatten(1).sum(1, dtype=torch.float64).view(-1, draws)
        mixture = math.log(draws) - (-each).logsumexp(1)
        cells = x_0[0].numel()
        return (mixture.mean() / cells).float(), {"product": each.mean().detach() / cells}


def _repeat(encoded: EncodedCondition, count: int) -> EncodedCondition:
    return EncodedCondition(*(None if part is None else part.repeat_interleave(count, 0) for part in encoded))


def distill(
    student: Prior,
    teacher: Prior,
    options: DistillOptions,
    config: LoopConfig,
    *,
    state_path: Path,
    log_path: Path,
    resume: bool = False,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
    progress: Progress = silent,
) -> Prior:
    """A student that has learned from grids that its teacher draws first.

    Args:
        student: of `build_student`.
        teacher: on the device to use.
        options: what the student is, and what it learns from.
        config: of the loop; its seed is that of all noise.
        state_path: see `loop.run`, as for all that follow.
        log_path: of the log, JSON lines.
        resume: go on from the state.
        report: is told (step, metrics) after each step.
        progress: shows the steps.

    Raises:
        VqtoolError: the state to resume is of another run.
    """
    data = draw_pool(teacher, options, config.seed)
    student.denoiser.requires_grad_(True)
    result = loop.run(
        student.denoiser, MixtureObjective(student, data, options, config.seed), num_items=len(data), config=config,
        state_path=state_path, log_path=log_path, data={"grids": data.digest()},
        settings={"teacher": teacher.fingerprint, **asdict(options)}, resume=resume, report=report,
        progress=progress,
    )  # fmt: skip
    model = result.model.requires_grad_(False)
    if not isinstance(model, Denoiser):
        raise ValueError(f"a {type(model).__name__} is no denoiser")
    return replace(student, denoiser=model, summary={**result.summary, **student.summary})


@claims()
def distill_prior(
    prior: str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    resume: bool | str = False,
    force: bool = False,
    notify: Notify = ignore,
    progress: Progress = silent,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
    **options: Any,
) -> Prior:
    """Train a student that draws in few calls what a prior draws in many, and write it.

    Args:
        prior: the teacher: a file, or "builtin".
        output: file to write.
        seed: of all noise.
        resume: go on with an interrupted run, exactly; "auto": if there is one, else begin.
        force: overwrite an earlier result or run.
        notify: is told, line by line, what is done.
        progress: shows the steps.
        report: is told (step, metrics) after each step.
        **options: of `DistillOptions` and `RunOptions`, by name.

    Returns:
        The student as it was written.

    Raises:
        VqtoolError: files are missing or in the way, or the teacher cannot be distilled.
        KeyboardInterrupt: after Ctrl-C, with the state saved; its text says so.
    """
    wanted, run = distribute(options, DistillOptions, RunOptions)
    check_seed(seed)
    files = RunFiles.open(output, resume=resume, force=force)
    teacher = load_prior(prior)
    student = build_student(teacher, wanted.num_latents, wanted.calls, seed=seed)
    length = choose_length(run, files, default=Length(None, 10.0), notify=notify)
    rate = run.learning_rate or RATE_SHARE * choose_learning_rate(teacher.denoiser_name, "small")
    config = LoopConfig(
        length.steps, wanted.batch_size, rate, warmup_share=0.1, ema_decay=0.9995, ema_share=0.1, ema_rises=False,
        seed=seed, minutes=length.minutes,
    )  # fmt: skip
    notify(f"{wanted.num} grids of prior {teacher.fingerprint}, from which a student of {wanted.calls} calls learns")
    student = distill(
        student, teacher, wanted, config, state_path=files.state, log_path=files.log, resume=files.resume,
        report=report, progress=progress,
    )  # fmt: skip
    if not distributed.is_main_process():
        return student
    record = history_record("distill", inputs={"prior": teacher.fingerprint}, seed=seed, calls=wanted.calls)
    saved = replace(student, history=(*teacher.history, record)).save(output, force=True)
    notify(f"wrote {output}: prior {saved.fingerprint}, for {wanted.calls} calls or fewer; log {files.log}")
    return saved
