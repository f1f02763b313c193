"""The rows of a sweep in a JSON file that is whole after every row, so that a killed sweep can be gone on with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqtool.artifacts import atomic_path, refuse_existing
from vqtool.errors import FormatError, MismatchError, VqtoolError

KIND = "comparison of samplers"


class SweepFile:
    """What has been measured, in memory and in a file.

    Args:
        path: of the JSON file; None keeps all in memory.
        about: JSON-able, what every row depends on.
        resume: begin with the rows that are there.
        force: overwrite an existing file, with the first row.

    Raises:
        FormatError: the file that is to be gone on with is no such file.
        MismatchError: its rows depend on something else; names the first difference.
        VqtoolError: there is a file and neither `resume` nor `force` is on, or none and `resume` is.
    """

    def __init__(
        self, path: Path | None, about: Mapping[str, Any], *, resume: bool = False, force: bool = False
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = path
        self._about = json.loads(json.dumps({"kind": KIND, **about}))
        check_sweep_file(path, resume=resume, force=force)
        if resume and path is not None:
            self.rows = self._read(path)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row; when this returns the file has it."""
        self.rows.append(dict(row))
        if self._path is not None:
            with atomic_path(self._path, force=True) as temporary:
                temporary.write_text(self.text() + "\n", encoding="utf-8")

    def text(self) -> str:
        """All as JSON."""
        return json.dumps({**self._about, "rows": self.rows}, indent=2)

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            rows = record.pop("rows")
            named = [{"sampler", "steps", "options", "values", "standard_errors", "better"} <= set(row) for row in rows]
        except OSError as error:
            raise VqtoolError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise FormatError(f"{path}: not a comparison of samplers that could be gone on with") from error
        if not all(named):
            raise FormatError(f"{path}: damaged: a row of the comparison is not whole")
        for name in dict.fromkeys([*self._about, *record]):
            if record.get(name) != self._about.get(name):
                raise MismatchError(
                    f"{path}: a comparison with {name.replace('_', ' ')} {record.get(name)}, but now it is "
                    f"{self._about.get(name)}: resume with the same, name another file with -o, or use --force alone"
                )
        return list(rows)


def check_sweep_file(path: Path | None, *, resume: bool, force: bool) -> None:
    """Refuse early to overwrite a file or to go on with none.

    Raises:
        VqtoolError: as said.
    """
    if path is None:
        if resume:
            raise VqtoolError("--resume goes on with a file: name it with -o")
        return
    refuse_existing(path, force=force or resume)
    if resume and not path.exists():
        raise VqtoolError(f"{path}: no earlier comparison is there to go on with: start without --resume")
