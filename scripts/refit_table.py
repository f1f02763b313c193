"""Print the scores that recipes/refit.sh has left in its work folder as a Markdown table.

    python scripts/refit_table.py runs/refit

Usage (also the share of codes that occur 10 times, as papers count) and perplexity are of all held-out pictures
together, PSNR is of each kind of them. FD is the Frechet distance between 500 of them and 500 reconstructions on
EfficientNet-Lite0 features: compare it in this table only. With several seeds the means over them and the standard
deviations between them follow.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOKENIZERS = {
    "plain": "plain",
    "plain-finetuned": "plain, fine-tuned (control)",
    "refit-1024": "refit",
    "refit-1024-finetuned": "refit, fine-tuned",
    "refit-512": "refit",
    "refit-512-finetuned": "refit, fine-tuned",
}
KINDS = ("emoji", "photos")
COLUMNS = {
    "usage": ".1%",
    "10 times": ".1%",
    "perplexity": ".0f",
    **{f"PSNR of {kind}, dB": ".2f" for kind in KINDS},
    "FD": ".1f",
}


def read(folder: Path, name: str) -> tuple[int, list[float]]:
    """The codebook size of a tokenizer and its scores, as in COLUMNS.

    Raises:
        FileNotFoundError: some score is missing.
    """
    usage, distance = _load(folder / f"{name}-usage.json"), _load(folder / f"{name}-distance.json")
    errors = [_load(folder / f"{name}-{kind}.json")["scores"]["PSNR"] for kind in KINDS]
    scores = [
        usage["usage"],
        usage["usage-10"],
        usage["perplexity"],
        *errors,
        distance["scores"]["FD-EfficientNetLite0"],
    ]
    return usage["codebook_size"], scores


def _load(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def lines(work: Path) -> Iterator[str]:
    """The lines of the table: a block of rows a seed, then the means."""
    folders = sorted(work.glob("seed-*"), key=lambda folder: int(folder.name.removeprefix("seed-")))
    found = {name: [read(folder, name) for folder in folders] for name in TOKENIZERS}
    yield f"| seed | tokenizer | K | {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * (3 + len(COLUMNS))
    for i, folder in enumerate(folders):
        for name, label in TOKENIZERS.items():
            size, row = found[name][i]
            cells = [format(value, form) for value, form in zip(row, COLUMNS.values(), strict=True)]
            yield f"| {folder.name.removeprefix('seed-')} | {label} | {size} | {' | '.join(cells)} |"
    if len(folders) > 1:
        for name, label in TOKENIZERS.items():
            rows = np.array([row for _, row in found[name]])
            pairs = zip(rows.mean(0), rows.std(0, ddof=1), COLUMNS.values(), strict=True)
            cells = [f"{mean:{form}} ± {deviation:{form}}" for mean, deviation, form in pairs]
            yield f"| mean | {label} | {found[name][0][0]} | {' | '.join(cells)} |"


def main() -> int:
    """Print the table, and whose it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="of recipes/refit.sh")
    work = parser.parse_args().work
    try:
        print("\n".join(lines(work)))
    except FileNotFoundError as error:
        print(f"error: {error.filename}: missing: run recipes/refit.sh --work {work} to its end", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
