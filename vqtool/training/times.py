"""Which t the samples of a training step are noised to.

``TIMES`` lists the ways. A sample has a place in [0, 1), which says its t:

- ``stratified`` (the default): the places of a step's samples are spread evenly, with one common random shift;
- ``uniform``: each is drawn for itself, as published;
- ``importance``: spread evenly too, but t is drawn in proportion to the root mean square of its loss, as `History` has
  seen it, and the loss is divided by that chance: of all laws of t, the one of least noise in the loss.

Places come from (seed, sample) alone, so that t does not depend on who draws it, nor on a resume.
"""

import torch
from torch import Tensor, nn

from vqtool import rng
from vqtool.diffusion.kernels import Kernel
from vqtool.training._order import Indices

TIMES = ("stratified", "uniform", "importance")
MIN_COUNT = 10  # each t is drawn more often than that before importance counts
KEPT = 0.9  # share of the old history that one more loss leaves
_SHIFT, _PLACE = 1, 3  # streams of noise; 0 is that of the grids, 2 of validation


def draw_places(samples: Tensor | Indices, batch_size: int, seed: int, *, spread: bool = True) -> Tensor:
    """The place of each sample, (b,) float64 in [0, 1), on the device of the samples.

    Args:
        samples: (b,) int64 numbers of the samples in the whole run.
        batch_size: samples a step, over all processes.
        seed: of the run.
        spread: evenly over a step; else each for itself.
    """
    samples = torch.as_tensor(samples)
    if not spread:
        return rng.uniform(seed, samples, _PLACE, (), stream=rng.TRAINING, device=samples.device)
    shifts = rng.uniform(seed, samples // batch_size, _SHIFT, (), stream=rng.TRAINING, device=samples.device)
    return (shifts + (samples % batch_size).double() / batch_size).frac()


def draw_times(samples: Tensor | Indices, batch_size: int, num_steps: int, seed: int) -> Tensor:
    """The t of each sample, (b,) int64 in [1, num_steps], spread evenly."""
    return place_times(draw_places(samples, batch_size, seed), num_steps)


def place_times(places: Tensor, num_steps: int) -> Tensor:
    """(b,) places to (b,) int64 in [1, num_steps], each t as likely."""
    return 1 + (places * num_steps).long().clamp(max=num_steps - 1)


def find_times(share: Tensor, kernel: Kernel) -> Tensor:
    """The real t at which that share of the cells is masked, gamma_bar being linear between its steps.

    Args:
        share: (b,) float64 in (0, 1].
        kernel: one whose gamma_bar rises to 1.

    Returns:
        (b,) float32 in (0, T].
    """
    _, _, table = kernel.tables(share.device)
    after = torch.searchsorted(table, share).clamp(1, kernel.num_steps)
    rise = (table[after] - table[after - 1]).clamp(min=torch.finfo(torch.float64).tiny)
    return (after - 1 + ((share - table[after - 1]) / rise).clamp(0.0, 1.0)).float()


class History(nn.Module):
    """The mean square of the loss at each t, a moving average, and how often each has been seen.

    Source: the published code of Gu et al. 2022 (arXiv:2111.14822): uniform until each t has been seen more than
    MIN_COUNT times, then p_t ~ sqrt(square_t + 1e-10) + 1e-4, with t = 1, whose term is the decoder's, as likely as
    t = 2. Differs from it: losses of one t in a batch are taken in one after the other; there, one of them wins.
    """

    square: Tensor
    count: Tensor

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.register_buffer("square", torch.zeros(num_steps, dtype=torch.float64))  # of t = 1..T
        self.register_buffer("count", torch.zeros(num_steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """(T,) float64: chance of each t = 1..T."""
        roots = (self.square + 1e-10).sqrt() + 1e-4
        roots = torch.cat([roots[1:2], roots[1:]]) if len(roots) > 1 else roots
        seen = (self.count > MIN_COUNT).all()
        return torch.where(seen, roots / roots.sum(), 1 / len(roots))

    def draw(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The t of each place, (b,) int64, and what its loss is multiplied by, (b,) float64: 1 / (T p_t)."""
        chances = self.probabilities()
        cumulative = chances.cumsum(0)
        index = torch.searchsorted(cumulative, places * cumulative[-1], right=True).clamp(max=len(chances) - 1)
        return 1 + index, 1 / (len(chances) * chances[index])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take in losses, (b,) nats a grid, at t (b,) int64: in their order."""
        mine = (t[:, None] == torch.arange(1, len(self.square) + 1, device=t.device)).long()  # (b, T)
        later = mine.sum(0) - mine.cumsum(0)  # how many come after it at the same t
        weights = mine * (1 - KEPT) * KEPT ** later.double()
        self.square.mul_(KEPT ** mine.sum(0).double()).add_(weights.T @ losses.double().square())
        self.count.add_(mine.sum(0))
