"""Token grids in HDF5: files, and streams of HDF5 files through a pipe. docs/formats.md describes both."""

from vqtool.grids.batch import GridBatch, GridHeader, join_batches
from vqtool.grids.joined import JoinedGrids, cat, concatenate, head
from vqtool.grids.reader import GridReader, open_grids, read_grids
from vqtool.grids.writer import GridWriter, check_output

__all__ = [
    "GridBatch",
    "GridHeader",
    "GridReader",
    "GridWriter",
    "JoinedGrids",
    "cat",
    "check_output",
    "concatenate",
    "head",
    "join_batches",
    "open_grids",
    "read_grids",
]
