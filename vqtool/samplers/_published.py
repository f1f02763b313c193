"""What a prior's makers sample it with, where nothing else is asked for."""

from collections.abc import Mapping
from typing import Any

from vqtool.options import options_of
from vqtool.priors import Prior
from vqtool.samplers._settings import Guidance, Settings

# Parts of guidance that leave its strength and course as they are.
GOES_WITH_ANY = {"cfg_refresh", "guide_with", "negative", "null"}
COMPLETING = "completing"  # in `Prior.sampling`: what else they fill the masked cells of pictures with


def published(
    prior: Prior, sampler: str | None, chosen: Mapping[str, Any], *, has_condition: bool, completes: bool = False
) -> dict[str, Any]:
    """Their arguments of `sample`, as far as nothing else is asked for.

    Options of their sampler go with that one alone, and guidance by a condition with a condition; whoever asks for one
    part of guidance (but what goes with any) or for the number of steps goes without those of theirs that belong to it.

    Args:
        prior: what is sampled.
        sampler: that is asked for; None for none.
        chosen: further arguments of `sample` that are asked for.
        has_condition: whether the samples are given a condition.
        completes: whether they are given pictures whose masked cells they fill.
    """
    theirs = dict(prior.sampling)
    completing = theirs.pop(COMPLETING, {})
    theirs |= completing if completes else {}
    own = theirs.pop("sampler", None)
    guidance, settings = ({each.name for each in options_of(kind)} for kind in (Guidance, Settings))
    if sampler not in (None, own):
        theirs = {name: value for name, value in theirs.items() if name in settings}
    if not has_condition or guidance & chosen.keys() - GOES_WITH_ANY:
        theirs = {name: value for name, value in theirs.items() if name not in guidance}
    left = {name: value for name, value in theirs.items() if name not in chosen}
    return left if sampler is not None or own is None else {"sampler": own, **left}


def shown(theirs: Mapping[str, Any]) -> str:
    """The sentence about what `published` gives, as `describe` has it."""
    return "as published for this prior: " + ", ".join(f"{name} {_text(value)}" for name, value in theirs.items())


def _text(value: Any) -> str:
    numbers = value if isinstance(value, list) else [value]
    text = ",".join(f"{number:g}" if isinstance(number, int | float) else str(number) for number in numbers[:4])
    return f"{text},... ({len(numbers)} values)" if len(numbers) > 4 else text
