"""Which grid files are meant: files, folders of them, globs and pipes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vqtool.errors import VqtoolError
from vqtool.inputs import expand, locate

SUFFIX = ".h5"


def find_grids(sources: str | Path | Sequence[str | Path], *, once: bool = False) -> list[Path]:
    """The files that are meant, in order: what is named, of folders all *.h5, of globs what fits; "-" is stdin.

    Args:
        sources: names.
        once: refuse files that are named twice.

    Raises:
        VqtoolError: a name leads nowhere, a folder has no such file, or one is named twice that may not be.
    """
    found: list[Path] = []
    for source in expand([sources] if isinstance(sources, str | Path) else sources):
        path = locate(source)
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside or not (source == "-" or inside[0].exists()):
            what = f"no {SUFFIX} files in it" if path.is_dir() else "no such file"
            raise VqtoolError(f"{source}: {what}: make token grids with `vqtool encode`, or name another file")
        found += inside
    twice = [path for path, num in Counter(found).items() if num > 1]
    if once and twice:
        raise VqtoolError(f"{twice[0]}: named twice")
    return found
