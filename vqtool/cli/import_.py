"""`vqtool import`: other projects' checkpoints -> artifacts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.flags import FlagGroup, flag_of, name_flags
from vqtool.cli.help import INPUT_OUTPUT, METHOD, advanced
from vqtool.cli.main import command
from vqtool.cli.options import Force, names

OPTIONS = FlagGroup.of_file("interop/_contract.py", panel=METHOD)
FLAGS = {name: flag_of(name) for name in ("config", "format", *(each.name for each in OPTIONS.options))}


@command
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Checkpoint, folder, owner/name or hub:owner/name/FILE on the Hugging Face hub, or zoo:NAME.",
            metavar="SRC",
        ),
    ],
    options: Annotated[dict[str, Any], OPTIONS],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Artifact to write; a prior's tokenizer and text encoder go beside it. Default: prior.safetensors or "
            "tokenizer.safetensors.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of the source. Default: found by its content.",
            autocompletion=names("interop/__init__.py", "FORMATS"),
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Its settings, YAML or JSON; none: there are none. Default: the file beside it.",
            rich_help_panel=advanced(INPUT_OUTPUT),
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Convert another project's checkpoint into artifacts of vqtool.

    The format is found by the content: VQ-Diffusion and Halton-MaskGIT (.pth), Unleashing Transformers (.th), VQ-DDM,
    taming-transformers and IBQ (.ckpt), LlamaGen (.pt), open-muse and diffusers (folders). Nothing that a pickle holds
    is executed, and the source is not changed. docs/zoo.md says what was checked of each.

    Examples:

        vqtool import coco_pretrained.pth --code-map taming_vqvae_2887.pt -o coco.safetensors

        vqtool import absorbing_ema_2000000.th --tokenizer churches-vqgan.safetensors -o churches.safetensors

        vqtool import microsoft/vq-diffusion-ithq -o ithq.safetensors

        vqtool import hub:llvictorll/Halton-MaskGIT/ImageNet_256_tiny.pth -t llamagen.safetensors -o halton.safetensors
    """
    from vqtool import interop
    from vqtool.cli.console import echo

    for line in interop.convert(source, output, format=format, config=config, force=force, **options):
        echo(name_flags(line, FLAGS))
