"""The JSON-lines log of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqtool import distributed


class RunLog:
    """One line a logged step, written by the main process; on resume the lines after the resumed step are cut off."""

    def __init__(self, path: Path, step: int) -> None:
        self._file = None
        if not distributed.is_main_process():
            return
        self._file = path.open("r+b" if step and path.exists() else "wb+")
        end = 0
        for line in self._file:
            if not line.endswith(b"}\n") or json.loads(line)["step"] > step:
                break
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        if self._file is not None:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
