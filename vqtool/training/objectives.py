"""What training of a prior minimises: one of `losses.LOSSES`, with its settings.

A step draws t and x_t for its grids, asks the denoiser once and returns, as a mean over all cells, in nats,

    weight_t * (term of the loss)  +  auxiliary_weight * cross-entropy  (for losses of the bound),

both divided by T p_t where t is drawn by importance. For the loss "bound" the cross-entropy is multiplied by T like the
bound, so both are the sums over t of the paper; for "reweighted" both are means over t. A kernel that only masks needs
the cross-entropy of masked cells and nothing else: logits are then computed for those alone.
Source: Gu et al. 2022 (arXiv:2111.14822), section 4.1; Bond-Taylor et al. 2022 (arXiv:2111.12701), section 3.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool import distributed, rng
from vqtool.diffusion import losses
from vqtool.diffusion.losses import (
    adaptive_factor,
    auxiliary,
    cell_weights,
    masked_weights,
    stationary_term,
    variational_bound,
)
from vqtool.diffusion.parameterisations import log_probabilities
from vqtool.diffusion.posterior import replaces
from vqtool.errors import VqtoolError
from vqtool.options import Checked, option
from vqtool.priors import Prior
from vqtool.training._order import Indices
from vqtool.training.clock import LoopConfig, Moment
from vqtool.training.data import GridData, Known, PlacedGrids, upload
from vqtool.training.times import History, draw_places, draw_times, find_times, place_times

AUXILIARY_WEIGHT = 5e-4
VALIDATION_TIMES = 8  # values of t at which each grid is measured


@dataclass(frozen=True)
class PriorLoss(Checked):
    """What is minimised."""

    loss: str = option(
        "reweighted",
        "reweighted: for samples. bound: for likelihood. The others are for kernels that do nothing but mask.",
        choices="diffusion/losses.py:LOSSES",
        shown="reweighted; bound for vq-diffusion",
        advanced=True,
    )
    auxiliary_weight: float | None = option(
        None, "Of the cross-entropy beside reweighted and bound.", shown="0.0005", minimum=0, advanced=True
    )
    adaptive_auxiliary: bool = option(False, "Weigh it more at small t: 2 at t = 1, 1 + 1 / T at T.", advanced=True)
    mask_weights: tuple[float, float] = option(
        (1.0, 1.0), "Of masked and of other cells, in reweighted and bound.", minimum=0, advanced=True
    )
    times: str = option(
        "stratified",
        "How t is drawn; importance: where the loss is large.",
        choices="training/times.py:TIMES",
        shown="stratified; importance for vq-diffusion without --loss",
        advanced=True,
    )
    cond_dropout: float = option(
        0.1, "Share trained without condition, for guidance.", minimum=0, maximum=1, advanced=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mask_weights) != 2 or sum(self.mask_weights) == 0:
            text = ",".join(f"{weight:g}" for weight in self.mask_weights)
            raise VqtoolError(f"`mask_weights` {text}: two numbers of 0 or more are expected, such as 1,0.5")


def check_loss(settings: PriorLoss, prior: Prior) -> losses.Loss:
    """The loss that the settings name, if they fit it and the prior's kernel.

    Raises:
        VqtoolError: an unknown name, or a setting that this loss or kernel has no use for.
    """
    kernel = prior.kernel
    loss = losses.find(settings.loss, kernel)
    with_bound = ", ".join(name for name, other in losses.LOSSES.items() if not other.of_masked)
    weighs_masks = settings.mask_weights != (1, 1)
    for part, used, fits, partner in (
        ("`auxiliary_weight`", bool(settings.auxiliary_weight), not loss.of_masked, f"`loss` {with_bound}"),
        ("`adaptive_auxiliary`", settings.adaptive_auxiliary, not loss.of_masked, f"`loss` {with_bound}"),
        (
            "`adaptive_auxiliary`",
            settings.adaptive_auxiliary,
            settings.auxiliary_weight != 0,
            "an `auxiliary_weight` above 0",
        ),
        ("`mask_weights`", weighs_masks, not loss.of_masked, f"`loss` {with_bound}"),
        ("`mask_weights`", weighs_masks, kernel.has_mask, "`kernel` mask-replace, absorbing"),
        ("`times` importance", settings.times == "importance", loss.noising != "share", "losses whose t is a step"),
        ("`rule` plug-in", prior.rule == "plug-in", replaces(kernel), "`kernel` mask-replace, uniform"),
    ):
        if used and not fits:
            raise VqtoolError(f"{part} goes with {partner}, not with `loss` {settings.loss} and `kernel` {kernel.name}")
    return loss


class Noised(NamedTuple):
    """Grids as the denoiser sees them."""

    x_t: Tensor  # (b, H, W) int64
    t: Tensor  # (b,) int64, or float32 in continuous time
    weights: Tensor  # (b,) float64: what the loss of each is multiplied by


class PriorObjective:
    """The objective of the training loop.

    Attributes:
        history: what importance sampling of t has seen, else None; the loop saves and resumes it.
    """

    def __init__(self, prior: Prior, data: GridData, settings: PriorLoss, run: LoopConfig) -> None:
        self._prior, self._data, self._settings, self._run = prior, data, settings, run
        self._loss = check_loss(settings, prior)
        given = settings.auxiliary_weight
        self._auxiliary_weight = 0.0 if self._loss.of_masked else AUXILIARY_WEIGHT if given is None else given
        self._masks_only = not replaces(prior.kernel)
        self._bound_weights = masked_weights(losses.LOSSES["bound"], prior.kernel)
        self._weights = torch.empty(0)
        if self._loss.weights is not None:
            self._weights = (
                masked_weights(self._loss, prior.kernel) if self._masks_only else self._loss.weights(prior.kernel)
            )
        self.history = History(prior.kernel.num_steps) if settings.times == "importance" else None
        self._placed: PlacedGrids | None = None

    def _place(self, device: torch.device) -> PlacedGrids:
        """Put on a device what steps need there: all of it, so that none of them has to wait for a copy."""
        if self._placed is None or self._placed.device != device:
            self._placed, self._here = self._data.place(device), self._data.place("cpu")
            self._null = self._prior.conditioner.null(1)
            self._null_there = self._null.to(device)
            self._weights = self._weights.to(device)
            self._bound_weights = self._bound_weights.to(device)
            if self.history is not None:
                self.history.to(device)
        return self._placed

    def __call__(
        self, model: nn.Module, indices: Indices, samples: Indices, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step and what is logged of it."""
        device = next(model.parameters()).device
        data, seed = self._place(device), self._run.seed
        rows, numbers = upload(np.stack([indices, samples]), device)
        known = indices, self._draw_captions(samples)
        x_0 = data.grids(rows, known)
        noise = rng.uniform(seed, numbers, 0, (1 + x_0[0].numel(),), stream=rng.TRAINING, device=device)
        if self._prior.conditioner.needs_text_encoder:
            condition = self._read_texts(known, samples).to(device)
        else:
            draws = None
            if data.has_variants:
                draws = rng.uniform(seed, numbers, 0, (), stream=rng.CAPTION, device=device)
            condition = self._drop(data.texts(rows, draws, known), noise[:, 0], self._null_there)
        noised, importance = self._add_noise(x_0, numbers, noise[:, 1:].view_as(x_0))
        measure = self._measure_masked if self._masks_only else self._measure_all
        main, extra, metrics = measure(model, x_0, noised, condition)
        if self.history is not None:
            # As published: the loss of a grid at its step, which T times is what is minimised.
            seen = torch.stack([noised.t.to(main), main.detach() / self._prior.kernel.num_steps], dim=1)
            t, seen_losses = distributed.gather(seen).unbind(1)
            self.history.update(t.long(), seen_losses)
        total = ((main + extra) * importance).sum() / x_0.numel()
        logged = {name: (value * importance).sum().detach() / x_0.numel() for name, value in metrics.items()}
        return total.float(), logged

    def _draw_captions(self, samples: Indices) -> NDArray[np.float64] | None:
        """(b,) in [0, 1): which of several captions a grid has, another in each epoch; None where none has several."""
        if not self._here.has_variants:
            return None
        return rng.uniform(self._run.seed, samples, 0, (), stream=rng.CAPTION).numpy()

    def _drop(self, condition: Tensor, noise: Tensor, null: Tensor) -> Tensor:
        """Conditions (b, ...), some of them replaced by the null condition, by noise (b,)."""
        dropped = (noise < self._settings.cond_dropout).view(-1, *[1] * (condition.ndim - 1))
        return torch.where(dropped, null, condition)

    def _read_texts(self, known: Known, samples: Indices) -> Tensor:
        """Features of captions, found where their tokens are: a GPU would have to be waited for."""
        draws = None if known[1] is None else torch.from_numpy(known[1])
        condition = self._here.texts(torch.from_numpy(known[0]), draws, known)
        noise = rng.uniform(self._run.seed, samples, 0, (1,), stream=rng.TRAINING)
        return self._prior.read_texts(self._drop(condition, noise[:, 0], self._null), together=True)

    def _add_noise(self, x_0: Tensor, samples: Tensor, noise: Tensor) -> tuple[Noised, Tensor]:
        """Grids with noise, and what their loss is multiplied by for how t was drawn: (b,) float64."""
        kernel = self._prior.kernel
        places = draw_places(samples, self._run.batch_size, self._run.seed, spread=self._settings.times != "uniform")
        importance = torch.ones_like(places)
        if self._loss.noising == "share":
            share = 1.0 - places  # (0, 1]
            x_t = torch.where(noise < share.view(-1, 1, 1), kernel.mask_id, x_0)
            return Noised(x_t, find_times(share, kernel), 1 / share), importance
        if self.history is not None:
            t, importance = self.history.draw(places)
        else:
            t = place_times(places, kernel.num_steps)
        if self._loss.noising == "count":
            return _mask_count(x_0, t, noise, prior=self._prior), importance
        return Noised(kernel.sample(x_0, t, noise), t, self._weights[t]), importance

    def _measure_masked(
        self, model: nn.Module, x_0: Tensor, noised: Noised, condition: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Main and auxiliary term of each grid, (b,) float64 nats, and metrics, for a kernel that only masks."""
        x_t, t, weights = noised
        # A GPU would have to wait for the numbers of cells; the wrapper of several processes wants one call a step.
        halves = x_0.device.type == "cpu" and not self._run.compile and distributed.world_size() == 1
        entropy = masked_entropies(model, self._prior, x_0, x_t, t, condition, halves=halves)
        factor = torch.where(t == 1, 1.0, self._settings.mask_weights[0])
        main = weights * factor * entropy
        extra = self._auxiliary_weights(t) * factor * entropy
        metrics = {"cross_entropy": entropy}
        if self._loss.noising == "share":
            metrics["bound"] = main
        elif self._loss.noising == "steps":
            metrics["bound"] = self._bound_weights[t] * entropy
        return main, extra, metrics

    def _measure_all(
        self, model: nn.Module, x_0: Tensor, noised: Noised, condition: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The same for any kernel, from the logits of all cells."""
        x_t, t, weights = noised
        bound, entropy = cell_losses(model, self._prior, x_0, x_t, t, condition)
        metrics = {"bound": self._prior.kernel.num_steps * bound.sum((1, 2)), "cross_entropy": entropy.sum((1, 2))}
        if self._settings.mask_weights != (1, 1):
            factors = cell_weights(x_t, t, self._prior.kernel, *self._settings.mask_weights).to(bound)
            bound, entropy = factors * bound, factors * entropy
        return weights * bound.sum((1, 2)), self._auxiliary_weights(t) * entropy.sum((1, 2)), metrics

    def _auxiliary_weights(self, t: Tensor) -> Tensor:
        """(b,) float64: of the cross-entropy."""
        num_steps = self._prior.kernel.num_steps
        weight = self._auxiliary_weight * (num_steps if self._loss.summed else 1)
        return weight * (
            adaptive_factor(t, num_steps) if self._settings.adaptive_auxiliary else torch.ones_like(t).double()
        )


def _mask_count(x_0: Tensor, t: Tensor, noise: Tensor, *, prior: Prior) -> Noised:
    """Grids of which as many cells are masked as the kernel masks on average at t, but one at least."""
    num_cells = x_0[0].numel()
    _, _, masked = prior.kernel.cumulative(t)
    counts = (masked * num_cells).round().clamp(min=1)  # (b,)
    ranks = noise.flatten(1).argsort(dim=1).argsort(dim=1).view_as(x_0)
    x_t = torch.where(ranks < counts.view(-1, 1, 1), prior.kernel.mask_id, x_0)
    return Noised(x_t, t, num_cells / counts)


def masked_entropies(
    model: nn.Module, prior: Prior, x_0: Tensor, x_t: Tensor, t: Tensor, condition: Tensor, *, halves: bool = True
) -> Tensor:
    """Cross-entropy of the masked cells of each grid, with logits computed for those alone.

    The denoiser wants as many cells of each grid: the grids with fewer masks and those with more go apart, or the
    one that is all mask would decide for all.

    Args:
        model: the denoiser, or what accelerate made of it.
        prior: of whose kernel the grids are.
        x_0: (b, H, W) int64 tokens.
        x_t: (b, H, W) int64 tokens or mask_id.
        t: (b,) int64 or float32.
        condition: (b, ...) int64.
        halves: whether to call the denoiser for half of the grids at a time; else once, and for all cells: the same
            shapes every time, for torch.compile, and none that a GPU has to tell.

    Returns:
        (b,) float64 nats.
    """
    masked = (x_t == prior.kernel.mask_id).flatten(1)
    if not halves:
        return _sum_entropies(model(x_t, t, condition).flatten(1, 2), x_0.flatten(1), masked)
    order = masked.sum(1).argsort()
    sums = []
    for rows in order.chunk(2):
        most = max(1, int(masked[rows].sum(1).max()))
        cells = masked[rows].byte().argsort(dim=1, descending=True, stable=True)[:, :most]  # (rows, n), masked first
        logits = model(x_t[rows], t[rows], condition[rows], cells)  # (rows, n, K)
        sums.append(_sum_entropies(logits, x_0[rows].flatten(1).gather(1, cells), masked[rows].gather(1, cells)))
    return torch.cat(sums)[order.argsort()]


def _sum_entropies(logits: Tensor, clean: Tensor, wanted: Tensor) -> Tensor:
    """(b,) float64: cross-entropy of logits (b, n, K) at tokens (b, n), summed over the wanted ones."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    entropy = F.cross_entropy(logits.flatten(0, 1), clean.flatten(), reduction="none")
    return (entropy.view_as(clean) * wanted).sum(1, dtype=torch.float64)


def cell_losses(
    model: nn.Module, prior: Prior, x_0: Tensor, x_t: Tensor, t: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """The bound of step t, and the cross-entropy: (b, H, W) nats each.

    Args:
        model: the denoiser, or what accelerate made of it.
        prior: kernel, rule and parameterisation.
        x_0: (b, H, W) int64 tokens.
        x_t: (b, H, W) int64 tokens or mask_id.
        t: (b,) int64 in [1, T].
        condition: (b, ...) int64.
    """
    kernel = prior.kernel
    log_x0 = log_probabilities(model(x_t, t, condition), x_t, t, kernel, prior.parameterisation)
    return variational_bound(log_x0, x_0, x_t, t, kernel, prior.rule), auxiliary(log_x0, x_0)


@torch.no_grad()
def validate(
    model: nn.Module,
    prior: Prior,
    data: GridData,
    seed: int,
    advance: Callable[[int], object] = int,
    by_time: Tensor | None = None,
) -> Tensor:
    """The bound of held-out grids, nats a cell, at a few t each; the same noise every time.

    Args:
        model: the denoiser.
        prior: of it.
        data: the grids.
        seed: of the noise.
        advance: is told how many grids were measured, each as often as there are t.
        by_time: (2, T + 1) float64; how often each t was measured, and the nats of the grids there, are added to it.
    """
    kernel, device = prior.kernel, next(model.parameters()).device
    total = torch.zeros((), device=device, dtype=torch.float64)
    batch_size = 32 if device.type == "cpu" else 256
    grids = torch.arange(len(data), device=device)
    x_0, condition = data.place(device).rows(grids)
    texts = prior.read_texts(condition, together=True)
    for number in range(VALIDATION_TIMES):
        samples = grids * VALIDATION_TIMES + number
        t = draw_times(samples, VALIDATION_TIMES, kernel.num_steps, seed)  # spread evenly for each grid
        noise = rng.uniform(seed, samples, 2, tuple(x_0.shape[1:]), stream=rng.TRAINING, device=device)
        x_t = kernel.sample(x_0, t, noise)
        for first in range(0, len(data), batch_size):
            rows = slice(first, first + batch_size)
            bound, _ = cell_losses(model, prior, x_0[rows], x_t[rows], t[rows], texts[rows])
            total += bound.sum()
            if by_time is not None:
                seen = torch.stack([torch.ones(len(bound)).double(), bound.sum((1, 2)).double().cpu()])
                by_time.index_add_(1, t[rows].cpu(), seen)
            advance(len(bound))
    stationary = float(stationary_term(x_0[:1, :1, :1], kernel))
    return total * kernel.num_steps / (x_0.numel() * VALIDATION_TIMES) + stationary


def curve_of(prior: Prior, by_time: Tensor) -> dict[str, list[Any]]:
    """What ``validate`` has added to `by_time`, as `eval --likelihood` writes it: t, looks and bits_per_token."""
    t = by_time[0].nonzero()[:, 0]
    bits = by_time[1, t] / by_time[0, t] / (math.prod(prior.grid_spec.grid_size) * math.log(2))
    return {"t": t.tolist(), "looks": by_time[0, t].long().tolist(), "bits_per_token": bits.tolist()}
