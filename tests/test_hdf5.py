"""HDF5 from anybody: what leads out of the file, claims more than is there, or unpacks to less, is refused in words."""

import os
import tracemalloc
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from vqtool import hdf5
from vqtool.errors import FormatError
from vqtool.hdf5 import fletcher32, open_hdf5

DATA = np.random.default_rng(0).integers(0, 200, (100, 5, 4))


def read(path, start=0, stop=100, **how):
    with open_hdf5(Path(path), "f") as file:
        found = hdf5.find_dataset(file, "x", "f", **how)
        assert found is not None
        return found.read(start, stop)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "f.h5"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (7, 2, 3)},
        {"chunks": (7, 2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (100, 5, 4), "compression": "gzip"},
        {"chunks": (3, 5, 4), "fletcher32": True, "maxshape": (None, 5, 4)},
        {"chunks": (1, 5, 4), "shuffle": True},
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "u2", ">i4", "i8", "S5"])
def test_rows_are_those_that_hdf5_reads(path, options, dtype):
    data = DATA.astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=data, **options)
    for start, stop in ((0, 100), (3, 17), (6, 7), (99, 200), (0, 0), (50, 40)):
        assert np.array_equal(read(path, start, stop), data[start:stop])


@pytest.mark.parametrize("num", [1, 2, 3, 360, 361, 1000, 131071])
@pytest.mark.parametrize("value", [None, 0, 255])
def test_the_checksum_is_that_of_hdf5(path, num, value):
    data = np.random.default_rng(num).integers(0, 256, num, np.uint8) if value is None else np.full(num, value, "u1")
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", data=data, chunks=(num,), fletcher32=True)
        file.flush()
        raw = made.id.read_direct_chunk((0,))[1]
    assert fletcher32(raw[:-4]) == int.from_bytes(raw[-4:], "little")


def external_link(file):
    file["x"] = h5py.ExternalLink("other.h5", "x")


def soft_link(file):
    file["y"] = DATA
    file["x"] = h5py.SoftLink("/y")


def virtual(file):
    layout = h5py.VirtualLayout((100, 5, 4), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (100, 5, 4))
    file.create_virtual_dataset("x", layout)


def external_storage(file):
    file.create_dataset("x", (100, 5, 4), "u1", external=[("secret.txt", 0, h5py.h5f.UNLIMITED)])


def other_filter(file):
    file.create_dataset("x", data=DATA, chunks=(10, 5, 4), compression="lzf")


def plugin_filter(file):
    """One that HDF5 would look for in the folders of plugins, and run."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((10, 5, 4))
    settings.set_filter(40000, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    made = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((100, 5, 4)), settings)
    for row in range(0, 100, 10):
        made.write_direct_chunk((row, 0, 0), bytes(200))


def group(file):
    file.create_group("x")


def never_written(file):
    file.create_dataset("x", (100, 5, 4), "u1", chunks=(10, 5, 4))


def half_written(file):
    file.create_dataset("x", (100, 5, 4), "u1", chunks=(10, 5, 4), compression="gzip")[:40] = 1


def never_written_at_once(file):
    file.create_dataset("x", (100, 5, 4), "u1")


def a_billion_rows(file):
    file.create_dataset("x", (10**9, 5, 4), "u1", chunks=(1000, 5, 4), compression="gzip")


def huge_chunks(file):
    made = file.create_dataset("x", (8, 400, 400), "u2", chunks=(8000, 400, 400), maxshape=(None, 400, 400),
                               compression="gzip")  # fmt: skip
    made.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(300)))


def wide_texts(file):
    file.create_dataset("x", (10,), "S70000", chunks=(1,), compression="gzip")[:] = b"a"


def short_chunk(file):
    made = file.create_dataset("x", (100, 5, 4), "u1", chunks=(100, 5, 4), compression="gzip")
    made.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(100)))


def long_chunk(file):
    made = file.create_dataset("x", (100, 5, 4), "u1", chunks=(100, 5, 4), compression="gzip")
    made.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(10**7)))


def torn_chunk(file):
    made = file.create_dataset("x", (100, 5, 4), "u1", chunks=(100, 5, 4), compression="gzip")
    made.id.write_direct_chunk((0, 0, 0), zlib.compress(DATA.astype("u1").tobytes())[:-9])


def wrong_checksum(file):
    made = file.create_dataset("x", (100, 5, 4), "u1", chunks=(100, 5, 4), fletcher32=True)
    made.id.write_direct_chunk((0, 0, 0), DATA.astype("u1").tobytes() + b"abcd")


def no_checksum(file):
    made = file.create_dataset("x", (100, 5, 4), "u1", chunks=(100, 5, 4), fletcher32=True)
    made.id.write_direct_chunk((0, 0, 0), b"ab")


def unusual_integers(file):
    kind = h5py.h5t.STD_U16LE.copy()
    kind.set_precision(12)
    h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((100,)))


def compound(file):
    file["x"] = np.zeros(3, [("a", "u1"), ("b", "f4")])


def references(file):
    file["y"] = 1
    file.create_dataset("x", data=[file["y"].ref] * 3, dtype=h5py.ref_dtype)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external_link, "'x' is a link; links are not followed"),
        (soft_link, "'x' is a link; links are not followed"),
        (virtual, "stored in other files"),
        (external_storage, "stored in other files"),
        (other_filter, "packed by lzf; gzip, shuffle and fletcher32 are read"),
        (plugin_filter, "packed by 40000; gzip, shuffle and fletcher32 are read"),
        (group, "not a dataset"),
        (never_written, "was ever written"),
        (half_written, "was ever written"),
        (never_written_at_once, "was never written, or is cut off"),
        (a_billion_rows, "cannot be in a file of"),
        (huge_chunks, "has chunks of"),
        (wide_texts, "texts of 70000 bytes, more than 65536"),
        (short_chunk, "unpacks to 100 bytes, not 2000"),
        (long_chunk, "unpacks to more than it should, or is cut short"),
        (torn_chunk, "damaged"),
        (wrong_checksum, "the checksum of a chunk is wrong"),
        (no_checksum, "the checksum of a chunk is wrong"),
        (unusual_integers, "numbers of an unusual type"),
        (compound, "rows of numbers or texts are expected"),
        (references, "rows of numbers or texts are expected"),
    ],
)
def test_what_is_not_taken_is_refused_and_takes_no_memory(path, make, message):
    Path("secret.txt").write_bytes(b"secret" * 1000)
    with h5py.File("other.h5", "w") as file:
        file["x"] = DATA
    with h5py.File(path, "w") as file:
        make(file)
    tracemalloc.start()
    with pytest.raises(FormatError, match=message):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_a_sparse_column_is_empty_text_where_that_is_allowed(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (40,), "S3", chunks=(10,), compression="gzip")[10:20] = b"abc"
    assert read(path, sparse=True).tolist() == [b""] * 10 + [b"abc"] * 10 + [b""] * 20


def test_the_holes_of_a_sparse_file_are_not_there(path):
    with h5py.File(path, "w", userblock_size=0) as file:
        file.create_dataset("x", (10, 10), "u1")[:] = 1
        file.flush()
        offset = file["x"].id.get_offset()
    with path.open("r+b") as raw:
        raw.truncate(offset + (1 << 40))
    with h5py.File(path, "r") as file:
        assert hdf5.stored_bytes(file) < 1 << 20


def test_texts_of_variable_length_are_read_after_their_chunks_are_found_whole(path):
    texts = [f"text {i}" for i in range(50)]
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", data=texts, dtype=h5py.string_dtype(), chunks=(10,), compression="gzip")
    assert read(path, 8, 12).tolist() == [text.encode() for text in texts[8:12]]
    with h5py.File(path, "r+") as file:
        made = file["x"]
        made.id.write_direct_chunk((10,), zlib.compress(bytes(16)))
    with pytest.raises(FormatError, match="unpacks to 16 bytes, not 160"):
        read(path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1.5, "number"), (float("inf"), "number"), ("3", "number"), (-1, "number"), (101, "number"),
        ([1, 2], "number"), (h5py.Empty("i4"), "number"), (7, "text"), (b"\xff", "text"), ([b"a", b"b"], "text"),
        ([1], "numbers"), ([1, 101], "numbers"), ([1.0, 2.0], "numbers"), ("ab", "numbers"),
    ],
)  # fmt: skip
def test_attributes_are_what_they_should_be_or_are_named(path, value, kind):
    with h5py.File(path, "w") as file:
        file.attrs["it"] = np.bytes_(value) if isinstance(value, bytes) else value
    read = {
        "number": lambda file: hdf5.read_number(file, "it", "f", 0, 100),
        "numbers": lambda file: hdf5.read_numbers(file, "it", "f", 2, 0, 100),
        "text": lambda file: hdf5.read_text(file, "it", "f"),
    }[kind]
    with open_hdf5(path, "f") as file, pytest.raises(FormatError, match="f: damaged"):
        read(file)
    with open_hdf5(path, "f") as file, pytest.raises(FormatError, match="it has no other"):
        hdf5.read_number(file, "other", "f", 0, 100)


def test_a_file_that_is_open_elsewhere_is_told_as_that(path, monkeypatch):
    def locked(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(h5py, "File", locked)
    with pytest.raises(FormatError, match="another program has it open for writing"), open_hdf5(path, "f"):
        pass
    assert os.listdir(".") == []
