"""Put together what recipes/claims.sh has measured for a row: means over the seeds with standard errors.

    python scripts/claims_table.py calls runs/claims-300 -o docs/claims/calls.json

Reads ROW-PRIOR-SEED.json of `vqtool compare` and ROW-bits-PRIOR-SEED.json of `vqtool eval --likelihood`; writes JSON,
and a table on stdout. The seeds are those of priors and samples alike, so that the standard error covers both.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = ("bits", "KID", "FD", "precision", "recall", "density", "coverage", "usage")


def read(row: str, folder: Path) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """(prior, way to sample) -> seed -> values; the way is empty for bits per token."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for path in sorted(folder.glob(f"{row}-*.json")):
        match = re.fullmatch(rf"{row}-(bits-)?([a-z-]+)-(\d+)\.json", path.name)
        if match is None:
            continue
        record, prior, seed = json.loads(path.read_text(encoding="utf-8")), match[2], int(match[3])
        if match[1]:
            found.setdefault((prior, ""), {})[seed] = {"bits": record["scores"]["bits-per-token"]}
            continue
        for each in record["rows"]:
            options = " ".join(f"{name}={value}" for name, value in each["options"].items())
            way = " ".join(filter(None, [each["sampler"], f"{each['steps']}" if each["steps"] else "", options]))
            values = {name.partition("-")[0]: value for name, value in each["values"].items()}
            found.setdefault((prior, way), {})[seed] = values
    return found


def put_together(row: str, folder: Path) -> list[dict[str, Any]]:
    """A line a prior and way to sample: means, standard errors where there are several seeds, and the seeds."""
    lines = []
    for (prior, way), by_seed in read(row, folder).items():
        names = set.intersection(*(set(values) for values in by_seed.values()))
        table = {name: np.array([values[name] for values in by_seed.values()]) for name in sorted(names)}
        line: dict[str, Any] = {"prior": prior, "way": way, "seeds": sorted(by_seed)}
        line["values"] = {name: float(column.mean()) for name, column in table.items()}
        if len(by_seed) > 1:
            errors = {name: float(column.std(ddof=1) / len(column) ** 0.5) for name, column in table.items()}
            line["standard_errors"] = errors
        lines.append(line)
    return lines


def markdown(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines as a table."""
    names = [name for name in SHOWN if any(name in line["values"] for line in lines)]
    yield "| prior | way | calls | seeds | " + " | ".join(names) + " |"
    yield "|---" * (4 + len(names)) + "|"
    for line in lines:
        cells = [line["prior"], line["way"], f"{line['values'].get('calls', 0):.4g}", str(len(line["seeds"]))]
        for name in names:
            error = line.get("standard_errors", {}).get(name)
            value = f"{line['values'][name]:.3g}" if name in line["values"] else ""
            cells.append(f"{value} +- {error:.1g}" if value and error is not None else value)
        yield "| " + " | ".join(cells) + " |"


def main() -> int:
    """Run it; exit code 1 where nothing was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("row", help="of recipes/claims.sh")
    parser.add_argument("folder", type=Path, help="its work folder")
    parser.add_argument("--output", "-o", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    lines = put_together(options.row, options.folder)
    if not lines:
        print(f"error: {options.folder}: nothing was measured for {options.row}", file=sys.stderr)
        return 1
    options.output.write_text(json.dumps({"row": options.row, "lines": lines}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(markdown(lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
