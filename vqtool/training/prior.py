"""Training of a prior on token grids.

Loss: weight_t * T * (variational bound of step t) + auxiliary_weight * cross-entropy, a cell, in nats. With weighting

- "bound" weight_t is 1: an unbiased estimate of the negative log-likelihood bound, in which a masked cell at t = 1
  weighs T times one at t = T: for likelihoods;
- "reweighted" (the default) weight_t = (1 - alpha_bar_t) / (T (alpha_bar_{t-1} - alpha_bar_t)), which undoes that: for
  a masked cell what is left is the plain cross-entropy at every t, as in MaskGIT. Its gradient is far less noisy.

t is stratified: the B samples of a step have t spread evenly over 1..T with one common random shift.
Source: Gu et al. 2022 (arXiv:2111.14822), section 4.1; the reweighting follows Bond-Taylor et al. 2022
(arXiv:2111.12701), section 3.2, for any kernel.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtool import denoisers, rng
from vqtool.conditions import Conditioner
from vqtool.denoisers import Denoiser, transformer
from vqtool.grids import GridBatch
from vqtool.images import to_uint8
from vqtool.kernels import Kernel
from vqtool.losses import auxiliary, stationary_term, variational_bound
from vqtool.priors import Origin, Prior, log_probabilities
from vqtool.samplers import sample
from vqtool.sheets import contact_sheet, save_image
from vqtool.tokenizers import Tokenizer
from vqtool.training import loop
from vqtool.training.loop import Indices, LoopConfig

WEIGHTINGS = ("reweighted", "bound")
MAX_PASSES = 300
SHEET_SAMPLES = 16
HELD_OUT_SHARE = 0.03
MAX_HELD_OUT = 128
MIN_GRIDS_TO_HOLD_OUT = 200
VALIDATION_STEPS = 200  # between two looks at the grids held out
_VALIDATION_TIMES = 8  # values of t at which each of them is looked at


@dataclass(frozen=True)
class PriorLoss:
    """What is minimised."""

    weighting: str = "reweighted"  # one of WEIGHTINGS
    auxiliary_weight: float = 5e-4
    drop_condition: float = 0.1  # share of the samples that are given the null condition


@dataclass(frozen=True)
class GridData:
    """The grids to learn from, with their conditions."""

    tokens: NDArray[np.integer[Any]]  # (N, H, W)
    conditions: Tensor  # (N, ...) int64
    origin: Origin

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Grids (b, H, W) int64 and conditions (b, ...) of some of them."""
        return torch.from_numpy(self.tokens[indices].astype(np.int64)), self.conditions[torch.from_numpy(indices)]

    def split(self, seed: int) -> tuple["GridData", "GridData | None"]:
        """Those to train on, and a few held out where there are enough."""
        if len(self) < MIN_GRIDS_TO_HOLD_OUT:
            return self, None
        order = rng.generator(seed, 0, stream=rng.SELECTION).permutation(len(self))
        count = min(MAX_HELD_OUT, int(HELD_OUT_SHARE * len(self)))
        return self._take(np.sort(order[count:])), self._take(np.sort(order[:count]))

    def _take(self, indices: Indices) -> "GridData":
        return replace(self, tokens=self.tokens[indices], conditions=self.conditions[torch.from_numpy(indices)])

    def digest(self) -> str:
        """16 hexadecimal digits over grids and conditions."""
        result = hashlib.sha256(json.dumps([self.tokens.shape, self.conditions.shape]).encode())
        result.update(np.ascontiguousarray(self.tokens, np.int64).data)
        result.update(self.conditions.numpy().data)
        return result.hexdigest()[:16]


def build_data(batch: GridBatch, conditioner: Conditioner, origin: Origin) -> GridData:
    """The grids of a file with the conditions that their labels or captions stand for."""
    texts = conditioner.select(batch.labels, batch.captions) or [None] * len(batch)
    return GridData(batch.tokens, conditioner.encode(texts), origin)


def choose_size(num_grids: int, num_cells: int, *, gpu: bool) -> str:
    """The name of a transformer size that suits data and machine.

    On a CPU the steps that a network can take in ten minutes matter most: 380 grids of 8x8 a second pass `tiny` in
    training, 150 `small` (two cores). On a GPU, how much there is to learn.
    """
    if not gpu:
        return "tiny" if num_cells > 64 or num_grids < 1000 else "small"
    num_tokens = num_grids * num_cells
    return "small" if num_tokens < 200_000 else "base" if num_tokens < 5_000_000 else "large"


def build_prior(
    kernel: Kernel, conditioner: Conditioner, origin: Origin, size: str, *, seed: int, tokens: NDArray[Any]
) -> Prior:
    """A prior with fresh weights that predicts each token as often as it is found in the grids.

    Args:
        kernel: the forward process.
        conditioner: of the grids.
        origin: of the grids.
        size: one of transformer.SIZES.
        seed: of the weights.
        tokens: (N, H, W), for the frequencies.
    """
    config = transformer.Config(
        codebook_size=kernel.codebook_size,
        grid_size=origin.grid_size,
        num_steps=kernel.num_steps,
        num_classes=getattr(conditioner, "num_classes", 0),
        vocabulary_size=getattr(conditioner, "vocabulary_size", 0),
        max_length=getattr(conditioner, "max_length", 0),
        **transformer.SIZES[size],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = denoisers.build("transformer", asdict(config))
    counts = np.bincount(tokens.reshape(-1).astype(np.int64), minlength=kernel.codebook_size) + 0.5
    denoiser.set_frequencies(torch.from_numpy(counts / counts.sum()))
    return Prior(kernel, denoiser, "transformer", conditioner, origin)


def choose_run(num_steps: int, batch_size: int, learning_rate: float, *, seed: int, sheet_steps: int) -> LoopConfig:
    """How a run of that length goes: a tenth of it warms up, at most 100 steps, and a tenth of it is averaged."""
    return LoopConfig(
        num_steps,
        batch_size,
        learning_rate,
        warmup_steps=min(100, max(1, num_steps // 10)),
        ema_decay=min(0.9995, max(0.9, 1 - 10 / num_steps)),
        seed=seed,
        sheet_steps=sheet_steps,
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
    )


def choose_num_steps(num_grids: int, batch_size: int, step_seconds: float, *, gpu: bool) -> int:
    """Steps of a run when nobody says: 300 passes through the grids, but no longer than 10 minutes (GPU: 30)."""
    in_time = (1800 if gpu else 600) / step_seconds
    return max(1, int(min(MAX_PASSES * num_grids / batch_size, in_time)))


def step_weights(kernel: Kernel) -> Tensor:
    """(T + 1,) float64: the weights of the reweighted loss; entry 0 is not used."""
    falls = kernel.alpha_bar[:-1] - kernel.alpha_bar[1:]
    weights = (1 - kernel.alpha_bar[1:]) / (kernel.num_steps * falls.clamp(min=1e-12))
    return torch.cat([torch.zeros(1, dtype=torch.float64), torch.where(falls > 0, weights, 0.0)])


def draw_times(samples: Indices, batch_size: int, num_steps: int, seed: int) -> Tensor:
    """The t of each sample, (b,) int64 in [1, T]: the samples of a step are spread evenly with a common random shift.

    Args:
        samples: (b,) numbers of the samples in the whole run.
        batch_size: samples a step, over all processes.
        num_steps: T.
        seed: of the run.
    """
    shifts = rng.uniform(seed, (samples // batch_size).tolist(), 1, (), stream=rng.TRAINING)
    places = torch.from_numpy(samples % batch_size).double()
    return 1 + ((shifts + places / batch_size).frac() * num_steps).long().clamp(max=num_steps - 1)


def build_objective(
    prior: Prior, data: GridData, loss: PriorLoss, run: LoopConfig, held_out: GridData | None = None
) -> loop.Objective:
    """The objective of the training loop; `prior` says how its denoiser's logits are read."""
    weights = step_weights(prior.kernel) if loss.weighting == "reweighted" else None

    def objective(model: nn.Module, indices: Indices, samples: Indices, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x_0, condition = data.rows(indices)
        noise = rng.uniform(run.seed, samples, 0, (1 + x_0[0].numel(),), stream=rng.TRAINING)
        t = draw_times(samples, run.batch_size, prior.kernel.num_steps, run.seed)
        dropped = (noise[:, 0] < loss.drop_condition).view(-1, *[1] * (condition.ndim - 1))
        condition = torch.where(dropped, prior.conditioner.null(len(x_0)), condition)
        bound, entropy = cell_losses(model, prior, x_0, t, noise[:, 1:].view_as(x_0), condition)
        weighted = bound if weights is None else bound * weights[t].to(bound)[:, None, None]
        total = weighted.mean() + loss.auxiliary_weight * entropy.mean()
        metrics = {"bound": bound.mean().detach(), "cross_entropy": entropy.mean().detach()}
        if held_out is not None and (step + 1) % VALIDATION_STEPS == 0:
            metrics["validation_bound"] = validate(model, prior, held_out, run.seed)
        return total, metrics

    return objective


def cell_losses(
    model: nn.Module, prior: Prior, x_0: Tensor, t: Tensor, noise: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """T times the bound of step t, and the cross-entropy: (b, H, W) nats each, on the model's device.

    Args:
        model: the denoiser, or what accelerate made of it.
        prior: kernel and parameterisation.
        x_0: (b, H, W) int64 tokens.
        t: (b,) int64 in [1, T].
        noise: (b, H, W) float64, uniform in [0, 1).
        condition: (b, ...) int64.
    """
    kernel = prior.kernel
    x_t = kernel.sample(x_0, t, noise)
    device = next(model.parameters()).device
    x_0, x_t, t, condition = (tensor.to(device, non_blocking=True) for tensor in (x_0, x_t, t, condition))
    log_x0 = log_probabilities(model(x_t, t, condition), x_t, t, kernel, prior.parameterisation)
    bound = variational_bound(log_x0, x_0, x_t, t, kernel)
    return kernel.num_steps * bound, auxiliary(log_x0, x_0)


@torch.no_grad()
def validate(model: nn.Module, prior: Prior, data: GridData, seed: int) -> Tensor:
    """The bound of held-out grids, nats a cell, at a few t each; the same noise every time."""
    total = torch.zeros((), device=next(model.parameters()).device)
    x_0, condition = data.rows(np.arange(len(data)))
    for look in range(_VALIDATION_TIMES):
        samples = np.arange(len(data)) * _VALIDATION_TIMES + look
        t = draw_times(samples, _VALIDATION_TIMES, prior.kernel.num_steps, seed)  # spread evenly for each grid
        noise = rng.uniform(seed, samples, 2, tuple(x_0.shape[1:]), stream=rng.TRAINING)
        for first in range(0, len(data), 32):
            rows = slice(first, first + 32)
            bound, _ = cell_losses(model, prior, x_0[rows], t[rows], noise[rows], condition[rows])
            total += bound.sum()
    stationary = float(stationary_term(x_0[:1, :1, :1], prior.kernel))
    return total / (x_0.numel() * _VALIDATION_TIMES) + stationary


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
        held_out: grids whose bound is logged now and then.
        sheet: draws samples of the prior as it is, every `run.sheet_steps` steps.
        report: is told (step, metrics).

    Returns:
        The prior with the averaged weights, and a summary of the run.
    """
    config = {
        "kernel": prior.kernel.config,
        "denoiser": asdict(prior.denoiser.config),
        "condition": prior.conditioner.config(),
        "loss": asdict(loss),
    }
    result = loop.run(
        prior.denoiser,
        build_objective(prior, data, loss, run, held_out),
        num_items=len(data),
        config=run,
        state_path=state_path,
        log_path=log_path,
        identity={**identity, **config},
        resume=resume,
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
    save_image(contact_sheet(images, captions), path, force=True)


def _with_denoiser(prior: Prior, model: nn.Module) -> Prior:
    if not isinstance(model, Denoiser):
        raise ValueError(f"a {type(model).__name__} is no denoiser")
    return replace(prior, denoiser=model)
