"""`vqtool complete`: masked grids filled, their known tokens unchanged."""

import numpy as np
import pytest
from support.commands import error_lines
from support.editing_run import entries, make_work, rewrite, tokens  # noqa: F401

from vqtool.grids import read_grids


@pytest.fixture
def partial(work):
    """Masked grids, partial.h5: one whole, one with a masked cell, one all masked."""

    def punch(old):
        old[1, 2, 3:] = 16
        old[2] = 16
        return old

    rewrite("partial.h5", "tok.h5", punch, masked=True)
    return work


def test_holes_are_filled_and_known_tokens_stay(vqtool, partial):
    for flags in ([], ["--purity"]):
        assert vqtool("complete", "partial.h5", *flags, "-n", 2, "-f", "-o", "x.h5").code == 0
        header, batch = read_grids("x.h5")
        old = tokens("tok.h5").repeat(2, axis=0)
        assert not header.masked
        assert np.array_equal(batch.tokens[:2], old[:2])
        known = np.ones((4, 6), bool)
        known[2, 3:] = False
        assert np.array_equal(batch.tokens[2:4, known], old[2:4, known])
        assert batch.tokens.max() < 16
        assert batch.ids == ["00-1", "00-2", "01-1", "01-2", "02-1", "02-2"]


def test_inpainting_is_to_make_holes_and_to_fill_them(vqtool, work):
    line = ["tok.h5", "-m", "random:0.5", "--seed", 3]
    assert vqtool("inpaint", *line, "--purity", "-o", "x.h5").code == 0
    assert vqtool("inpaint", *line, "--masked", "-o", "partial.h5").code == 0
    assert vqtool("complete", "partial.h5", "--purity", "--seed", 3, "-o", "y.h5").code == 0
    assert np.array_equal(tokens("x.h5"), tokens("y.h5"))


def test_pictures_can_be_written(vqtool, partial):
    assert vqtool("complete", "partial.h5", "--purity", "-o", "out").code == 0
    assert entries("out") == ["00.png", "01.png", "02.png", "metadata.jsonl"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tok.h5", "tok.h5: has no masked cells to fill; `vqtool inpaint` makes parts of whole grids anew"),
        ("imgs", "imgs: cannot be read"),
        ("gone.h5", "gone.h5: cannot be read"),
    ],
)
def test_what_cannot_be_filled_is_one_line_and_leaves_nothing(vqtool, work, source, message):
    before = entries()
    result = vqtool("complete", source, "-o", "x.h5")
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert message in error_lines(result.err)[0]
    assert entries() == before
