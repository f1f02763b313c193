"""How well a prior predicts token grids that it has not seen, in bits per token.

What it does: measures the variational bound on -log p(x_0), an upper bound on the bits that a token costs. The
stationary term is known in closed form. The sum over t is estimated from a few timestep samples a grid: one at t = 1
(the decoder term), the others spread evenly over t = 2..T with one random shift a grid. The estimate is unbiased, and
with T samples every t is measured once.
When to use it: to compare priors over the same tokens (kernels, schedules, denoisers, losses) without sampling from
them. It says nothing of pictures, and cannot compare priors of different tokenizers.
Equation: bits = (KL(q(x_T | x_0) || stationary) + sum_t E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))) / (H W ln 2),
the term of t = 1 being E[-log p(x_0 | x_1)], with p by the prior's own rule.
Standard error: the standard deviation of the grids' estimates / sqrt(number of grids). The estimates are independent,
each with its own t and its own noise, so the error covers the choice of grids, of t and of noise. Grid i has the same t
and noise under every prior of the same T and kernel: the difference of two priors has a smaller error than either.
Cost: one denoiser call a timestep sample; memory does not grow with the number of grids.
Source: Austin et al. 2021 (arXiv:2107.03006), equation 1; Gu et al. 2022 (arXiv:2111.14822), equation 9.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtool import rng
from vqtool.denoisers import EncodedCondition
from vqtool.diffusion.losses import stationary_term, variational_bound
from vqtool.errors import VqtoolError, count_text
from vqtool.grids import GridBatch, open_grids
from vqtool.grids.found import find_grids
from vqtool.grids.listing import tell_empty
from vqtool.metrics.card import Card, side_of
from vqtool.metrics.pictures import token_digests
from vqtool.metrics.report import Report
from vqtool.metrics.score import Score
from vqtool.priors import Prior
from vqtool.progress import Progress, silent

DEFAULT_TIMES = 16  # timestep samples a grid
MAX_BATCH = 64  # grids
MAX_LOGITS = 1 << 25  # of a batch: 128 MiB


def step_bound(
    prior: Prior, x_0: Tensor, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None
) -> Tensor:
    """The term of step t in the bound, a grid.

    Args:
        prior: kernel, denoiser and rule.
        x_0: (B, H, W) int64 tokens, on the prior's device.
        x_t: (B, H, W) int64 tokens or mask_id, drawn from q(x_t | x_0).
        t: (B,) int64 in [1, T].
        condition: as `Prior.log_x0` takes it.

    Returns:
        (B,) float64 nats.
    """
    log_x0 = prior.log_x0(x_t, t, condition)
    return variational_bound(log_x0, x_0, x_t, t, prior.kernel, prior.rule).double().sum((1, 2))


def choose_times(shifts: Tensor, times: int, num_steps: int) -> Tensor:
    """The timesteps at which each grid is measured: 1, and the others spread evenly over 2..T.

    Args:
        shifts: (B,) float64, uniform in [0, 1): one random shift a grid.
        times: N timesteps a grid, in [1, T]; more than 1 unless T is 1.
        num_steps: T.

    Returns:
        (B, N) int64 in [1, T]; every t of 2..T is among them with chance (N - 1) / (T - 1).
    """
    others = times - 1
    places = (torch.arange(others) + shifts[:, None]) * ((num_steps - 1) / max(1, others))
    return torch.cat([torch.ones(len(shifts), 1), 2 + places.floor().clamp(max=num_steps - 2)], dim=1).long()


class _Mean:
    """The mean of numbers that come in batches, and its standard error; one of each a group."""

    def __init__(self, groups: int = 1) -> None:
        self.count = torch.zeros(groups, dtype=torch.float64)
        self._sum, self._squares = self.count.clone(), self.count.clone()

    def add(self, values: Tensor, groups: Tensor | None = None) -> None:
        """Take in values and their groups: both (n,)."""
        groups = torch.zeros(len(values), dtype=torch.int64) if groups is None else groups
        for total, what in ((self.count, torch.ones_like(values)), (self._sum, values), (self._squares, values**2)):
            total.index_add_(0, groups, what)

    @property
    def value(self) -> Tensor:
        """(groups,); NaN where there was nothing."""
        return self._sum / self.count

    @property
    def standard_error(self) -> Tensor:
        """(groups,); NaN where there were not two numbers."""
        variance = (self._squares / self.count - self.value**2).clamp(min=0) / (self.count - 1)
        return variance.sqrt().where(self.count > 1, torch.nan)


class Likelihood:
    """The bound of a prior on grids that are handed in batch by batch; numbers are bits per token.

    Attributes:
        num_grids: so far.
        total: of the bound, over grids.
        decoder: of its term of t = 1, over grids.
        steps: of its terms, over timestep samples, by t: (T + 1,); entry 0 is not used.
        stationary: of its stationary term, the same for every grid.
    """

    def __init__(self, prior: Prior, *, times: int = DEFAULT_TIMES, seed: int = 0) -> None:
        self.times = min(times, prior.kernel.num_steps)
        if self.times < min(2, prior.kernel.num_steps):
            raise VqtoolError(f"`times` {times}: at least 2 timesteps a grid are needed, one of which is t = 1")
        self.num_grids = 0
        self.total, self.decoder, self.steps = _Mean(), _Mean(), _Mean(prior.kernel.num_steps + 1)
        stationary = float(stationary_term(torch.zeros(1, 1, 1, dtype=torch.int64), prior.kernel))
        self.stationary = stationary * prior.num_parts / math.log(2)
        self._prior, self._seed = prior, seed

    @torch.no_grad()
    def add(self, x_0: Tensor, condition: Tensor | None = None) -> None:
        """Take in grids (B, H, W) int64 as the denoiser sees them, and conditions (B, ...); None is the null one."""
        prior, kernel = self._prior, self._prior.kernel
        numbers = range(self.num_grids, self.num_grids + len(x_0))
        shifts = rng.uniform(self._seed, numbers, 0, (), stream=rng.LIKELIHOOD)
        times = choose_times(shifts, self.times, kernel.num_steps)  # (B, N)
        encoded = prior.encode_condition(condition, len(x_0))
        weights = torch.full((self.times,), (kernel.num_steps - 1) / max(1, self.times - 1), dtype=torch.float64)
        weights[0] = 1.0
        nats_in_bits = x_0[0].numel() / prior.num_parts * math.log(2)  # a token
        total = torch.full((len(x_0),), self.stationary, dtype=torch.float64)
        for index, weight in enumerate(weights):
            t = times[:, index]
            noise = rng.uniform(self._seed, numbers, 1 + index, tuple(x_0.shape[1:]), stream=rng.LIKELIHOOD)
            clean, noisy, now = (tensor.to(prior.device) for tensor in (x_0, kernel.sample(x_0, t, noise), t))
            bits = step_bound(prior, clean, noisy, now, encoded).cpu() / nats_in_bits
            total += weight * bits
            self.steps.add(bits, t)
            if index == 0:
                self.decoder.add(bits)
        self.total.add(total)
        self.num_grids += len(x_0)

    @property
    def curve(self) -> dict[str, list[Any]]:
        """By t, of those sampled: t, looks (how many samples), bits_per_token, standard_errors; None if not finite."""
        seen = self.steps.count > 0
        numbers = {"bits_per_token": self.steps.value, "standard_errors": self.steps.standard_error}
        return {
            "t": seen.nonzero()[:, 0].tolist(),
            "looks": self.steps.count[seen].long().tolist(),
            **{
                name: [x if math.isfinite(x) else None for x in column[seen].tolist()]
                for name, column in numbers.items()
            },
        }


def measure_likelihood(
    prior: Prior,
    sources: Sequence[str | Path],
    *,
    times: int = DEFAULT_TIMES,
    conditional: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Bits per token of grids under a prior.

    Args:
        prior: its device does the work.
        sources: files of grids, folders of them or globs, or "-" for standard input.
        times: timestep samples a grid, at least 2; T or more for every t once.
        conditional: whether the prior is told the labels or captions of the grids.
        seed: of all noise.
        progress: shows how far it is.

    Raises:
        FormatError: not token grids, or damaged.
        MismatchError: grids of another tokenizer or size than the prior's.
        VqtoolError: no grids, an unknown label, or too few timesteps.
    """
    likelihood = Likelihood(prior, times=times, seed=seed)
    size = prior.cells
    batch_size = max(1, min(MAX_BATCH, MAX_LOGITS // (size[0] * size[1] * prior.kernel.codebook_size)))
    without, empty = 0, list[Path]()  # grids whose condition is not known, and files that have none
    digests: list[bytes] = []
    paths = find_grids(sources)
    for source in paths:
        before = likelihood.num_grids
        with open_grids(source) as reader:
            prior.check_grids(reader.header, reader.name)
            with progress(f"measure {reader.name}", reader.num_grids, "grids") as advance:
                for batch in reader.batches(batch_size):
                    texts = _texts(prior, batch) if conditional else [None] * len(batch)
                    without += texts.count(None)
                    digests += token_digests(batch.tokens)
                    x_0 = prior.split(torch.from_numpy(batch.tokens.astype("int64")))
                    likelihood.add(x_0, prior.conditioner.encode(texts))
                    advance(len(batch))
        empty += [source] if likelihood.num_grids == before else []
    tell_empty(empty, len(paths))
    if not paths:
        raise VqtoolError("no files of token grids are named")
    condition = prior.conditioner.kind if conditional else "none"
    return _report(prior, likelihood, condition, without if condition != "none" else 0, digests, seed)


def _texts(prior: Prior, batch: GridBatch) -> list[str | None]:
    return prior.conditioner.select(batch.labels, batch.captions) or [None] * len(batch)


def _report(
    prior: Prior, likelihood: Likelihood, condition: str, without: int, digests: Sequence[bytes], seed: int
) -> Report:
    num_grids, kernel = likelihood.num_grids, prior.kernel
    num_tokens = num_grids * prior.grid_spec.grid_size[0] * prior.grid_spec.grid_size[1]
    about = {
        "kind": "likelihood",
        "num_grids": num_grids,
        "num_tokens": num_tokens,
        "prior": prior.fingerprint,
        "tokenizer": prior.grid_spec.tokenizer_fingerprint,
        "kernel": kernel.name,
        "schedule": kernel.schedule,
        "num_steps": kernel.num_steps,
        "rule": prior.rule,
        "condition": condition,
        "times": likelihood.times,
        "seed": seed,
        "curve": likelihood.curve,
    }
    counted = f"{count_text(num_grids, 'grid')}, {count_text(num_tokens, 'token')}"
    headline = (
        f"{counted}; prior {prior.fingerprint} ({kernel.name}, {kernel.schedule}, "
        f"{prior.rule}; condition {condition}), {likelihood.times} of {kernel.num_steps} steps a grid"
    )
    card = Card(
        measure="likelihood",
        tokenizer=prior.grid_spec.tokenizer_fingerprint,
        prior=prior.fingerprint,
        protocol=f"condition {condition}, {likelihood.times} of {kernel.num_steps} steps a grid",
        generated=side_of(digests, held="grids"),
        seed=seed,
    )
    return Report(headline, _scores(likelihood), about, _warnings(likelihood, without), card)


def _scores(likelihood: Likelihood) -> list[Score]:
    total, decoder = float(likelihood.total.value), float(likelihood.decoder.value)
    error = _known(likelihood.total.standard_error)
    perplexity = float(likelihood.total.value.exp2())
    spread = None if error is None else math.log(2) * perplexity * error  # to first order
    return [
        Score("bits-per-token", total, "lower", "bits", error),
        Score("perplexity-per-token", perplexity, "lower", "tokens", spread),
        Score("decoder-term", decoder, "", "bits", _known(likelihood.decoder.standard_error)),
        Score("stationary-term", likelihood.stationary, "", "bits"),
        Score("decoder-share", decoder / total if total else 0.0),
        Score("stationary-share", likelihood.stationary / total if total else 0.0),
    ]


def _warnings(likelihood: Likelihood, without: int) -> list[str]:
    warnings = []
    if without:
        warnings.append(
            f"{without} of {likelihood.num_grids} grids have no label or caption: they get the null condition"
        )
    if likelihood.num_grids == 1:
        warnings.append("one grid has no standard error: measure several")
    if not math.isfinite(float(likelihood.total.value)):
        warnings.append("the bound is infinite: the prior gives some of these tokens no chance at all")
    return warnings


def _known(number: Tensor) -> float | None:
    return float(number) if math.isfinite(float(number)) else None
