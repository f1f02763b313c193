"""`vqtool eval stats`: images -> statistics of their features, in a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import METHOD
from vqtool.cli.main import command
from vqtool.cli.options import SOURCE_OPTIONS, Device, Force, Strict


@command
def eval_stats(
    *,
    sources: Annotated[list[Path], typer.Argument(help="Images, or token grids (- is stdin).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .npz.")] = Path("stats.npz"),
    source_options: Annotated[dict[str, Any], SOURCE_OPTIONS],
    options: Annotated[dict[str, Any], FlagGroup.of_file("metrics/saving.py", "StatisticsOptions", panel=METHOD)],
    device: Device = "auto",
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Save statistics of images, which `eval --ref` takes in their place.

    The file holds mean and covariance of the features as `mu` and `sigma`, as those of pytorch-fid and of ADM do, which
    `eval` takes too: Fréchet distances can be computed from it, of any number of pictures. With --keep-features it
    holds the features too, and everything can be computed. Several processes or machines each do a part, --partial
    1/4 to 4/4, and `vqtool eval merge` joins what they write; or --engine ray has tasks of a cluster do the parts.

    Examples:

        vqtool eval stats imgs/ -o ref.npz

        vqtool eval stats imgs/ --partial 1/2 --keep-features -o part1.npz

        vqtool eval decoded/ --ref ref.npz
    """
    from vqtool.cli.console import echo, progress
    from vqtool.cli.inputs import Skipped
    from vqtool.distributed import is_main_process
    from vqtool.metrics.saving import save_statistics

    if not is_main_process():  # --partial shares the work
        return
    skipped = Skipped(strict, output)
    how: dict[str, Any] = {"force": force, "on_error": skipped.on_error, "progress": progress}
    found = save_statistics(sources, output, device=device, **how, **source_options, **options)
    echo(found.headline)
    echo(f"wrote {output}")
    skipped.finish()
