"""What `scripts/bench.py` measures, a file a group; here is how.

A measure is a function (folder, num_images) that yields rows: what was measured, and the figure.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

Row = tuple[str, str]
Measure = Callable[[Path, int], Iterator[Row]]


def race(
    *functions: Callable[[], object], repeats: int = 7, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The least seconds of each function, after one call that warms up, by the wall clock or another.

    They take turns, so that whatever else the machine does meets all of them alike; the least time is the one that met
    the least of it.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, its in zip(functions, times, strict=True):
            start = clock()
            function()
            its.append(clock() - start)
    return [min(its[1:]) for its in times]


@dataclass(frozen=True)
class Ratio:
    """Of the times of two functions that take turns, in pairs."""

    low: float  # lower quartile
    median: float
    high: float  # upper quartile
    seconds: tuple[float, float]  # medians of both

    def __str__(self) -> str:
        one, other = (1e3 * each for each in self.seconds)
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f}; {one:.3g} and {other:.3g} ms)"


def alternate(
    one: Callable[[], object],
    other: Callable[[], object],
    repeats: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """The time of one function over that of another: A B, B A, A B, ..., after one call each that warms up.

    A ratio is of two calls in a row, so that what else the machine does meets both; the median leaves out the turns in
    which it met one alone, and the quartiles say how far to believe it.
    """
    pairs: list[tuple[float, float]] = []
    for turn in range(repeats + 1):
        times = {}
        for function in (one, other) if turn % 2 else (other, one):
            start = clock()
            function()
            times[function] = clock() - start
        pairs.append((times[one], times[other]))
    ratios = quantiles((first / second for first, second in pairs[1:]), n=4)
    first, second = (median(each) for each in zip(*pairs[1:], strict=True))
    return Ratio(*ratios, (first, second))


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """The least wall-clock seconds of a call, after one that warms up."""
    return race(function, repeats=repeats)[0]


def peak_memory(build: Callable[[], Callable[[], object]]) -> int:
    """The bytes that the function which `build` makes takes at its peak, above what stood before; Linux only.

    It runs in a process of its own, once to warm up and once with the system's high-water mark of resident memory set
    back. Blocks above 64 KiB are mapped one by one there, so that none of them hides in memory that was freed before.
    """
    before = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    try:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send_peak, args=(sender, build))
        process.start()
        sender.close()
        peak: int = receiver.recv()
        process.join()
        return peak
    finally:
        if before is None:
            del os.environ["MALLOC_MMAP_THRESHOLD_"]
        else:
            os.environ["MALLOC_MMAP_THRESHOLD_"] = before


def _send_peak(sender: "multiprocessing.connection.Connection", build: Callable[[], Callable[[], object]]) -> None:
    function = build()
    function()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    function()
    sender.send(_resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
