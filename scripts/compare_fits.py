"""Compare ways to bring pictures of many shapes to one size, by what comes back of the whole pictures.

    python scripts/own_folders.py --work build/own
    python scripts/compare_fits.py build/own/clipart build/own/flags build/own/photos

Each picture goes through the tokenizer and back, and is given its own shape again: borders are cut off, what was
stretched is drawn together, and what a crop cut off stays white. Printed are, for each folder, size and fit: what is
lost; the PSNR of the whole pictures; and how many are still nearest to themselves, of all originals, by the features of
EfficientNet-Lite0.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.images import find_images, parse_size, read_image, to_float, to_uint8
from vqtool.images.pixels import FITS, fit_pixels
from vqtool.images.shapes import find_shape, median_size, shared
from vqtool.metrics import EfficientNetLite0, extract
from vqtool.tokenizers import load_tokenizer

Pixels = NDArray[np.uint8]  # (3, height, width)
LONGEST = 128  # pixels of the longer side of the pictures that are compared


def resize(picture: Pixels, height: int, width: int) -> Pixels:
    return fit_pixels(picture.transpose(1, 2, 0), (height, width), "stretch")


def undo(made: Pixels, shape: tuple[int, int], fit: str) -> Pixels:
    """The whole picture, of its own shape, of what a fit made of it; white where it was cut."""
    size = made.shape[1:]
    if fit == "stretch":
        return resize(made, *shape)
    ratios = [side / own for side, own in zip(size, shape, strict=True)]
    scale = min(ratios) if fit == "pad" else max(ratios)
    inner = [max(1, round(own * scale)) for own in shape]
    if fit == "pad":
        top, left = ((side - part) // 2 for side, part in zip(size, inner, strict=True))
        return resize(made[:, top : top + inner[0], left : left + inner[1]], *shape)
    whole = np.full((3, *inner), 255, np.uint8)
    top, left = ((part - side) // 2 for side, part in zip(size, inner, strict=True))
    whole[:, top : top + size[0], left : left + size[1]] = made
    return resize(whole, *shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--size", default="64")
    parser.add_argument("--tokenizer", default="builtin")
    parser.add_argument("--most", type=int, default=240, help="Pictures of each folder.")
    options = parser.parse_args()
    tokenizer, network = load_tokenizer(options.tokenizer), EfficientNetLite0("cpu")

    def features(pictures: list[Pixels]) -> NDArray[np.float64]:
        square = [fit_pixels(picture.transpose(1, 2, 0), (LONGEST, LONGEST), "pad") for picture in pictures]
        found = extract(network, (np.stack(square[i : i + 16]) for i in range(0, len(square), 16))).pooled
        found = found.astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    print("| folder | size | fit | lost | PSNR of the whole, dB | still nearest to itself |\n|---|---|---|---|---|---|")
    for folder in options.folders:
        items = find_images([folder], words="none")[: options.most]
        shapes = [shape for shape in map(find_shape, items) if shape is not None]
        own = [tuple(max(1, round(side * LONGEST / max(shape))) for side in shape) for shape in shapes]
        originals = [read_image(item, shape, "stretch") for item, shape in zip(items, own, strict=True)]
        theirs = features(originals)
        size = parse_size(options.size)
        for tried in dict.fromkeys((size, median_size(shapes, size, tokenizer.factor))):
            share = shared(shapes, tried)
            for fit in FITS:
                given = np.stack([read_image(item, tried, fit) for item in items])
                made = np.concatenate(
                    [to_uint8(tokenizer.decode(tokenizer.encode(to_float(part)))) for part in np.array_split(given, 8)]
                )
                back = [undo(picture, shape, fit) for picture, shape in zip(made, own, strict=True)]
                errors = [((a.astype(float) - b) ** 2).mean() for a, b in zip(back, originals, strict=True)]
                psnr = np.mean([10 * np.log10(255**2 / max(error, 1e-9)) for error in errors])
                nearest = (features(back) @ theirs.T).argmax(1) == np.arange(len(items))
                lost = {
                    "crop": f"{1 - share.mean():.0%} of the picture",
                    "pad": f"{1 - share.mean():.0%} of the cells",
                    "stretch": f"{(1 / share).mean():.2f} times as wide or high",
                }[fit]
                row = folder.name, f"{tried[0]}x{tried[1]}", f"`{fit}`", lost, f"{psnr:.1f}", f"{nearest.mean():.0%}"
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
