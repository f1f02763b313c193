"""What is looked at in the course of a run: the best so far on data held out, when it has turned, when to end."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vqtool import distributed
from vqtool.errors import count_text
from vqtool.progress import Notify
from vqtool.training.clock import Moment

RISE = 0.02  # relative: less is within what noise and the averaging of weights do
TURNED = 3  # measurements after the best, the last of them higher by RISE: told
OVER = 5  # such measurements: the run ends
NOISE = 100  # steps: a new network of fewer draws noise (docs/own-pictures.md: 30 do, 240 do not)
UNFINISHED = 0.5  # share of a new network's run before which the best weights may draw unfinished pictures


@dataclass(frozen=True)
class Validation:
    """When the EMA model is looked at, and what is measured of it then."""

    name: str  # in the log
    plan: Callable[[int], tuple[int, int]]  # steps of the run -> those between two looks, and how much is measured
    measure: Callable[[nn.Module, int], Tensor] | None  # on so much: the lower the better, the same in all processes
    keep_best: bool = False  # whether the run leaves the EMA weights that measured best, and not the last ones
    early_stop: bool = False  # whether it ends where nothing is to be gained


@dataclass
class Course:
    """How the looks of a run go. All but the last field is in the state of a run: a resumed one decides alike."""

    validation: Validation | None
    best_step: int = 0  # 0: nothing is measured yet
    best_value: float = math.inf
    last_step: int = 0  # of a look
    since_best: int = 0  # measurements
    size: int = 0  # on how much is measured: what is planned at the first look
    is_told: bool = False  # whether people were told that the measurements rise

    def is_due(self, moment: Moment) -> bool:
        """Whether the model is to be looked at; where the best is kept, also at the end."""
        validation = self.validation
        if validation is None or math.isinf(moment.num_steps):
            return False
        every, size = validation.plan(int(moment.num_steps))
        self.size = self.size or size
        return moment.step - self.last_step >= every or (moment.is_last and validation.keep_best)

    def look(self, step: int, model: nn.Module) -> dict[str, Tensor]:
        """Measure what is measured, by its name."""
        self.last_step = step
        if self.validation is None or self.validation.measure is None:
            return {}
        measured = self.validation.measure(model, self.size)
        value = distributed.broadcast(float(measured))  # GPUs may round differently, and all have to decide alike
        self.since_best += 1
        if value < self.best_value:
            self.best_step, self.best_value, self.since_best = step, value, 0
        return {self.validation.name: measured.new_tensor(value)}

    def describe_turn(self, step: int, values: Mapping[str, float]) -> str:
        """What people are told once, where this step's measurements show that they rise; else nothing.

        Args:
            step: just taken.
            values: what was measured at it.
        """
        if self.validation is None or self.is_told or not self._rises(values, TURNED):
            return ""
        self.is_told = True
        name = self.validation.name
        return (
            f"{name} was {self.best_value:.4g} at step {self.best_step} and is {values[name]:.4g} at step {step}: the "
            "run learns by heart; more data, a smaller network or `dropout` help"
        )

    def is_over(self, values: Mapping[str, float]) -> bool:
        """Whether a run may end where this was measured last."""
        return self.validation is not None and self.validation.early_stop and self._rises(values, OVER)

    def _rises(self, values: Mapping[str, float], number: int) -> bool:
        if self.validation is None or self.validation.name not in values:
            return False
        return self.since_best >= number and values[self.validation.name] > (1 + RISE) * self.best_value


def tell_kept(summary: Mapping[str, Any], notify: Notify, *, is_new: bool) -> None:
    """Say that a run was too short, or ended early, and of which step its weights are, where that is not the last.

    Args:
        summary: of the run.
        notify: is told.
        is_new: whether it began with fresh weights, which draw pictures only after a while.
    """
    steps, kept = summary["steps"], summary.get("kept_step")
    taken = count_text(steps, "step")
    if is_new and steps < NOISE and "share" not in summary:
        notify(f"a new network draws noise after {taken}: `resume` with more `minutes` or `steps` goes on")
    if "share" in summary:
        notify(f"ended after {taken}, {summary['share']:.0%} of the run; `resume` without `early_stop` goes on")
    if kept is None or kept == steps:
        return
    early = (
        "; so early they may draw unfinished pictures: with `keep` last a run draws more finished ones, which may be "
        "copies of those that it learned from"
    )
    notify(
        f"the weights of step {kept} of {steps} are written, where the bound on grids held out was lowest"
        + (early if is_new and kept < UNFINISHED * steps else "")
    )
