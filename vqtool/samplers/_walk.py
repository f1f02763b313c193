"""What every sampler is given: a batch of samples, its noise, and the guided denoiser.

Sample i is the same in every batch, so what happens to it may depend on its number alone. Its noise comes from
`vqtool.rng`. The network is the harder part: matrix products round differently for different batch sizes, and a
difference of 1e-6 turns a token now and then. So the network always sees groups of one fixed size, in which sample i
has the place i mod size; what a batch leaves empty is filled up. (The number of CPU threads may still matter.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool import rng
from vqtool.denoisers import EncodedCondition, join_conditions
from vqtool.guidance import guide, temper, truncate
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
        num_calls: how often the denoiser has been asked, a sample; guidance asks twice.
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
        self.num_calls = 0
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

    def times(self, t: int) -> Tensor:
        """(B,) int64, all t."""
        return torch.full((len(self._samples),), t, device=self._prior.device)

    def noise(self, step: int, count: int) -> Tensor:
        """The noise of one step: (count, B, H, W) float64, uniform in [0, 1)."""
        noise = rng.uniform(self._seed, self._samples, step, (count, *self.grid_size), stream=rng.SAMPLING)
        return noise.to(self._prior.device).transpose(0, 1)

    def log_x0(self, x_t: Tensor, t: int) -> Tensor:
        """Log p(x_0 | x_t) after guidance, temperature and truncation.

        Args:
            x_t: (B, H, W) int64 tokens or mask_id.
            t: in [1, T], the same for all.

        Returns:
            (B, H, W, K) float32 log-probabilities, nats.
        """
        self.num_calls += 2 if self._guided else 1
        return torch.cat([self._group_log_x0(x_t[group.rows], t, group) for group in self._groups])

    def _group_log_x0(self, x_t: Tensor, t: int, group: _Group) -> Tensor:
        filled = x_t.new_zeros(self._group_size, *self.grid_size)
        filled[group.places] = x_t
        if self._guided:
            filled = torch.cat([filled, filled])
        log_p = self._prior.log_x0(filled, torch.full((len(filled),), t, device=x_t.device), group.condition)
        if self._guided:
            log_c, log_u = log_p.chunk(2)
            log_p = guide(log_c, log_u, self._settings.cfg_scale)
        log_p = log_p[group.places]
        return truncate(temper(log_p, self._settings.temperature), self._settings.truncation)

    def _make_groups(self, condition: Tensor | None) -> Iterator[_Group]:
        size, first, stop = self._group_size, self._samples.start, self._samples.stop
        null = self._prior.conditioner.null(size)
        for begin in range(first - first % size, stop, size):
            low, high = max(begin, first), min(begin + size, stop)
            rows, places = slice(low - first, high - first), slice(low - begin, high - begin)
            filled = null.clone()
            if condition is not None:
                filled[places] = condition[rows]
            encoded = self._prior.encode_condition(filled, size)
            if self._guided:
                encoded = join_conditions(encoded, self._prior.encode_condition(null, size))
            yield _Group(rows, places, encoded)
