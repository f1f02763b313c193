"""What is done to the denoiser's predictions on the way: one record of settings, and whether a prior can be so sampled.

Guidance compares the denoiser with a null condition: a learned one that was trained for it, or a zero-shot one, which
any conditional denoiser has: the empty caption, or the mean of what it keeps of the classes. Or it compares with a
second prior, best a weaker one of the same grids (Karras et al. 2024, arXiv:2406.02507).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool.denoisers import EncodedCondition
from vqtool.diffusion import guidance
from vqtool.errors import MismatchError, VqtoolError
from vqtool.priors import Prior

NULLS = ("learned", "zero-shot")
ALWAYS = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Settings:
    """What is done to the denoiser's log p(x_0 | x_t): guidance, temperature, truncation, in this order.

    Raises:
        VqtoolError: a value that means nothing, or one about guidance while the scale says that there is none.
    """

    cfg_scale: float = 1.0  # 1.0 is off
    cfg_schedule: str = "constant"  # one of guidance.SCHEDULES
    cfg_interval: tuple[float, float] = ALWAYS  # shares of time, 1 - t / T, with guidance
    null: str | None = None  # one of NULLS; None for the learned one if there is one
    guide_with: Prior | None = None  # compared with, in place of the null condition
    temperature: float = 1.0  # 1.0 is off
    truncation: float = 1.0  # 1.0 is off
    top_k: int | None = None

    def __post_init__(self) -> None:
        guidance.check_scale(self.cfg_scale)
        guidance.check_temperature(self.temperature)
        guidance.check_truncation(self.truncation, self.top_k)
        if self.cfg_schedule not in guidance.SCHEDULES:
            raise VqtoolError(f"--cfg-schedule {self.cfg_schedule}: known are {', '.join(guidance.SCHEDULES)}")
        if len(self.cfg_interval) != 2 or not 0 <= self.cfg_interval[0] < self.cfg_interval[1] <= 1:
            shown = ",".join(f"{share:g}" for share in self.cfg_interval)
            raise VqtoolError(f"--cfg-interval {shown}: two rising shares of time are expected, as in 0.2,0.8")
        if self.null not in (None, *NULLS):
            raise VqtoolError(f"--null {self.null}: known are {', '.join(NULLS)}")
        if self.null is not None and self.guide_with is not None:
            raise VqtoolError("--null and --guide-with both say what guidance compares with: leave one out")
        if self.cfg_scale == 1.0:
            for option, given in (
                ("--cfg-schedule", self.cfg_schedule != "constant"),
                ("--cfg-interval", self.cfg_interval != ALWAYS),
                ("--null", self.null is not None),
                ("--guide-with", self.guide_with is not None),
            ):
                if given:
                    raise VqtoolError(f"{option} is about guidance, and there is none: give --cfg-scale, other than 1")

    @property
    def guided(self) -> bool:
        """Whether there is guidance at some time."""
        return self.cfg_scale != 1.0

    def scales(self, t: Tensor, num_steps: int) -> Tensor:
        """The guidance scale at times t (B,) of T steps: (B,) float64, on the CPU."""
        if self.cfg_schedule == "constant" and self.cfg_interval == ALWAYS:
            return torch.full((len(t),), self.cfg_scale, dtype=torch.float64)  # a GPU need not be waited for
        share = (num_steps - t.cpu().double()) / num_steps
        return guidance.scales(share, self.cfg_scale, self.cfg_schedule, self.cfg_interval)

    def check(self, prior: Prior) -> None:
        """Raise unless a prior can be sampled so.

        Raises:
            VqtoolError: it has no such null condition.
            MismatchError: the second prior is of other grids, another process or other conditions.
        """
        if self.guide_with is not None:
            _check_second(prior, self.guide_with)
        if self.null is not None and self.null not in nulls(prior):
            others = ", ".join(nulls(prior)) or "none: it takes no condition"
            raise VqtoolError(f"--null {self.null}: this prior's null conditions are {others}")


def nulls(prior: Prior) -> tuple[str, ...]:
    """The null conditions that a prior has, the one that is used unless told otherwise first."""
    conditioner = prior.conditioner
    if conditioner.kind == "none":
        return ()
    learned = getattr(prior.denoiser.config, "learned_null", True)
    return NULLS if learned else NULLS[1:]


def encode_null(prior: Prior, num: int, null: str | None) -> EncodedCondition:
    """A prior's null condition `num` times; None for the first of ``nulls``."""
    conditioner = prior.conditioner
    if null != "zero-shot" or nulls(prior) == NULLS[1:]:
        return prior.encode_condition(None, num)
    if conditioner.needs_text_encoder and prior.text_encoder is not None:
        features = prior.text_encoder(conditioner.null(1).to(prior.device))
        return prior.encode_condition(features.expand(num, -1, -1), num)
    if conditioner.kind == "caption":
        return prior.encode_condition(conditioner.encode([""] * num), num)
    classes = prior.encode_condition(conditioner.encode(conditioner.examples), len(conditioner.examples)).embedding
    return EncodedCondition(None if classes is None else classes.mean(0).expand(num, -1))


def _check_second(prior: Prior, second: Prior) -> None:
    """Raise MismatchError unless both priors speak of the same grids, times and conditions."""
    for what, mine, its in (
        ("codebook size", prior.kernel.codebook_size, second.kernel.codebook_size),
        ("number of diffusion steps", prior.kernel.num_steps, second.kernel.num_steps),
        ("kernel", prior.kernel.name, second.kernel.name),
        ("schedule", prior.kernel.schedule, second.kernel.schedule),
        ("grid size", prior.grid_spec.grid_size, second.grid_spec.grid_size),
        ("tokenizer", prior.grid_spec.tokenizer_fingerprint, second.grid_spec.tokenizer_fingerprint),
    ):
        if mine != its:
            raise MismatchError(f"the second prior has {what} {its}, the first {mine}: --guide-with needs the same")
    rates = ("alpha_bar", "gamma_bar")
    if not all(torch.allclose(getattr(prior.kernel, name), getattr(second.kernel, name)) for name in rates):
        raise MismatchError("the second prior's kernel has other rates than the first's: --guide-with needs the same")
    if second.conditioner.kind != "none" and _conditions(prior) != _conditions(second):
        raise MismatchError(
            f"the second prior takes other conditions ({second.conditioner.kind}) than the first "
            f"({prior.conditioner.kind}), or has another vocabulary or list of labels: --guide-with needs the same, or "
            "a prior without condition"
        )


def _conditions(prior: Prior) -> tuple[dict[str, object], dict[str, bytes]]:
    config, tensors = prior.conditioner.config(), prior.conditioner.tensors()
    config.pop("examples", None)
    return config, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
