"""`vqtool vary`: pictures like those given."""

from typing import Annotated

import typer

from vqtool.cli.editing import EditFlags, Sources, Unchanged, edit
from vqtool.cli.main import command
from vqtool.cli.runs import RunFlags
from vqtool.cli.sampling import SamplingFlags


@command
def vary(
    *,
    sources: Sources,
    strength: Annotated[
        float, typer.Option("--strength", "-s", help="0 gives the picture itself, 1 one that has nothing of it.")
    ] = 0.4,
    flags: EditFlags,
    sampling: SamplingFlags,
    run_flags: RunFlags,
) -> None:
    """Make pictures like those given.

    Each starts from its own grid made noisy to t = strength * T, x_t ~ q(x_t | x_0), and is made clean again; samplers
    that never revise a token mask what is lost at t. Token grids are written, unless -o names pictures.

    Examples:

        vqtool vary tok.h5 --strength 0.4 -n 4 | vqtool decode -o variants.png

        vqtool vary imgs/ --strength 0.7 --caption "a blue cat" --cfg-scale 3 -o variants/
    """
    from vqtool.samplers import check_strength

    check_strength(strength)
    edit("vary", sources, flags, run_flags, sampling, Unchanged, strength=strength, details={"strength": strength})
