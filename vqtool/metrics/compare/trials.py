"""Samplers compared: network calls, seconds and scores of each of several ways to sample a prior.

What it does: draws equally many pictures by every sampler, number of steps and choice of options, with several seeds.
When to use it: to choose a sampler, and to see what more calls buy.
Equation: every value is the mean over the seeds; its standard error is their standard deviation over the root of their
number, or with one seed what the metric itself says. Scores are KID and the Fréchet distance to one set of reference
features. All cells have the same noise: seed s and sample i are those of `vqtool sample --seed s`.
Cost: seeds * num * calls of the network, and num * seeds decoded pictures a cell if there is a reference.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtool import samplers
from vqtool.errors import VqtoolError
from vqtool.metrics import tokens
from vqtool.metrics.score import Score
from vqtool.priors import Prior
from vqtool.samplers import Settings

ALL = "all"
_SETTINGS = {each.name for each in fields(Settings)} - {"guide_with", "cfg_interval"}

ScoreGrids = Callable[[Tensor], list[Score]]  # (num, H, W) int64 -> scores


@dataclass(frozen=True)
class Cell:
    """One way to sample: a line of the table."""

    sampler: str
    steps: int | None = None  # None where the calls follow from the pictures
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `samplers.sample` is told."""
        return {"sampler": self.sampler, **({} if self.steps is None else {"steps": self.steps}), **self.options}

    @property
    def series(self) -> str:
        """All but the steps, for people: cells of one series are one line of the plot."""
        return " ".join([self.sampler, *(f"{name}={value}" for name, value in self.options.items())])

    def is_row(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of an earlier run is about this cell."""
        mine = {"sampler": self.sampler, "steps": self.steps, "options": dict(self.options)}
        return bool(mine == {name: row[name] for name in mine})


def plan(
    prior: Prior, names: Sequence[str], steps: Sequence[int], options: Mapping[str, Sequence[Any]]
) -> tuple[list[Cell], list[str]]:
    """The cells of a sweep: samplers x steps x options.

    Args:
        prior: what is sampled.
        names: of samplers, or ALL for those that go with the prior.
        steps: for samplers that make as many calls as they are told; the others get one cell without.
        options: name -> values; of `Settings`, for all samplers, or of some sampler, for those that have it.

    Returns:
        The cells, and what of ALL was left out and why.

    Raises:
        VqtoolError: a sampler that was named does not go with the prior, or an option with none of the samplers.
    """
    chosen, notes = [], []
    for name in samplers.NAMES if ALL in names else dict.fromkeys(names):
        try:
            samplers.choose_options(prior, name, {})
            chosen.append(name)
        except VqtoolError as error:
            if name in names:
                raise
            notes.append(f"left out: {error}")
    for option in options:
        if option not in _SETTINGS and not any(option in samplers.options(name) for name in chosen):
            samplers.choose_options(prior, chosen[0], {option: None})  # raises, and says which samplers have it
    cells = []
    for name in chosen:
        own = [option for option in options if option in _SETTINGS or option in samplers.options(name)]
        told = steps if _is_told(name) and "steps" not in own else [None]
        for values in product(*(options[option] for option in own)):
            cells += [Cell(name, each, dict(zip(own, values, strict=True))) for each in dict.fromkeys(told)]
    return cells, notes


def _is_told(sampler: str) -> bool:
    """Whether a sampler makes as many calls as its option `steps` says."""
    steps = samplers.options(sampler).get("steps")
    return steps is not None and steps.usual is not None


def check_settings(prior: Prior, cells: Sequence[Cell], settings: Mapping[str, Any]) -> None:
    """Raise unless some cell at least can be sampled with settings that all share.

    Raises:
        VqtoolError: none can; says what is wrong with the last.
    """
    wrong = None
    for cell in cells:
        try:
            own = {name: value for name, value in cell.options.items() if name in _SETTINGS}
            Settings(**{**settings, **own}).check(prior)
            return
        except VqtoolError as error:
            wrong = error
    if wrong is not None:
        raise wrong


def measure_cell(
    prior: Prior,
    cell: Cell,
    num: int,
    *,
    seeds: Sequence[int],
    score: ScoreGrids | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """One row of the comparison.

    Args:
        prior: what is sampled.
        cell: how.
        num: pictures a seed.
        seeds: of the noise; several of them give error bars.
        score: further scores of the grids of a seed; see `sweep_scores.ImageScores`.
        arguments: of `samplers.sample`, the same for all cells: condition, batch_size, cfg_scale, ...

    Returns:
        JSON-able: sampler, steps, options; values and standard_errors by name; better, "lower" or "higher" by the
        name of each score; by_seed, the values of each seed.
        calls, seconds and network_seconds are those of one picture.

    Raises:
        VqtoolError: the prior cannot be sampled so, e.g. in so many steps.
    """
    by_seed, errors, better = {}, {}, {}
    for seed in seeds:
        grids, values = _draw(prior, cell, num, seed=seed, **arguments)
        counts = tokens.count_tokens([grids.numpy()], prior.kernel.codebook_size)
        values |= {"usage": tokens.usage(counts), "perplexity": tokens.perplexity(counts)}
        for result in score(grids) if score is not None else []:
            values[result.name] = result.value
            errors[result.name] = result.standard_error
            better[result.name] = result.better
        by_seed[str(seed)] = values
    table = {name: np.array([values[name] for values in by_seed.values()]) for name in next(iter(by_seed.values()))}
    if len(seeds) > 1:
        errors = {name: float(column.std(ddof=1) / len(seeds) ** 0.5) for name, column in table.items()}
    return {
        "sampler": cell.sampler,
        "steps": cell.steps,
        "options": dict(cell.options),
        "values": {name: float(column.mean()) for name, column in table.items()},
        "standard_errors": {name: error for name, error in errors.items() if error is not None and np.isfinite(error)},
        "better": better,
        "by_seed": by_seed,
    }


def _draw(prior: Prior, cell: Cell, num: int, **arguments: Any) -> tuple[Tensor, dict[str, float]]:
    """Grids (num, H, W), and the calls and seconds of one of them."""
    second = arguments.get("guide_with")
    with time_network(prior.denoiser, *([] if second is None else [second.denoiser])) as network_seconds:
        begin = time.perf_counter()
        batches = list(samplers.sample_batches(prior, num, **{**arguments, **cell.arguments}))
        seconds = time.perf_counter() - begin
    calls = sum(batch.num_calls * len(batch.samples) for batch in batches) / num
    values = {"calls": calls, "seconds": seconds / num, "network_seconds": network_seconds() / num}
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


def names_of_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The values of rows that stand for quality: name -> whether "lower" or "higher" is better."""
    return {name: better for row in rows for name, better in row["better"].items()}
