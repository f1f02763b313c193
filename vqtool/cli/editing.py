"""What the commands that edit pictures share: their flags, and how these go to the library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.console import echo, progress
from vqtool.cli.help import METHOD, advanced
from vqtool.cli.inputs import Skipped
from vqtool.cli.options import EDIT_SOURCE_OPTIONS, PRIOR_HELP, Device, RareForce, RareSeed, RareTokenizer, Strict
from vqtool.cli.sampling import Purity, load_named_prior, sampling_arguments, text_arguments

Sources = Annotated[
    list[Path],
    typer.Argument(help="Grids (- is stdin), or images as for `encode`.", show_default=False),
]


@dataclass(frozen=True, kw_only=True)
class EditFlags:
    """What to edit with, how often, and where to."""

    prior: Annotated[Path | None, typer.Option("--prior", "-p", help=PRIOR_HELP, show_default=False)] = None
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="folder/, x.png, x.tar; grids: x.h5; - is stdout.", show_default=False),
    ] = Path("-")
    variants: Annotated[int, typer.Option("--num", "-n", help="Variants of each picture.")] = 1
    label: Annotated[str | None, typer.Option("--label", help="Class. Default: each picture's own.")] = None
    caption: Annotated[str | None, typer.Option("--caption", help="Caption. Default: each picture's own.")] = None
    force: RareForce = False
    purity: Purity = False
    seed: RareSeed = 0
    size: Annotated[
        str | None,
        typer.Option("--size", help="Pixels of its window. Default: as in training.", rich_help_panel=advanced(METHOD)),
    ] = None
    tokenizer: RareTokenizer = None
    device: Device = "auto"
    strict: Strict = False


def edit(sources: Sequence[Path], flags: EditFlags, how: dict[str, Any], **change: Any) -> None:
    """Edit pictures of files as flags say.

    Args:
        sources: grids, or images.
        flags: what with, how often, where to.
        how: further flags.
        change: what is done to the pictures: arguments of `edit_to_file`.
    """
    from vqtool.distributed import choose_device
    from vqtool.errors import count_text
    from vqtool.images import SourceOptions
    from vqtool.samplers.editing import edit_to_file

    how = sampling_arguments(how, flags.purity)
    chosen = {each.name: how.pop(each.name) for each in EDIT_SOURCE_OPTIONS.options if each.name in how}
    skipped = Skipped(flags.strict, flags.output)
    prior = load_named_prior(flags.prior).to(choose_device(flags.device))
    label, caption = ([text] if text is not None else None for text in (flags.label, flags.caption))
    how |= text_arguments(prior, label, caption, None)
    done = edit_to_file(
        prior,
        sources,
        flags.output,
        options=SourceOptions(**chosen),
        on_error=skipped.on_error,
        notify=echo,
        progress=progress,
        **{name: getattr(flags, name) for name in ("variants", "size", "tokenizer", "seed", "force")},
        **change,
        **how,
    )
    if not how.get("dry_run"):
        where = "stdout" if str(flags.output) == "-" else flags.output
        echo(f"wrote {count_text(done.num, 'picture')} to {where}: {done}")
    skipped.finish()
