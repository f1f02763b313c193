"""Samplers compared: network calls, seconds and scores of each of several ways to sample a prior.

What it does: draws equally many pictures by every sampler, number of steps and choice of options, with several seeds.
When to use it: to choose a sampler, and to see what more calls buy.
Equation: every value is the mean over the seeds; its standard error is their standard deviation over the root of their
number, or with one seed what the metric itself says. Scores are KID and the Fréchet distance to one set of reference
features. All trials have the same noise: seed s and sample i are those of `vqtool sample --seed s`.
Cost: seeds * num * calls of the network, and num * seeds decoded pictures a trial if there is a reference.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtool import samplers
from vqtool.errors import VqtoolError
from vqtool.metrics import tokens
from vqtool.metrics.compare.file import CPU, Row, Trial
from vqtool.metrics.score import Score
from vqtool.options import options_of
from vqtool.priors import Prior
from vqtool.samplers import Settings

_OF_SETTINGS = {each.name: each for each in options_of(Settings)}
_SETTINGS = _OF_SETTINGS.keys() - {"guide_with", "cfg_interval"}
_PARSERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": {"yes": True, "no": False, "true": True, "false": False}.__getitem__,
}
_KINDS = {"int": "whole numbers", "float": "numbers", "bool": "yes or no"}

ScoreGrids = Callable[[Tensor], list[Score]]  # (num, H, W) int64 -> scores


def plan(
    prior: Prior, names: Sequence[str], steps: Sequence[int], options: Mapping[str, Sequence[Any]]
) -> tuple[list[Trial], list[str]]:
    """The trial grid: samplers x steps x options.

    Args:
        prior: what is sampled.
        names: of samplers; none for all that go with the prior.
        steps: for samplers that make as many calls as they are told; the others get one trial without.
        options: name -> values; of `Settings`, for all samplers, or of some sampler, for those that have it.

    Returns:
        The trials, and which samplers were left out and why.

    Raises:
        VqtoolError: a sampler that was named does not go with the prior, or an option with none of the samplers; or a
            value is none that its option takes.
    """
    chosen, notes = [], []
    for name in dict.fromkeys(names or samplers.NAMES):
        try:
            samplers.choose_options(prior, name, {})
            chosen.append(name)
        except VqtoolError as error:
            if names:
                raise
            notes.append(f"left out: {error}")
    for option in options:
        if option not in _SETTINGS and not any(option in samplers.options(name) for name in chosen):
            samplers.choose_options(prior, chosen[0], {option: None})  # raises, and says which samplers have it
    trials = []
    for name in chosen:
        own = [option for option in options if option in _SETTINGS or option in samplers.options(name)]
        for option in own:
            stated = samplers.options(name).get(option) or _OF_SETTINGS[option]
            for value in options[option]:
                try:
                    stated.check(value)
                except VqtoolError as error:
                    raise VqtoolError(f"`option` {option.replace('_', '-')}: {error}") from error
        told = steps if _is_told(name) and "steps" not in own else [None]
        for values in product(*(options[option] for option in own)):
            trials += [Trial(name, each, dict(zip(own, values, strict=True))) for each in dict.fromkeys(told)]
    return trials, notes


def _is_told(sampler: str) -> bool:
    """Whether a sampler makes as many calls as its option `steps` says."""
    steps = samplers.options(sampler).get("steps")
    return steps is not None and steps.usual is not None


def parse_options(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Options and their values from lines such as purity-weight=0,1,2; each value is what its option takes.

    Raises:
        VqtoolError: not of this form, an option twice, or a value that is none of the option's.
    """
    stated = {each.name: each for name in samplers.NAMES for each in samplers.options(name).values()}
    stated |= _OF_SETTINGS
    options: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        parts = [value.strip() for value in values.split(",")]
        if not (equals and name and all(parts)) or name in options:
            raise VqtoolError(f"`option` {text}: NAME=VALUE,VALUE is expected, each NAME once")
        kind = stated[name].type.split(" | ")[0] if name in stated else "str"
        try:
            options[name] = list(dict.fromkeys(_PARSERS.get(kind, str)(part) for part in parts))
        except (KeyError, ValueError) as error:
            raise VqtoolError(f"`option` {text}: {_KINDS[kind]} with commas between them are expected") from error
    return options


def check_settings(prior: Prior, trials: Sequence[Trial], settings: Mapping[str, Any]) -> None:
    """Raise unless some trial at least can be sampled with settings that all share.

    Raises:
        VqtoolError: none can; says what is wrong with the last.
    """
    wrong = None
    for trial in trials:
        try:
            own = {name: value for name, value in trial.options.items() if name in _SETTINGS}
            Settings(**{**settings, **own}).check(prior)
            return
        except VqtoolError as error:
            wrong = error
    if wrong is not None:
        raise wrong


def measure_trial(
    prior: Prior,
    trial: Trial,
    num: int,
    *,
    seeds: Sequence[int],
    score: ScoreGrids | None = None,
    **arguments: Any,
) -> Row:
    """One row of the comparison.

    Args:
        prior: what is sampled.
        trial: how.
        num: pictures a seed.
        seeds: of the noise; several of them give error bars.
        score: further scores of the grids of a seed; see `scores.ImageScores`.
        arguments: of `samplers.sample`, the same for all trials: condition, batch_size, cfg_scale, ...

    Raises:
        VqtoolError: the prior cannot be sampled so, e.g. in so many steps.
    """
    by_seed: dict[str, dict[str, float]] = {}
    errors: dict[str, float | None] = {}
    better: dict[str, str] = {}
    for seed in seeds:
        grids, values = _draw(prior, trial, num, seed=seed, **arguments)
        counts = tokens.count_tokens([grids.numpy()], prior.codebook_size)
        values |= {"usage": tokens.usage(counts), "perplexity": tokens.perplexity(counts)}
        for result in score(grids) if score is not None else []:
            values[result.name] = result.value
            errors[result.name] = result.standard_error
            better[result.name] = result.better
        by_seed[str(seed)] = values
    table = {name: np.array([values[name] for values in by_seed.values()]) for name in next(iter(by_seed.values()))}
    if len(seeds) > 1:
        errors = {name: float(column.std(ddof=1) / len(seeds) ** 0.5) for name, column in table.items()}
    return Row(
        trial.sampler,
        trial.steps,
        dict(trial.options),
        values={name: float(column.mean()) for name, column in table.items()},
        standard_errors={name: error for name, error in errors.items() if error is not None and np.isfinite(error)},
        better=better,
        by_seed=by_seed,
        runtime=str(arguments.get("runtime", "torch")),
    )


def _draw(prior: Prior, trial: Trial, num: int, **arguments: Any) -> tuple[Tensor, dict[str, float]]:
    """Grids (num, H, W), and the calls and seconds of one of them."""
    second = arguments.get("guide_with")
    with time_network(prior.denoiser, *([] if second is None else [second.denoiser])) as network_seconds:
        begin, busy = time.perf_counter(), time.process_time()
        batches = list(samplers.sample_batches(prior, num, **{**arguments, **trial.arguments}))
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    calls = sum(batch.num_calls * len(batch.samples) for batch in batches) / num
    values = {"calls": calls, "seconds": seconds / num, CPU: busy / num, "network_seconds": network_seconds() / num}
    return torch.cat([batch.grids for batch in batches]), values


@contextmanager
def time_network(*networks: nn.Module) -> Iterator[Callable[[], float]]:
    """Measure the seconds that networks are busy while the block lasts; a GPU is not made to wait.

    Yields:
        What says how many seconds it were; to be called after the block.
    """
    marks: list[Any] = []
    on_gpu = next(networks[0].parameters()).is_cuda

    def mark(*_: object) -> None:
        if on_gpu:
            marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            marks[-1].record()
        else:
            marks.append(time.perf_counter())

    def total() -> float:
        pairs = list(zip(marks[::2], marks[1::2], strict=True))
        if on_gpu:
            torch.cuda.synchronize()
            return float(sum(begin.elapsed_time(end) for begin, end in pairs) / 1000)
        return float(sum(end - begin for begin, end in pairs))

    handles = [network.register_forward_pre_hook(mark) for network in networks]
    handles += [network.register_forward_hook(mark) for network in networks]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def find_front(points: Sequence[tuple[float, float]], *, better: str = "lower") -> list[int]:
    """Which points (calls, score) no other one beats: none has fewer calls or as many, and a better score.

    Args:
        points: (calls, score) each.
        better: "lower" or "higher" scores.

    Returns:
        Their indices, from the fewest calls to the most.
    """
    front: list[int] = []
    signed = [(calls, -score if better == "higher" else score) for calls, score in points]
    for index in sorted(range(len(points)), key=lambda index: signed[index]):
        if not front or signed[index][1] < signed[front[-1]][1]:
            front.append(index)
    return front
