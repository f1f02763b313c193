"""Token grids for tests: a header, batches, files and streams of them."""

import contextlib
import io
from pathlib import Path

import numpy as np

from vqtool.grids import GridBatch, GridHeader, GridWriter

HEADER = GridHeader(
    codebook_size=1024,
    grid_size=(3, 5),
    image_size=(24, 40),
    tokenizer_fingerprint="0123456789abcdef",
    tokenizer_location="builtin",
    preprocessing="centre crop",
    history=({"step": "encode", "command": "vqtool encode imgs/"},),
)


def make_batch(num: int, *, first: int = 0, header: GridHeader = HEADER, known: bool = True) -> GridBatch:
    tokens = np.random.default_rng(first).integers(0, header.codebook_size, (num, *header.grid_size))
    ids = [f"cat/{i}.png" for i in range(first, first + num)]
    return GridBatch(tokens, ids, ["cat"] * num if known else None, [f"ein Fuß {i}" for i in ids] if known else None)


def write_file(path: Path, *batches: GridBatch, header: GridHeader = HEADER) -> Path:
    with GridWriter(path, header) as writer:
        for batch in batches:
            writer.write(batch)
    return path


def write_stream(path: Path, *batches: GridBatch, header: GridHeader = HEADER, finish: bool = True) -> bytes:
    """What a writer sends into a pipe, as a file; unfinished if the producer dies."""
    sent = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(sent), contextlib.suppress(InterruptedError), GridWriter("-", header) as writer:
        for batch in batches:
            writer.write(batch)
        if not finish:
            raise InterruptedError
    path.write_bytes(sent.buffer.getvalue())  # type: ignore[attr-defined]
    return path.read_bytes()


def assert_same(found: GridBatch, expected: GridBatch) -> None:
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert (found.ids, found.labels, found.captions) == (expected.ids, expected.labels, expected.captions)
