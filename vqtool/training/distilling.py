"""Distillation of a prior into a student of few calls: a network with a latent, whose one call can draw what fits.

What it does: cells that a call draws together are independent given the latent that the call draws first, so they can
belong together, which no single product allows: of two cells that are AA or BB one call of a product gives AB a quarter
of the time. The student is the teacher's network with a linear map from the latent beside its embedding of time. It
learns from grids that the teacher draws in many calls; no data are needed.
Equation: at each of the student's times t, for x_0 that the teacher draws and x_t ~ q(x_t | x_0), the loss is

    -log prod_i p(x_0^i | x_t, z) + KL(q(z | x_0, x_t) || N(0, I)),  z ~ q(z | x_0, x_t),

an upper bound of -log p(x_0 | x_t); the product is over the cells that the kernel has changed. The encoder q is a small
transformer that is trained beside the student and left out of its file.
Source: Hayakawa et al. 2024, Di4C (arXiv:2410.08709): the mixture of products, and its limits; Kingma and Welling 2014
(arXiv:1312.6114): the bound.
Differs from Di4C: the teacher's grids stand for its law, so that the loss is a likelihood, without a control variate;
and the encoder finds the latent. Latents that are tried at random, n a grid, can tell no more than log n nats a call
apart, 2 for 8 of them; what cells know of each other is ten times as much (docs/sampling.md).
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
from vqtool.denoisers import Denoiser
from vqtool.diffusion.parameterisations import log_probabilities
from vqtool.diffusion.posterior import replaces
from vqtool.errors import MismatchError, VqtoolError, count_text, size_text
from vqtool.locks import claims
from vqtool.options import Checked, distribute, option
from vqtool.priors import Prior, load_prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.rng import check_seed
from vqtool.samplers import DEFAULT, sample
from vqtool.samplers._texts import in_turn
from vqtool.training import loop
from vqtool.training._order import Indices
from vqtool.training.building import choose_learning_rate
from vqtool.training.clock import Length, LoopConfig, Moment
from vqtool.training.data import GridData, build_data, read_data, upload
from vqtool.training.runs import RunFiles, RunOptions, choose_length
from vqtool.training.tuning import check_codes

NUM, STEPS = 2048, 64  # grids that the teacher draws, and its calls for each at most, where nobody says
LAWFUL = ("ancestral", "first-hitting", "psi", "fewer", "gibbs")  # samplers that draw from the prior's law, or nearly
DROPPED = 0.1  # share of the conditions left out, for guidance
RATE_SHARE = 0.5  # of the learning rate that suits fresh weights
RISING = (0.2, 0.7)  # share of the run from which, and to which, the weight of the divergence rises from 0 to 1
WIDTH, HEADS, LAYERS = 128, 4, 2  # of the encoder, which is no wider than the student
SURE, FAR = -2.0, 3.0  # log of the standard deviations that the encoder begins with; how far its means can be from 0


@dataclass(frozen=True, kw_only=True)
class DistillOptions(Checked):
    """What the student is, and what it learns from."""

    calls: int = option(4, "Network calls a grid that it is made for.", minimum=1)
    num: int | None = option(None, "Grids that the teacher draws for it.", shown="2048", minimum=1, flag="-n")
    teacher_calls: int | None = option(
        None, "Of the teacher for each of them.", shown="one a cell, at most 64 and T", minimum=1, advanced=True
    )
    cfg_scale: float | None = option(
        None, "Guidance of the teacher, which the student then needs no more.", shown="the prior's own, or 1", minimum=0
    )
    latent_size: int = option(16, "Numbers of the latent.", minimum=1, advanced=True)
    batch_size: int = option(32, "Grids a step.", minimum=1, flag="-b", advanced=True)


def build_student(teacher: Prior, latent_size: int, calls: int, *, seed: int) -> Prior:
    """The teacher with a latent, whose map is fresh; all other weights are the teacher's.

    Args:
        teacher: a prior that is no student.
        latent_size: numbers of the latent.
        calls: network calls a grid that the student is made for, at most T.
        seed: of the map.

    Raises:
        VqtoolError: the denoiser has no place for a latent or would be split, the teacher is a student, or T is below
            `calls`.
    """
    if distributed.splits_weights():
        raise VqtoolError("FSDP (`accelerate launch --use_fsdp`) is for train-prior: distil without it")
    if not hasattr(teacher.denoiser.config, "latent_size"):
        raise VqtoolError(f"the denoiser {teacher.denoiser_name} has no place for a latent; transformer has")
    if teacher.denoiser.latent_size:
        raise VqtoolError(f"{teacher.location or 'this prior'} is a student itself: distil its teacher")
    if calls > teacher.kernel.num_steps:
        raise VqtoolError(f"`calls` {calls}: the teacher's kernel has {count_text(teacher.kernel.num_steps, 'step')}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {**asdict(teacher.denoiser.config), "latent_size": latent_size}
        student = denoisers.build(teacher.denoiser_name, config)
    student.take_over(teacher.denoiser)
    about = {"calls": calls, "teacher": teacher.fingerprint}
    return replace(
        teacher, denoiser=student, parent=teacher.fingerprint, fingerprint="", location="",
        sampling=choose_sampling(teacher, DEFAULT, calls), summary=about,
    )  # fmt: skip


def draw_pool(teacher: Prior, options: DistillOptions, seed: int) -> tuple[GridData, str]:
    """Grids that the teacher draws as its makers publish, with its own examples in turn; and the sampler's name."""
    examples, num = teacher.conditioner.examples, options.num or NUM
    rows = in_turn(teacher, examples) if examples else None
    condition = teacher.conditioner.null(num) if rows is None else rows(range(num))
    steps = options.teacher_calls or min(math.prod(teacher.cells), teacher.kernel.num_steps, STEPS)
    scale = {} if options.cfg_scale is None else {"cfg_scale": options.cfg_scale}
    grids = sample(teacher, num, condition=None if rows is None else condition, steps=steps, seed=seed, **scale)
    data = GridData(teacher.split(grids).numpy().astype(np.int64), condition, teacher.grid_spec)
    return data, str(teacher.sampling.get("sampler", DEFAULT))


def read_pool(teacher: Prior, grids: str | Path, options: DistillOptions) -> tuple[GridData, str]:
    """Grids that were drawn before, with their labels or captions; and the name of the sampler that drew them.

    Raises:
        MismatchError: they are not grids of the teacher.
        VqtoolError: the options say how the teacher is to draw them.
    """
    for name in ("num", "teacher_calls", "cfg_scale"):
        if getattr(options, name) is not None:
            raise VqtoolError(
                f"`{name}` is for grids that the teacher draws, and `grids` are there: leave one of both out"
            )
    header, batch = read_data(grids)
    check_codes(teacher, header)
    if header.grid_size != teacher.grid_spec.grid_size:
        sizes = size_text(header.grid_size), size_text(teacher.grid_spec.grid_size)
        raise MismatchError(f"{grids}: grids of {sizes[0]} cells, and the teacher draws {sizes[1]}")
    drawn = [record["sampler"] for record in header.history if "sampler" in record]
    data = build_data(batch, teacher.conditioner, teacher.grid_spec, teacher.split)
    return data, str(drawn[-1]) if drawn else DEFAULT


def choose_sampling(teacher: Prior, drawn: str, calls: int) -> dict[str, Any]:
    """How a student is sampled: from the law that it has learned, or sure cells first if its grids were so drawn."""
    sharp = drawn not in LAWFUL and teacher.kernel.has_mask
    return {"sampler": "purity" if sharp else "ancestral", "steps": calls}


class Pair(nn.Module):
    """What is trained: the student, and the encoder that finds the latents of grids.

    Args:
        student: the denoiser.
        seed: of the encoder's weights.
    """

    def __init__(self, student: Denoiser, *, seed: int) -> None:
        super().__init__()
        self.student: Any = student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = min(WIDTH, student.config.width)
            self.enter = nn.Linear(student.config.width, width)
            self.changed = nn.Embedding(2, width)
            layer = nn.TransformerEncoderLayer(
                width, HEADS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(width)
            cells = math.prod(student.config.grid_size) // student.config.num_parts
            self.leave = nn.Linear(cells * width, 2 * student.latent_size)
        with torch.no_grad():
            self.leave.bias[student.latent_size :] = SURE

    def forward(self, x_0: Tensor, x_t: Tensor, t: Tensor, condition: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, H, W, K) under latents of the grids, and these latents' divergences (B,), nats."""
        changed = (x_0 != x_t).view(len(x_t), -1, self.student.config.num_parts).any(-1)  # (B, cells)
        x = self.enter(self.student.embed(x_0)) + self.changed(changed.long())
        mean, log_std = self.leave(self.norm(self.blocks(x)).flatten(1)).chunk(2, -1)
        mean, log_std = FAR * (mean / FAR).tanh(), log_std.clamp(-7, 2)
        latent = mean + log_std.exp() * noise
        encoded = self.student.mix(self.student.encode_condition(condition), latent)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1).sum(1) - log_std.sum(1)
        return self.student(x_t, t, encoded), divergence


class LatentObjective:
    """The objective of the training loop: see above.

    Args:
        student: that learns.
        data: grids of the teacher.
        calls: of the student, which say at what times it learns.
        seed: of times, noise and latents.
    """

    def __init__(self, student: Prior, data: GridData, calls: int, seed: int) -> None:
        self._prior, self._data, self._seed = student, data, seed
        self._times = torch.linspace(student.kernel.num_steps, 0, calls + 1).round().long()[:-1]
        self._masks_only = not replaces(student.kernel)

    def __call__(
        self, model: nn.Module, indices: Indices, samples: Indices, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step, nats a cell, and what is logged of it."""
        device, kernel, size = next(model.parameters()).device, self._prior.kernel, self._prior.denoiser.latent_size
        rows, numbers = upload(np.stack([indices, samples]), device)
        cells = math.prod(self._data.tokens.shape[1:])
        noise = rng.uniform(self._seed, numbers, 0, (3 + size + cells,), stream=rng.TRAINING, device=device)
        x_0, condition = self._data.place(device).rows(rows, noise[:, 2])
        t = self._times.to(device)[(noise[:, 0] * len(self._times)).long()]
        x_t = kernel.sample(x_0, t, noise[:, 3 + size :].view_as(x_0))
        dropped = (noise[:, 1] < DROPPED).view(-1, *[1] * (condition.ndim - 1))
        condition = torch.where(dropped, self._prior.conditioner.null(1).to(device), condition)
        latent = torch.special.ndtri(noise[:, 3 : 3 + size].clamp(min=1e-12)).float()
        logits, divergence = model(x_0, x_t, t, self._prior.read_texts(condition, together=True), latent)
        log_x0 = log_probabilities(logits, x_t, t, kernel, self._prior.parameterisation)
        entropy = F.nll_loss(log_x0.flatten(0, -2), x_0.flatten(), reduction="none").view_as(x_t)
        changed = x_t == kernel.mask_id if self._masks_only else torch.ones_like(x_t, dtype=torch.bool)
        product, spent = (entropy * changed).sum() / entropy.numel(), divergence.mean()
        weight = min(1.0, max(0.0, (moment.share - RISING[0]) / (RISING[1] - RISING[0])))  # else it is never used
        loss = product + weight * spent / cells
        return loss, {"bound": (product + spent / cells).detach(), "latent": spent.detach()}


def distill(
    student: Prior,
    data: GridData,
    options: DistillOptions,
    config: LoopConfig,
    *,
    state_path: Path,
    log_path: Path,
    resume: bool = False,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
    progress: Progress = silent,
) -> Prior:
    """A student that has learned from grids.

    Args:
        student: of `build_student`.
        data: what it learns from.
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
    pair = Pair(student.denoiser.requires_grad_(True), seed=config.seed)
    result = loop.run(
        pair, LatentObjective(student, data, options.calls, config.seed), num_items=len(data), config=config,
        state_path=state_path, log_path=log_path, data={"grids": data.digest()},
        settings={"teacher": student.parent, **asdict(options)}, resume=resume, report=report,
        progress=progress, told=("bound", "latent"), order=data.order,
    )  # fmt: skip
    model = result.model.requires_grad_(False).get_submodule("student")
    if not isinstance(model, Denoiser):
        raise ValueError(f"a {type(model).__name__} is no denoiser")
    return replace(student, denoiser=model, summary={**result.summary, **student.summary})


@claims()
def distill_prior(
    prior: str | Path,
    output: str | Path,
    *,
    grids: str | Path | None = None,
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
        grids: what it learns from, drawn before; None: the teacher draws.
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
    if Path(prior).exists() and Path(output).exists() and Path(prior).samefile(output):
        raise VqtoolError(f"`output` {output}: is the teacher, which the student would replace: name another file")
    files = RunFiles.open(output, resume=resume, force=force)
    teacher = load_prior(prior)
    student = build_student(teacher, wanted.latent_size, wanted.calls, seed=seed)
    length = choose_length(run, files, default=Length(None, 10.0), notify=notify)
    rate = run.learning_rate or RATE_SHARE * choose_learning_rate(teacher.denoiser_name, "small")
    config = LoopConfig(
        length.steps, wanted.batch_size, rate, warmup_share=0.1, ema_decay=0.9995, ema_share=0.1, ema_rises=False,
        seed=seed, minutes=length.minutes,
    )  # fmt: skip
    if grids is None:
        notify(f"prior {teacher.fingerprint} draws {count_text(wanted.num or NUM, 'grid')}, which takes a while")
    data, drawn = draw_pool(teacher, wanted, seed) if grids is None else read_pool(teacher, grids, wanted)
    student = replace(student, sampling=choose_sampling(teacher, drawn, wanted.calls))
    notify(f"{count_text(len(data), 'grid')}, from which a student of {count_text(wanted.calls, 'call')} learns")
    student = distill(
        student, data, wanted, config, state_path=files.state, log_path=files.log, resume=files.resume,
        report=report, progress=progress,
    )  # fmt: skip
    if not distributed.is_main_process():
        return student
    record = history_record("distill", inputs={"prior": teacher.fingerprint}, seed=seed, calls=wanted.calls)
    saved = replace(student, history=(*teacher.history, record)).save(output, force=True)
    notify(
        f"wrote {output}: prior {saved.fingerprint}, for {count_text(wanted.calls, 'call')} or fewer; log {files.log}"
    )
    return saved
