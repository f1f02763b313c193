"""`vqtool inpaint`: a part of each picture drawn again."""

from typing import Annotated

import typer

from vqtool.cli.editing import EditFlags, Sources, edit
from vqtool.cli.help import INPUT_OUTPUT, METHOD, advanced
from vqtool.cli.main import command
from vqtool.cli.options import names
from vqtool.cli.sampling import EditImageFlags, Feather


@command
def inpaint(
    *,
    sources: Sources,
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            "-m",
            help="left-half, center, ..., box:TOP,LEFT,HEIGHT,WIDTH, random:SHARE, an image.",
            autocompletion=names("samplers/masks.py", "NAMED"),
            show_default=False,
        ),
    ],
    flags: EditFlags,
    feather: Feather = 0,
    paste: Annotated[
        bool,
        typer.Option(
            "--paste/--no-paste",
            help="Pictures: put pixels outside of the mask back.",
            rich_help_panel=advanced(INPUT_OUTPUT),
        ),
    ] = True,
    context: Annotated[
        float,
        typer.Option(
            "--context",
            help="Pictures: how many times as high and wide as the mask what the prior sees is.",
            rich_help_panel=advanced(METHOD),
        ),
    ] = 2.0,
    masked: Annotated[
        bool,
        typer.Option("--masked", help="Write masked grids, draw nothing.", rich_help_panel=advanced(INPUT_OUTPUT)),
    ] = False,
    how: EditImageFlags,
) -> None:
    """Draw a part of each picture again.

    The mask is left-half, right-half, top-half, bottom-half, center, a box (in pixels), a share of the cells at random,
    or an image that is white, or with alpha opaque, there. Every cell that the mask touches is drawn again; all other
    tokens stay exactly as they are, and grids are written unless -o names pictures. Images stay images of their size:
    a window around the mask is encoded and drawn, and all pixels outside of the mask are those of the original.

    Examples:

        vqtool inpaint tok.h5 --mask left-half -n 4 --purity | vqtool decode -o halves.png

        vqtool inpaint imgs/ --mask box:16,16,32,32 --feather 3 --caption "a red cat" -o mended/

        vqtool inpaint crow.png --mask apple-mask.png --caption "a red apple" -n 4 | vqtool decode -o apples/

        vqtool inpaint tok.h5 --mask random:0.5 --masked | vqtool complete - -o filled.h5
    """
    edit(sources, flags, how, mask=mask, feather=feather, paste=paste, context=context, masked=masked)
