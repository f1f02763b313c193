"""`vqtool inpaint`: a part of each picture made anew."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.editing import Change, EditFlags, Sources, edit
from vqtool.cli.main import command
from vqtool.cli.runs import RunFlags
from vqtool.cli.sampling import SamplingFlags
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.grids import GridHeader


@command
def inpaint(
    *,
    sources: Sources,
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            "-m",
            help="What is made anew: left-half, right-half, top-half, bottom-half, center, box:TOP,LEFT,HEIGHT,WIDTH "
            "(pixels), random:SHARE (cells), or an image of the pictures' size, white where made anew.",
            show_default=False,
        ),
    ],
    flags: EditFlags,
    feather: Annotated[
        int, typer.Option("--feather", min=0, max=256, help="Images to pictures: width of the soft edge, pixels.")
    ] = 0,
    paste: Annotated[
        bool,
        typer.Option("--paste/--no-paste", help="Images to pictures: put pixels outside of the mask back, or not."),
    ] = True,
    masked: Annotated[
        bool, typer.Option("--masked", help="Write masked grids, for `vqtool complete`, and make nothing.")
    ] = False,
    sampling: SamplingFlags,
    run_flags: RunFlags,
) -> None:
    """Make a part of each picture anew.

    Every cell that the mask touches is made anew; all other tokens stay exactly as they are. Token grids are written,
    unless -o names pictures. Pictures that were made of images get back the pixels outside of the mask.

    Examples:

        vqtool inpaint tok.h5 --mask left-half -n 4 --purity | vqtool decode -o halves.png

        vqtool inpaint imgs/ --mask box:16,16,32,32 --feather 3 --caption "a red cat" -o mended/

        vqtool inpaint tok.h5 --mask random:0.5 --masked | vqtool complete - -o filled.h5
    """
    from vqtool.samplers.editing import Repainted
    from vqtool.samplers.masks import Mask

    if feather and flags.writes_grids:
        raise VqtoolError("--feather is about pictures, but -o asks for token grids: name a folder, x.png or x.tar")
    if feather and not paste:
        raise VqtoolError("--feather softens the edge of what is pasted back, and --no-paste leaves that out")
    if masked and (not flags.writes_grids or flags.num > 1):
        raise VqtoolError("--masked writes one masked grid a picture: it goes with -o x.h5, and without -n")

    if masked and (run_flags.trajectory is not None or run_flags.dry_run):
        raise VqtoolError("--masked makes nothing: there is nothing for --trajectory to film or --dry-run to count")

    def change(header: "GridHeader") -> Change:
        cut = Mask(mask, header.image_size, header.grid_size, seed=flags.seed)
        return Repainted(replace(header, masked=masked), cut, paste=paste, feather=feather)

    details = {"mask": mask, **({"feather": feather} if feather else {})}
    edit("inpaint", sources, flags, run_flags, sampling, change, details=details)
