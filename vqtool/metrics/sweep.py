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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtool import samplers
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.images import ImageItem, OnError, read_batches, to_uint8
from vqtool.metrics import frechet, kernel, tokens
from vqtool.metrics.features import FeatureNetwork, extract
from vqtool.metrics.report import READ_BATCH, Progress, choose, silent
from vqtool.metrics.score import Score
from vqtool.priors import Prior
from vqtool.samplers import Settings
from vqtool.tokenizers import Tokenizer

ALL = "all"
METRICS = (kernel, frechet)
MAX_REFERENCE = 2048  # images: so many that their noise is small, so few that a score takes a second
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
            samplers.check(prior, name, {})
            chosen.append(name)
        except VqtoolError as error:
            if name in names:
                raise
            notes.append(f"left out: {error}")
    for option in options:
        if option not in _SETTINGS and not any(option in samplers.options(name) for name in chosen):
            samplers.check(prior, chosen[0], {option: None})  # raises, and says which samplers have it
    cells = []
    for name in chosen:
        own = [option for option in options if option in _SETTINGS or option in samplers.options(name)]
        told = steps if hasattr(samplers.find(name), "DEFAULT_STEPS") and "steps" not in own else [None]
        for values in product(*(options[option] for option in own)):
            cells += [Cell(name, each, dict(zip(own, values, strict=True))) for each in dict.fromkeys(told)]
    return cells, notes


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
        score: further scores of the grids of a seed; see `ImageScores`.
        arguments: of `samplers.sample`, the same for all cells: condition, batch_size, cfg_scale, ...

    Returns:
        JSON-able: sampler, steps, options; values and standard_errors by name; by_seed, the values of each seed.
        calls, seconds and network_seconds are those of one picture.

    Raises:
        VqtoolError: the prior cannot be sampled so, e.g. in so many steps.
    """
    by_seed, errors = {}, {}
    for seed in seeds:
        grids, values = _draw(prior, cell, num, seed=seed, **arguments)
        counts = tokens.count_tokens([grids.numpy()], prior.kernel.codebook_size)
        values |= {"usage": tokens.usage(counts), "perplexity": tokens.perplexity(counts)}
        for result in score(grids) if score is not None else []:
            values[result.name] = result.value
            errors[result.name] = result.standard_error
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
        "by_seed": by_seed,
    }


def _draw(prior: Prior, cell: Cell, num: int, **arguments: Any) -> tuple[Tensor, dict[str, float]]:
    """Grids (num, H, W), and the calls and seconds of one of them."""
    with time_network(prior.denoiser) as network_seconds:
        begin = time.perf_counter()
        batches = list(samplers.sample_batches(prior, num, **{**arguments, **cell.arguments}))
        seconds = time.perf_counter() - begin
    calls = sum(batch.num_calls * len(batch.samples) for batch in batches) / num
    values = {"calls": calls, "seconds": seconds / num, "network_seconds": network_seconds() / num}
    return torch.cat([batch.grids for batch in batches]), values


@contextmanager
def time_network(network: nn.Module) -> Iterator[Callable[[], float]]:
    """Measure the seconds that a network is busy while the block lasts; a GPU is not made to wait.

    Yields:
        What says how many seconds it were; to be called after the block.
    """
    marks: list[Any] = []
    on_gpu = next(network.parameters()).is_cuda

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

    handles = network.register_forward_pre_hook(mark), network.register_forward_hook(mark)
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


class ImageScores:
    """KID and Fréchet distance of grids, decoded in memory, to reference features.

    Args:
        tokenizer: decodes the grids, on its device.
        network: images -> features.
        reference: (N, D) features of real images.
        batch_size: pictures in the tokenizer at once.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        network: FeatureNetwork,
        reference: NDArray[np.floating],
        *,
        batch_size: int = READ_BATCH,
    ) -> None:
        self._tokenizer = tokenizer
        self._network = network
        self._reference = reference
        self._batch_size = batch_size

    def __call__(self, grids: Tensor) -> list[Score]:
        """The scores of grids (num, H, W) int64, num at least 2."""
        batches = (grids[start : start + self._batch_size] for start in range(0, len(grids), self._batch_size))
        features = extract(self._network, map(self._decode, batches))
        return [
            Score(f"{score.name}-{self._network.name}", score.value, score.better, score.unit, score.standard_error)
            for metric in METRICS
            for score in metric.measure(self._reference, features)
        ]

    @torch.no_grad()
    def _decode(self, grids: Tensor) -> NDArray[np.uint8]:
        return to_uint8(self._tokenizer.decode(grids.to(self._tokenizer.device)))


def reference_features(
    items: Sequence[ImageItem],
    network: FeatureNetwork,
    size: tuple[int, int],
    *,
    max_images: int = MAX_REFERENCE,
    on_error: OnError | None = None,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """Features (N, D) of at most so many images, brought to the size (height, width) of the prior's pictures.

    Raises:
        VqtoolError: fewer than two images.
    """
    chosen = [items[i] for i in choose(len(items), min(len(items), max_images), 0)]
    with progress("features of reference", len(chosen)) as advance:
        batches = (batch.images for batch in read_batches(chosen, size, READ_BATCH, on_error=on_error))
        features = extract(network, batches, advance=advance)
    if len(features) < 2:
        raise VqtoolError(f"{len(features)} images as reference: at least 2 are needed")
    return features


def read_features(path: str | Path, network: FeatureNetwork) -> NDArray[np.floating]:
    """Features (N, D) from a .npy file, such as `numpy.save` writes.

    Raises:
        FormatError: no such array is in it.
        MismatchError: the features are of another network.
    """
    try:
        features = np.load(path, allow_pickle=False)
    except OSError as error:
        raise VqtoolError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise FormatError(f"{path}: not a .npy file of numbers: {error}") from error
    if not isinstance(features, np.ndarray) or features.dtype.kind != "f" or features.ndim != 2 or len(features) < 2:
        raise FormatError(f"{path}: features (N, D) of at least 2 images were expected")
    if features.shape[1] != network.feature_dim:
        raise MismatchError(
            f"{path}: {features.shape[1]} features an image, but {network.name} gives {network.feature_dim}: "
            "take features of that network, or name the images themselves"
        )
    return features


def find_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (calls, score) no other one beats: none has fewer calls or as many, and a lower score.

    Returns:
        Their indices, from the fewest calls to the most.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: points[index]):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def names_of_scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The values of rows that stand for quality: KID and Fréchet distance; lower is better."""
    names = dict.fromkeys(name for row in rows for name in row["values"])
    return [name for name in names if name.startswith(("KID-", "FD-"))]
