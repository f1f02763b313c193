"""`vqtool encode`: images -> token grids."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import BatchSize, Device, Force, Images, Strict, TokenizerOption
from vqtool.errors import VqtoolError

DEFAULT_SIZE = "64"


@command
def encode(
    images: Images,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Grid file to write; - is stdout: a stream if that is a pipe.")
    ] = Path("tok.h5"),
    tokenizer: TokenizerOption = None,
    size: Annotated[
        str,
        typer.Option("--size", help="Pixels that images are brought to: 64, or 48x80 (height x width)."),
    ] = DEFAULT_SIZE,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Turn images into token grids.

    Labels come from class folders, captions and labels from metadata.jsonl, metadata.csv or .txt files beside the
    images.

    Examples:

        vqtool encode imgs/ -o tok.h5

        vqtool encode imgs/ --size 48x80 -t tokenizer.safetensors -o - | vqtool decode -o back/
    """
    from vqtool.artifacts import history_record
    from vqtool.cli.console import echo, progress, shape
    from vqtool.cli.inputs import Skipped
    from vqtool.distributed import choose_device, own_share
    from vqtool.grids import check_output
    from vqtool.grids.shared import shared_writer
    from vqtool.images import find_images, parse_size
    from vqtool.tokenizers import BUILTIN, load_tokenizer
    from vqtool.tokenizers.batches import encode_images, grid_header

    image_size = parse_size(size)
    check_output(output, force=force)
    model = load_tokenizer(tokenizer or BUILTIN).to(choose_device(device))
    header = grid_header(model, image_size, history_record("encode", inputs={"tokenizer": model.fingerprint}))
    items, skipped = find_images(images), Skipped(strict)
    echo(f"{len(items)} images at {shape(image_size)} -> grids of {shape(header.grid_size)} tokens")
    echo(f"tokenizer {model.fingerprint} ({model.location})")
    own = own_share(items)
    with shared_writer(output, header, force=force) as writer, progress("encode", len(own)) as advance:
        for batch in encode_images(own, model, image_size, batch_size=batch_size, on_error=skipped.on_error):
            writer.write(batch)
            advance(len(batch))
        if skipped.count == len(items):
            raise VqtoolError(f"none of the {len(items)} images could be read")
    echo(f"wrote {writer.num_grids} grids to {'stdout' if str(output) == '-' else output}")
    skipped.finish()
