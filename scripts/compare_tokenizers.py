"""Compare tokenizers on held-out pictures: a table of scores, and a sheet of originals over what each makes of them.

    python scripts/compare_tokenizers.py builtin new.safetensors --held-out build/pictures/heldout-*.tar.gz \\
        --sizes 64 128 --judge vgg_shift_tolerant.pth -o build/compared

Writes compared.json, compared.md and compared.png. PSNR is the mean over the pictures; FD and KID are of features of
EfficientNet-Lite0; FD is biased where pictures are few. The judge is a file of ST-LPIPS weights (stlpips-pytorch,
weights/vST0.0): its distance, and the Fréchet distance of its last layer's means. It is independent of a tokenizer
that was not trained with it. --num pictures of each file are taken, spread evenly; the judge, which is slow, sees
--num-judged of them.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.codebooks.usage import perplexity, usage
from vqtool.errors import VqtoolError
from vqtool.images import SourceOptions, read_images, to_float, to_uint8
from vqtool.images.preview import preview_grid, save_image
from vqtool.metrics import EfficientNetLite0, extract
from vqtool.metrics.frechet import frechet_distance
from vqtool.metrics.kernel import kernel_distance
from vqtool.metrics.reconstruction import mean_squared_errors, psnr
from vqtool.outputs import atomic_path
from vqtool.tokenizers import Tokenizer, load_tokenizer
from vqtool.training.perceptual import StLpips, load_perceptual

Pictures = NDArray[np.uint8]
BATCH = 16
IN_SHEET = 8  # pictures of each held-out file
CROPPED = SourceOptions(fit="crop")  # white borders would be easy

Look = Callable[[Pictures], NDArray[np.float32]]  # features (N, D) of pictures


def batches(images: Pictures) -> list[Pictures]:
    """The pictures, a few at a time."""
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


@torch.inference_mode()
def rebuild(tokenizer: Tokenizer, images: Pictures) -> tuple[Pictures, NDArray[np.int64]]:
    """What a tokenizer makes of pictures (N, 3, h, w): the same shape, and the use of its codes (K,)."""
    grids = [tokenizer.encode(to_float(batch)) for batch in batches(images)]
    counts = torch.bincount(torch.cat(grids).flatten(), minlength=tokenizer.codebook_size).numpy()
    return np.concatenate([to_uint8(tokenizer.decode(grid)) for grid in grids]), counts


class Judge:
    """ST-LPIPS: distances of pictures, and features of its last layer."""

    def __init__(self, path: str) -> None:
        network = load_perceptual(path)
        if not isinstance(network, StLpips):
            raise VqtoolError(f"--judge {path}: a file of ST-LPIPS weights is expected")
        self.network = network

    @torch.inference_mode()
    def distance(self, images: Pictures, others: Pictures) -> float:
        """The mean distance."""
        pairs = zip(batches(images), batches(others), strict=True)
        return float(torch.cat([self.network.distances(to_float(a), to_float(b)) for a, b in pairs]).mean())

    @torch.inference_mode()
    def look(self, images: Pictures) -> NDArray[np.float32]:
        """(N, D) means over positions."""
        features = []
        for batch in batches(images):
            x = (to_float(batch) - self.network.shift) / self.network.scale
            for part in self.network.slices:
                x = part(x)
            features.append(x.mean((2, 3)))
        found: NDArray[np.float32] = torch.cat(features).numpy()
        return found


def score(
    tokenizers: Sequence[Tokenizer], images: Pictures, look: Look, judge: Judge | None, num_judged: int
) -> tuple[list[dict[str, float]], list[Pictures]]:
    """Scores of each tokenizer by name, and what each makes of the first pictures."""
    judged = images[np.linspace(0, len(images) - 1, min(num_judged, len(images))).astype(int)]
    features = look(images)
    seen = None if judge is None else judge.look(judged)
    rows, rebuilt = [], []
    for tokenizer in tokenizers:
        others, counts = rebuild(tokenizer, images)
        errors = mean_squared_errors(images, others)
        theirs = look(others)
        row = {
            "PSNR": float(psnr(errors[errors > 0]).mean()),
            "FD": frechet_distance(features, theirs),
            "KID": kernel_distance(features, theirs).mean,
            "usage": usage(counts),
            "perplexity": perplexity(counts),
        }
        if judge is not None and seen is not None:
            again, _ = rebuild(tokenizer, judged)
            row |= {"ST-LPIPS": judge.distance(judged, again), "FD-judge": frechet_distance(seen, judge.look(again))}
        rows.append(row)
        rebuilt.append(others[:IN_SHEET])
    return rows, rebuilt


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each file, size and tokenizer; changes against the first tokenizer in brackets."""
    names = [name for name in rows[0] if name not in ("pictures", "size", "num", "tokenizer")]
    lines = ["| pictures | size | N | tokenizer | " + " | ".join(names) + " |", "|---" * (4 + len(names)) + "|"]
    for row in rows:
        first = next(r for r in rows if (r["pictures"], r["size"]) == (row["pictures"], row["size"]))
        cells = []
        for name in names:
            change = ""
            if first is not row:
                by = row[name] - first[name]
                change = f" ({by:+.2f})" if name == "PSNR" else f" ({100 * by / first[name]:+.0f} %)"
            cells.append(f"{row[name]:.4g}{change}")
        lines.append(
            f"| {row['pictures']} | {row['size']} | {row['num']} | {row['tokenizer']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compare the tokenizers that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("tokenizers", nargs="+", help="files, or builtin; the first is what others are compared with")
    parser.add_argument("--held-out", nargs="+", type=Path, required=True, help="pictures: folders, tars, HDF5 files")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64], help="pixels a side; default: 64")
    parser.add_argument("--num", type=int, default=300, help="pictures of each file; default: 300")
    parser.add_argument("--num-judged", type=int, default=100, help="of these for the judge; default: 100")
    parser.add_argument("--judge", help="file of ST-LPIPS weights, such as vgg_shift_tolerant.pth")
    parser.add_argument("-o", "--output", type=Path, default=Path("compared"), help="name without suffix")
    options = parser.parse_args()
    try:
        tokenizers = [load_tokenizer(name) for name in options.tokenizers]
        judge = None if options.judge is None else Judge(options.judge)
        network = EfficientNetLite0()
        rows: list[dict[str, Any]] = []
        shown: list[Pictures] = []
        for size in options.sizes:
            for path in options.held_out:
                images = read_images([path], size, words="none", options=CROPPED).images
                images = images[np.linspace(0, len(images) - 1, min(options.num, len(images))).astype(int)]
                found, rebuilt = score(
                    tokenizers, images, lambda batch: extract(network, batches(batch)).pooled, judge, options.num_judged
                )
                name = path.name.partition(".")[0]
                for tokenizer, row in zip(tokenizers, found, strict=True):
                    label = f"{Path(tokenizer.location).stem} {tokenizer.fingerprint[:8]}"
                    rows.append({"pictures": name, "size": size, "num": len(images), "tokenizer": label, **row})
                print(table(rows[-len(tokenizers) :]), flush=True)
                if size == max(options.sizes):
                    shown += [images[:IN_SHEET], *rebuilt]
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    output = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(rows, indent=1)), (".md", table(rows))):
        with atomic_path(output.with_name(output.name + suffix), force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    columns = len(shown[0])
    blank = [np.full((columns - len(each), *each.shape[1:]), 255, np.uint8) for each in shown]
    sheet = np.concatenate([part for pair in zip(shown, blank, strict=True) for part in pair])
    save_image(preview_grid(sheet, columns=columns), output.with_name(output.name + ".png"), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
