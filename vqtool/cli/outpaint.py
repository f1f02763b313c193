"""`vqtool outpaint`: pictures on a larger canvas."""

from typing import Annotated

import typer

from vqtool.cli.editing import EditFlags, Sources, edit
from vqtool.cli.main import command
from vqtool.cli.sampling import EditImageFlags, Feather

_HELP = "as in 4 (cells) or 32px."


@command
def outpaint(
    *,
    sources: Sources,
    left: Annotated[str, typer.Option("--left", help=f"Added on the left, {_HELP}")] = "0",
    right: Annotated[str, typer.Option("--right", help=f"Added on the right, {_HELP}")] = "0",
    top: Annotated[str, typer.Option("--top", help=f"Added at the top, {_HELP}")] = "0",
    bottom: Annotated[str, typer.Option("--bottom", help=f"Added at the bottom, {_HELP}")] = "0",
    flags: EditFlags,
    feather: Feather = 0,
    how: EditImageFlags,
) -> None:
    """Put each picture on a larger canvas and draw what is around it.

    The picture's own tokens stay exactly as they are. Grids larger than those of training are drawn in overlapping
    tiles. Of grids token grids are written, unless -o names pictures; images stay images and keep all their pixels.
    A cell is as large as where the whole picture is brought to the prior's size.

    Examples:

        vqtool outpaint tok.h5 --left 4 --right 4 --purity | vqtool decode -o wide.png

        vqtool outpaint imgs/ --bottom 32px --feather 4 -o tall/
    """
    edit(sources, flags, how, sides={"left": left, "right": right, "top": top, "bottom": bottom}, feather=feather)
