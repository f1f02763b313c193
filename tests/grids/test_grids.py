"""Token grids: round trips, and everything that can go wrong with a file or a stream of them."""

import contextlib
import io
import itertools
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.grids import HEADER, assert_same, make_batch, write_file, write_stream

from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridWriter, concatenate, join_batches, open_grids, read_grids, stream


def chunks_of(data: bytes) -> list[bytes]:
    chunks = []
    while data:
        end = stream.end_address(data[:64], "test")
        chunks.append(data[:end])
        data = data[end:]
    return chunks


def read_until_error(path: Path) -> tuple[int, str]:
    """How many grids arrived before the error, and its message."""
    arrived = 0
    try:
        with open_grids(path) as reader:
            for batch in reader.batches():
                arrived += len(batch)
    except VqtoolError as error:
        return arrived, f"{type(error).__name__}: {error}"
    return arrived, "no error"


@pytest.mark.parametrize(
    ("codebook_size", "dtype"), [(200, "uint8"), (256, "uint16"), (1024, "uint16"), (1 << 17, "uint32")]
)
def test_a_file_gives_back_what_was_written_in_the_smallest_type(
    tmp_path: Path, codebook_size: int, dtype: str
) -> None:
    header = GridHeader(codebook_size, (3, 5), (24, 40), "f", "builtin", "p", ({"step": "encode"},))
    batch = make_batch(11, header=header)
    found_header, found = read_grids(write_file(tmp_path / "a.h5", batch, header=header))
    assert found_header == header
    assert found.tokens.dtype == dtype
    assert_same(found, batch)


def test_the_way_grids_are_batched_changes_neither_content_nor_digest(tmp_path: Path) -> None:
    whole = make_batch(600)
    digests = set()
    for size in (1, 7, 256, 600):
        path = write_file(tmp_path / f"{size}.h5", *(whole[i : i + size] for i in range(0, 600, size)))
        with open_grids(path) as reader:
            digests.add(reader.digest)
            assert reader.num_grids == 600
            assert_same(join_batches(HEADER, list(reader.batches(13))), whole)
        data = write_stream(tmp_path / f"{size}.stream", *(whole[i : i + size] for i in range(0, 600, size)))
        with h5py.File(io.BytesIO(chunks_of(data)[-1])) as last:
            digests.add(last.attrs["digest"].decode())
    assert len(digests) == 1


def test_plain_h5py_reads_a_file_and_the_first_chunk_of_a_stream(tmp_path: Path) -> None:
    batch = make_batch(9)
    write_stream(tmp_path / "s.h5", batch, make_batch(4, first=9))
    for path in (write_file(tmp_path / "a.h5", batch), tmp_path / "s.h5"):
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["tokens"][:], batch.tokens)
            assert file["tokens"].fletcher32
            assert file["caption"].asstr()[:].tolist() == batch.captions
            assert file.attrs["format"] == b"vqtool-grids"
            assert json.loads(file.attrs["history"]) == list(HEADER.history)
            assert file.attrs["last"] == (path.name == "a.h5")


def test_labels_known_for_some_are_empty_text_for_the_others(tmp_path: Path) -> None:
    batches = [make_batch(300, known=False), make_batch(2, first=300), make_batch(300, first=302, known=False)]
    _, found = read_grids(write_file(tmp_path / "a.h5", *batches))
    assert found.labels == [""] * 300 + ["cat"] * 2 + [""] * 300
    write_stream(tmp_path / "s.h5", *batches)
    assert_same(read_grids(tmp_path / "s.h5")[1], found)


def test_a_column_of_text_grows_wider_when_a_longer_text_comes(tmp_path: Path) -> None:
    batches = [make_batch(256, first=i, known=False) for i in range(0, 1024, 256)]
    ids = [["x" * (1 + 40 * k) + f"é{i}" for i in range(256)] for k in range(4)]
    batches = [GridBatch(batch.tokens, names) for batch, names in zip(batches, ids, strict=True)]
    _, found = read_grids(write_file(tmp_path / "a.h5", *batches))
    assert found.ids == list(itertools.chain(*ids))


def test_names_that_are_not_utf8_and_nul_are_stored_readably(tmp_path: Path) -> None:
    batch = GridBatch(make_batch(2).tokens, ["\udce9.png", "a\0b"])
    _, found = read_grids(write_file(tmp_path / "a.h5", batch))
    assert found.ids == ["\\udce9.png", "a\ufffdb"]


def test_a_text_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VqtoolError, match="longer than 65536"):
        write_file(tmp_path / "a.h5", GridBatch(make_batch(1).tokens, ["x" * 70000]))


def test_no_grids_at_all_is_a_valid_file_and_stream(tmp_path: Path) -> None:
    write_stream(tmp_path / "s.h5")
    for path in (write_file(tmp_path / "a.h5"), tmp_path / "s.h5"):
        header, batch = read_grids(path)
        assert header == HEADER
        assert batch.tokens.shape == (0, 3, 5)
        assert batch.ids == []


def test_a_history_longer_than_an_hdf5_object_header_survives(tmp_path: Path) -> None:
    header = HEADER.with_step({"step": "cat", "command": "x" * 200_000})
    assert read_grids(write_file(tmp_path / "a.h5", make_batch(1), header=header))[0] == header
    assert len(write_stream(tmp_path / "s.h5", make_batch(1), header=header)) > 0
    assert read_grids(tmp_path / "s.h5")[0] == header


def test_an_ordinary_file_can_be_read_again_but_a_stream_only_once(tmp_path: Path) -> None:
    with open_grids(write_file(tmp_path / "a.h5", make_batch(5))) as reader:
        assert [sum(map(len, reader.batches(2))) for _ in range(2)] == [5, 5]
    write_stream(tmp_path / "s.h5", make_batch(5))
    with open_grids(tmp_path / "s.h5") as reader:
        assert reader.num_grids is None
        assert sum(map(len, reader.batches())) == 5
        with pytest.raises(ValueError, match="only once"):
            next(reader.batches())


def test_concatenated_files_and_streams_are_a_stream(tmp_path: Path) -> None:
    parts = [make_batch(5), make_batch(300, first=5), make_batch(0), make_batch(7, first=305)]
    data = write_file(tmp_path / "a.h5", parts[0]).read_bytes() + write_stream(tmp_path / "b", parts[1])
    data += write_file(tmp_path / "c.h5", parts[2]).read_bytes() + write_file(tmp_path / "d.h5", parts[3]).read_bytes()
    (tmp_path / "all.h5").write_bytes(data)
    assert_same(read_grids(tmp_path / "all.h5")[1], join_batches(HEADER, parts))


def test_every_cut_of_a_stream_is_an_error_after_all_whole_chunks_were_delivered(tmp_path: Path) -> None:
    batches = [make_batch(n, first=100 * n) for n in (4, 1, 9, 3)]
    data = write_stream(tmp_path / "s.h5", *batches)
    ends = np.cumsum([len(chunk) for chunk in chunks_of(data)]).tolist()
    rng = random.Random(1)
    cuts = {rng.randrange(1, len(data)) for _ in range(60)} | set(ends[:-1]) | {1, 7, 8, 9, 63, 64, ends[0] + 1}
    cut_path = tmp_path / "cut.h5"
    for cut in sorted(cuts):
        cut_path.write_bytes(data[:cut])
        arrived, message = read_until_error(cut_path)
        assert message.startswith("FormatError")
        assert arrived == sum(len(batch) for batch, end in zip(batches, ends, strict=False) if end <= cut), cut
        assert "stopped early" in message or "truncated" in message
        assert cut < ends[0] or f"{arrived} grids arrived" in message


def test_every_cut_of_an_ordinary_file_says_how_much_is_there(tmp_path: Path) -> None:
    data = write_file(tmp_path / "a.h5", make_batch(300)).read_bytes()
    rng = random.Random(2)
    for cut in {rng.randrange(64, len(data)) for _ in range(30)}:
        (tmp_path / "cut.h5").write_bytes(data[:cut])
        message = f"FormatError: {tmp_path / 'cut.h5'}: truncated: {cut} of {len(data)} bytes"
        assert read_until_error(tmp_path / "cut.h5") == (0, message)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_damaged_bytes_give_an_error_or_the_right_grids_and_never_a_hang(tmp_path: Path, kind: str) -> None:
    batches = [make_batch(20), make_batch(20, first=20)]
    path = tmp_path / "a.h5"
    data = write_file(path, *batches).read_bytes() if kind == "file" else write_stream(path, *batches)
    expected = join_batches(HEADER, batches)
    rng = random.Random(3)
    errors = 0
    for _ in range(250):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            assert_same(read_grids(path)[1], expected)
        except FormatError:
            errors += 1
    assert errors > 100  # most bytes carry something; the rest is padding


def test_a_lost_chunk_is_noticed(tmp_path: Path) -> None:
    chunks = chunks_of(write_stream(tmp_path / "s.h5", *(make_batch(5, first=5 * i) for i in range(3))))
    (tmp_path / "lost.h5").write_bytes(chunks[0] + chunks[2] + chunks[3])
    arrived, message = read_until_error(tmp_path / "lost.h5")
    assert arrived == 5
    assert "chunk 2 of a stream came where chunk 1 was expected" in message


def test_a_sequence_cut_off_by_the_next_one_is_noticed(tmp_path: Path) -> None:
    data = write_stream(tmp_path / "s.h5", make_batch(5), finish=False)
    whole = write_file(tmp_path / "a.h5", make_batch(3)).read_bytes()
    (tmp_path / "both.h5").write_bytes(data + whole)
    arrived, message = read_until_error(tmp_path / "both.h5")
    assert arrived == 5
    assert "stopped early" in message


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(80), "a PNG image"),
        (b"hello, world\n" * 9, "text that begins with 'hello, world"),
        ((300).to_bytes(8, "little") + b'{"__metadata__"' + b" " * 80, "a safetensors file"),
        (bytes(range(200, 255)) + bytes(20), "bytes c8 c9"),
        (b"", "not a single byte"),
        (stream.SIGNATURE + b"\x07" + bytes(99), "superblock version 7"),
        (stream.SIGNATURE + b"\x03\x08\x08" + bytes(99), "checksum"),
    ],
)
def test_foreign_bytes_are_named(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(data)
    arrived, message = read_until_error(path)
    assert arrived == 0
    assert what in message
    good = write_file(tmp_path / "a.h5", make_batch(6)).read_bytes()
    if data:  # the same after good grids
        path.write_bytes(good + data)
        arrived, message = read_until_error(path)
        assert arrived == 6
        assert what in message


def test_a_superblock_that_claims_2_to_the_60_bytes_takes_no_memory(tmp_path: Path) -> None:
    start = bytearray(write_file(tmp_path / "a.h5", make_batch(6)).read_bytes())
    start[28:36] = (1 << 60).to_bytes(8, "little")
    start[44:48] = stream.lookup3(bytes(start[:44])).to_bytes(4, "little")
    tracemalloc.start()
    with pytest.raises(FormatError, match=rf"truncated: {len(start)} of {1 << 60} bytes"):
        list(stream.read_files(io.BytesIO(start), "pipe"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_the_checksum_is_the_published_one() -> None:
    # The self-test in Bob Jenkins' lookup3.c, driver5.
    assert stream.lookup3(b"Four score and seven years ago") == 0x17770551


def test_files_of_the_oldest_hdf5_layout_are_read_too(tmp_path: Path) -> None:
    batch = make_batch(5)
    write_file(tmp_path / "new.h5", batch)
    with h5py.File(tmp_path / "new.h5") as new, h5py.File(tmp_path / "old.h5", "w", libver="earliest") as old:
        old.attrs.update(dict(new.attrs) | {"preprocessing": "rewritten as text of variable length"})
        del old.attrs["header_digest"]  # as in files of earlier versions
        for name in new:
            old[name] = new[name].asstr()[:] if name == "id" else new[name][:]
    assert (tmp_path / "old.h5").read_bytes()[8] == 0
    header, found = read_grids(tmp_path / "old.h5")
    assert_same(found, batch)
    assert header.preprocessing.startswith("rewritten")
    (tmp_path / "two.h5").write_bytes((tmp_path / "old.h5").read_bytes() * 2)
    assert len(read_grids(tmp_path / "two.h5")[1]) == 10


def change(path: Path, edit: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: file.attrs.update(format="something"), "not one of token grids made by vqtool"),
        (lambda file: file.attrs.update(format_version=9), "format version 9.*upgrade"),
        (lambda file: file.attrs.__delitem__("history"), "damaged"),
        (lambda file: file.attrs.update(history="{"), "damaged"),
        (lambda file: file.attrs.update(codebook_size=0), "damaged"),
        (lambda file: file.__delitem__("tokens"), "damaged"),
        (
            lambda file: file["tokens"].__setitem__((2, 1, 3), 1024),
            r"token 1024 at row 1, column 3 of grid 2 is not in",
        ),
        (lambda file: file["tokens"].__setitem__((2, 1, 3), 1023), "does not match its digest"),
        (lambda file: file["id"].__setitem__(2, "other"), "does not match its digest"),
        (lambda file: file["tokens"].resize(4, axis=0), "id has shape"),
        (lambda file: file.attrs.update(total=7), "it says 7 grids, but 6 are there"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, edit: Callable[[h5py.File], None], message: str
) -> None:
    batch = GridBatch(make_batch(6).tokens % 1000, make_batch(6).ids)
    with pytest.raises(FormatError, match=message):
        read_grids(change(write_file(tmp_path / "a.h5", batch), edit))


@pytest.mark.parametrize(
    ("attributes", "what"),
    [
        ({"image_size": (2**62, 0)}, "its image_size"),
        ({"image_size": 64}, "its image_size"),
        ({"total": float("inf")}, "its total"),
        ({"last": 2}, "its last"),
        ({"holes": -1}, "its holes"),
        ({"history": "[[1]]"}, "its history is not a list of records"),
        ({"history": '[{"inputs": 1}]'}, "its history is not a list of records"),
        ({"history": "[" * 100_000}, "its history"),
        ({"tokenizer_fingerprint": "\x1b]0;owned\x07"}, "its tokenizer_fingerprint"),
        ({"tokenizer_location": "x" * 5000}, "its tokenizer_location"),
        ({"digest": "none"}, "its digest"),
        ({"codebook_size": "many"}, "its codebook_size"),
        ({"format_version": [1, 1]}, "its format_version"),
        ({"format": 7}, "its format"),
        ({"member": -1}, "its member"),
        ({"preprocessing": "x" * 5000}, "its preprocessing"),
    ],
)
def test_a_forged_header_is_refused_by_the_name_of_its_field(
    tmp_path: Path, attributes: dict[str, object], what: str
) -> None:
    path = write_file(tmp_path / "a.h5", make_batch(6))
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            file.attrs[name] = value
    with pytest.raises(FormatError, match=f"damaged: .*{what}"):
        read_grids(path)


def test_every_field_of_a_header_is_there_and_looked_at(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.h5", make_batch(6))
    with h5py.File(path) as file:
        names = list(file.attrs)
    assert len(names) == 13
    for name in names:
        for value in (None, h5py.Empty("f4"), np.array(["a", "b"], "S1"), np.zeros((2, 3, 4)), b"\xff\xfe"):
            forged = Path(shutil.copyfile(path, tmp_path / "forged.h5"))
            with h5py.File(forged, "r+") as file:
                if value is None:
                    del file.attrs[name]
                else:
                    file.attrs[name] = value
            if value is None and name == "header_digest":  # files of earlier versions have none
                assert_same(read_grids(forged)[1], make_batch(6))
                continue
            with pytest.raises(FormatError):
                read_grids(forged)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", (48, 80)),
        ("codebook_size", 1025),
        ("tokenizer_fingerprint", "0123456789abcdee"),
        ("tokenizer_location", "builtim"),
        ("preprocessing", "centre crap"),
        ("history", "[]"),
    ],
)
def test_what_a_header_could_also_say_is_found_to_be_changed(tmp_path: Path, name: str, value: object) -> None:
    path = write_file(tmp_path / "a.h5", make_batch(6))
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(FormatError, match=r"a\.h5: damaged: what it says of its grids does not match"):
        read_grids(path)


@pytest.mark.parametrize("size", [(16384, 16384), (25, 40), (3, 4), (3 * 4096, 5 * 4096)])
def test_the_size_of_the_images_fits_that_of_the_grids(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_file(tmp_path / "a.h5", make_batch(6))
    with h5py.File(path, "r+") as file:
        del file.attrs["header_digest"]
        file.attrs["image_size"] = size
    with pytest.raises(FormatError, match=rf"image_size {size[0]}x{size[1]} does not fit grids of 3x5 cells"):
        read_grids(path)


@pytest.mark.parametrize("make", [write_file, write_stream])
def test_some_of_the_first_grids_are_given_after_their_chunk_is_compared_with_its_digest(
    tmp_path: Path, make: Callable[..., object]
) -> None:
    make(tmp_path / "a.h5", make_batch(6), make_batch(6, first=6))
    with open_grids(tmp_path / "a.h5") as reader:
        batches = list(reader.batches(4, most=5))
    assert [len(batch) for batch in batches] == [4, 1]
    assert_same(join_batches(HEADER, batches), make_batch(5))


@pytest.mark.parametrize("copies", [1, 2])
def test_some_grids_of_a_forged_file_are_not_taken_for_whole_ones(tmp_path: Path, copies: int) -> None:
    path = write_file(tmp_path / "a.h5", make_batch(6))
    with h5py.File(path, "r+") as file:
        file["caption"][5] = "forged"
    path.write_bytes(path.read_bytes() * copies)  # two of them are a stream
    with open_grids(path) as reader, pytest.raises(FormatError, match="does not match its digest"):
        list(reader.batches(most=2))


def test_a_million_grids_in_a_few_kilobytes_are_refused_at_once(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.h5", make_batch(6))
    with h5py.File(path, "r+") as file:
        for name in ("tokens", "id", "label", "caption"):
            del file[name]
        file.create_dataset("tokens", (10**6, 3, 5), "u2", chunks=(1000, 3, 5), compression="gzip")
        file.create_dataset("id", (10**6,), "S8", chunks=(1000,), compression="gzip")
        file.attrs["total"] = 10**6
    tracemalloc.start()
    assert "cannot be in a file of" in read_until_error(path)[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_another_hdf5_file_is_named_by_what_it_holds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["images"] = np.zeros((2, 3, 8, 8), "u1")
    assert "it holds images" in read_until_error(tmp_path / "images.h5")[1]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"tokenizer_fingerprint": "fedcba9876543210"}, ("tokenizer fedcba9876543210", "tokenizer 0123456789abcdef")),
        ({"grid_size": (4, 5)}, ("grid size 4x5", "grid size 3x5")),
        ({"codebook_size": 512}, ("codebook size 512", "codebook size 1024")),
    ],
)
def test_a_stream_that_changes_its_tokenizer_or_size_names_both(
    tmp_path: Path, other: dict[str, object], what: tuple[str, str]
) -> None:
    header = GridHeader(**{**HEADER.__dict__, **other})  # type: ignore[arg-type]
    paths = [write_file(tmp_path / "a.h5", make_batch(4))]
    paths.append(write_file(tmp_path / "b.h5", make_batch(4, header=header), header=header))
    (tmp_path / "both.h5").write_bytes(b"".join(path.read_bytes() for path in paths))
    arrived, message = read_until_error(tmp_path / "both.h5")
    assert arrived == 4
    assert message.startswith("MismatchError")
    assert all(words in message for words in what)
    with pytest.raises(MismatchError, match=what[0]), concatenate([str(path) for path in paths]):
        pass


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (GridBatch(np.full((1, 3, 5), 1024), ["a"]), "not in"),
        (GridBatch(np.full((1, 3, 5), -1), ["a"]), "not in"),
        (GridBatch(np.zeros((1, 5, 3), int), ["a"]), "not integers"),
        (GridBatch(np.zeros((1, 3, 5)), ["a"]), "not integers"),
        (GridBatch(np.zeros((2, 3, 5), int), ["a"]), "1 ids"),
        (GridBatch(np.zeros((2, 3, 5), int), ["a", "b"], ["cat"]), "1 labels"),
    ],
)
def test_a_batch_that_does_not_fit_is_the_callers_bug_and_leaves_no_file(
    tmp_path: Path, batch: GridBatch, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_file(tmp_path / "a.h5", make_batch(3), batch)
    assert list(tmp_path.iterdir()) == []


def test_the_first_chunk_leaves_before_the_second_batch_is_there(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen([sys.executable, "-c", CONSUMER, fifo], stdout=subprocess.PIPE) as consumer:
        writer = GridWriter(fifo, HEADER).__enter__()
        writer.write(make_batch(5))
        assert consumer.stdout is not None
        assert consumer.stdout.readline() == b"5\n"  # while the writer is still at work
        consumer.wait()
        with pytest.raises(BrokenPipeError):
            writer.write(make_batch(5))
        with pytest.raises(BrokenPipeError):
            writer.__exit__(None, None, None)


def test_memory_does_not_grow_with_the_length_of_a_stream(tmp_path: Path) -> None:
    header = GridHeader(1024, (32, 32), (256, 256), "f", "builtin", "p")
    batch = make_batch(256, header=header)
    chunk = write_file(tmp_path / "a.h5", batch, header=header).read_bytes()
    (tmp_path / "s.h5").write_bytes(chunk * 20)
    tracemalloc.start()
    with open_grids(tmp_path / "s.h5") as reader:
        assert sum(map(len, reader.batches(64))) == 20 * 256
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(chunk)


def test_a_chunk_above_the_memory_budget_goes_through_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MEMORY_BYTES", 100)
    batch = make_batch(50)
    write_stream(tmp_path / "s.h5", batch)
    assert_same(read_grids(tmp_path / "s.h5")[1], batch)


def test_an_existing_file_is_kept_unless_forced_and_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.h5", make_batch(3))
    with pytest.raises(VqtoolError, match="`force`"):
        GridWriter(path, HEADER)
    with contextlib.suppress(KeyboardInterrupt), GridWriter(path, HEADER, force=True) as writer:
        writer.write(make_batch(400))
        raise KeyboardInterrupt
    assert_same(read_grids(path)[1], make_batch(3))
    assert list(tmp_path.iterdir()) == [path]


def test_output_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(VqtoolError, match=r"nowhere.*does not exist"):
        write_file(tmp_path / "nowhere" / "a.h5")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(VqtoolError, match="Permission denied"):
            write_file(tmp_path / "a.h5")
        tmp_path.chmod(0o700)


def test_a_folder_or_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VqtoolError, match="Is a directory"), open_grids(tmp_path):
        pass
    with pytest.raises(VqtoolError, match=r"none.h5: cannot be read: No such file"), open_grids(tmp_path / "none.h5"):
        pass


CONSUMER = """
import sys
from vqtool.grids import open_grids
with open_grids(sys.argv[1]) as reader:
    print(len(next(reader.batches())), flush=True)
"""

PRODUCER = """
import sys, time, resource
from support.grids import HEADER, make_batch
from vqtool.errors import VqtoolError
from vqtool.grids import GridWriter
output, mode = sys.argv[1:]
if mode == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with GridWriter(output, HEADER) as writer:
        for i in range(20):
            writer.write(make_batch(300, first=300 * i))
        if mode == "wait":
            print("written", file=sys.stderr, flush=True)
            time.sleep(60)
except VqtoolError as error:
    sys.exit(f"error: {error}")
"""


def produce(output: str, mode: str, **options: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PRODUCER, output, mode], stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def test_a_killed_writer_leaves_nothing_under_the_final_name_and_a_killed_producer_is_an_error(tmp_path: Path) -> None:
    with (
        (tmp_path / "s.h5").open("ab") as stream,
        produce(str(tmp_path / "a.h5"), "wait") as to_file,
        produce("-", "wait", stdout=stream) as to_stream,
    ):
        for process in (to_file, to_stream):
            assert process.stderr is not None
            assert process.stderr.readline() == b"written\n"
            process.kill()
    assert not (tmp_path / "a.h5").exists()
    arrived, message = read_until_error(tmp_path / "s.h5")
    assert arrived == 6000
    assert "the producer stopped early: 6000 grids arrived" in message


def test_an_interrupt_leaves_no_file_and_no_last_chunk(tmp_path: Path) -> None:
    with produce(str(tmp_path / "a.h5"), "wait") as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.stderr.read()
    assert list(tmp_path.iterdir()) == []
    data = write_stream(tmp_path / "s.h5", make_batch(3), finish=False)
    assert len(chunks_of(data)) == 1


@pytest.mark.parametrize("output", ["file", "stdout"])
def test_a_full_disk_is_one_clear_error_and_no_crash(tmp_path: Path, output: str) -> None:
    name = str(tmp_path / "a.h5") if output == "file" else "-"
    with (tmp_path / "stdout.h5").open("wb") as stdout, produce(name, "full", stdout=stdout) as process:
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.decode().splitlines() == [
        f"error: {name if output == 'file' else 'standard output'}: cannot be written: File too large"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["stdout.h5"]
    assert (tmp_path / "stdout.h5").stat().st_size == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full_is_an_error() -> None:
    with pytest.raises(VqtoolError, match="/dev/full: cannot be written: No space left"):
        write_file(Path("/dev/full"), make_batch(3))


def test_standard_output_gets_a_file_when_fresh_and_chunks_when_appending(tmp_path: Path) -> None:
    for mode, num_chunks in (("wb", 1), ("ab", 22)):
        path = tmp_path / "a.h5"
        # "ab" comes second and appends to the file of before
        with path.open(mode) as stdout, produce("-", "run", stdout=stdout) as process:
            assert process.wait() == 0
        assert len(chunks_of(path.read_bytes())) == num_chunks
        assert len(read_grids(path)[1]) == (6000 if mode == "wb" else 12000)


def test_binary_data_never_goes_to_a_terminal_or_waits_for_one() -> None:
    controller, terminal = pty.openpty()
    with produce("-", "run", stdout=terminal, stdin=terminal) as process:
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert b"does not go to a terminal" in stderr
    reading = "from vqtool.grids import open_grids\nwith open_grids('-'): pass"
    result = subprocess.run([sys.executable, "-c", reading], stdin=terminal, capture_output=True, check=False)
    assert b"standard input is a terminal" in result.stderr
    os.close(terminal)
    os.close(controller)


def test_a_pipe_named_twice_is_refused() -> None:
    with pytest.raises(VqtoolError, match="only once"), concatenate(["-", "-"]):
        pass
