"""`vqtool vary`: variations of pictures."""

from typing import Annotated

import typer

from vqtool.cli.editing import EditFlags, Sources, edit
from vqtool.cli.help import METHOD
from vqtool.cli.main import command
from vqtool.cli.sampling import EditImageFlags


@command
def vary(
    *,
    sources: Sources,
    flags: EditFlags,
    strength: Annotated[
        float,
        typer.Option("--strength", "-s", help="0: the picture itself; 1: nothing of it.", rich_help_panel=METHOD),
    ] = 0.4,
    how: EditImageFlags,
) -> None:
    """Make pictures like those given.

    Each starts from its own grid made noisy to t = strength * T, x_t ~ q(x_t | x_0), and is made clean again; samplers
    that never revise a token mask those that are lost at t. Of grids token grids are written, unless -o names pictures;
    images stay images of their size, but are drawn at the size that the prior knows.

    Examples:

        vqtool vary tok.h5 --strength 0.4 -n 4 | vqtool decode -o variants.png

        vqtool vary imgs/ --strength 0.7 --caption "a blue cat" --cfg-scale 3 -o variants/
    """
    edit(sources, flags, how, strength=strength)
