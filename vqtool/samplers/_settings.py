"""What is done to the denoiser's predictions: guidance, temperature and truncation, and whether a prior allows it.

Guidance compares the denoiser with a null condition. That is a learned one, if the prior was trained for it, or a
zero-shot one, which every conditional denoiser has: the empty caption, or the mean of the embeddings of the classes.
Or guidance compares with a second prior, best a weaker one of the same grids (Karras et al. 2024, arXiv:2406.02507).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtool.denoisers import EncodedCondition
from vqtool.diffusion import guidance
from vqtool.errors import MismatchError, VqtoolError, warn
from vqtool.options import Checked, option
from vqtool.priors import Prior, load_prior

NULLS = ("learned", "zero-shot")
ALWAYS = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Guidance(Checked):
    """How predictions are pulled towards the condition.

    Raises:
        VqtoolError: a value is not possible, or is about guidance while `cfg_scale` says that there is none.
    """

    cfg_scale: float = option(1.0, "Strength of guidance; 1 is off.", minimum=0)
    cfg_schedule: str = option(
        "constant", "Guidance over time, rising except constant.", choices="diffusion/guidance.py:SCHEDULES"
    )
    cfg_interval: tuple[float, float] = option(
        (0.0, 1.0), "Part of the way, 0 to 1, with guidance; the rest costs half.", minimum=0, maximum=1, rising=True
    )
    cfg_refresh: int = option(
        1, "Compute what guidance compares with in every m-th call only.", minimum=1, advanced=True
    )
    cfg_power: float | None = option(
        None, "With power-cosine: above 1 guidance comes later.", usual=1.0, above=0, advanced=True
    )
    null: str | None = option(
        None, "Condition to guide away from.", shown="learned if there is one", choices="samplers/_settings.py:NULLS"
    )
    negative: str | None = option(None, "Caption or label to guide away from instead.")
    guide_with: Prior | None = option(None, "Weaker prior to guide away from instead.")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("null", "negative", "guide_with") if getattr(self, name) is not None]
        if len(given) > 1:
            raise VqtoolError(f"`{given[0]}` and `{given[1]}` both say what guidance compares with: leave one out")
        if self.cfg_scale == 1.0:
            for each in fields(Guidance):
                if getattr(self, each.name) != each.default:
                    raise VqtoolError(
                        f"`{each.name}` is about guidance, and there is none: give `cfg_scale`, other than 1"
                    )
        if self.cfg_power is not None and self.cfg_schedule != "power-cosine":
            raise VqtoolError(
                f"`cfg_power` is about `cfg_schedule` power-cosine, not {self.cfg_schedule}: leave it out"
            )

    @property
    def guided(self) -> bool:
        """Whether there is guidance at some time."""
        return self.cfg_scale != 1.0

    def scales(self, share: Callable[[], Tensor], num: int) -> Tensor:
        """The guidance scales of `num` samples at their shares of the way, 0 to 1: (num,) float64, on the CPU."""
        if self.cfg_schedule == "constant" and self.cfg_interval == ALWAYS:
            return torch.full((num,), self.cfg_scale, dtype=torch.float64)
        return guidance.scales(share(), self.cfg_scale, self.cfg_schedule, self.cfg_interval, self.cfg_power or 1.0)

    def check(self, prior: Prior) -> None:
        """Raise unless a prior can be guided so.

        Raises:
            VqtoolError: it has no such null condition.
            MismatchError: the second prior is of other grids, another process or other conditions.
        """
        if self.guide_with is not None:
            _check_second(prior, self.guide_with)
        if self.negative is not None and prior.conditioner.kind == "none":
            raise VqtoolError("`negative` is a caption or label to guide away from, and this prior takes none")
        if self.negative is not None:
            prior.conditioner.encode([self.negative])  # an unknown label is found before any work is done
        if self.null is not None and self.null not in nulls(prior):
            others = ", ".join(nulls(prior)) or "none: it takes no condition"
            raise VqtoolError(f"`null` {self.null}: this prior's null conditions are {others}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings(Guidance):
    """What is done to the denoiser's log p(x_0 | x_t): guidance, temperature, truncation, in this order; and when."""

    temperature: float | tuple[float, ...] = option(
        1.0, "Sharpens tokens below 1, flattens above; 1 is off. A list goes from the first call to the last.", above=0
    )
    truncation: float = option(1.0, "Mass of the likeliest tokens to draw from.", above=0, maximum=1, flag="--top-p")
    top_k: int | None = option(None, "Draw from this many of the likeliest tokens.", shown="all", minimum=1)
    cache: int = option(1, "Compute cells that have not changed in every m-th call only.", minimum=1, advanced=True)


def interpolate(values: Sequence[float], share: Tensor) -> Tensor:
    """What stands in a list at shares of its length (B,), 0 to 1; between neighbours on a straight line: float64."""
    table = torch.tensor(values, dtype=torch.float64)
    place = share * (len(table) - 1)
    place = torch.where((place - place.round()).abs() < 1e-9, place.round(), place)
    low = place.floor().long().clamp(0, len(table) - 1)
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[low], table[high], place - low)


def load_second(prior: Prior, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Values for `Settings` in which `guide_with` is no longer a file but the prior in it."""
    second = chosen.get("guide_with")
    if isinstance(second, str | Path):
        second = load_prior(second).to(prior.device)
    if not isinstance(second, Prior | None):
        raise VqtoolError(f"`guide_with` {second!r}: a prior or its file is expected")
    return {**chosen, **({"guide_with": second} if second is not None else {})}


def leave_out_guidance(prior: Prior, chosen: Mapping[str, Any], *, has_condition: bool) -> dict[str, Any]:
    """Values for `Settings` without those of guidance if there is nothing to guide; a warning says so.

    Args:
        prior: what is sampled.
        chosen: values by their names in `Settings`.
        has_condition: whether samples are given a condition.
    """
    scale, takes_condition = chosen.get("cfg_scale", 1.0), prior.conditioner.kind != "none"
    if scale == 1.0 or chosen.get("guide_with") is not None or (has_condition and takes_condition):
        return dict(chosen)
    why = "no condition is given" if takes_condition else "the prior was trained without labels or captions"
    warn(f"`cfg_scale` {scale:g} has nothing to guide: {why}")
    return {name: value for name, value in chosen.items() if name not in {each.name for each in fields(Guidance)}}


def nulls(prior: Prior) -> tuple[str, ...]:
    """The null conditions that a prior has; the first is used unless another is asked for."""
    if prior.conditioner.kind == "none":
        return ()
    learned = getattr(prior.denoiser.config, "learned_null", True)
    return NULLS if learned else NULLS[1:]


def encode_null(prior: Prior, num: int, null: str | None, negative: str | None = None) -> EncodedCondition:
    """A prior's null condition `num` times; None for the first of ``nulls``. Or a text in its place."""
    conditioner = prior.conditioner
    if negative is not None:
        return prior.encode_condition(conditioner.encode([negative] * num), num)
    if null != "zero-shot" or nulls(prior) == NULLS[1:]:
        return prior.encode_condition(None, num)
    if conditioner.needs_text_encoder and prior.text_encoder is not None:
        features = prior.text_encoder(conditioner.null(1).to(prior.device))
        return prior.encode_condition(features.expand(num, -1, -1), num)
    if conditioner.kind == "caption":
        return prior.encode_condition(conditioner.encode([""] * num), num)
    embedding = prior.encode_condition(conditioner.encode(conditioner.examples), len(conditioner.examples)).embedding
    return EncodedCondition(None if embedding is None else embedding.mean(0).expand(num, -1))


def _check_second(prior: Prior, second: Prior) -> None:
    """Raise MismatchError unless both priors are of the same grids, times and conditions."""
    for what, mine, its in (
        ("codebook size", prior.kernel.codebook_size, second.kernel.codebook_size),
        ("number of diffusion steps", prior.kernel.num_steps, second.kernel.num_steps),
        ("kernel", prior.kernel.name, second.kernel.name),
        ("schedule", prior.kernel.schedule, second.kernel.schedule),
        ("grid size", prior.grid_spec.grid_size, second.grid_spec.grid_size),
        ("tokenizer", prior.grid_spec.tokenizer_fingerprint, second.grid_spec.tokenizer_fingerprint),
    ):
        if mine != its:
            raise MismatchError(f"the second prior has {what} {its}, the first {mine}: `guide_with` needs the same")
    rates = ("alpha_bar", "gamma_bar")
    if not all(torch.allclose(getattr(prior.kernel, name), getattr(second.kernel, name)) for name in rates):
        raise MismatchError("the second prior's kernel has other rates than the first's: `guide_with` needs the same")
    if second.conditioner.kind != "none" and _conditions(prior) != _conditions(second):
        raise MismatchError(
            f"the second prior takes other conditions ({second.conditioner.kind}) than the first "
            f"({prior.conditioner.kind}), or has another vocabulary or list of labels: `guide_with` needs the same, or "
            "a prior without condition"
        )


def _conditions(prior: Prior) -> tuple[dict[str, object], dict[str, bytes]]:
    config, tensors = prior.conditioner.config(), prior.conditioner.tensors()
    config.pop("examples", None)
    return config, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
