"""One grid file or stream written by several processes, each of which does a contiguous part of the work.

Under `accelerate launch` every process writes its own part; the main one writes its part to the output itself, waits
for the others and appends theirs in order. The result has the same grids in the same order as one process would write.
Alone, a process writes to the output and nothing else happens.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqtool import distributed
from vqtool.grids import GridHeader, GridWriter, open_grids
from vqtool.grids.stream import is_stream


@contextmanager
def shared_writer(output: Path | str, header: GridHeader, *, force: bool = False) -> Iterator[GridWriter]:
    """A `GridWriter` for this process's part of an output; see `distributed.own_range` for which part that is.

    Every process has to enter and leave the block. In the main one the output is complete when the block has ended.

    Args:
        output: a path, or "-" for standard output, which only the main process writes to.
        header: what the grids have in common.
        force: overwrite an existing file.

    Raises:
        VqtoolError: as `GridWriter`.
    """
    if distributed.world_size() == 1:
        with GridWriter(output, header, force=force) as writer:
            yield writer
        return
    with _parts_folder(output) as folder:
        if not distributed.is_main_process():
            with GridWriter(folder / _part_name(distributed.rank()), header) as writer:
                yield writer
            distributed.wait_for_all()
            return
        with GridWriter(output, header, force=force) as writer:
            yield writer
            distributed.wait_for_all()
            for rank in range(1, distributed.world_size()):
                with open_grids(folder / _part_name(rank), masked=header.masked) as part:
                    for batch in part.batches():
                        writer.write(batch)


def _part_name(rank: int) -> str:
    return f"part-{rank:05}.h5"


@contextmanager
def _parts_folder(output: Path | str) -> Iterator[Path]:
    """A new folder that all processes know, beside the output; the main one removes it at the end."""
    name = None
    if distributed.is_main_process():
        place = None if is_stream(output) else Path(output).parent
        name = tempfile.mkdtemp(prefix=".vqtool-parts-", dir=place)
    try:
        yield Path(distributed.broadcast(name) or "")
    finally:
        if name is not None:
            shutil.rmtree(name, ignore_errors=True)
