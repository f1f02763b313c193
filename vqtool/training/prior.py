"""Training of a prior on token grids: how large, how long, and the run itself; `objectives` says what is minimised."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vqtool import denoisers
from vqtool.conditions import Conditioner
from vqtool.denoisers import Denoiser
from vqtool.diffusion.kernels import Kernel
from vqtool.errors import VqtoolError
from vqtool.images import to_uint8
from vqtool.images.preview import preview_grid, save_image
from vqtool.priors import PARAMETERISATIONS, GridSpec, Prior
from vqtool.samplers import sample
from vqtool.tokenizers import Tokenizer
from vqtool.training import loop
from vqtool.training.data import MIN_GRIDS_TO_HOLD_OUT, GridData
from vqtool.training.loop import LoopConfig, Validation
from vqtool.training.objectives import PriorLoss, PriorObjective, validate

MAX_PASSES = 300
VALIDATION_STEPS = 200  # between two looks at the grids held out
SHEET_SAMPLES = 16
SIZES_IN_ORDER = ("tiny", "small", "base", "large")  # what is chosen from where nobody says


def choose_size(denoiser: str, num_grids: int, num_cells: int) -> str:
    """The name of a size that suits data and machine; where the denoiser lacks it, the next smaller one it has.

    On a CPU the steps that a network can take in ten minutes matter most: 380 grids of 8x8 a second pass the tiny
    transformer in training, 150 the small one (two cores). On a GPU, how much there is to learn.
    """
    if torch.cuda.is_available():
        num_tokens = num_grids * num_cells
        wanted = "small" if num_tokens < 200_000 else "base" if num_tokens < 5_000_000 else "large"
    else:
        wanted = "tiny" if num_cells > 64 or num_grids < 1000 else "small"
    smaller = SIZES_IN_ORDER[: SIZES_IN_ORDER.index(wanted) + 1]
    return [name for name in smaller if name in denoisers.module(denoiser).SIZES][-1]


def check_condition(denoiser: str, kind: str) -> None:
    """Raise unless a denoiser takes a kind of condition.

    Raises:
        VqtoolError: it does not; names those that do.
    """
    taken = denoisers.module(denoiser).CONDITIONS
    if kind not in taken:
        others = ", ".join(name for name in denoisers.NAMES if kind in denoisers.module(name).CONDITIONS)
        raise VqtoolError(
            f"--denoiser {denoiser} is not trained with --condition {kind}, only with {', '.join(taken)}; "
            f"denoisers that take {kind}: {others}"
        )


def build_prior(
    kernel: Kernel,
    conditioner: Conditioner,
    grid_spec: GridSpec,
    size: str,
    *,
    seed: int,
    tokens: NDArray[Any],
    denoiser: str = "transformer",
    rule: str = "mixture",
) -> Prior:
    """A prior with fresh weights that predicts each token as often as it is found in the grids.

    Args:
        kernel: the forward process.
        conditioner: of the grids.
        grid_spec: of the grids.
        size: one of the denoiser's SIZES.
        seed: of the weights.
        tokens: (N, H, W), for the frequencies.
        denoiser: one of denoisers.NAMES.
        rule: one of posterior.RULES, the average that the bound is of.

    Raises:
        VqtoolError: the denoiser does not take such conditions.
    """
    check_condition(denoiser, conditioner.kind)
    file = denoisers.module(denoiser)
    tables = ("num_classes", "vocabulary_size", "max_length")  # what a network has to know of its condition
    config = {
        "codebook_size": kernel.codebook_size,
        "grid_size": grid_spec.grid_size,
        "num_steps": kernel.num_steps,
        **{name: getattr(conditioner, name) for name in tables if hasattr(conditioner, name)},
        **file.SIZES[size],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = denoisers.build(denoiser, config)
    counts = np.bincount(tokens.reshape(-1).astype(np.int64), minlength=kernel.codebook_size) + 0.5
    network.set_frequencies(torch.from_numpy(counts / counts.sum()))
    # The plug-in's own product tells what x_t says: evidence of it in p(x_0) would count twice.
    parameterisation = "direct" if rule == "plug-in" else file.PARAMETERISATION
    return Prior(kernel, network, denoiser, conditioner, grid_spec, parameterisation, rule)


def reparameterise(prior: Prior, parameterisation: str) -> Prior:
    """A fresh prior whose logits stand for something else.

    Args:
        prior: from `build_prior`.
        parameterisation: one of priors.PARAMETERISATIONS.

    Raises:
        VqtoolError: it is unknown, or counts x_t twice under the prior's rule.
    """
    if parameterisation not in PARAMETERISATIONS:
        known = ", ".join(PARAMETERISATIONS)
        raise VqtoolError(f"--parameterisation {parameterisation}: unknown; known are {known}")
    if parameterisation == "evidence" and prior.rule == "plug-in":
        raise VqtoolError(
            "--parameterisation evidence does not go with --rule plug-in, which adds what x_t says itself"
        )
    return replace(prior, parameterisation=parameterisation)


def choose_run(
    num_steps: int, batch_size: int, learning_rate: float, *, seed: int, sheet_steps: int, fast: bool | None = None
) -> LoopConfig:
    """How a run of that length goes: a tenth of it warms up, at most 100 steps, and a tenth of it is averaged.

    Args:
        num_steps: of the run.
        batch_size: grids a step.
        learning_rate: at the end of the warm-up.
        seed: of the run.
        sheet_steps: steps between two sheets.
        fast: bfloat16 and torch.compile, both for GPUs alone; False is neither; None is bfloat16 where there is a GPU.

    Raises:
        VqtoolError: fast without a GPU.
    """
    gpu = torch.cuda.is_available()
    if fast and not gpu:
        raise VqtoolError(
            "--fast goes with a CUDA GPU, and there is none: on a CPU bfloat16 gains nothing for small networks and a "
            "fifth at best for large ones, and not every machine can compile; leave it out"
        )
    return LoopConfig(
        num_steps,
        batch_size,
        learning_rate,
        warmup_steps=min(100, max(1, num_steps // 10)),
        ema_decay=min(0.9995, max(0.9, 1 - 10 / num_steps)),
        seed=seed,
        sheet_steps=sheet_steps,
        mixed_precision="bf16" if gpu and fast is not False else "no",
        compile=bool(fast),
    )


def choose_num_steps(num_grids: int, batch_size: int, step_seconds: float) -> int:
    """Steps of a run when nobody says: 300 passes through the grids, but no longer than 10 minutes (GPU: 30)."""
    in_time = (1800 if torch.cuda.is_available() else 600) / step_seconds
    return max(1, int(min(MAX_PASSES * num_grids / batch_size, in_time)))


def measure_step_seconds(prior: Prior, data: GridData, loss: PriorLoss, run: LoopConfig) -> float:
    """Seconds that one step of such a run takes here."""
    objective = PriorObjective(prior, data, loss, run)
    return loop.measure_step_seconds(prior.denoiser, objective, num_items=len(data), config=run)


def train_prior(
    prior: Prior,
    data: GridData,
    *,
    loss: PriorLoss,
    run: LoopConfig,
    state_path: Path,
    log_path: Path,
    identity: Mapping[str, Any],
    resume: bool = False,
    held_out: GridData | None = None,
    keep_best: bool = False,
    sheet: Callable[[Prior, int], None] | None = None,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Prior:
    """Train a prior.

    Args:
        prior: from `build_prior`; its denoiser is trained.
        data: what it learns from.
        loss: what is minimised.
        run: how the run goes.
        state_path: what `resume` reads.
        log_path: JSON-lines log.
        identity: what must be equal for a resume, besides config and loss.
        resume: go on from `state_path`.
        held_out: grids whose bound under the averaged weights is logged now and then.
        keep_best: keep the averaged weights with the lowest such bound, and not the last ones.
        sheet: draws samples of the prior as it is, every `run.sheet_steps` steps.
        report: is told (step, metrics).

    Returns:
        The prior with the averaged weights, and a summary of the run.

    Raises:
        VqtoolError: the best is to be kept, and no grids are held out to tell.
    """
    if keep_best and held_out is None:
        raise VqtoolError(
            f"--keep best goes with {MIN_GRIDS_TO_HOLD_OUT} grids or more, of which some are held out to tell; "
            f"these are {len(data)}"
        )
    objective = PriorObjective(prior, data, loss, run)
    validation = None
    if held_out is not None:
        measure = partial(validate, prior=prior, data=held_out, seed=run.seed)
        validation = Validation("validation_bound", measure, VALIDATION_STEPS, keep_best)
    config = {
        "keep_best": keep_best,
        "kernel": prior.kernel.config,
        "denoiser": {"name": prior.denoiser_name, **asdict(prior.denoiser.config)},
        "rule": prior.rule,
        "parameterisation": prior.parameterisation,
        "condition": prior.conditioner.config(),
        "loss": asdict(loss),
    }
    result = loop.run(
        prior.denoiser,
        objective,
        num_items=len(data),
        config=run,
        state_path=state_path,
        log_path=log_path,
        identity={**identity, **config},
        resume=resume,
        memory=objective.history,
        validation=validation,
        sheet=None if sheet is None else lambda model, step: sheet(_with_denoiser(prior, model), step),
        report=report,
    )
    trained = _with_denoiser(prior, result.model.requires_grad_(False))
    summary = {**result.summary, "num_grids": len(data)}
    if held_out is not None:
        bound = float(validate(trained.denoiser, trained, held_out, run.seed))
        summary |= {"validation_bound": bound, "num_held_out": len(held_out)}
    return replace(trained, summary=summary)


def write_sheet(prior: Prior, tokenizer: Tokenizer, path: Path) -> None:
    """Draw samples of a prior as it is; the same seeds and conditions every time."""
    texts = prior.conditioner.examples[:SHEET_SAMPLES]
    condition = prior.conditioner.encode([texts[i % len(texts)] for i in range(SHEET_SAMPLES)]) if texts else None
    options: dict[str, Any] = {"sampler": "purity"} if prior.kernel.has_mask else {}
    grids = sample(prior, SHEET_SAMPLES, condition=condition, cfg_scale=2.0 if texts else 1.0, **options)
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(grids.to(tokenizer.device)))
    captions = [texts[i % len(texts)] for i in range(SHEET_SAMPLES)] if texts else None
    save_image(preview_grid(images, captions), path, force=True)


def _with_denoiser(prior: Prior, model: nn.Module) -> Prior:
    if not isinstance(model, Denoiser):
        raise ValueError(f"a {type(model).__name__} is no denoiser")
    return replace(prior, denoiser=model)
