"""The file of a shard: passed over where it is complete, gone on with or made anew where it is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vqtool.errors import FormatError, warn
from vqtool.grids.batch import GridHeader
from vqtool.grids.reader import open_grids
from vqtool.grids.resume import check_resumable, partial_paths, remove_leftovers
from vqtool.outputs import delivered, is_there
from vqtool.urls import url_of


@dataclass(frozen=True)
class Whole:
    """A file that is complete."""

    header: GridHeader
    num_grids: int


def find_whole(output: str | Path, *, resume: bool, force: bool) -> Whole | None:
    """What is at an output, all of whose grids are compared with their digest; None if it is to be made.

    Args:
        output: a path or URL.
        resume: whether a file that is there may stay.
        force: whether it is overwritten whatever it holds.

    Warns:
        VqtoolWarning: the file is damaged.
    """
    if not resume or force or not is_there(output):
        return None
    try:
        with open_grids(output) as reader:
            found = Whole(reader.header, sum(map(len, reader.batches())))
    except FormatError as error:
        warn(f"{error}; it is made anew")
        return None
    if url_of(output) is None:
        remove_leftovers(output)
    return found


@contextmanager
def unfinished(output: str | Path, *, resume: bool, force: bool) -> Iterator[tuple[Path, bool, bool]]:
    """Where a file is to be written that `find_whole` has not found; it is sent when the block ends well, if need be.

    Yields:
        The path; whether an earlier run is gone on with; whether what is there is overwritten.

    Raises:
        VqtoolError: it is there, without `resume` or `force`, or an earlier run is.
    """
    replaces = force or (resume and is_there(output))
    with delivered(output, force=replaces) as path:
        kept = resume and partial_paths(path)[0].exists()
        yield path, check_resumable(path, resume=kept, force=replaces), replaces
