"""Put a trained tokenizer into the package: its scores into its header, a picture of what it does into docs/.

    python scripts/finish_tokenizer.py build/tokenizer/tokenizer.safetensors build/pictures/heldout-*.tar.gz

Beside each held-out file lies NAME.scores.json, from `vqtool eval NAME.tar.gz --tokenizer ... -o NAME.scores.json`. The
scores stand in the summary under "NAME.PSNR", "NAME.usage", ...; the fingerprint, which is that of the weights, stays.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vqtool import artifacts
from vqtool.errors import VqtoolError
from vqtool.images import find_images, read_batches, to_float, to_uint8
from vqtool.images.preview import comparison_grid, save_image
from vqtool.outputs import atomic_path
from vqtool.tokenizers import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 16_000_000
PICTURES = 16  # of each held-out file


def scores_path(held_out: Path) -> Path:
    """Where the scores on a held-out file are."""
    return held_out.with_name(f"{stem(held_out)}.scores.json")


def stem(path: Path) -> str:
    """The name of a file up to its first dot."""
    return path.name.partition(".")[0]


def read_scores(held_out: Path, fingerprint: str) -> dict[str, Any]:
    """The scores on a held-out file, named after it.

    Raises:
        VqtoolError: they are missing, or those of another tokenizer.
    """
    path = scores_path(held_out)
    if not path.exists():
        raise VqtoolError(f"{path}: missing; vqtool eval {held_out} --tokenizer TOKENIZER -o {path}")
    report = json.loads(path.read_text(encoding="utf-8"))
    if report.get("tokenizer") != fingerprint:
        raise VqtoolError(
            f"{path}: scores of tokenizer {report.get('tokenizer')}, not of {fingerprint}: "
            f"vqtool eval {held_out} --tokenizer TOKENIZER -o {path} --force"
        )
    scores = {"num_images": report["num_images"], **report["scores"]}
    return {f"{stem(held_out)}.{name}": value for name, value in scores.items()}


def save_with_scores(source: Path, scores: dict[str, Any], output: Path) -> artifacts.Header:
    """Copy a tokenizer and add scores to its summary.

    Raises:
        VqtoolError: the file would be larger than MAX_BYTES; then nothing is written.
    """
    header, tensors = artifacts.load(source, "tokenizer")
    finished = source.with_suffix(".scored.safetensors")
    saved = artifacts.save(
        finished,
        kind=header.kind,
        config=header.config,
        tensors=tensors,
        parents=header.parents,
        history=header.history,
        summary=header.summary | scores,
        force=True,
    )
    size = finished.stat().st_size
    if size > MAX_BYTES:
        finished.unlink()
        raise VqtoolError(f"{source}: {size} bytes with its scores, more than {MAX_BYTES}: train it with --half")
    if saved.fingerprint != header.fingerprint:
        raise VqtoolError(f"{source}: its header says {header.fingerprint}, its weights are {saved.fingerprint}")
    with atomic_path(output, force=True) as temporary:
        shutil.move(finished, temporary)
    return saved


def draw_comparison(tokenizer_path: Path, held_out: list[Path], output: Path) -> None:
    """Draw pictures of each held-out file over their reconstructions."""
    tokenizer = load_tokenizer(tokenizer_path)
    items = [item for path in held_out for item in find_images([path])[:PICTURES]]
    originals = np.concatenate([batch.images for batch in read_batches(items, (64, 64), PICTURES)])
    reconstructions = to_uint8(tokenizer.decode(tokenizer.encode(to_float(originals))))
    output.parent.mkdir(exist_ok=True)
    save_image(comparison_grid(originals, reconstructions), output, force=True)


def main() -> int:
    """Finish the tokenizer that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tokenizer", type=Path, help="from vqtool train-tokenizer")
    parser.add_argument("held_out", type=Path, nargs="+", help="files of images; their scores lie beside them")
    parser.add_argument(
        "--output", type=Path, default=artifacts.builtin_path("tokenizer"), help="default: inside the package"
    )
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "tokenizer.png", help="default: in docs/")
    options = parser.parse_args()
    try:
        fingerprint = artifacts.read_header(options.tokenizer).fingerprint
        scores: dict[str, Any] = {}
        for path in options.held_out:
            scores |= read_scores(path, fingerprint)
        saved = save_with_scores(options.tokenizer, scores, options.output)
        draw_comparison(options.output, options.held_out, options.picture)
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in scores.items():
        print(f"{name}: {value:.4g}", file=sys.stderr)
    print(f"wrote {options.output}: tokenizer {saved.fingerprint}; picture {options.picture}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
