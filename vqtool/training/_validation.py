"""What is measured of a run on data that it does not learn from: the best so far, when it has turned, when to end."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

RISE = 0.02  # relative: less is within what noise and the averaging of weights do
TURNED = 3  # measurements after the best, the last of them higher by RISE: told
OVER = 5  # such measurements: the run ends


@dataclass(frozen=True)
class Validation:
    """What is measured of the EMA model now and then."""

    name: str  # in the log
    measure: Callable[[nn.Module], Tensor]  # the lower the better; the same in all processes
    every: int  # steps between two measurements
    keep_best: bool = False  # whether the run leaves the EMA weights that measured best, and not the last ones
    early_stop: bool = False  # whether it ends where nothing is to be gained


@dataclass
class Course:
    """How the measurements of a run go. The best is in the state of a run, so that a resumed one decides alike."""

    validation: Validation | None
    best_step: int = 0  # 0: nothing is measured yet
    best_value: float = math.inf
    is_told: bool = False  # whether people were told that the measurements rise; not in the state

    def note(self, step: int, value: float) -> bool:
        """Take in a measurement; whether it is the best so far."""
        if value >= self.best_value:
            return False
        self.best_step, self.best_value = step, value
        return True

    def describe_turn(self, step: int, values: Mapping[str, float]) -> str:
        """What people are told once, where this step's measurements show that they rise; else nothing.

        Args:
            step: just taken.
            values: what was measured at it.
        """
        if self.validation is None or self.is_told or not self._rises(step, values, TURNED):
            return ""
        self.is_told = True
        name = self.validation.name
        return (
            f"{name} was {self.best_value:.4g} at step {self.best_step} and is {values[name]:.4g} at step {step}: the "
            "run learns by heart; more data, a smaller network or `dropout` help"
        )

    def is_over(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether a run may end at a step."""
        return self.validation is not None and self.validation.early_stop and self._rises(step, values, OVER)

    def _rises(self, step: int, values: Mapping[str, float], number: int) -> bool:
        validation = self.validation
        if validation is None or validation.name not in values or not self.best_step:
            return False
        since = (step - self.best_step) // validation.every
        return since >= number and values[validation.name] > (1 + RISE) * self.best_value
