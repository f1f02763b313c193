"""What every sampler is given: a batch of samples, its noise, and the guided denoiser.

Sample i is the same in every batch, so what happens to it may depend on its number alone. Its noise comes from
`vqtool.rng`. The network is the harder part: matrix products round differently for different batch sizes, and a
difference of 1e-6 turns a token now and then. So the network, and all that is done to its predictions, always sees
groups of one fixed size, in which sample i has the place i mod size; what a batch leaves empty is filled up. A sampler
may ask for some cells only; how many a sample must not depend on the samples either. (The number of CPU threads may
still matter.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool import rng
from vqtool.denoisers import EncodedCondition, join_conditions
from vqtool.guidance import draw_truncated, guide, temper, truncate
from vqtool.kernels import Kernel
from vqtool.priors import Prior

CPU_GROUP_CELLS = 512  # in a group: from here on the network is no faster a grid
GPU_GROUP_CELLS = 16384


@dataclass(frozen=True)
class Settings:
    """What is done to the denoiser's log p(x_0 | x_t), in this order; 1.0 is off."""

    cfg_scale: float = 1.0
    temperature: float = 1.0
    truncation: float = 1.0


@dataclass(frozen=True)
class _Group:
    """Samples that pass the network together."""

    rows: slice  # of the batch
    places: slice  # where they are among the group's places
    condition: EncodedCondition  # a row a place; with guidance the null condition once more


class Walk:
    """A batch of samples on its way from x_T to x_0.

    Attributes:
        kernel: the prior's forward process.
        rule: the average over x_0 that the prior was trained with.
        grid_size: (H, W) of the samples.
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
    ) -> None:
        self.kernel: Kernel = prior.kernel
        self.rule = prior.rule
        self.grid_size = grid_size
        self._calls = torch.zeros(len(samples), dtype=torch.int64)  # of the denoiser, each sample
        self._prior = prior
        self._samples = samples
        self._seed = seed
        self._settings = settings
        self._guided = settings.cfg_scale != 1.0
        cells = CPU_GROUP_CELLS if prior.device.type == "cpu" else GPU_GROUP_CELLS
        self._group_size = max(1, cells // (grid_size[0] * grid_size[1]))
        self._groups = list(self._make_groups(condition))

    @property
    def num_cells(self) -> int:
        """H * W."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_calls(self) -> float:
        """How often the denoiser has been asked, the mean of the samples; guidance asks twice."""
        return float(self._calls.double().mean())

    def times(self, t: int) -> Tensor:
        """(B,) int64, all t."""
        return torch.full((len(self._samples),), t, device=self._prior.device)

    def noise(self, step: int, count: int) -> Tensor:
        """The noise of one step: (count, B, H, W) float64, uniform in [0, 1)."""
        noise = rng.uniform(self._seed, self._samples, step, (count, *self.grid_size), stream=rng.SAMPLING)
        return noise.to(self._prior.device).transpose(0, 1)

    def log_x0(self, x_t: Tensor, t: Tensor, cells: Tensor | None = None) -> Tensor:
        """Log p(x_0 | x_t) after guidance, temperature and truncation.

        Args:
            x_t: (B, H, W) int64 tokens or mask_id.
            t: (B,) int64 in [1, T].
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted.

        Returns:
            (B, H, W, K) float32 log-probabilities, nats, or (B, n, K) with `cells`.
        """
        return self.apply(lambda log_x0: (log_x0,), x_t, t, cells)[0]

    def draw_x0(self, x_t: Tensor, t: Tensor, noise: Tensor, cells: Tensor | None = None) -> Tensor:
        """Tokens drawn from ``log_x0``, in less time and memory than it takes.

        Args:
            x_t: (B, H, W) int64 tokens or mask_id.
            t: (B,) int64 in [1, T].
            noise: (B, H, W) float64, uniform in [0, 1).
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted.

        Returns:
            (B, H, W) int64, or (B, n) with `cells`.
        """
        noise = noise if cells is None else pick(noise, cells)
        rate = self._settings.truncation
        return self._apply(lambda log_p, u: (draw_truncated(log_p, u, rate),), x_t, t, cells, noise)[0]

    def apply(
        self,
        rule: Callable[..., tuple[Tensor, ...]],
        x_t: Tensor,
        t: Tensor,
        cells: Tensor | None,
        *rows: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """What a rule makes of ``log_x0``, group by group: so its sums are the same in every batch, and memory is saved.

        Args:
            rule: from log p(x_0 | x_t) of a group and the other rows of it to tensors, a row a place.
            x_t: (B, H, W) int64 tokens or mask_id.
            t: (B,) int64 in [1, T].
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted; None for all.
            rows: (B, ...) each, what else the rule needs; zeros at places that no sample fills.
            active: (B,) bool, samples that need the denoiser, at least one; None for all.

        Returns:
            The rule's tensors, (B, ...) each; of no meaning for samples that are not active.
        """
        rate = self._settings.truncation
        return self._apply(lambda log_p, *own: rule(truncate(log_p, rate), *own), x_t, t, cells, *rows, active=active)

    def _apply(
        self,
        rule: Callable[..., tuple[Tensor, ...]],
        x_t: Tensor,
        t: Tensor,
        cells: Tensor | None,
        *rows: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """``apply`` before truncation."""
        made: list[Tensor] = []
        for group, log_p in self._ask(x_t, t, cells, active):
            results = rule(log_p, *(self._fill(each, group, 0) for each in rows))
            made = made or [result.new_zeros(len(self._samples), *result.shape[1:]) for result in results]
            for whole, result in zip(made, results, strict=True):
                whole[group.rows] = result[group.places]
        return tuple(made)

    def _ask(
        self, x_t: Tensor, t: Tensor, cells: Tensor | None, active: Tensor | None
    ) -> Iterator[tuple[_Group, Tensor]]:
        """Each group with log p(x_0 | x_t) at all its places, after guidance and temperature."""
        asking = torch.ones(len(self._samples), dtype=torch.bool) if active is None else active.cpu()
        self._calls += asking * (2 if self._guided else 1)
        for group in self._groups:
            if not bool(asking[group.rows].any()):
                continue
            inputs = [self._fill(x_t, group, 0), self._fill(t, group, 1)]
            inputs += [] if cells is None else [self._fill(cells, group, 0)]
            if self._guided:
                inputs = [torch.cat([each, each]) for each in inputs]
            log_p = self._prior.log_x0(inputs[0], inputs[1], group.condition, *inputs[2:])
            if self._guided:
                log_c, log_u = log_p.chunk(2)
                log_p = guide(log_c, log_u, self._settings.cfg_scale)
            yield group, temper(log_p, self._settings.temperature)

    def _fill(self, values: Tensor, group: _Group, value: int) -> Tensor:
        """The rows of a group at their places, (size, ...), and a value at those that are empty."""
        filled = values.new_full((self._group_size, *values.shape[1:]), value)
        filled[group.places] = values[group.rows]
        return filled

    def _make_groups(self, condition: Tensor | None) -> Iterator[_Group]:
        size, first, stop = self._group_size, self._samples.start, self._samples.stop
        null = self._prior.conditioner.null(size)
        encoded_null = self._prior.encode_condition(null, size) if self._guided else None
        for begin in range(first - first % size, stop, size):
            low, high = max(begin, first), min(begin + size, stop)
            rows, places = slice(low - first, high - first), slice(low - begin, high - begin)
            filled = null.clone()
            if condition is not None:
                filled[places] = condition[rows]
            encoded = self._prior.encode_condition(filled, size)
            if encoded_null is not None:
                encoded = join_conditions(encoded, encoded_null)
            yield _Group(rows, places, encoded)


def pick(grid: Tensor, cells: Tensor) -> Tensor:
    """The values of a grid (B, H, W) at cells (B, n): (B, n)."""
    return grid.flatten(1).gather(1, cells)


def put(grid: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    """A grid (B, H, W) with other values (B, n) at cells (B, n)."""
    return grid.flatten(1).scatter(1, cells, values).view_as(grid)


def place_first(wanted: Tensor) -> Tensor:
    """The cells of each sample, (B, H * W) int64: first those that are wanted (B, H, W), then the others."""
    return wanted.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
