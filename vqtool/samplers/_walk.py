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
from vqtool.denoisers import EncodedCondition
from vqtool.diffusion.guidance import draw_truncated, guide, temper, truncate
from vqtool.diffusion.kernels import Kernel
from vqtool.errors import VqtoolError
from vqtool.priors import Prior
from vqtool.samplers import _edit
from vqtool.samplers._edit import Edit
from vqtool.samplers._settings import Settings, encode_null
from vqtool.samplers._windows import Size, Windows

CPU_GROUP_CELLS = 512  # in a group: from here on the network is no faster a grid
GPU_GROUP_CELLS = 16384

GRID_MODES = ("windows", "stretch")

Observer = Callable[["Walk", Tensor], None]  # of a batch and its x_t


@dataclass(frozen=True)
class _Group:
    """Samples that pass the network together."""

    rows: slice  # of the batch
    places: slice  # where they are among the group's places
    condition: EncodedCondition  # a row a place
    reference: EncodedCondition | None  # what guidance compares with; None without guidance


class Walk:
    """A batch of samples on its way from x_T to x_0.

    Attributes:
        kernel: the prior's forward process.
        rule: the average over x_0 that the prior was trained with.
        grid_size: (H, W) of the samples.
        samples: their numbers.
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
        windows: Windows | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.kernel: Kernel = prior.kernel
        self.rule = prior.rule
        self.grid_size = grid_size
        self._calls = torch.zeros(len(samples), dtype=torch.int64)  # of the denoiser, each sample
        self._prior = prior
        self.samples = samples
        self._seed = seed
        self._settings = settings
        self._edit = (edit or Edit()).to(prior.device)
        self._observe = observe
        self._windows = windows or cover(prior, grid_size)
        self._group_size = self._windows.group_size
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
        return torch.full((len(self.samples),), t, device=self._prior.device)

    @property
    def start(self) -> int:
        """The t in [1, T] of the first x_t."""
        return self.kernel.num_steps if self._edit.start is None else self._edit.start

    def begin(self, *, hide: bool = False) -> Tensor:
        """The first x_t, (B, H, W) int64: from the noise of step 0, and from what is known of the batch.

        Args:
            hide: mask all that the process has lost, tokens that it has replaced too: for samplers that never revise.
        """
        return _edit.begin(self._edit, self.kernel, self.noise(0, 1)[0], hide=hide)

    def keep(self, x_s: Tensor) -> Tensor:
        """X_s (B, H, W) with given tokens in their cells: for samplers that change cells which are not masked."""
        return _edit.keep(self._edit, self.kernel, x_s)

    def leave_given(self, cells: Tensor) -> Tensor:
        """Of cells (B, H, W) bool those whose tokens are not given: no others need be looked at."""
        return cells if self._edit.given is None else cells & (self._edit.given == self.kernel.mask_id)

    def noise(self, step: int, count: int) -> Tensor:
        """The noise of one step: (count, B, H, W) float64, uniform in [0, 1)."""
        noise = rng.uniform(self._seed, self.samples, step, (count, *self.grid_size), stream=rng.SAMPLING)
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

    def draw_x0(
        self, x_t: Tensor, t: Tensor, noise: Tensor, cells: Tensor | None = None, *, active: Tensor | None = None
    ) -> Tensor:
        """Tokens drawn from ``log_x0``, in less time and memory than it takes.

        Args:
            x_t: (B, H, W) int64 tokens or mask_id.
            t: (B,) int64 in [1, T].
            noise: (B, H, W) float64, uniform in [0, 1).
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted.
            active: (B,) bool, samples that need the denoiser, at least one; None for all.

        Returns:
            (B, H, W) int64, or (B, n) with `cells`; of no meaning for samples that are not active.
        """
        noise = noise if cells is None else pick(noise, cells)
        cut = self._settings.truncation, self._settings.top_k
        return self._apply(lambda log_p, u: (draw_truncated(log_p, u, *cut),), x_t, t, cells, noise, active=active)[0]

    def apply(
        self,
        rule: Callable[..., tuple[Tensor, ...]],
        x_t: Tensor,
        t: Tensor,
        cells: Tensor | None,
        *rows: Tensor,
        active: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """What a rule makes of ``log_x0``, group by group: so its sums are those of every batch, and memory is saved.

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
        cut = self._settings.truncation, self._settings.top_k
        return self._apply(lambda log_p, *own: rule(truncate(log_p, *cut), *own), x_t, t, cells, *rows, active=active)

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
            made = made or [result.new_zeros(len(self.samples), *result.shape[1:]) for result in results]
            for whole, result in zip(made, results, strict=True):
                whole[group.rows] = result[group.places]
        return tuple(made)

    def _ask(
        self, x_t: Tensor, t: Tensor, cells: Tensor | None, active: Tensor | None
    ) -> Iterator[tuple[_Group, Tensor]]:
        """Each group with log p(x_0 | x_t) at all its places, after guidance and temperature.

        The denoiser is asked once with the condition, unless the scale is 0, and once without it, unless it is 1; in
        two groups of the one size, so that what the first says is the same with and without guidance.
        """
        if self._observe is not None:
            self._observe(self, x_t)
        asking = torch.ones(len(self.samples), dtype=torch.bool) if active is None else active.cpu()
        scales = self._settings.scales(t, self.kernel.num_steps)
        self._calls += asking * ((scales != 0).long() + (scales != 1).long())
        second = self._settings.guide_with or self._prior
        for group in self._groups:
            own = scales[group.rows][asking[group.rows]]
            if not len(own):
                continue
            inputs = self._fill(x_t, group, 0), self._fill(t, group, 1)
            wanted = None if cells is None else self._fill(cells, group, 0)
            log_p = None
            if bool((own != 0).any()):
                log_p = self._windows.log_x0(self._prior, *inputs, group.condition, wanted)
            if bool((own != 1).any()):
                log_u = self._windows.log_x0(second, *inputs, group.reference, wanted)
                scale = self._fill(scales, group, 1)
                log_p = log_u if log_p is None else guide(log_p, log_u, scale)
            if log_p is not None:
                yield group, temper(log_p, self._settings.temperature)

    def _fill(self, values: Tensor, group: _Group, value: int) -> Tensor:
        """The rows of a group at their places, (size, ...), and a value at those that are empty."""
        filled = values.new_full((self._group_size, *values.shape[1:]), value)
        filled[group.places] = values[group.rows]
        return filled

    def _make_groups(self, condition: Tensor | None) -> Iterator[_Group]:
        size, first, stop, settings = self._group_size, self.samples.start, self.samples.stop, self._settings
        second = settings.guide_with
        compare = settings.guided and (second is None or second.conditioner.kind == "none")
        reference = encode_null(second or self._prior, size, settings.null) if compare else None
        null = self._prior.conditioner.null(size)
        for begin in range(first - first % size, stop, size):
            low, high = max(begin, first), min(begin + size, stop)
            rows, places = slice(low - first, high - first), slice(low - begin, high - begin)
            filled = null.clone()
            if condition is not None:
                filled[places] = condition[rows]
            if second is not None and not compare:
                reference = second.encode_condition(filled, size)
            yield _Group(rows, places, self._prior.encode_condition(filled, size), reference)


def cover(prior: Prior, grid_size: Size, *, overlap: int | None = None, mode: str = "windows") -> Windows:
    """The windows through which a prior looks at grids.

    Args:
        prior: on the device to use.
        grid_size: (H, W) cells.
        overlap: how many cells neighbouring windows share at least; None for half a window.
        mode: "windows" of the training grid, or "stretch": one window, over which the denoiser spreads its positions.

    Raises:
        VqtoolError: an unknown mode, or one that is not for this prior, grid or overlap.
    """
    cells = CPU_GROUP_CELLS if prior.device.type == "cpu" else GPU_GROUP_CELLS
    if grid_size == prior.grid_spec.grid_size and (overlap is not None or mode != "windows"):
        option = "--overlap" if overlap is not None else "--grid-mode"
        raise VqtoolError(f"{option} is about grids larger than those of training: make larger ones, or leave it out")
    if mode == "windows":
        return Windows(grid_size, prior.grid_spec.grid_size, overlap, max_cells=cells)
    if mode != "stretch":
        raise VqtoolError(f"--grid-mode {mode}: unknown; known are {', '.join(GRID_MODES)}")
    if overlap is not None:
        raise VqtoolError("--overlap is about windows, and --grid-mode stretch looks through none: leave one out")
    if not prior.denoiser.stretches:
        raise VqtoolError(
            f"--grid-mode stretch: this prior's denoiser, {prior.denoiser_name}, knows the positions of its training "
            "grid only: use --grid-mode windows"
        )
    return Windows(grid_size, grid_size, None, max_cells=cells)


def pick(grid: Tensor, cells: Tensor) -> Tensor:
    """The values of a grid (B, H, W) at cells (B, n): (B, n)."""
    return grid.flatten(1).gather(1, cells)


def put(grid: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    """A grid (B, H, W) with other values (B, n) at cells (B, n)."""
    return grid.flatten(1).scatter(1, cells, values).view_as(grid)


def place_first(wanted: Tensor) -> Tensor:
    """The cells of each sample, (B, H * W) int64: first those that are wanted (B, H, W), then the others."""
    return wanted.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
