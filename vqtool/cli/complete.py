"""`vqtool complete`: masked grids filled."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.editing import Change, EditFlags, Unchanged, edit
from vqtool.cli.main import command
from vqtool.cli.runs import RunFlags
from vqtool.cli.sampling import SamplingFlags
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.grids import GridHeader


@command
def complete(
    *,
    grids: Annotated[Path, typer.Argument(help="Partial grids (see docs/formats.md); - is stdin.")] = Path("-"),
    flags: EditFlags,
    sampling: SamplingFlags,
    run_flags: RunFlags,
) -> None:
    """Fill the masked cells of token grids.

    Known tokens stay exactly as they are. Token grids are written, unless -o names pictures.

    Examples:

        vqtool complete partial.h5 --purity -n 4 | vqtool decode -o filled.png

        vqtool inpaint tok.h5 --mask center --masked | vqtool complete --caption "a cat" -o filled.h5
    """

    def change(header: "GridHeader") -> Change:
        if not header.masked:
            raise VqtoolError(f"{grids}: has no masked cells to fill; `vqtool inpaint` makes parts of whole grids anew")
        return Unchanged(replace(header, masked=False))

    edit("complete", [grids], flags, run_flags, sampling, change, details={})
