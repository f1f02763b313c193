"""Pictures that move: frames -> one WebP, GIF or animated PNG file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, features

from vqtool.errors import VqtoolError
from vqtool.outputs import atomic_path, refuse_existing

FORMATS = {".webp": "WEBP", ".gif": "GIF", ".png": "PNG"}
HELD = 2000  # milliseconds that the last frame stands
_QUALITY = 90  # of WebP; without loss a preview is five times as large


def check_animation(path: Path, *, force: bool) -> None:
    """Raise unless an animation may be written at `path`: called early, before any work is done.

    Raises:
        VqtoolError: no known format, or the file exists and `force` is off.
    """
    if path.suffix.lower() not in FORMATS:
        raise VqtoolError(f"{path}: an animation is a {', '.join(FORMATS)} file: name one of them")
    if path.suffix.lower() == ".webp" and not features.check("webp"):
        raise VqtoolError(f"{path}: this Pillow was built without WebP: name a .gif or .png file")
    refuse_existing(path, force=force)


def save_animation(
    frames: Sequence[Image.Image], path: Path, *, milliseconds: int, held: int = HELD, force: bool = False
) -> None:
    """Write frames that repeat for ever: whole or not at all.

    Args:
        frames: at least one, all of one size.
        path: *.webp, *.gif or *.png.
        milliseconds: that a frame stands.
        held: milliseconds that the last one stands.
        force: overwrite an existing file.

    Raises:
        VqtoolError: as for ``check_animation``.
    """
    if not frames:
        raise ValueError("an animation of no frames")
    check_animation(path, force=force)
    kind = FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {"quality": _QUALITY, "method": 4} if kind == "WEBP" else {}
    times = [milliseconds] * (len(frames) - 1) + [held]
    with atomic_path(path, force=force) as unfinished:
        frames[0].save(
            unfinished, kind, save_all=True, append_images=list(frames[1:]), duration=times, loop=0, **options
        )
