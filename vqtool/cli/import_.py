"""`vqtool import`: other projects' checkpoints -> artifacts."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.console import echo
from vqtool.cli.help import INPUT_OUTPUT, NETWORK, advanced
from vqtool.cli.main import command
from vqtool.cli.options import Force, one_of

WEIGHTS = ("ema", "raw")


@command
def import_(
    source: Annotated[
        str, typer.Argument(help="Checkpoint, diffusers folder, or owner/name on the Hugging Face hub.", metavar="SRC")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Artifact to write; a prior's tokenizer and text encoder go beside it. Default: prior.safetensors or "
            "tokenizer.safetensors.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--format", help="Of the source. Default: found by its content.")] = None,
    weights: Annotated[str, typer.Option("--weights", help="ema or raw, where a checkpoint holds both.")] = "ema",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Its settings, YAML or JSON. Default: the one beside it.",
            show_default=False,
            rich_help_panel=advanced(INPUT_OUTPUT),
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Artifact that the tokens are of, where the source holds none."),
    ] = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(
            "--text-encoder",
            help="Artifact that captions are read with, where the source holds none.",
            rich_help_panel=advanced(INPUT_OUTPUT),
        ),
    ] = None,
    code_map: Annotated[
        Path | None,
        typer.Option(
            "--code-map",
            help="Full -> reduced codes: VQ-Diffusion's taming_vqvae_2887.pt.",
            rich_help_panel=advanced(INPUT_OUTPUT),
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads", min=1, help="Attention heads, where the source does not say.", rich_help_panel=advanced(NETWORK)
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            help="Cells, 32 or 24x32 (height x width), where the source does not say.",
            rich_help_panel=advanced(NETWORK),
        ),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            "--vocabulary",
            help="Of captions, where the source has none of its own: a folder.",
            rich_help_panel=advanced(INPUT_OUTPUT),
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Convert another project's checkpoint into artifacts of vqtool.

    The format is found by the content: VQ-Diffusion (.pth), Unleashing Transformers (.th), VQ-DDM (.ckpt),
    taming-transformers (.ckpt), LlamaGen (.pt), open-muse and diffusers (folders). Nothing that a pickle holds is
    executed, and the source is not changed.

    Examples:

        vqtool import coco_pretrained.pth --code-map taming_vqvae_2887.pt -o coco.safetensors

        vqtool import absorbing_ema_2000000.th --tokenizer churches-vqgan.safetensors -o churches.safetensors

        vqtool import microsoft/vq-diffusion-ithq -o ithq.safetensors
    """
    from vqtool import interop
    from vqtool.artifacts import history_record
    from vqtool.conditions.text_encoders import load_text_encoder
    from vqtool.images import parse_size
    from vqtool.tokenizers import load_tokenizer

    one_of("--weights", weights, WEIGHTS)
    if name is not None:
        interop.module(name)
    path = interop.find_source(source)
    found = interop.read_source(path, config)
    name = name or interop.recognise(found)
    echo(f"{source}: {name}")
    options = interop.Options(
        weights=weights,
        num_heads=heads,
        grid_size=parse_size(grid, "--grid", "cells") if grid else None,
        tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
        text_encoder=load_text_encoder(text_encoder) if text_encoder else None,
        code_map=interop.read_code_map(code_map) if code_map else None,
        vocabulary=vocabulary,
    )
    imported = interop.load(found, options, name)
    for note in imported.notes:
        echo(note)
    record = history_record("import", source=source, format=name, notes=imported.notes)
    for what, file, fingerprint in interop.save(imported, output, record=record, force=force):
        echo(f"wrote {file}: {what} {fingerprint}")
