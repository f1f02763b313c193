"""Which grid files are meant: files, folders of them, globs, indexes and pipes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vqtool.errors import FormatError, VqtoolError
from vqtool.grids.index import is_index, read_index
from vqtool.grids.listing import Listing, survey
from vqtool.inputs import expand, locate

SUFFIX = ".h5"


def find_grids(sources: str | Path | Sequence[str | Path], *, once: bool = False) -> list[Path]:
    """The files that are meant, in order: what is named, of folders all *.h5, of indexes theirs; "-" is stdin.

    Args:
        sources: names.
        once: refuse files that are named twice.

    Raises:
        VqtoolError: a name leads nowhere, a folder has no such file, a file of an index is not as it was, or one is
            named twice that may not be.
    """
    found: list[Path] = []
    for source in expand([sources] if isinstance(sources, str | Path) else sources):
        path = locate(source)
        if is_index(path):
            found += [file.path for file in read_index(path).files]
            continue
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside or not (source == "-" or inside[0].exists()):
            what = f"no {SUFFIX} files in it" if path.is_dir() else "no such file"
            raise VqtoolError(f"{source}: {what}: make token grids with `vqtool encode`, or name another file")
        found += inside
    twice = [path for path, num in Counter(found).items() if num > 1]
    if once and twice:
        raise VqtoolError(f"{twice[0]}: named twice")
    return found


def list_grids(
    sources: str | Path | Sequence[str | Path], *, once: bool = False, masked: bool = False
) -> Listing | None:
    """What the files that are meant hold; of one index, none is opened. None if there is a pipe or a stream.

    Args:
        sources: names.
        once: refuse files that are named twice.
        masked: take grids with masked cells too.

    Raises:
        FormatError: cells are masked, and none may be.
        VqtoolError: what `find_grids`, `read_index` and `survey` raise.
    """
    index = find_index(sources)
    if index is None:
        paths = find_grids(sources, once=once)
        return survey(paths, masked=masked) if all(path.is_file() for path in paths) else None
    listing = read_index(index)
    if listing.header.masked and not masked:
        raise FormatError(f"{index}: masked grids: fill them first, file by file, with `vqtool complete`")
    return listing


def find_index(sources: str | Path | Sequence[str | Path]) -> Path | None:
    """The index that is meant, if it is all that is."""
    names = [sources] if isinstance(sources, str | Path) else list(sources)
    return locate(names[0]) if len(names) == 1 and is_index(names[0]) else None
