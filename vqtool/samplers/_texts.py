"""What samples are to show: labels or captions, as the prior takes them."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from vqtool.errors import VqtoolError, warn
from vqtool.priors import Prior

Texts = Sequence[str]

PLURALS = {"class": "labels", "caption": "captions"}


def condition(prior: Prior, *, labels: Texts | None = None, captions: Texts | None = None) -> Tensor:
    """The conditions of samples, for `sample`.

    Args:
        prior: what is sampled.
        labels: one a sample, if the prior takes labels.
        captions: one a sample, if it takes captions; an empty one asks for nothing, as the null condition.

    Returns:
        (num, ...) int64; what the numbers mean is the prior's own.

    Raises:
        VqtoolError: the prior takes another kind or none, or does not know a label; or both or none are given.
    """
    texts = check_texts(prior, labels, captions)
    if not texts:
        raise VqtoolError("`labels` or `captions` have to say what to draw: at least one")
    return _encode(prior, texts)


def _encode(prior: Prior, texts: Texts) -> Tensor:
    """Conditions (num, ...) of texts; an empty caption is none, as in training."""
    is_caption = prior.conditioner.kind == "caption"
    return prior.conditioner.encode([None if is_caption and not text.strip() else text for text in texts])


def check_texts(prior: Prior, labels: Texts | None, captions: Texts | None) -> list[str]:
    """The labels or captions that are given, empty if there are none; a warning names what the prior cannot read.

    Raises:
        VqtoolError: as for `condition`.
    """
    named = (("labels", labels), ("captions", captions))
    given: dict[str, Texts] = {name: texts for name, texts in named if texts is not None}
    for name, texts in given.items():
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise VqtoolError(f"`{name}` {texts!r}: a list of texts is expected")
    if len(given) > 1:
        raise VqtoolError("`labels` and `captions` are given: one of them says what to draw")
    check_kind(prior, given, {kind: f"`{name}`" for kind, name in PLURALS.items()})
    texts = list(*given.values())
    if texts:
        _encode(prior, texts)  # an unknown label is found before any work is done
        _warn_of(prior, texts)
    return texts


def check_kind(prior: Prior, given: Collection[str], names: Mapping[str, str]) -> None:
    """Raise VqtoolError unless a prior takes what is given to draw.

    Args:
        prior: what is sampled.
        given: "labels", "captions" or nothing.
        names: what the user calls texts of each kind of condition.
    """
    kind = prior.conditioner.kind
    for other, name in names.items():
        if PLURALS[other] in given and other != kind:
            takes = f"{PLURALS[kind]}: use {names[kind]}" if kind in names else "no condition"
            raise VqtoolError(f"{name} does not go with this prior, which takes {takes}")


def _warn_of(prior: Prior, texts: Texts) -> None:
    """Warn of captions that are empty, too long, or in letters that the prior has never seen."""
    if prior.conditioner.kind != "caption":
        return
    if not all(text.strip() for text in texts):
        warn("an empty caption asks for nothing: the prior draws anything that it knows")
    for text in prior.conditioner.find_truncated(texts):
        warn(f"longer than the prior can read, its end is left out: {text[:60]!r}...")
    for text in prior.conditioner.find_unread(texts):
        warn(f"in letters that the prior has never seen, so that it draws anything: {text[:60]!r}")


def in_turn(prior: Prior, texts: Texts) -> Callable[[range], Tensor] | None:
    """The conditions of samples by their numbers: the texts in turn; None if there are none."""

    def encode(samples: range) -> Tensor:
        return _encode(prior, [texts[number % len(texts)] for number in samples])

    return encode if texts else None


def choose_texts(
    prior: Prior, labels: Texts | None, captions: Texts | None, notify: Callable[[str], None]
) -> list[str]:
    """The labels or captions to draw, in turn: those that are given, or else the prior's own examples.

    Raises:
        VqtoolError: as for `condition`.
    """
    texts, conditioner = check_texts(prior, labels, captions), prior.conditioner
    if texts or conditioner.kind == "none":
        return texts
    kind = PLURALS[conditioner.kind]
    if conditioner.examples:
        notify(f"conditions: the prior's own {len(conditioner.examples)} {kind}, in turn")
    else:
        notify(f"conditions: none; this prior takes {kind}, but has no examples of its own")
    return list(conditioner.examples)
