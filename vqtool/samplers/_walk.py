"""What every sampler is given: a batch of samples, its noise, and the guided denoiser.

Sample i is the same in every batch, so everything that happens to it depends on its number alone. Its noise comes from
`vqtool.rng`. The network is the harder part: matrix products round differently for different batch sizes, and a
difference of 1e-6 changes a token now and then. So the network, and all that is done to its predictions, always sees
microbatches of one fixed size, in which sample i has the place i mod size; places without a sample are filled up
(unless the machine need not be exact: see `vqtool.samplers._machine`). A
sampler may ask for some cells only; their number must not depend on the samples either. (The number of CPU threads may
still matter.)

No step waits for a GPU, nor copies to or from it: what the program decides, such as which samples need a call, it
decides from numbers on the CPU (`Times.known`); what only a GPU can tell is asked after the last step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqtool import rng
from vqtool.diffusion.guidance import draw_truncated, guide, temper, truncate
from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import DAMAGED
from vqtool.errors import NotFiniteError
from vqtool.priors import Prior
from vqtool.samplers import _edit
from vqtool.samplers._caches import Caches
from vqtool.samplers._cells import pick
from vqtool.samplers._edit import Edit
from vqtool.samplers._machine import EXACT, Machine, build_tiling
from vqtool.samplers._microbatches import Microbatch, split
from vqtool.samplers._references import References
from vqtool.samplers._settings import Settings, interpolate
from vqtool.samplers._students import check_calls, draw_latents, mix, most_calls
from vqtool.samplers._tiles import Tiling

NOISE_STEPS, NOISE_NUMBERS = 32, 1 << 23  # that a GPU draws ahead at most: many take it no longer than few

Observer = Callable[["Walk", Tensor], None]  # of a batch and its x_t


class Times(NamedTuple):
    """A t in [1, T] for each sample."""

    known: Tensor  # (B,) int64 on the CPU
    there: Tensor  # the same on the device


class Walk:
    """A batch of samples on its way from x_T to x_0.

    Attributes:
        kernel: the prior's forward process.
        rule: the average over x_0 that the prior was trained with.
        grid_size: (H, W) of the samples.
        samples: their numbers.
        call: (which, from 0 on; of how many), if the sampler counts its calls.
        num_asked: how often the denoiser was asked until now.
        num_planned: how often it will have been in the end, as far as the sampler knows; None where it does not yet.
        raw: whether a sampler asks for logits in place of log-probabilities: guided and divided by the temperature.
        is_careful: whether a step looks at all cells, where it need not: see ``is_complete``.
        changes: how many cells of a sample may have changed since it was asked about last, if the sampler knows.
    """

    def __init__(
        self,
        prior: Prior,
        samples: range,
        condition: Tensor | None,
        *,
        seed: int,
        grid_size: tuple[int, int],
        settings: Settings,
        edit: Edit | None = None,
        tiling: Tiling | None = None,
        machine: Machine = EXACT,
        observe: Observer | None = None,
        is_careful: bool = False,
    ) -> None:
        self.kernel: Kernel = prior.kernel
        self.rule = prior.rule
        self.grid_size = grid_size
        self._calls = torch.zeros(len(samples), dtype=torch.int64)  # of the denoiser, each sample
        self.call: tuple[int, int] | None = None
        self.num_asked = 0
        self.num_planned: float | None = None
        self.raw = False
        self.changes: int | None = None
        self._prior = prior
        self.samples = samples
        self._seed = seed
        self._settings = settings
        self._edit = (edit or Edit()).to(prior.device)
        self._observe = observe
        self.is_careful = is_careful
        self._tiling = tiling or build_tiling(prior, grid_size)
        self._machine = machine
        times = torch.arange(self.kernel.num_steps + 1)
        self._scales_by_time = settings.scales(lambda: self._share(times), len(times)).to(prior.device)
        temperatures = self._temperature(times)
        self._temperatures_by_time = temperatures.to(prior.device) if isinstance(temperatures, Tensor) else None
        for each in (prior, settings.guide_with or prior):
            each.kernel.tables(prior.device)  # copied there now, not in the first step
        self._references = References(settings.cfg_refresh, len(samples))
        both = prior, settings.guide_with or prior
        self._caches, self._second_caches = (Caches(each, settings.cache, len(samples)) for each in both)
        self._is_damaged = torch.zeros((), dtype=torch.bool, device=prior.device)
        self._is_incomplete = torch.zeros_like(self._is_damaged)
        self._ahead: tuple[range, Tensor] | None = None  # noise of these steps, (steps, B, count, H, W)
        with machine.autocast(prior.device):
            most = self._tiling.microbatch
            self._microbatches = list(split(prior, samples, condition, settings, most=most, exact=machine.exact))

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the prior's training has measured."""
        return self._prior.summary

    @property
    def on_cpu(self) -> bool:
        """Whether numbers may be asked for in a step: a GPU would have to be waited for."""
        return self._prior.device.type == "cpu"

    @property
    def num_cells(self) -> int:
        """H * W."""
        return self.grid_size[0] * self.grid_size[1]

    def tokens(self, x_t: Tensor) -> Tensor:
        """The tokens (B, H, W) that x_t is of, K where masked: x_t itself, unless the prior sees them in parts."""
        return self._prior.join(x_t)

    def usual_steps(self, of_64_cells: int) -> int:
        """The steps where nobody says: one for ten cells, as 25 for 16x16, but no fewer than are usual for 8x8."""
        usual = max(of_64_cells, self.num_cells // 10)
        return min(usual, most_calls(self._prior) or usual)

    @property
    def counts_calls(self) -> bool:
        """Whether t tells the denoiser how many calls are to come."""
        return self._prior.denoiser.counts_calls

    @property
    def num_calls(self) -> float:
        """Calls of the denoiser until now, the mean of the samples; with guidance a step takes two."""
        return float(self._calls.double().mean())

    def times(self, t: int) -> Tensor:
        """(B,) int64, all t, on the device."""
        return torch.full((len(self.samples),), t, device=self._prior.device)

    def upload(self, rows: Sequence[Tensor]) -> Sequence[Tensor]:
        """Tensors of one shape on the device, by one copy: before the first step, for all of them."""
        return rows if self.on_cpu or not rows else torch.stack([*rows]).to(self._prior.device).unbind()

    def mark_incomplete(self, missing: Tensor) -> None:
        """Remember that a step has left out cells, if `missing`, () bool on the device, is True."""
        self._is_incomplete |= missing

    def is_complete(self) -> bool:
        """Whether every step has looked at all the cells that it had to; to be asked after the last step.

        Raises:
            NotFiniteError: the denoiser predicted NaN in some step.
        """
        if self.on_cpu:
            return True  # else it has been raised, or looked at, at once
        damaged, incomplete = torch.stack([self._is_damaged, self._is_incomplete]).tolist()
        if damaged:
            raise NotFiniteError(DAMAGED)
        return not incomplete

    @property
    def start(self) -> int:
        """The t in [1, T] of the first x_t."""
        return self.kernel.num_steps if self._edit.start is None else self._edit.start

    def begin(self, *, mask_lost: bool = False) -> Tensor:
        """The first x_t, (B, H, W) int64: from the noise of step 0, and from what is known of the batch.

        Args:
            mask_lost: mask every token that the process does not keep, those it would replace too: for samplers that
                never revise a token.
        """
        return _edit.begin(self._edit, self.kernel, self.noise(0, 1)[0], mask_lost=mask_lost)

    def keep(self, x_s: Tensor) -> Tensor:
        """X_s (B, H, W) with the known tokens in their cells: for samplers that change cells which are not masked."""
        return _edit.keep(self._edit, self.kernel, x_s)

    def leave_known(self, cells: Tensor) -> Tensor:
        """Cells (B, H, W) bool without those whose tokens are known: the denoiser need not predict these."""
        return cells if self._edit.known is None else cells & (self._edit.known == self.kernel.mask_id)

    def noise(self, step: int, count: int) -> Tensor:
        """The noise of one step: (count, B, H, W) float64, uniform in [0, 1)."""
        shape, device = (count, *self.grid_size), self._prior.device
        if self.on_cpu or step == 0:
            noise = rng.uniform(self._seed, self.samples, step, shape, stream=rng.SAMPLING, device=device)
            return noise.transpose(0, 1)
        if self._ahead is None or step not in self._ahead[0] or self._ahead[1].shape[2] != count:
            most = NOISE_NUMBERS // (len(self.samples) * count * self.num_cells)
            steps = range(step, step + max(1, min(NOISE_STEPS, most)))
            self._ahead = steps, rng.uniform(self._seed, self.samples, steps, shape, stream=rng.SAMPLING, device=device)
        return self._ahead[1][step - self._ahead[0].start].transpose(0, 1)

    def log_x0(self, x_t: Tensor, t: int | Times | Tensor, cells: Tensor | None = None) -> Tensor:
        """Log p(x_0 | x_t) after guidance, temperature and truncation.

        Args:
            x_t: (B, H, W) int64 tokens or mask_id.
            t: in [1, T], of all samples or of each. A tensor (B,) on a GPU makes the program wait for its numbers.
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted.

        Returns:
            (B, H, W, K) float32 log-probabilities, nats, or (B, n, K) with `cells`.
        """
        return self.apply(lambda log_x0: (log_x0,), x_t, t, cells)[0]

    def draw_x0(
        self,
        x_t: Tensor,
        t: int | Times | Tensor,
        noise: Tensor,
        cells: Tensor | None = None,
        *,
        active: Tensor | None = None,
    ) -> Tensor:
        """Tokens drawn from ``log_x0``, in less time and memory than it takes.

        Args:
            x_t: (B, H, W) int64 tokens or mask_id.
            t: as for ``log_x0``.
            noise: (B, H, W) float64, uniform in [0, 1).
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted.
            active: (B,) bool on the CPU, samples that need the denoiser, at least one; None for all.

        Returns:
            (B, H, W) int64, or (B, n) with `cells`; the rows of inactive samples must not be used.
        """
        noise = noise if cells is None else pick(noise, cells)
        cut = self._settings.truncation, self._settings.top_k
        return self._apply(lambda log_p, u: (draw_truncated(log_p, u, *cut),), x_t, t, cells, noise, active=active)[0]

    def apply(
        self,
        rule: Callable[..., tuple[Tensor, ...]],
        x_t: Tensor,
        t: int | Times | Tensor,
        cells: Tensor | None,
        *rows: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """What a rule makes of ``log_x0``, by microbatches: it saves memory, and sums are rounded alike in every batch.

        Args:
            rule: from log p(x_0 | x_t) of a microbatch and its part of `rows` to tensors, a row a place.
            x_t: (B, H, W) int64 tokens or mask_id.
            t: as for ``log_x0``.
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted; None for all.
            rows: (B, ...) each, what else the rule needs; zeros at places that no sample fills.
            active: (B,) bool on the CPU, samples that need the denoiser, at least one; None for all.

        Returns:
            The rule's tensors, (B, ...) each; the rows of inactive samples must not be used.
        """
        return self._apply(lambda log_p, *own: rule(self._truncate(log_p), *own), x_t, t, cells, *rows, active=active)

    def _truncate(self, log_p: Tensor) -> Tensor:
        cut = self._settings.truncation, self._settings.top_k
        if not self.raw:
            return truncate(log_p, *cut)
        if cut == (1.0, None):
            return log_p
        return log_p.masked_fill(truncate(log_p.log_softmax(-1), *cut) == -torch.inf, -torch.inf)

    def _apply(
        self,
        rule: Callable[..., tuple[Tensor, ...]],
        x_t: Tensor,
        t: int | Times | Tensor,
        cells: Tensor | None,
        *rows: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """``apply`` before truncation."""
        made: list[Tensor] = []
        for microbatch, log_p in self._ask(x_t, self._find_times(t), cells, active):
            results = rule(log_p, *(microbatch.fill(each, 0) for each in rows))
            if len(self._microbatches) == 1 and not microbatch.exact:
                return results
            made = made or [result.new_zeros(len(self.samples), *result.shape[1:]) for result in results]
            for whole, result in zip(made, results, strict=True):
                whole[microbatch.rows] = result[microbatch.places]
        return tuple(made)

    def _ask(
        self, x_t: Tensor, t: Times, cells: Tensor | None, active: Tensor | None
    ) -> Iterator[tuple[Microbatch, Tensor]]:
        """Each microbatch with log p(x_0 | x_t) at all its places, after guidance and temperature.

        The denoiser is called with the condition, unless the scale is 0, and without it, unless the scale is 1: in two
        calls of the same size, so that the first gives the same with and without guidance.
        """
        if self._observe is not None:
            self._observe(self, x_t)
        self.num_asked += 1
        check_calls(self._prior, max(self.num_asked, round(self.num_planned or 0)))
        latents = draw_latents(self._prior, self._seed, self.samples, self.num_asked)
        asking = torch.ones(len(self.samples), dtype=torch.bool) if active is None else active
        scales = self._settings.scales(lambda: self._share(t.known), len(self.samples))
        temperature = self._temperature(t.known)
        due = self._references.due(asking & (scales != 1))
        self._calls += asking * (scales != 0).long() + due
        self._caches.begin(x_t, asking & (scales != 0))
        self._second_caches.begin(x_t, due)
        second = self._settings.guide_with or self._prior
        for number, microbatch in enumerate(self._microbatches):
            own = scales[microbatch.rows][asking[microbatch.rows]]
            if not len(own):
                continue
            inputs = microbatch.fill(x_t, 0), microbatch.fill(t.there, 1)
            wanted = None if cells is None else microbatch.fill(cells, 0)
            log_p = None
            if bool((own != 0).any()):
                with self._machine.autocast(x_t.device):
                    condition = mix(self._prior, microbatch.condition, microbatch, latents)
                    prior = self._caches.find(number, microbatch, self.changes)
                    log_p = self._tiling.log_x0(prior, *inputs, condition, wanted, raw=self.raw)
            if bool((own != 1).any()):
                reference = mix(second, microbatch.reference, microbatch, latents)
                cached = self._second_caches.find(number, microbatch, self.changes)
                ask = partial(self._tiling.log_x0, cached, *inputs, reference, raw=self.raw)
                with self._machine.autocast(x_t.device):
                    log_u = self._references.find(number, microbatch.fill(due, False), ask, wanted)
                rows = microbatch.fill(scales, 1)
                there = self._send(scales, self._scales_by_time, t, microbatch)
                log_p = log_u if log_p is None else guide(log_p, log_u, rows, there, raw=self.raw)
            if log_p is not None:
                if not self.on_cpu:
                    self._is_damaged |= ~log_p.amax(-1).isfinite().all()
                yield microbatch, self._temper(log_p, temperature, t, microbatch)

    def _share(self, t: Tensor) -> Tensor:
        """(B,) float64, the share of the way at times t (B,); of the calls, for a denoiser that sees no time."""
        if self.call is not None and (self.counts_calls or not self._prior.denoiser.sees_time):
            return torch.full((len(t),), self.call[0] / self.call[1], dtype=torch.float64)
        return (self.kernel.num_steps - t.double()) / self.kernel.num_steps

    def _temperature(self, t: Tensor) -> float | Tensor:
        """The temperature, or that of each sample (B,): a list goes from the first call, or time, to the last."""
        temperature = self._settings.temperature
        if isinstance(temperature, int | float):
            return float(temperature)
        if self.call is not None:
            share = torch.full((len(t),), self.call[0] / max(1, self.call[1] - 1), dtype=torch.float64)
        else:
            share = (self.kernel.num_steps - t.double()) / max(1, self.kernel.num_steps - 1)
        return interpolate(temperature, share)

    def _temper(self, log_p: Tensor, temperature: float | Tensor, t: Times, microbatch: Microbatch) -> Tensor:
        if isinstance(temperature, float):
            return log_p / temperature if self.raw else temper(log_p, temperature)
        there = self._send(temperature, self._temperatures_by_time, t, microbatch)
        rows = microbatch.fill(temperature, 1)
        if self.raw:
            return log_p / (rows if there is None else there).to(log_p).view(-1, *[1] * (log_p.ndim - 1))
        return temper(log_p, rows, there)

    def _send(self, values: Tensor, by_time: Tensor | None, t: Times, microbatch: Microbatch) -> Tensor | None:
        """Numbers of the samples (B,) at their places on a GPU, without a copy: they are alike, or a table has them."""
        if self.on_cpu or by_time is None:
            return None
        alike = bool((values == values[0]).all())
        sent = torch.full_like(t.there, float(values[0]), dtype=values.dtype) if alike else by_time[t.there]
        return microbatch.fill(sent, 1)

    def temperature(self, t: Tensor) -> float:
        """The temperature at times (B,) on the CPU that are alike in all samples, or in the present call."""
        temperature = self._temperature(t)
        return temperature if isinstance(temperature, float) else float(temperature[0])

    def _find_times(self, t: int | Times | Tensor) -> Times:
        if isinstance(t, Times):
            return t
        if isinstance(t, int):
            known = torch.full((len(self.samples),), t)
            return Times(known, known if self.on_cpu else self.times(t))
        return Times(t.cpu(), t)
