"""Best of n: several candidates of each sample, of which a judge keeps one.

Candidate j of sample i is what sample i n + j of a run without it would be, under the condition of sample i: which one
is kept depends on seed and i alone, as far as the judge does.
Source: Gu et al. 2022 (arXiv:2111.14822), who keep the 5 % of their ImageNet samples that a classifier is surest of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from vqtool.errors import VqtoolError
from vqtool.progress import Notify
from vqtool.samplers import MAX_NUMBER, Method, Rows, SampleBatch


class Judge(Protocol):
    """What says which candidates are better."""

    name: str  # in histories
    calls: float  # of the denoiser, for one candidate

    def __call__(self, grids: Tensor, samples: Sequence[int], texts: Sequence[str | None]) -> Tensor:
        """Scores of candidates, (n,) float64, the higher the better.

        Args:
            grids: (n, H, W) int64, on the CPU.
            samples: the number of the sample that each is for.
            texts: the label or caption of each.
        """
        ...


@dataclass(frozen=True)
class Best:
    """How many candidates each sample has, and who keeps one: a way to draw that takes the place of the method's own.

    Raises:
        VqtoolError: fewer than one candidate, or several and nobody to judge.
    """

    method: Method
    judge: Judge | None
    num: int
    texts: Sequence[str]

    def __post_init__(self) -> None:
        if self.num < 1:
            raise VqtoolError(f"`best` {self.num}: 1 or more candidates a picture are expected")
        if self.num > 1 and self.judge is None:
            raise VqtoolError(f"`best` {self.num}: a `judge` has to choose among the candidates")
        if self.num == 1 and self.judge is not None:
            raise VqtoolError(f"`judge` {self.judge.name} has nothing to choose from: give `best` 2 or more")

    def candidates(self, samples: range) -> range:
        """The numbers of the candidates of samples.

        Raises:
            VqtoolError: they are too large.
        """
        if samples.stop * self.num > MAX_NUMBER:
            raise VqtoolError(f"`best` {self.num}: the numbers of the candidates must lie in 0 to 2**63 - 1")
        return range(samples.start * self.num, samples.stop * self.num)

    def rows(self, rows: Rows | None) -> Rows | None:
        """What a function of sample numbers says of candidates."""
        if not callable(rows) or self.num == 1:
            return rows
        return partial(_for_candidates, rows, self.num)

    def batches(self, num: int, *, start: int, batch_size: int, **rows: Any) -> Any:
        """As `Method.batches`, of all candidates of a sample together; `num` and `start` are those of candidates."""
        return self.method.batches(num, start=start, batch_size=max(1, batch_size // self.num) * self.num, **rows)

    def choose(self, batch: SampleBatch) -> SampleBatch:
        """Of the candidates of some samples, those that are kept."""
        if self.judge is None:
            return batch
        samples = range(batch.samples.start // self.num, batch.samples.stop // self.num)
        owners = [number // self.num for number in batch.samples]
        texts = [self.texts[each % len(self.texts)] if self.texts else None for each in owners]
        scores = self.judge(batch.grids, owners, texts).view(len(samples), self.num)
        kept = scores.argmax(1) + torch.arange(len(samples)) * self.num
        return SampleBatch(samples, batch.grids[kept], self.calls(batch.num_calls))

    def calls(self, each: float) -> float:
        """Calls of the denoiser for a sample, of those for a candidate."""
        return each if self.judge is None else self.num * (each + self.judge.calls)

    def tell(self, notify: Notify) -> None:
        """Say what it costs."""
        if self.judge is not None:
            judging = f", and {self.num * self.judge.calls:g} to judge them" if self.judge.calls else ""
            notify(f"best of {self.num} by {self.judge.name}: a grid takes the calls of {self.num}{judging}")

    @property
    def record(self) -> dict[str, Any]:
        """What stands in a history."""
        return {} if self.judge is None else {"best": self.num, "judge": self.judge.name}


def _for_candidates(rows: Callable[[range], Tensor], num: int, numbers: range) -> Tensor:
    samples = range(numbers.start // num, -(-numbers.stop // num))
    own = torch.tensor([number // num - samples.start for number in numbers])
    found = rows(samples)
    return found[own.to(found.device)]
