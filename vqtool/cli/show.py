"""`vqtool show`: a preview of images or of decoded grids."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.main import command
from vqtool.cli.options import SOURCE_OPTIONS, Force, Strict, TokenizerOption


@command
def show(
    sources: Annotated[
        list[Path], typer.Argument(help="A grid file (- is stdin), or images as for `encode`.", show_default=False)
    ],
    source_options: Annotated[dict[str, Any], SOURCE_OPTIONS],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path("preview.png"),
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=400, help="At most so many pictures.")] = 64,
    columns: Annotated[int | None, typer.Option("--columns", min=1, help="Pictures a row.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Pixels of images. Default: their own; 128 if they differ.")
    ] = None,
    tokenizer: TokenizerOption = None,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Draw one preview of pictures, with their captions, labels or ids under them.

    Examples:

        vqtool show tok.h5 -o preview.png

        vqtool show decoded/ -n 16 -o preview.png
    """
    from vqtool.cli.console import echo
    from vqtool.cli.inputs import Skipped
    from vqtool.errors import count_text
    from vqtool.images import SourceOptions
    from vqtool.tokenizers.preview import draw_preview

    skipped = Skipped(strict, output)
    shown = draw_preview(
        sources,
        output,
        num=num,
        columns=columns,
        size=size,
        tokenizer=tokenizer,
        options=SourceOptions(**source_options),
        on_error=skipped.on_error,
        force=force,
    )
    echo(f"wrote {count_text(shown, 'picture')} to {'stdout' if str(output) == '-' else output}")
    skipped.finish()
