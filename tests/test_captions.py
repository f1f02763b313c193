"""Several captions of one image: through grid files, and one of them drawn an epoch."""

from collections import Counter

import h5py
import numpy as np
import pytest
import torch
from support.grids import HEADER, make_batch, write_file, write_stream
from support.prior_run import grid_spec

from vqtool import conditions, rng
from vqtool.captions import join_captions, split_captions
from vqtool.errors import FormatError
from vqtool.grids import GridBatch, hdf5, open_grids
from vqtool.training.data import build_data

SEVERAL = [join_captions(["a", "b", "c"]), "d", "", join_captions(["e", "f"])]


def batch_of(captions):
    plain = make_batch(len(captions))
    return GridBatch(plain.tokens, plain.ids, None, captions)


@pytest.mark.parametrize("captions", [["a"], ["a", "b\nc"], ["a\x1eb", "c"]])
def test_captions_are_split_as_they_were_joined(captions):
    assert split_captions(join_captions(captions)) == tuple(caption.replace("\x1e", " ") for caption in captions)
    assert join_captions([]) == ""


@pytest.mark.parametrize(("captions", "version"), [(SEVERAL, 3), (["a", "b"], 1)])
def test_a_file_says_that_images_have_several_captions_and_older_readers_refuse_it(
    tmp_path, monkeypatch, captions, version
):
    path = write_file(tmp_path / "x.h5", batch_of(captions))
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == version
    with open_grids(path) as reader:
        (batch,) = reader.batches()
    assert batch.captions == captions
    monkeypatch.setattr(hdf5, "FORMAT_VERSION", 2)
    if version == 3:
        with pytest.raises(FormatError, match="format version 3, but this vqtool reads up to 2"), open_grids(path):
            pass


def test_several_captions_pass_a_stream(tmp_path):
    write_stream(tmp_path / "stream", batch_of(["x", "y"]), batch_of(SEVERAL))
    with open_grids(tmp_path / "stream") as reader:
        assert [batch.captions for batch in reader.batches()][:2] == [["x", "y"], SEVERAL]


def test_of_several_captions_the_first_conditions_and_all_train_the_vocabulary():
    conditioner = conditions.build("caption", None, ["a red cat\x1eeine rote Katze", ""])
    assert set(conditioner.examples) == {"a red cat", "eine rote Katze"}
    assert conditioner.select(None, ["a red cat\x1eeine rote Katze", ""]) == ["a red cat", None]


def test_each_caption_is_drawn_equally_often_over_the_epochs_and_by_the_seed_alone():
    texts = ["a", "b", "c", "d", "e", "f"]
    data = build_data(batch_of(SEVERAL), conditions.build("caption", None, texts), grid_spec(HEADER.grid_size))
    rows = {
        tuple(row.tolist()): text for row, text in zip(data.conditions, ["a", "b", "c", "d", "", "e", "f"], strict=True)
    }
    assert len(rows) == 7
    drawn: dict[int, Counter[str]] = {i: Counter() for i in range(4)}
    epochs = 3000
    for epoch in range(epochs):
        draws = rng.uniform(0, range(4 * epoch, 4 * epoch + 4), 0, (), stream=rng.CAPTION)
        tokens, found = data.place("cpu").rows(torch.arange(4), draws)
        assert np.array_equal(tokens, make_batch(4).tokens)
        for i, row in enumerate(found):
            drawn[i][rows[tuple(row.tolist())]] += 1
    # A count is further than 4.5 standard deviations away in one of 100,000 runs; the seed is fixed.
    for counts, texts in zip(drawn.values(), ["abc", "d", [""], "ef"], strict=True):
        assert set(counts) == set(texts)
        expected = epochs / len(counts)
        most = 4.5 * (expected * (1 - 1 / len(counts))) ** 0.5
        assert all(abs(count - expected) <= most for count in counts.values())
    _, first = data.place("cpu").rows(torch.arange(4))
    assert [rows[tuple(row.tolist())] for row in first] == ["a", "d", "", "e"]


def test_a_part_of_the_grids_keeps_its_captions():
    data = build_data(batch_of(SEVERAL), conditions.build("caption", None, list("abcdef")), grid_spec(HEADER.grid_size))
    part = data._take(np.array([0, 3]))
    assert part.starts.tolist() == [0, 3, 5]
    expected = data.conditions[[0, 1, 2, 5, 6]]
    assert (part.conditions == expected).all()
    assert part.digest() != data.digest()
