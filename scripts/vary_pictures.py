"""Make variants of captioned pictures on white: a little smaller, shifted, some mirrored; with the same captions.

A prior that passes hundreds of times through some thousand pictures learns them by heart; variants keep it from that.
The first variant of every picture is the picture itself. Written is an HDF5 of images, which `vqtool encode` takes.

    python scripts/vary_pictures.py emoji.tar.gz clipart.tar.gz --variants 4 -o varied.h5
    vqtool encode varied.h5 --size 128 -t tokenizer.safetensors -o tok.h5
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from vqtool.errors import VqtoolError
from vqtool.images import SourceOptions, find_images, read_images

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))
from draw_emoji import GROUPS, in_group

SMALLEST = 0.85  # of the picture's side
EDGE = 4  # pixels that stay white around the drawing
MIRRORED_GROUPS = tuple(group for group in GROUPS if group != "flags")
MIRRORED_FOLDERS = ("animals", "food", "plants")  # of clip art; people and tools may hold writing
CODE_POINTS = re.compile("[0-9a-f]{4,6}(-[0-9a-f]{4,6})*")  # an emoji's file name
ONE_SIDED = ("left", "right")
JOINER, GENDERS = "200d", {"2640", "2642", "1f468", "1f469"}  # signs of gender, man, woman


def can_mirror(id: str, caption: str) -> bool:
    """Whether a mirrored picture shows the same: no letters, digits, arrows, flags, clocks, no left or right."""
    if any(word in caption for word in ONE_SIDED):
        return False
    *folders, name = id.split("/")
    if folders[:1] == ["clipart"]:
        return folders[1:2] != [] and folders[1] in MIRRORED_FOLDERS
    if not CODE_POINTS.fullmatch(name):
        return False  # nothing is known of it
    sequence = "".join(chr(int(point, 16)) for point in name.split("-"))
    return any(in_group(sequence, group) for group in MIRRORED_GROUPS)


def is_wanted(id: str, styles: Sequence[str], *, genders: bool) -> bool:
    """Whether a picture is of one of the styles (all, if none is named), and not one of many that differ in gender."""
    style, *points = re.split("[-/]", id)
    return (not styles or style in styles) and (genders or JOINER not in points or not GENDERS & {*points})


def drawn_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is not white in pixels (h, w, 3); all of it if everything is white."""
    inked = pixels.min(axis=-1) < 250
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    if not len(rows):
        return 0, 0, pixels.shape[1], pixels.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def vary(pixels: np.ndarray, rng: np.random.Generator, *, mirror: bool) -> np.ndarray:
    """A picture on white, scaled by 0.85 to 1 and moved to where all of the drawing is inside; half are mirrored.

    Args:
        pixels: (h, w, 3) uint8.
        rng: of this variant.
        mirror: whether it may be mirrored.

    Returns:
        (h, w, 3) uint8.
    """
    height, width = pixels.shape[:2]
    if mirror and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    scale = rng.uniform(SMALLEST, 1)
    size = round(scale * width), round(scale * height)
    left, top, right, bottom = (scale * side for side in drawn_box(pixels))
    corner = []
    for first, last, side in ((left, right, width), (top, bottom, height)):
        low, high = EDGE - first, side - EDGE - last  # the corners with which the drawing keeps its distance
        corner.append(round(rng.uniform(low, high) if low < high else (low + high) / 2))
    result = Image.new("RGB", (width, height), "white")
    result.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), tuple(corner))
    return np.asarray(result)


def variants(job: tuple[np.ndarray, bool, list[int], int]) -> np.ndarray:
    """One picture (3, h, w) and its variants (V, 3, h, w); a job is the picture, whether to mirror, a seed, V."""
    image, mirror, seed, count = job
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    rng = np.random.default_rng(seed)
    images = [pixels, *(vary(pixels, rng, mirror=mirror) for _ in range(count - 1))]
    return np.stack(images).transpose(0, 3, 1, 2)


def main() -> int:
    """Write the variants of the pictures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("images", type=Path, nargs="+", help="what vqtool encode takes, on white, with captions")
    parser.add_argument("--variants", type=int, default=4, help="of each picture, itself among them (default: 4)")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default: 128)")
    parser.add_argument("--styles", nargs="+", default=[], help="first folders of ids to take (default: all)")
    parser.add_argument(
        "--no-genders", action="store_true", help="leave out emoji that are joined with a man, a woman or a gender"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--part", default="0/1", help="I/N: of N parts only the one of number I, from 0 on (default: 0/1)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.variants < 1:
        parser.error("--variants must be at least 1")
    part, parts = (int(number) for number in options.part.split("/"))
    try:
        found = find_images(options.images, SourceOptions(labels="none"))
        items = [item for item in found if is_wanted(item.id, options.styles, genders=not options.no_genders)]
        batch = read_images(items[part::parts], options.size)
    except VqtoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    captions = [item.captions for item in batch.items]

    def jobs() -> Iterator[tuple[np.ndarray, bool, list[int], int]]:
        for row, (image, item) in enumerate(zip(batch.images, batch.items, strict=True)):
            seed = [options.seed, part + row * parts]  # the same, however many parts there are
            yield image, can_mirror(item.id, " ".join(captions[row])), seed, options.variants

    total = len(batch) * options.variants
    sides = batch.images.shape[1:]
    partial = options.output.with_name(options.output.name + ".partial")
    with ProcessPoolExecutor(-(-(os.cpu_count() or 1) // parts)) as pool, h5py.File(partial, "w") as file:
        images = file.create_dataset("images", (total, *sides), np.uint8, chunks=(1, *sides))
        for row, made in enumerate(pool.map(variants, jobs(), chunksize=16)):
            images[row * options.variants : (row + 1) * options.variants] = made
        ids = [f"{id}#{variant}" for id in batch.ids for variant in range(options.variants)]
        file.create_dataset("id", data=ids, dtype=h5py.string_dtype())
        if any(captions):
            table = np.full((total, max(map(len, captions))), "", object)
            for row, own in enumerate(captions):
                table[row * options.variants : (row + 1) * options.variants, : len(own)] = own
            file.create_dataset("caption", data=table, dtype=h5py.string_dtype(), compression="gzip")
    partial.replace(options.output)
    print(f"{options.output}: {total} pictures, {options.variants} of each", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
