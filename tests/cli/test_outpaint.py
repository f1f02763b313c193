"""`vqtool outpaint`: pictures in the middle of larger ones."""

import numpy as np
import pytest
from support.commands import error_lines
from support.editing_run import entries, make_work, rewrite, tokens  # noqa: F401

from vqtool.grids import read_grids
from vqtool.images import find_images, read_batches


def test_the_picture_stays_where_it_was_put_and_the_rest_is_made(vqtool, work):
    line = ["outpaint", "tok.h5", "--left", 2, "--right", "8px", "--top", 1, "-n", 2, "--purity", "--steps", 6]
    assert vqtool(*line, "-o", "x.h5").code == 0
    header, batch = read_grids("x.h5")
    assert (header.grid_size, header.image_size) == ((5, 9), (40, 72))
    assert np.array_equal(batch.tokens[:, 1:5, 2:8], tokens("tok.h5").repeat(2, axis=0))
    assert batch.ids[:2] == ["00-1", "00-2"]
    assert not np.array_equal(batch.tokens[0], batch.tokens[1])
    assert header.history[-1]["left"] == "2"
    assert vqtool("check", "x.h5").code == 0
    assert vqtool(*line, "-b", 3, "-o", "y.h5").code == 0
    assert np.array_equal(tokens("y.h5"), batch.tokens)


def test_a_part_of_a_training_picture_is_enlarged_to_a_whole_one(vqtool, work):
    rewrite("part.h5", "tok.h5", lambda old: old[:, :, :4], grid_size=(4, 4), image_size=(32, 32))
    assert vqtool("outpaint", "part.h5", "--right", "16px", "--purity", "-o", "x.h5").code == 0
    header, batch = read_grids("x.h5")
    assert (header.grid_size, header.image_size) == ((4, 6), (32, 48))
    assert np.array_equal(batch.tokens[:, :, :4], tokens("part.h5"))


def test_images_keep_their_pixels(vqtool, work):
    assert vqtool("outpaint", "imgs", "--bottom", 2, "--left", 1, "--purity", "-o", "out").code == 0
    old, new = (next(read_batches(find_images([name]), None, 9)).images for name in ("imgs", "out"))
    assert new.shape == (3, 3, 48, 56)
    assert np.array_equal(new[:, :, :32, 8:], old)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is added: say how much"),
        (["--left", "0", "--top", "0px"], "nothing is added"),
        (["--left", "9px"], "--left 9px: a cell is 8 pixels; whole cells are added"),
        (["--left", "-1"], "a number of cells (4) or pixels (32px) is expected"),
        (["--left", "two"], "a number of cells (4) or pixels (32px) is expected"),
        (["--left", "2", "--overlap", "4"], "--overlap 4"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(vqtool, work, arguments, message):
    before = entries()
    result = vqtool("outpaint", "tok.h5", *arguments, "-o", "x.h5")
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert message in error_lines(result.err)[0]
    assert entries() == before
