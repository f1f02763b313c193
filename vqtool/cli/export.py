"""`vqtool export`: artifacts -> other projects' files."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.console import echo
from vqtool.cli.main import command
from vqtool.cli.options import Force, TokenizerOption


@command
def export(
    file: Annotated[Path, typer.Argument(help="Prior or tokenizer.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("exported"),
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers: text priors and VQGANs. taming: VQGANs. onnx: all.",
            autocompletion=lambda: ["diffusers", "taming", "onnx"],
        ),
    ] = "diffusers",
    tokenizer: TokenizerOption = None,
    force: Force = False,
) -> None:
    """Convert an artifact into the files of another project.

    diffusers: a text prior with its tokenizer and text encoder becomes the folder of a VQDiffusionPipeline or, if it is
    one of aMUSEd's, of an AmusedPipeline; a VQGAN that of a VQModel. taming: a VQGAN becomes model.ckpt and model.yaml.
    What a format cannot hold is refused. onnx (extra vqtool[onnx]): the networks of any prior or tokenizer as
    .onnx files, which ONNX Runtime runs, and a README of their inputs and outputs.

    Examples:

        vqtool export ithq.safetensors -o ithq/

        vqtool export tokenizer.safetensors --format taming -o vqgan/

        vqtool export prior.safetensors --format onnx -o networks/
    """
    from vqtool.interop.exporting import export as export_artifact

    for note in export_artifact(file, output, format, tokenizer=tokenizer, force=force):
        echo(note)
    echo(f"wrote {output}: {file} for {format}")
