"""What a run is made from, data and settings, which have to be the same where it goes on; and how far it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtool import artifacts
from vqtool.errors import MismatchError
from vqtool.training.clock import Length
from vqtool.trust import parse_record

_OF_LENGTH = ("steps", "warmup_steps", "ema_decay")  # among settings of older states


@dataclass(frozen=True)
class Identity:
    """What a run is made from, as its state file has it."""

    data: Mapping[str, str]  # digests of what is learnt from
    settings: Mapping[str, Any]  # by the names that users know
    steps: int | None = None  # length of the run
    minutes: float | None = None

    def __post_init__(self) -> None:
        if not self.length.is_possible:
            raise ValueError("it does not say how many steps or minutes the run has")

    @property
    def length(self) -> Length:
        """How long the run is, which may be another where it goes on."""
        return Length(self.steps, self.minutes)


@dataclass(frozen=True)
class Reached:
    """How far a run is, as its state file has it."""

    step: int
    seconds: float
    values: Mapping[str, float]  # of the last logged step
    best: tuple[int, float] | None = None  # step and value of the weights that measured best
    looks: tuple[int, int, int] | None = None  # step of the last, measurements since the best, how much is measured


def read_identity(path: Path) -> Identity:
    """What the run of a state file was made from.

    Raises:
        MismatchError: the state of a version of vqtool that wrote it in another way.
        FormatError: damaged.
    """
    config = artifacts.read_header(path).config
    if not {"data", "settings"} <= config.keys():
        raise MismatchError(f"{path}: the state of an earlier version of vqtool: start anew without `resume`")
    settings = config["settings"]
    if isinstance(settings, dict) and "steps" in settings:  # a state whose schedules were numbers of steps
        fixed = {name: value for name, value in settings.items() if name not in _OF_LENGTH}
        steps = settings["steps"] if config.get("minutes") is None else None  # those were guessed from the minutes
        config = {**config, "settings": fixed, "steps": steps}
    return parse_record(Identity, config, f"{path}: what the run began with")


def read_reached(path: Path) -> Reached:
    """How far the run of a state file is.

    Raises:
        FormatError: damaged.
    """
    return parse_record(Reached, artifacts.read_header(path).summary, f"{path}: how far it is")


def check_identity(path: Path, wanted: Mapping[str, Any]) -> None:
    """Raise unless a run began with the data and settings that are wanted now.

    Raises:
        MismatchError: it did not.
    """
    remedy = "resume with the settings and data of the start, or start anew without `resume`"
    begun = read_identity(path)
    old, new = begun.settings, wanted["settings"]
    for name in [*new, *old]:  # what others follow from comes first
        before, now = old.get(name), new.get(name)
        if before != _without_later(now, before):
            raise MismatchError(f"{path}: {_describe_change(name, before, now)}: {remedy}")
    for name in sorted({*begun.data, *wanted["data"]}):
        if begun.data.get(name) != wanted["data"].get(name):
            raise MismatchError(f"{path}: not the {name} that the run began with: {remedy}")


def _describe_change(name: str, before: Any, now: Any) -> str:
    """How a setting differs; of one with parts, such as a network, which of them."""
    if _is_short(before) and _is_short(now):
        return f"`{name}` was {before} when the run began, now it is {now}"
    if not (isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys()):
        return f"`{name}` is not what the run began with"
    parts = [
        f"`{part}` was {before[part]}, now it is {now[part]}"
        for part in now
        if before[part] != now[part] and _is_short(before[part]) and _is_short(now[part])
    ]
    return f"`{name}` is not what the run began with" + (f" ({'; '.join(parts[:3])})" if parts else "")


def _without_later(now: Any, before: Any) -> Any:
    """Settings of a part without those that came with a later version and change nothing: off, or of one part."""
    if not (isinstance(now, dict) and isinstance(before, dict)):
        return now
    return {name: value for name, value in now.items() if name in before or (value and (value is True or value != 1))}


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict) and len(str(value)) < 60
