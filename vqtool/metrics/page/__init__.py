"""The report page: one HTML file that needs no network and runs no code, with scores, card, pictures and curves.

Every text that comes from outside (names of files, labels, captions, values of options) is escaped, and the page's own
policy lets it load nothing and run nothing, whatever is in it.
"""

import base64
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqtool.metrics.exhibits import Curve, Picture, Sheet
from vqtool.metrics.page._curves import draw
from vqtool.metrics.page._style import STYLE
from vqtool.metrics.page._text import show
from vqtool.metrics.report import Report
from vqtool.outputs import atomic_path

_LARGEST = 128  # pixels a side of a picture on the page; larger ones are reduced
_SMALLEST = 64  # that smaller ones are shown in
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(report: Report, path: str | Path, *, force: bool = False) -> None:
    """Write a report as a page.

    Args:
        report: what is shown.
        path: the file, .html.
        force: overwrite what is there.

    Raises:
        VqtoolError: the file exists and `force` is off, or it cannot be written.
    """
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(draw_page(report), encoding="utf-8", errors="backslashreplace")


def draw_page(report: Report) -> str:
    """The page as text."""
    sides = [", ".join(map(str, report.about.get(side, []))) for side in ("inputs", "reference_inputs")]
    title = f"vqtool eval: {' against '.join(filter(None, sides))}"
    body = "\n".join(
        [
            f"<h1>{show(title)}</h1>",
            f'<p class="headline">{show(report.headline)}</p>',
            *(f'<p class="warning">{show(warning)}</p>' for warning in report.warnings),
            '<div class="columns">',
            _section("Scores", _table(("score", "value", "± error", "better"), report.rows())),
            _section("Card", _table(("what the scores depend on", ""), report.card.rows())) if report.card else "",
            "</div>",
            *_classes(report),
            *(_section(each.title, _note(each.note) + _exhibit(each)) for each in report.exhibits),
            *_unreadable(report),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{show(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{show(title)}</h2>{content}</section>"


def _note(text: str) -> str:
    return f"<p>{show(text)}</p>" if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{show(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def _classes(report: Report) -> Iterator[str]:
    if report.per_class:
        head, rows = report.class_table()
        yield _section("Per class", _table(head, rows))


def _unreadable(report: Report) -> Iterator[str]:
    for side, names in report.unreadable.items():
        if names:
            listed = "".join(f"<li>{show(name)}</li>" for name in names)
            yield _section(f"Unreadable: {side}", f"<ul>{listed}</ul>")


def _exhibit(exhibit: Sheet | Curve) -> str:
    if isinstance(exhibit, Curve):
        return draw(exhibit)
    rows = "".join(f'<div class="row">{"".join(map(_figure, row))}</div>' for row in exhibit.rows)
    return f'<div class="sheet">{rows}</div>'


def _figure(picture: Picture) -> str:
    return f"<figure>{_image(picture.pixels, picture.text)}<figcaption>{show(picture.text)}</figcaption></figure>"


def _image(pixels: NDArray[np.uint8], text: str) -> str:
    if not pixels.size:
        return '<div class="none">not at hand</div>'
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    scale = _LARGEST / max(image.size)
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=6)
    factor = max(1, math.ceil(_SMALLEST / max(image.size)))
    size = f'width="{image.width * factor}" height="{image.height * factor}"'
    return f'<img {size} alt="{show(text)}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
