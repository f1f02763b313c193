"""`vqtool decode`: token grids -> images."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import BatchSize, Device, Force, TokenizerOption


@command
def decode(
    grids: Annotated[Path, typer.Argument(help="Grid file; - is stdin.")] = Path("-"),
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of PNG files; x.png: a preview; x.tar or - (a pipe): a tar."),
    ] = Path("decoded"),
    tokenizer: TokenizerOption = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Turn token grids into images.

    Names are made from the grids' ids; labels and captions go to metadata.jsonl in the same folder. Decoding starts
    with the first batch that arrives.

    Examples:

        vqtool decode tok.h5 -o decoded/

        vqtool sample --purity | vqtool decode -o preview.png
    """
    from vqtool.cli.console import echo, progress, shape, warn
    from vqtool.distributed import choose_device, is_main_process, rank, wait_for_all, world_size
    from vqtool.grids import open_grids
    from vqtool.grids.stream import is_stream
    from vqtool.images.writer import FolderWriter, PreviewWriter, writer_type
    from vqtool.tokenizers import tokenizer_of
    from vqtool.tokenizers.batches import decode_batch

    kind = writer_type(output)
    shared = kind is FolderWriter and not is_stream(grids)  # a pipe, a tar and a preview are one process's work
    if not shared and not is_main_process():
        return
    with kind(output, force=force) as writer, open_grids(grids) as reader:
        if shared:
            wait_for_all()  # until every process has seen that the folder is free
        model = tokenizer_of(reader.header, grids, given=tokenizer).to(choose_device(device))
        echo(f"grids of {shape(reader.header.grid_size)}, tokenizer {model.fingerprint} ({model.location})")
        with progress("decode", reader.num_grids) as advance:
            for number, batch in enumerate(reader.batches(batch_size)):
                if shared and isinstance(writer, FolderWriter) and number % world_size() != rank():
                    writer.pass_over(batch.ids, batch.labels, batch.captions)
                else:
                    images = decode_batch(batch, model)
                    writer.write(images, batch.ids, batch.labels, batch.captions)
                advance(len(batch))
    if isinstance(writer, PreviewWriter) and writer.num_dropped:
        warn(f"{writer.num_dropped} images did not fit on the preview and were left out")
    if isinstance(writer, FolderWriter) and writer.num_others:
        warn(f"{writer.num_others} files that were in {output} before are still there")
    echo(f"wrote {writer.num_images} images to {'stdout' if str(output) == '-' else output}")
