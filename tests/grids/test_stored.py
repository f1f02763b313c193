"""Grids that stay on disk: rows of many files, folders and globs of them, and files that change meanwhile."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning
from vqtool.grids import GridBatch, GridHeader, GridWriter, cat, read_grids, stored
from vqtool.grids.found import find_grids
from vqtool.grids.labels import Labels, count_labels
from vqtool.grids.listing import survey

HEADER = GridHeader(300, (2, 3), (16, 24), "0" * 16, "nowhere.safetensors", "")
COUNTS = (700, 1, 300, 999)


def read_stored(paths):
    return stored.read_stored(survey(paths))


def write(path, count, *, seed=0, header=HEADER, labels=None):
    tokens = np.random.default_rng(seed).integers(0, header.codebook_size, (count, *header.grid_size)).astype(np.uint16)
    with GridWriter(path, header, force=True) as writer:
        writer.write(GridBatch(tokens, [str(row) for row in range(count)], labels and labels * count))
    return tokens


@pytest.fixture
def files(tmp_path):
    """Four of them, and the tokens of all."""
    paths = [tmp_path / f"tok-{number}.h5" for number in range(len(COUNTS))]
    return paths, np.concatenate([write(path, count, seed=count) for path, count in zip(paths, COUNTS, strict=True)])


@pytest.fixture(params=[64 * 12 * 100, 64 * 12 * 7])  # runs of 100 and of 7 grids of 12 bytes
def small(request, monkeypatch):
    """Runs of so few grids, and one open file at a time."""
    monkeypatch.setattr(stored, "KEPT_BYTES", request.param)
    monkeypatch.setattr(stored, "MAX_OPEN", 1)


def test_rows_of_many_files_are_those_of_all_in_one(files, small):
    paths, expected = files
    header, batch = read_stored(paths)
    assert (header, len(batch), batch.tokens.shape) == (HEADER, 2000, (2000, 2, 3))
    noise = np.random.default_rng(1)
    for indices in (np.arange(2000), noise.integers(0, 2000, 500), np.array([700]), np.array([1999, 0, 1999])):
        assert np.array_equal(batch.tokens.take(indices), expected[indices])
    rows = np.sort(noise.permutation(2000)[:900])
    chosen = batch.tokens.chosen(rows)
    assert np.array_equal(chosen.take(np.arange(900)), expected[rows])
    again = chosen.chosen(np.arange(0, 900, 300))  # far apart
    assert np.array_equal(again.take(np.array([2, 0, 1])), expected[rows[[600, 0, 300]]])
    doubled = chosen.changed(lambda tokens: tokens.repeat(2, axis=2))
    assert doubled.shape == (900, 2, 6)
    assert np.array_equal(doubled.take(np.array([5, 899])), expected[rows[[5, 899]]].repeat(2, axis=2))


def test_a_sample_is_of_neighbours_from_everywhere(files, small):
    paths, expected = files
    some = read_stored(paths)[1].tokens.some(400)
    assert 400 - 100 <= len(some) <= 500
    places = [int(np.flatnonzero((expected == grid).all((1, 2)))[0]) for grid in some[[0, -1]]]
    assert places[0] == 0
    assert places[1] == 1999


def test_few_runs_and_files_are_kept(files, monkeypatch):
    monkeypatch.setattr(stored, "KEPT_BYTES", 64 * 12 * 5)
    monkeypatch.setattr(stored, "MAX_OPEN", 2)
    paths, _ = files
    tokens = read_stored(paths)[1].tokens
    tokens.take(np.random.default_rng(0).permutation(2000))
    assert len(tokens._runs) == 2 * stored.RUNS
    assert len(tokens._open) == 2


def test_labels_are_read_and_those_that_some_files_lack_are_empty(tmp_path):
    write(tmp_path / "a.h5", 2, labels=["cat"])
    write(tmp_path / "b.h5", 3)
    with pytest.warns(
        VqtoolWarning, match=r"b\.h5: no labels, but .*a\.h5 has some: grids without labels are learnt as such"
    ):
        _, batch = read_stored([tmp_path / "a.h5", tmp_path / "b.h5"])
    assert list(batch.labels) == ["cat", "cat", "", "", ""]
    assert count_labels(batch.labels) == {"cat": 2, "": 3}
    assert batch.captions is None


def test_labels_of_many_grids_are_numbers_of_few_names():
    found = Labels.of(["dog", "cat", "dog", "", "Fuß"])
    assert (found.names, found.numbers.tolist()) == (["dog", "cat", "", "Fuß"], [0, 1, 0, 2, 3])
    assert list(found) == ["dog", "cat", "dog", "", "Fuß"]
    assert list(found[1:3]) == ["cat", "dog"]
    assert count_labels(found[:3]) == count_labels(["dog", "cat", "dog"]) == {"dog": 2, "cat": 1}
    assert count_labels(None) == {}
    assert Labels.of(found) is found


def test_files_folders_and_globs_are_meant_in_order(files, tmp_path, monkeypatch):
    paths, expected = files
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("no grids")
    assert find_grids(tmp_path) == paths
    assert [path.name for path in find_grids("tok-*.h5")] == [path.name for path in paths]
    assert find_grids([paths[2], "-", "tok-[01].h5"])[1:] == [*map(type(tmp_path), ("-", "tok-0.h5", "tok-1.h5"))]
    odd = tmp_path / "tok-[9].h5"
    write(odd, 1)
    assert find_grids(odd) == [odd]  # a file of that name comes first
    odd.unlink()
    cat(["tok-*.h5"], tmp_path / "whole.h5")
    assert np.array_equal(read_grids(tmp_path / "whole.h5")[1].tokens, expected)
    assert survey(paths).num_bytes == 2000 * 6 * 2
    (tmp_path / "empty").mkdir()
    for name, message in (("none-*.h5", "no such file"), ("nothing.h5", "no such file"), ("empty", "no .h5 files")):
        with pytest.raises(VqtoolError, match=rf"{message}.*: make token grids with `vqtool encode`"):
            find_grids(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_fingerprint": "1" * 16}, r"b\.h5 has tokenizer 1{16}, but .*a\.h5 has tokenizer 0{16}"),
        ({"codebook_size": 299}, r"b\.h5 has codebook size 299, but .*a\.h5 has codebook size 300"),
        ({"grid_size": (3, 3), "image_size": (24, 24)}, r"b\.h5 has grid size 3x3, but .*a\.h5 has grid size 2x3"),
    ],
)
def test_files_that_do_not_go_together_are_named(tmp_path, changes, message):
    write(tmp_path / "a.h5", 2)
    write(tmp_path / "b.h5", 2, header=replace(HEADER, **changes))
    with pytest.raises(MismatchError, match=message):
        read_stored([tmp_path / "a.h5", tmp_path / "b.h5"])


def test_files_that_are_empty_gone_cut_or_changed_are_named(files, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "KEPT_BYTES", 64 * 12 * 100)
    paths, expected = files
    with GridWriter(tmp_path / "empty.h5", HEADER):
        pass
    with pytest.raises(VqtoolError, match=r"empty\.h5: no token grids in it"):
        read_stored([tmp_path / "empty.h5"])
    with pytest.warns(VqtoolWarning, match=r"empty\.h5 and 1 more: no token grids in it: passed over"):
        _, batch = read_stored([tmp_path / "empty.h5", paths[0], tmp_path / "empty.h5", *paths[1:]])
    assert np.array_equal(batch.tokens.take(np.array([700, 5])), expected[[700, 5]])
    tokens = read_stored(paths)[1].tokens
    before = tokens.digest
    paths[1].unlink()
    with pytest.raises(VqtoolError, match=r"tok-1\.h5: was there when the run began, and is gone"):
        tokens.take(np.array([700]))
    write(paths[1], 2)
    with pytest.raises(FormatError, match=r"tok-1\.h5: has 2 grids, and had 1 when the run began"):
        tokens.take(np.array([700]))
    write(paths[1], 1, seed=9)
    with pytest.raises(FormatError, match=r"tok-1\.h5: has other grids than when the run began"):
        tokens.take(np.array([700]))
    assert read_stored(paths)[1].tokens.digest != before
    with h5py.File(paths[3], "r") as file:
        offset = file["tokens"].id.get_chunk_info(0).byte_offset
    whole = bytearray(paths[3].read_bytes())
    whole[offset + 9] ^= 255
    paths[3].write_bytes(whole)
    with pytest.raises(FormatError, match=r"tok-3\.h5.*damaged"):
        read_stored(paths)[1].tokens.take(np.array([1001]))
    assert np.array_equal(read_stored(paths)[1].tokens.take(np.array([5])), expected[[5]])
    paths[2].write_bytes(paths[2].read_bytes()[:-9])
    with pytest.raises(FormatError, match=r"tok-2\.h5"):
        read_stored(paths)
