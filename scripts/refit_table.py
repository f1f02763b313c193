"""Print the scores that recipes/refit.sh has left in its work folder as a Markdown table, and draw what it rebuilt.

    python scripts/refit_table.py runs/refit-2000
    python scripts/refit_table.py runs/refit-2000 --held-out emoji.tar.gz photos.tar.gz --picture comparison.png

Usage (also the share of codes that occur 10 times, as papers count) and perplexity are of all held-out pictures
together, PSNR is of each kind of them. FD is the Frechet distance between 500 of them and 500 reconstructions on
EfficientNet-Lite0 features: compare it in this table only. With several seeds the means over them and the standard
deviations between them follow.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
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
SHORT_KINDS = ("emoji", "digits")  # of the recipe's two minutes
SHOWN = 8  # pictures of each kind


def find_kinds(folder: Path) -> tuple[str, ...]:
    """The kinds of held-out pictures that a seed's folder has scores of."""
    return SHORT_KINDS if (folder / "plain-digits.json").exists() else KINDS


def columns(kinds: Sequence[str]) -> dict[str, str]:
    """Names of the scores, and how they are written."""
    errors = {f"PSNR of {kind}, dB": ".2f" for kind in kinds}
    return {"usage": ".1%", "10 times": ".1%", "perplexity": ".0f", **errors, "FD": ".1f"}


def read(folder: Path, name: str) -> tuple[int, list[float]]:
    """The codebook size of a tokenizer and its scores, as in `columns`.

    Raises:
        FileNotFoundError: some score is missing.
    """
    usage, distance = _load(folder / f"{name}-usage.json"), _load(folder / f"{name}-distance.json")
    errors = [_load(folder / f"{name}-{kind}.json")["scores"]["PSNR"] for kind in find_kinds(folder)]
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
    forms = columns(find_kinds(folders[0]))
    yield f"| seed | tokenizer | K | {' | '.join(forms)} |"
    yield "|" + "---|" * (3 + len(forms))
    for i, folder in enumerate(folders):
        for name, label in TOKENIZERS.items():
            size, row = found[name][i]
            cells = [format(value, form) for value, form in zip(row, forms.values(), strict=True)]
            yield f"| {folder.name.removeprefix('seed-')} | {label} | {size} | {' | '.join(cells)} |"
    if len(folders) > 1:
        for name, label in TOKENIZERS.items():
            rows = np.array([row for _, row in found[name]])
            pairs = zip(rows.mean(0), rows.std(0, ddof=1), forms.values(), strict=True)
            cells = [f"{mean:{form}} ± {deviation:{form}}" for mean, deviation, form in pairs]
            yield f"| mean | {label} | {found[name][0][0]} | {' | '.join(cells)} |"


def draw(work: Path, held_out: Sequence[Path], path: Path) -> None:
    """Some held-out pictures of each kind, over what each tokenizer of the first seed makes of them, a row each."""
    from vqtool.images import read_images
    from vqtool.images.preview import preview_grid, save_image

    folder = min(work.glob("seed-*"), key=lambda each: int(each.name.removeprefix("seed-")))
    sources = [held_out, *([folder / f"{name}-{kind}.tar" for kind in find_kinds(folder)] for name in TOKENIZERS)]
    rows = [read_images(each, 64, words="none").images[:SHOWN] for row in sources for each in row]
    save_image(preview_grid(np.concatenate(rows), columns=2 * SHOWN), path, force=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and whose it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="of recipes/refit.sh")
    parser.add_argument("--held-out", type=Path, nargs=2, help="its held-out pictures, for --picture")
    parser.add_argument("--picture", type=Path, help="PNG file of the comparison")
    options = parser.parse_args(arguments)
    work = options.work
    try:
        print("\n".join(lines(work)))
        if options.picture is not None:
            draw(work, options.held_out, options.picture)
    except FileNotFoundError as error:
        print(f"error: {error.filename}: missing: run recipes/refit.sh --work {work} to its end", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
