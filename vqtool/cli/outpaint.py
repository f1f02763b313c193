"""`vqtool outpaint`: pictures on a larger canvas."""

from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.editing import Change, EditFlags, Sources, edit
from vqtool.cli.main import command
from vqtool.cli.runs import RunFlags
from vqtool.cli.sampling import SamplingFlags

if TYPE_CHECKING:
    from vqtool.grids import GridHeader

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
    feather: Annotated[
        int, typer.Option("--feather", min=0, max=256, help="Images to pictures: width of the soft edge, pixels.")
    ] = 0,
    sampling: SamplingFlags,
    run_flags: RunFlags,
) -> None:
    """Put each picture on a larger canvas and make what is around it.

    The picture's own tokens stay exactly as they are. What is larger than the prior's training pictures is seen through
    overlapping windows. Token grids are written, unless -o names pictures; those that were made of images keep their
    pixels.

    Examples:

        vqtool outpaint tok.h5 --left 4 --right 4 --purity | vqtool decode -o wide.png

        vqtool outpaint imgs/ --bottom 32px --feather 4 -o tall/
    """
    from vqtool.samplers.editing import enlarge

    sides = {"top": top, "bottom": bottom, "left": left, "right": right}

    def change(header: "GridHeader") -> Change:
        return enlarge(header, sides, feather=feather)

    edit("outpaint", sources, flags, run_flags, sampling, change, details=dict(sides))
