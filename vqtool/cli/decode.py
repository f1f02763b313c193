"""`vqtool decode`: token grids -> images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import BatchSize, Compile, Device, Force, Precision, Runtime, TokenizerOption

if TYPE_CHECKING:
    from vqtool.grids import GridHeader
    from vqtool.tokenizers import Tokenizer


@command
def decode(
    grids: Annotated[Path, typer.Argument(help="Grid file; - is stdin.")] = Path("-"),
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of PNG files; x.png; x.tar or - (a pipe): a tar."),
    ] = Path("decoded"),
    tokenizer: TokenizerOption = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "torch",
    compile: Compile = False,
    force: Force = False,
) -> None:
    """Turn token grids into images.

    Names are made from the grids' ids; labels and captions go to metadata.jsonl in the same folder. Decoding starts
    with the first batch that arrives; what an edit of images pipes in is pictures already, which are written as they
    are. x.png is the picture itself if there is one, else a preview of all. With --force, --tokenizer may be another
    one than that of the grids, if its codes and its factor fit.

    Examples:

        vqtool decode tok.h5 -o decoded/

        vqtool sample --purity | vqtool decode -o preview.png
    """
    from vqtool.cli.console import echo, progress, warn
    from vqtool.errors import count_text, size_text
    from vqtool.tokenizers.batches import decode as decode_file

    def start(header: "GridHeader", model: "Tokenizer") -> None:
        echo(f"grids of {size_text(header.grid_size)}, tokenizer {model.fingerprint} ({model.location})")

    done = decode_file(
        grids,
        output,
        tokenizer,
        batch_size=batch_size,
        device=device,
        precision=precision,
        runtime=runtime,
        compile=compile,
        force=force,
        on_start=start,
        progress=progress,
    )
    for warning in done.warnings:
        warn(warning)
    echo(f"wrote {count_text(done.num_images, 'image')} to {'stdout' if str(output) == '-' else output}")
