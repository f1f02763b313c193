"""Indexes: many grid files as one, and files that are not as they were."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.grids import HEADER, assert_same, make_batch, write_file, write_stream

from vqtool.codebooks.usage import count_grids
from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning
from vqtool.grids import cat, join_batches, open_grids, read_grids
from vqtool.grids.found import find_grids, list_grids
from vqtool.grids.index import read_index
from vqtool.inspection import describe, verify

NUMS = (3, 0, 5, 2)  # grids a file; the last has no labels
INDEX = Path("shards/tok.index")


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Four files in a folder, each with a record of its own, and an index beside them."""
    monkeypatch.chdir(tmp_path)
    Path("shards").mkdir()
    parts = [make_batch(num, first=10 * place, known=place < 3) for place, num in enumerate(NUMS)]
    for place, part in enumerate(parts):
        record = {"step": "encode", "command": f"vqtool encode {place}.tar"}
        write_file(Path(f"shards/tok-{place}.h5"), part, header=replace(HEADER, history=(record,)))
    with pytest.warns(VqtoolWarning, match=r"tok-1\.h5: no token grids in it: passed over"):
        assert cat(["shards/tok-*.h5"], INDEX, index=True) == sum(NUMS)
    return parts


def touch(path, content=None):
    """Another time, and perhaps content, but not another length."""
    if content is not None:
        Path(path).write_bytes(content)
    os.utime(path, ns=(0, 10**18))


def test_an_index_says_what_its_files_say_and_opens_none(parts, monkeypatch):
    expected = list_grids("shards/tok-*.h5")
    monkeypatch.setattr("vqtool.grids.listing.open_grids", None)
    monkeypatch.setattr("vqtool.grids.index.open_grids", None)
    found = read_index(INDEX)
    assert (found.header, found.files, found.digest) == (expected.header, expected.files, expected.digest)
    assert [record["command"][-5:] for record in found.header.history] == [f"{place}.tar" for place in range(4)]
    assert list(found.labels) == list(expected.labels) == ["cat"] * 8 + [""] * 2
    assert found.labels.numbers.dtype == np.uint8
    assert describe(INDEX) | {"history": 0} == {
        "kind": "index of token grids", "num_files": 4, "num_grids": 10, "grid_size": [3, 5], "dtype": "uint16",
        "codebook_size": 1024, "masked": False, "image_size": [24, 40], "preprocessing": "centre crop",
        "tokenizer": {"fingerprint": "0123456789abcdef", "location": "builtin"},
        "columns": ["caption", "id", "label"], "digest": expected.digest, "history": 0,
    }  # fmt: skip
    assert verify(INDEX) == {"kind": "index of token grids", "num_grids": 10}


def test_an_index_stands_for_its_files_alone_and_among_others(parts):
    cat([INDEX], "all.h5")
    header, found = read_grids("all.h5")
    assert_same(found, join_batches(HEADER, parts))
    assert len(header.history) == 5
    assert set(header.history[-1]["inputs"]) == {f"shards/tok-{place}.h5" for place in range(4)}
    assert find_grids([INDEX, "all.h5"]) == [*sorted(Path("shards").glob("*.h5")), Path("all.h5")]
    with pytest.warns(VqtoolWarning, match="passed over"):
        counted = count_grids([INDEX])
    assert (counted.num_grids, counted.counts.sum()) == (10, 10 * 15)
    with pytest.raises(VqtoolError, match=r"tok-0\.h5: named twice"):
        find_grids([INDEX, "shards/tok-0.h5"], once=True)


def test_an_index_moves_with_its_files_and_copies_are_told_by_their_digests(parts):
    expected = read_index(INDEX).digest
    os.rename("shards", "moved")
    assert read_index(Path("moved/tok.index")).files[0].path == Path("moved/tok-0.h5")
    shutil.copytree("moved", "copied", copy_function=shutil.copyfile)
    touch("copied/tok-0.h5")
    assert read_index(Path("copied/tok.index")).digest == expected
    with pytest.warns(VqtoolWarning):
        cat(["moved/tok-*.h5"], "elsewhere.index", index=True)
    os.mkdir("away")
    os.rename("elsewhere.index", "away/elsewhere.index")
    with pytest.raises(VqtoolError, match=r"away/moved/tok-0\.h5 is missing, and 3 more are not as they were"):
        read_index(Path("away/elsewhere.index"))


def test_a_file_that_is_missing_cut_or_replaced_is_named(parts):
    path = Path("shards/tok-2.h5")
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(FormatError, match=rf"tok-2\.h5 was cut short: {len(content) - 9} bytes, {len(content)} when"):
        read_index(INDEX)
    path.write_bytes(content + b"x")
    with pytest.raises(FormatError, match=r"tok-2\.h5 was replaced: \d+ bytes, \d+ when .*tok\.index was made"):
        read_index(INDEX)
    path.unlink()
    write_file(path, make_batch(5, first=77))
    touch(path, path.read_bytes().ljust(len(content), b"\0")[: len(content)])
    with pytest.raises((FormatError, MismatchError), match=r"tok-2\.h5"):
        read_index(INDEX)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FormatError, match=r"tok-2\.h5 is no ordinary file"):
        read_index(INDEX)
    path.unlink()
    Path("shards/tok-3.h5").unlink()
    message = r"tok\.index: shards/tok-2\.h5 is missing, and 1 more are not as they were: bring back the files, or make"
    with pytest.raises(VqtoolError, match=message):
        find_grids(INDEX)


def test_a_file_of_as_many_bytes_and_other_grids_is_told(parts):
    a, b = Path("shards/a.h5"), Path("shards/b.h5")
    write_file(a, make_batch(1))
    cat([a], "a.index", index=True)
    for first in range(1, 200):  # until one packs to the same length
        b.unlink(missing_ok=True)
        write_file(b, make_batch(1, first=first))
        if b.stat().st_size == a.stat().st_size:
            break
    touch(a, b.read_bytes())
    with pytest.raises(MismatchError, match=r"a\.index: shards/a\.h5 was replaced: it holds other grids than when"):
        read_index(Path("a.index"))


def test_what_cannot_be_indexed_is_refused(parts):
    write_stream(Path("stream.h5"), make_batch(2))
    for sources, output, message in (
        (["shards/tok-0.h5"], "tok.h5", r"tok\.h5: an index is a file on this machine whose name ends in \.index"),
        (["shards/tok-0.h5"], "-", r"an index is a file on this machine whose name ends in \.index"),
        (["shards/tok-0.h5"], INDEX, r"tok\.index: exists; use `force`"),
        (["stream.h5"], "s.index", "no pipes or streams"),
        (["shards/tok-1.h5"], "s.index", r"tok-1\.h5: no token grids in it"),
        (["none.index"], "s.index", r"none\.index: no such file: `vqtool cat --index FILES -o none\.index` makes it"),
    ):
        with pytest.raises(VqtoolError, match=message):
            cat(sources, output, index=True)
    os.rename(INDEX, "shards/tok.h5")
    with pytest.raises(FormatError, match=r"tok\.h5: an index, which cat, .* read if its name ends in \.index"):
        open_grids("shards/tok.h5").__enter__()
    shutil.copy("shards/tok-0.h5", "grids.index")
    with pytest.raises(FormatError, match="an HDF5 file, but not an index of grid files"):
        read_index(Path("grids.index"))


@pytest.mark.parametrize("name", ["num_grids", "digest", "label", "path", "time"])
def test_a_damaged_index_is_told(parts, name):
    with h5py.File(INDEX, "r+") as file:
        values = file[name][:]
        values[0] = values[-1] if name != "label" else 200
        file[name][:] = values
    with pytest.raises(FormatError, match=r"tok\.index: damaged: its content does not match its digest"):
        read_index(INDEX)
    with h5py.File(INDEX, "r+") as file:
        del file[name]
    with pytest.raises(FormatError, match=r"tok\.index: damaged"):
        read_index(INDEX)


def test_check_reads_the_files_of_an_index_and_names_what_is_wrong(parts, vqtool):
    result = vqtool("check", INDEX)
    assert result.code == 0
    assert [line.split()[:2] for line in result.out.splitlines()] == [["ok", f"shards/tok-{i}.h5"] for i in range(4)]
    Path("shards/tok-2.h5").unlink()
    result = vqtool("check", INDEX)
    assert result.code == 1
    assert "bad shards/tok.index: shards/tok-2.h5 is missing: bring back" in result.out
    assert vqtool("info", "shards/tok-0.h5").code == 0
