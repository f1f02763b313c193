"""`vqtool complete`: masked grids filled."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.editing import EditFlags, edit
from vqtool.cli.main import command
from vqtool.cli.sampling import EditSamplingFlags


@command
def complete(
    *,
    grids: Annotated[Path, typer.Argument(help="Masked grids (see docs/formats.md); - is stdin.")] = Path("-"),
    flags: EditFlags,
    how: EditSamplingFlags,
) -> None:
    """Fill the masked cells of token grids.

    Known tokens stay exactly as they are. Token grids are written, unless -o names pictures.

    Examples:

        vqtool complete masked.h5 --purity -n 4 | vqtool decode -o filled.png

        vqtool inpaint tok.h5 --mask center --masked | vqtool complete --caption "a cat" -o filled.h5
    """
    edit([grids], flags, how)
