"""What a run is made from: data and settings, which have to be the same where it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqtool import artifacts
from vqtool.errors import MismatchError


def read_config(path: Path) -> dict[str, Any]:
    """Data and settings that the run of a state file began with.

    Raises:
        MismatchError: the state of a version of vqtool that wrote them in another way.
    """
    config = artifacts.read_header(path).config
    if not all(isinstance(config.get(part), dict) for part in ("data", "settings")):
        raise MismatchError(f"{path}: the state of an earlier version of vqtool: start anew without `resume`")
    return config


def check_identity(path: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless a run began with the data and settings that are wanted now.

    Raises:
        MismatchError: it did not.
    """
    remedy = "resume with the settings and data of the start, or start anew without `resume`"
    old, new = begun["settings"], wanted["settings"]
    for name in [*new, *old]:  # what others follow from comes first
        before, now = old.get(name), new.get(name)
        if before != now:
            short = _is_short(before) and _is_short(now)
            was = f"was {before} when the run began, now it is {now}" if short else "is not what the run began with"
            raise MismatchError(f"{path}: `{name}` {was}: {remedy}")
    for name in sorted({*begun["data"], *wanted["data"]}):
        if begun["data"].get(name) != wanted["data"].get(name):
            raise MismatchError(f"{path}: not the {name} that the run began with: {remedy}")


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict) and len(str(value)) < 60
