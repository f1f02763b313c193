"""`vqtool inpaint`: a part of each picture drawn again."""

from typing import Annotated

import typer

from vqtool.cli.editing import EditFlags, Sources, edit
from vqtool.cli.main import command
from vqtool.cli.sampling import Feather, SamplingFlags


@command
def inpaint(
    *,
    sources: Sources,
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            "-m",
            help="What is drawn again: left-half, right-half, top-half, bottom-half, center, box:TOP,LEFT,HEIGHT,WIDTH "
            "(pixels), random:SHARE (of the cells), or an image, white or (with alpha) opaque there.",
            show_default=False,
        ),
    ],
    flags: EditFlags,
    feather: Feather = 0,
    paste: Annotated[
        bool,
        typer.Option("--paste/--no-paste", help="Images to pictures: put pixels outside of the mask back, or not."),
    ] = True,
    masked: Annotated[
        bool, typer.Option("--masked", help="Write masked grids, for `vqtool complete`, and draw nothing.")
    ] = False,
    how: SamplingFlags,
) -> None:
    """Draw a part of each picture again.

    Every cell that the mask touches is drawn again; all other tokens stay exactly as they are. Token grids are written,
    unless -o names pictures. Pictures that were made of images get back the pixels outside of the mask.

    Examples:

        vqtool inpaint tok.h5 --mask left-half -n 4 --purity | vqtool decode -o halves.png

        vqtool inpaint imgs/ --mask box:16,16,32,32 --feather 3 --caption "a red cat" -o mended/

        vqtool inpaint tok.h5 --mask random:0.5 --masked | vqtool complete - -o filled.h5
    """
    edit(sources, flags, how, mask=mask, feather=feather, paste=paste, masked=masked)
