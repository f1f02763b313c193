"""Flags of the commands that sample: what is done to the denoiser's predictions, and when it is called."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vqtool.cli.console import warn
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.priors import Prior

T = TypeVar("T", int, float)
_LISTS: dict[str, Callable[[str], Any]] = {"times": int, "kappa_interval": float, "cfg_interval": float}

Times = Annotated[
    str | None,
    typer.Option("--times", help="ancestral, first-hitting, psi: when the denoiser is called, as in 100,60,30,10."),
]
Kappa = Annotated[
    float | None,
    typer.Option("--kappa", help="psi: share of the cells that are not noised anew in a step. Default: 0.9."),
]
KappaInterval = Annotated[
    str | None, typer.Option("--kappa-interval", help="psi: shares of time with --kappa, as in 0.4,0.9; else it is 1.")
]
CfgScale = Annotated[float, typer.Option("--cfg-scale", help="Guidance by the condition; 1 is off.")]
CfgSchedule = Annotated[
    str | None,
    typer.Option(
        "--cfg-schedule", help="Guidance over time: constant, or rising by linear or cosine. Default: constant."
    ),
]
CfgInterval = Annotated[
    str | None,
    typer.Option("--cfg-interval", help="Shares of time with guidance, as in 0.2,0.8; outside it costs no call."),
]
Null = Annotated[
    str | None,
    typer.Option("--null", help="Guide away from the learned or the zero-shot null. Default: learned if there is one."),
]
GuideWith = Annotated[
    Path | None, typer.Option("--guide-with", help="Prior file: guide away from this weaker prior instead.")
]
Temperature = Annotated[float, typer.Option("--temperature", help="Of the tokens; 1 is off.")]
Truncation = Annotated[
    float, typer.Option("--truncation", help="Draw from the likeliest tokens with this mass; 1 is off.")
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw from as many of the likeliest tokens. Default: all.")]


@dataclass(frozen=True, kw_only=True)
class GuidanceFlags:
    """What guides the predictions: flags by the names of the arguments of `vqtool.sample`; None leaves one out."""

    cfg_scale: CfgScale = 1.0
    cfg_schedule: CfgSchedule = None
    cfg_interval: CfgInterval = None
    null: Null = None
    guide_with: GuideWith = None

    def choose(self, prior: "Prior", *, has_condition: bool) -> dict[str, Any]:
        """The arguments of `vqtool.sample` that these flags stand for, together not yet checked; see `Settings`.

        Args:
            prior: the one to sample from.
            has_condition: whether there is something that guidance could strengthen; if not, a warning says so.

        Raises:
            VqtoolError: a list of no numbers, or a second prior that cannot be loaded.
        """
        from vqtool.priors import load_prior

        chosen = _given(self)
        if self.cfg_scale != 1.0 and not has_condition and self.guide_with is None:
            untrained = prior.conditioner.kind == "none"
            why = "the prior was trained without labels or captions" if untrained else "no condition is given"
            warn(f"--cfg-scale {self.cfg_scale:g} has nothing to guide: {why}")
            return {}
        if self.guide_with is not None:
            chosen["guide_with"] = load_prior(self.guide_with).to(prior.device)
        return chosen


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How to sample: flags by the names of the arguments of `vqtool.sample`; None leaves one out."""

    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help="ancestral (the default), first-hitting, psi, fewer, purity, confidence, halton, entropy or moment.",
        ),
    ] = None
    purity: Annotated[bool, typer.Option("--purity", help="Short for --sampler purity.")] = False
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            help="Denoiser calls. Default: up to 100 (ancestral, psi), 64 (fewer, purity), 32 (halton), 16 or T.",
        ),
    ] = None
    times: Times = None
    rule: Annotated[
        str | None,
        typer.Option("--rule", help="ancestral, psi: mixture or plug-in average over x_0. Default: the prior's own."),
    ] = None
    purity_weight: Annotated[
        float | None, typer.Option("--purity-weight", help="purity: sharpening; 0 is none. Default: 1.")
    ] = None
    purity_form: Annotated[
        str | None, typer.Option("--purity-form", help="purity: sharpening by the code or the paper. Default: code.")
    ] = None
    choice_temperature: Annotated[
        float | None,
        typer.Option("--choice-temperature", help="confidence, moment: of the choice of cells. Default: 4.5."),
    ] = None
    roll: Annotated[bool | None, typer.Option("--roll", help="halton: start each sample elsewhere in the order.")] = (
        None
    )
    entropy_budget: Annotated[
        float | None, typer.Option("--entropy-budget", help="entropy: nats to reveal a call. Default: 16.")
    ] = None
    kappa: Kappa = None
    kappa_interval: KappaInterval = None
    cfg_scale: CfgScale = 1.0
    cfg_schedule: CfgSchedule = None
    cfg_interval: CfgInterval = None
    null: Null = None
    guide_with: GuideWith = None
    temperature: Temperature = 1.0
    truncation: Truncation = 1.0
    top_k: TopK = None

    def choose(self, prior: "Prior", *, has_condition: bool) -> dict[str, Any]:
        """The arguments of `vqtool.sample` that these flags stand for; only those that are given.

        Args:
            prior: the one to sample from.
            has_condition: whether there is something that guidance could strengthen; if not, a warning says so.

        Raises:
            VqtoolError: a flag that means nothing or does not apply to the sampler or prior, or a second prior that
                does not fit.
        """
        from vqtool import samplers
        from vqtool.samplers import Settings

        name, chosen = self._choose_sampler(), _given(self)
        settings = {field.name: chosen.pop(field.name) for field in fields(Settings) if field.name in chosen}
        options = {flag: value for flag, value in chosen.items() if flag not in ("sampler", "purity")}
        samplers.check(prior, name, options)
        guidance = {field.name: getattr(self, field.name) for field in fields(GuidanceFlags)}
        settings = {flag: value for flag, value in settings.items() if flag not in guidance}
        settings |= GuidanceFlags(**guidance).choose(prior, has_condition=has_condition)
        Settings(**settings).check(prior)
        return {"sampler": name, **options, **settings}

    def _choose_sampler(self) -> str:
        from vqtool import samplers

        if self.purity and self.sampler not in (None, "purity"):
            raise VqtoolError(
                f"--purity is short for --sampler purity, but --sampler {self.sampler} is given too: leave one out"
            )
        name = "purity" if self.purity else self.sampler or samplers.DEFAULT
        samplers.find(name)
        return name


def _given(flags: GuidanceFlags | SamplingFlags) -> dict[str, Any]:
    """The flags that are given, lists as numbers.

    Raises:
        VqtoolError: a list that is none.
    """
    values = {field.name: getattr(flags, field.name) for field in fields(flags)}
    given = {flag: value for flag, value in values.items() if value is not None}
    for flag, kind in _LISTS.items():
        if flag in given:
            given[flag] = numbers(f"--{flag.replace('_', '-')}", given[flag], kind)
    return given


def describe(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they stand in a history: lists for tuples, the fingerprint for a second prior."""
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return {name: getattr(value, "fingerprint", value) for name, value in listed.items()}


def numbers(flag: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """Numbers from a list with commas.

    Raises:
        VqtoolError: it is none.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise VqtoolError(f"{flag} {text}: numbers with commas between them are expected") from error
