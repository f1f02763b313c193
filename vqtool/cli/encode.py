"""`vqtool encode`: images -> token grids."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import INPUT_OUTPUT, advanced
from vqtool.cli.main import command
from vqtool.cli.options import (
    BatchSize,
    Compile,
    Device,
    Engine,
    Force,
    Images,
    Partial,
    Precision,
    Resume,
    ResumeAuto,
    Runtime,
    Strict,
    TokenizerOption,
)

if TYPE_CHECKING:
    from vqtool.grids import GridHeader


Output = Annotated[Path, typer.Option("--output", "-o", help="Grid file to write; - is stdout, a stream in a pipe.")]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        help="Pixels that images are brought to: 64, or 48x80 (height x width).",
        show_default="64, or the tokenizer's only size",
    ),
]
PerFile = Annotated[
    int | None,
    typer.Option("--per-file", help="A shard is so many images.", rich_help_panel=advanced(INPUT_OUTPUT)),
]
ImageFlags = Annotated[
    dict[str, Any], FlagGroup.of_file("images/sources/options.py", "SourceOptions", panel=INPUT_OUTPUT)
]


@command
def encode(
    images: Images,
    source_options: ImageFlags,
    output: Output = Path("tok.h5"),
    tokenizer: TokenizerOption = None,
    size: Size = None,
    per_file: PerFile = None,
    partial: Partial = None,
    engine: Engine = "local",
    batch_size: BatchSize = 32,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "torch",
    compile: Compile = False,
    strict: Strict = False,
    resume: Resume = False,
    resume_auto: ResumeAuto = None,
    force: Force = False,
) -> None:
    """Turn images into token grids.

    Labels come from class folders, captions and labels from metadata.jsonl, metadata.csv or .txt files beside the
    images; what is there and cannot be used is told. Until all is done, what is done is kept beside the output, in
    tok.partial.h5. -o tok-{shard}.h5 makes a file of each input, by all processes that share them: docs/scale.md.

    Examples:

        vqtool encode imgs/ -o tok.h5

        vqtool encode imgs/ --size 48x80 -t tokenizer.safetensors -o - | vqtool decode -o back/

        vqtool encode imgs/ -o tok.h5 --resume

        vqtool encode flickr8k/Images --captions flickr8k/captions.txt -o tok.h5

        vqtool encode shards/*.tar --partial 1/2 -o tok-{shard:05d}.h5 --resume
    """
    from vqtool.cli.console import echo, progress
    from vqtool.cli.inputs import Skipped
    from vqtool.errors import count_text
    from vqtool.images import SourceOptions, parse_size
    from vqtool.outputs import is_pattern
    from vqtool.tokenizers import BUILTIN
    from vqtool.tokenizers.encoding import encode as encode_files
    from vqtool.tokenizers.shards import encode_shards
    from vqtool.urls import url_of

    in_shards = is_pattern(output) or per_file is not None or partial is not None or engine != "local"
    skipped = Skipped(strict, None if in_shards else output)
    how: dict[str, Any] = {
        "options": SourceOptions(**source_options),
        "image_size": None if size is None else parse_size(size),
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "runtime": runtime,
        "compile": compile,
        "force": force,
        "on_error": skipped.on_error,
        "progress": progress,
    }
    if in_shards:
        shared: dict[str, Any] = {"per_file": per_file, "partial": partial, "engine": engine, "notify": echo}
        shared |= {"resume": resume or bool(resume_auto)}
        echo(encode_shards(images, output, tokenizer or BUILTIN, **shared, **how).line)
    else:
        begun: list[int] = []

        def start(header: "GridHeader", num: int) -> None:
            begun.append(num)
            _tell_start(header, num)

        num = encode_files(images, output, tokenizer or BUILTIN, resume=resume_auto or resume, on_start=start, **how)
        if begun:
            echo(f"wrote {count_text(num, 'grid')} to {'stdout' if str(output) == '-' else url_of(output) or output}")
    skipped.finish()


def _tell_start(header: "GridHeader", num: int) -> None:
    """Say what is made of what."""
    from vqtool.cli.console import echo
    from vqtool.errors import count_text, size_text

    shape = size_text(header.grid_size)
    echo(f"{count_text(num, 'image')} at {size_text(header.image_size)} -> grids of {shape} tokens")
    echo(f"tokenizer {header.tokenizer_fingerprint} ({header.tokenizer_location})")
