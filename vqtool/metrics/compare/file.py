"""The rows of a comparison, in memory and in a JSON file that is whole after every row, so that it can be resumed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vqtool.errors import FormatError, MismatchError, VqtoolError, count_text
from vqtool.outputs import atomic_path, refuse_existing
from vqtool.trust import parse_record, read_json

KIND = "comparison of samplers"
_COLUMNS = {"calls": "calls", "seconds": "s a picture", "network_seconds": "network s"}
CPU = "cpu_seconds"  # of all threads, for a picture; files of before do not say it
_LAST = ("usage", "perplexity")


@dataclass(frozen=True)
class Trial:
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
        """All but the steps, for people: trials of one series are one line of the plot."""
        return " ".join([self.sampler, *(f"{name}={_shown(value)}" for name, value in self.options.items())])


@dataclass(frozen=True)
class Row:
    """What a trial gave; values are means over the seeds, standard errors and directions stand where there are any."""

    sampler: str
    steps: int | None
    options: dict[str, Any]
    values: dict[str, float]  # calls, (wall-clock) seconds, cpu_ and network_seconds of one picture; usage, scores, ...
    standard_errors: dict[str, float]
    better: dict[str, str]  # score -> whether "lower" or "higher" is better
    by_seed: dict[str, dict[str, float]]
    runtime: str = "torch"  # what ran the network

    def __post_init__(self) -> None:
        if not {*_COLUMNS, *_LAST, *self.better} <= self.values.keys():
            raise ValueError("not all of its columns have values")

    @property
    def trial(self) -> Trial:
        """What was tried."""
        return Trial(self.sampler, self.steps, self.options)


class Comparison:
    """What has been measured, in memory and in a file.

    Args:
        path: of the JSON file; None keeps all in memory.
        about: JSON-able, what every row depends on.
        resume: begin with the rows that are there.
        force: overwrite an existing file, with the first row.

    Raises:
        FormatError: the file that is to be resumed is no such file.
        MismatchError: its rows depend on something else; names the first difference.
        VqtoolError: there is a file and neither `resume` nor `force` is on, or none and `resume` is.
    """

    def __init__(
        self, path: Path | None, about: Mapping[str, Any], *, resume: bool = False, force: bool = False
    ) -> None:
        self.rows: list[Row] = []
        self._path = path
        self.about = json.loads(json.dumps({"kind": KIND, **about}))
        check_output(path, resume=resume, force=force)
        if resume and path is not None:
            self.rows = self._read(path)

    def add(self, row: Row) -> None:
        """Take in a row; when this returns the file has it."""
        self.rows.append(row)
        if self._path is not None:
            with atomic_path(self._path, force=True) as temporary:
                temporary.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def tell_kept(self, interruption: KeyboardInterrupt) -> None:
        """Let an interruption say what the file has."""
        if self._path is not None and self.rows:
            kept = f"{count_text(len(self.rows), 'trial')} {'is' if len(self.rows) == 1 else 'are'} kept"
            interruption.args = (f"{kept} in {self._path}; `resume` goes on with them",)

    def has(self, trial: Trial) -> bool:
        """Whether a trial has been measured."""
        return any(row.trial == trial for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**self.about, "rows": [asdict(row) for row in self.rows]}

    @property
    def scores(self) -> dict[str, str]:
        """The scores of the pictures: name -> whether "lower" or "higher" is better."""
        return {name: better for row in self.rows for name, better in row.better.items()}

    def table(self) -> tuple[list[str], Iterator[list[str]]]:
        """The names of the columns, and the rows, for people."""
        busy = [CPU] if any(CPU in row.values for row in self.rows) else []
        columns = [*_COLUMNS, *busy, *self.scores, *_LAST]
        names = {**_COLUMNS, CPU: "CPU s"}
        head = ["sampler", "steps", "runtime", *(names.get(name, name.partition("-")[0]) for name in columns)]
        return head, ([*_way(row), *(_cell(row, name) for name in columns)] for row in self.rows)

    def _read(self, path: Path) -> list[Row]:
        record = read_json(path)
        if not isinstance(record.get("rows"), list):
            raise FormatError(f"{path}: not a comparison of samplers that could be resumed")
        rows = [
            parse_record(Row, row, f"{path}: damaged: row {number} of the comparison")
            for number, row in enumerate(record.pop("rows"))
        ]
        for name in dict.fromkeys([*self.about, *record]):
            if record.get(name) != self.about.get(name):
                called = "ref" if name == "reference" else name
                before, now = (_listed(values.get(name)) for values in (record, self.about))
                what = f"`{called}` {before}, but now it is {now}"
                if name == "captions":  # of which the file has a digest
                    what = "other captions or labels"
                remedy = "resume with the same, name another `output`, or use `force` alone"
                raise MismatchError(f"{path}: a comparison with {what}: {remedy}")
        return rows


def check_output(path: Path | None, *, resume: bool, force: bool) -> None:
    """Refuse early to overwrite a file, or to resume none.

    Raises:
        VqtoolError: as said.
    """
    if path is None:
        if resume:
            raise VqtoolError("`resume` goes on with a file: name it with `output`")
        return
    refuse_existing(path, force=force or resume, kind="JSON")
    if resume and not path.exists():
        raise VqtoolError(f"{path}: no earlier comparison is there to go on with: start without `resume`")


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "not given"
    return "not given" if value is None else str(value)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _way(row: Row) -> list[str]:
    return [row.trial.series, "" if row.steps is None else str(row.steps), row.runtime]


def _cell(row: Row, name: str) -> str:
    if name not in row.values:
        return ""
    error = row.standard_errors.get(name) if name in row.better else None
    return f"{row.values[name]:.4g}" + ("" if error is None else f" ± {error:.2g}")
