"""`vqtool show`: a preview of images or of decoded grids."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Force, Strict, TokenizerOption
from vqtool.errors import VqtoolError

MIXED_SIZE = (128, 128)  # of images of several sizes


@command
def show(
    sources: Annotated[
        list[Path], typer.Argument(help="A grid file (- is stdin), or images as for `encode`.", show_default=False)
    ],
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
    from vqtool.grids import open_grids
    from vqtool.images import find_images, parse_size, read_batches
    from vqtool.images.writer import PreviewWriter
    from vqtool.metrics.report import common_size
    from vqtool.metrics.tokens import holds_grids
    from vqtool.tokenizers import tokenizer_of
    from vqtool.tokenizers.batches import decode_batch

    skipped, are_grids = Skipped(strict), holds_grids(sources[0])
    if are_grids and size is not None:
        raise VqtoolError(f"--size is for images, but {sources[0]} holds token grids")
    if not are_grids and tokenizer is not None:
        raise VqtoolError(f"--tokenizer is for token grids, but {sources[0]} holds images")
    with PreviewWriter(output, columns=columns, force=force) as writer:
        if are_grids:
            if len(sources) > 1:
                raise VqtoolError("one grid file at a time; `vqtool cat a.h5 b.h5 | vqtool show -` joins several")
            with open_grids(sources[0]) as reader:
                model = tokenizer_of(reader.header, sources[0], given=tokenizer)
                for batch in islice(reader.batches(1), num):
                    writer.write(decode_batch(batch, model), batch.ids, batch.labels, batch.captions)
        else:
            items = find_images(sources)[:num]
            image_size = parse_size(size) if size else common_size(items) or MIXED_SIZE
            for found in read_batches(items, image_size, 64, on_error=skipped.on_error):
                writer.write(found.images, found.ids, found.labels, found.captions)
    echo(f"wrote {writer.num_images} pictures to {'stdout' if str(output) == '-' else output}")
    skipped.finish()
