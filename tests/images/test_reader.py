"""Reading many images: order, errors, bounded look-ahead, threads that stop; and the way to floats and back."""

import gc
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import vqtool
from vqtool.errors import FormatError, VqtoolError
from vqtool.images import ImageItem, find_images, parse_size, read_batches, read_image, to_float, to_uint8


class Counting:
    """Counts the images that are opened, and can hold them back."""

    def __init__(self) -> None:
        self.opened = 0
        self.gate = threading.Event()
        self.gate.set()


@dataclass(frozen=True)
class FakeOrigin:
    """An image of one colour; `bad` ones are no image."""

    value: int
    counting: Counting
    delay: float = 0.0  # seconds
    bad: bool = False
    size: int = 4

    def open(self) -> BinaryIO:
        self.counting.gate.wait(10)
        self.counting.opened += 1
        time.sleep(self.delay)
        buffer = io.BytesIO()
        if not self.bad:
            Image.new("RGB", (self.size, self.size), (self.value % 256, 0, 0)).save(buffer, "PNG")
        return io.BytesIO(buffer.getvalue())

    def __str__(self) -> str:
        return f"fake {self.value}"


def make_items(num: int, counting: Counting, bad: tuple[int, ...] = (), delay: float = 0.0) -> list[ImageItem]:
    return [
        ImageItem(str(i), None, None, FakeOrigin(i, counting, delay=delay * (i % 3 == 0), bad=i in bad))
        for i in range(num)
    ]


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vqtool-images")]


@pytest.mark.parametrize(
    ("text", "size"),
    [("64", (64, 64)), ("48x80", (48, 80)), (" 7X9 ", (7, 9)), ("2×3", (2, 3)), ("16384", (16384, 16384))],
)
def test_a_size_is_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "0", "64x", "x64", "-4", "4x-4", "1.5", "4x4x4", "16385", "64x0", "9" * 50, "٣"]
)
def test_a_bad_size_says_what_was_expected(text: str) -> None:
    with pytest.raises(VqtoolError, match="expected one number or HEIGHTxWIDTH"):
        parse_size(text)


def test_all_256_values_survive_the_way_to_floats_and_back() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    floats = to_float(values)
    assert floats.dtype == torch.float32
    assert (floats.min(), floats.max()) == (-1.0, 1.0)
    assert np.array_equal(to_uint8(floats), values)
    assert np.array_equal(to_uint8(to_float(torch.from_numpy(values))), values)


def test_read_only_images_become_floats_without_a_warning() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    values.flags.writeable = False
    assert np.array_equal(to_uint8(to_float(values)), values)


def test_floats_are_rounded_to_nearest_and_clamped() -> None:
    given = torch.tensor([-9.0, -1.0, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 254.51 / 127.5 - 1, 1.0, 9.0, float("inf")])
    assert to_uint8(given).tolist() == [0, 0, 0, 1, 255, 255, 255, 255]
    assert to_uint8(given.requires_grad_()).dtype == np.uint8


def test_batches_keep_the_order_whatever_takes_longest() -> None:
    items = make_items(50, Counting(), delay=0.003)
    batches = list(read_batches(items, (2, 2), 8, workers=4))
    assert [len(batch.items) for batch in batches] == [8] * 6 + [2]
    assert [batch.images.shape for batch in batches][::6] == [(8, 3, 2, 2), (2, 3, 2, 2)]
    assert [int(value) for batch in batches for value in batch.images[:, 0, 0, 0]] == list(range(50))
    assert [item for batch in batches for item in batch.items] == items


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 2), (100, 3)])
def test_pixels_do_not_depend_on_batch_size_and_workers(tmp_path: Path, batch_size: int, workers: int) -> None:
    generator = np.random.default_rng(0)
    for i in range(20):
        pixels = generator.integers(0, 256, (20 + i, 40 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.{'png' if i % 2 else 'jpg'}")
    items = find_images([tmp_path])
    batches = read_batches(items, (16, 24), batch_size, workers=workers)
    images = np.concatenate([batch.images for batch in batches])
    assert np.array_equal(images, np.stack([read_image(item, (16, 24)) for item in items]))


def test_no_items_give_no_batches() -> None:
    assert list(read_batches([], (2, 2), 4)) == []


def test_a_bad_image_stops_the_reading_and_is_named() -> None:
    batches = read_batches(make_items(20, Counting(), bad=(5,)), (2, 2), 4)
    assert len(next(batches).items) == 4
    with pytest.raises(FormatError, match="fake 5: the file is empty"):
        next(batches)
    assert not reading_threads()


def test_bad_images_are_left_out_and_reported_in_order() -> None:
    failed: list[tuple[str, str, bool]] = []

    def note(item: ImageItem, error: VqtoolError) -> None:
        failed.append((item.id, str(error), threading.current_thread() is threading.main_thread()))

    batches = list(read_batches(make_items(12, Counting(), bad=(0, 5, 11)), (2, 2), 4, on_error=note))
    assert [[item.id for item in batch.items] for batch in batches] == [
        ["1", "2", "3", "4"],
        ["6", "7", "8", "9"],
        ["10"],
    ]
    assert failed == [(str(i), f"fake {i}: the file is empty", True) for i in (0, 5, 11)]


def test_only_bad_images_give_no_batch() -> None:
    failed: list[str] = []
    batches = read_batches(
        make_items(3, Counting(), bad=(0, 1, 2)), (2, 2), 4, on_error=lambda item, error: failed.append(item.id)
    )
    assert list(batches) == []
    assert failed == ["0", "1", "2"]


def test_no_more_than_a_batch_and_a_little_is_read_ahead() -> None:
    counting = Counting()
    batches = read_batches(make_items(500, counting), (2, 2), 10, workers=2)
    for consumed in (10, 20, 30):
        next(batches)
        time.sleep(0.1)
        assert consumed < counting.opened <= consumed + 10 + 2 * 4
    batches.close()  # type: ignore[attr-defined]


def test_items_are_taken_one_by_one_from_an_endless_iterator() -> None:
    counting = Counting()

    def endless() -> Iterator[ImageItem]:
        while True:
            yield from make_items(10, counting)

    batches = read_batches(endless(), (2, 2), 5, workers=2)
    assert [len(next(batches).items) for _ in range(10)] == [5] * 10
    batches.close()  # type: ignore[attr-defined]
    assert not reading_threads()


def test_reading_goes_on_while_the_consumer_works() -> None:
    counting = Counting()
    batches = read_batches(make_items(40, counting), (2, 2), 10, workers=1)
    next(batches)
    deadline = time.monotonic() + 5
    while counting.opened < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counting.opened >= 20  # the second batch is there before it is asked for
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["close", "forget", "break"])
def test_leaving_early_stops_the_threads(how: str) -> None:
    counting = Counting()
    batches = read_batches(make_items(1000, counting), (2, 2), 4, workers=3)
    for _ in batches:
        break
    if how == "close":
        batches.close()  # type: ignore[attr-defined]
    else:
        del batches
        gc.collect()
    assert not reading_threads()
    opened = counting.opened
    time.sleep(0.05)
    assert counting.opened == opened < 50


def test_an_iterator_that_is_never_started_starts_no_threads() -> None:
    read_batches(make_items(10, Counting()), (2, 2), 4)
    assert not reading_threads()


def test_native_sizes_must_agree() -> None:
    items = [ImageItem(str(size), None, None, FakeOrigin(size, Counting(), size=size)) for size in (4, 4, 5)]
    assert next(read_batches(items[:2], None, 2)).images.shape == (2, 3, 4, 4)
    with pytest.raises(VqtoolError, match="fake 4 has 4x4 pixels, fake 5 has 5x5: give a size"):
        list(read_batches(items, None, 2))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 4, "workers": 0}])
def test_impossible_numbers_are_refused_at_once(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        read_batches([], (2, 2), **options)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "h5"])
def test_one_shard_is_read_from_many_threads(tmp_path: Path, kind: str) -> None:
    values = np.arange(200, dtype=np.uint8)
    path = tmp_path / f"x.{kind}"
    if kind == "h5":
        with h5py.File(path, "w") as file:
            images = np.broadcast_to(values[:, None, None], (200, 8, 8))
            file.create_dataset("images", data=images, chunks=(16, 8, 8), compression="gzip")
    else:
        for value in values:
            Image.new("L", (8, 8), int(value)).save(tmp_path / f"{value}.png")
        import tarfile

        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
            for value in values:
                tar.add(tmp_path / f"{value}.png", arcname=f"{value}.png")
    batches = list(read_batches(find_images([path]), None, 32, workers=8))
    assert np.array_equal(np.concatenate([batch.images[:, 1, 3, 3] for batch in batches]), values)


def test_shards_are_closed_with_their_items(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("counts open files in /proc")
    test_one_shard_is_read_from_many_threads(tmp_path, "tar.gz")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        items = find_images([tmp_path / "x.tar.gz"])
        read_image(items[0], None)
    del items
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_file_that_vanishes_or_is_a_folder_is_a_format_error(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    items = find_images([tmp_path])
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").mkdir()
    for item in items:
        with pytest.raises(FormatError, match=rf"{item.id}\.png: cannot be read: "):
            read_image(item, None)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    (tmp_path / "b.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    for item in find_images([tmp_path]):
        with pytest.raises(FormatError, match=rf"{item.id}\.\w+: not an image that can be read here; expected JPEG"):
            read_image(item, None)


def test_finding_and_reading_do_not_import_torch(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    code = (
        "import sys, vqtool.images.preview\nfrom vqtool.images import find_images, read_batches\n"
        f"list(read_batches(find_images([{str(tmp_path)!r}]), (2, 2), 1))\n"
        "print(sorted({'torch', 'h5py', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_memory_is_flat_in_the_number_of_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    code = f"""
import resource, sys
from vqtool.images import find_images, read_batches
items = list(find_images([{str(tmp_path)!r}])) * int(sys.argv[1])
for batch in read_batches(items, None, 8, workers=2):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for num in (50, 1000):
        done = subprocess.run([sys.executable, "-c", code, str(num)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))  # KiB
    assert peaks[1] - peaks[0] < 20_000  # 950 images of 480 kB would be 456,000


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int | None]] = []
        self.done: list[int] = []

    @contextmanager
    def __call__(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        self.said.append((description, total))
        yield self.done.append


def test_all_images_are_read_at_once_with_their_words_and_a_total(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 4, 6), dtype=np.uint8)
    words = {"ids": [f"{i:02d}" for i in range(70)], "labels": ["cat", ""] * 35, "captions": ["", "a dog"] * 35}
    writing, reading = Told(), Told()
    vqtool.save_images(pixels, tmp_path / "out", **words, progress=writing)
    found = vqtool.read_images(tmp_path / "out", progress=reading)
    assert np.array_equal(found.images, pixels)
    assert {name: getattr(found, name) for name in words} == words
    assert (writing.said, writing.done) == ([("write", 70)], [64, 6])
    assert (reading.said, reading.done) == ([("read", 70)], [64, 6])
    assert vqtool.read_images([tmp_path / "out"], 8).images.shape == (70, 3, 8, 8)
    assert vqtool.read_images(found.items[:2], "5x7").images.shape == (2, 3, 5, 7)
    assert vqtool.read_images(str(tmp_path / "out"), (5, 7)).images.shape == (70, 3, 5, 7)


def test_images_beyond_some_memory_are_read_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.images.reader._MEMORY_BYTES", 0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 6), dtype=np.uint8)
    vqtool.save_images(pixels, tmp_path / "x.tar")
    images = vqtool.read_images(tmp_path / "x.tar").images
    assert isinstance(images, np.memmap)
    assert np.array_equal(images, pixels)


def test_bad_images_are_left_out_of_all_or_stop_it(tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    told: list[str] = []
    found = vqtool.read_images(tmp_path, on_error=lambda item, error: told.append(item.id))
    assert (found.ids, found.labels, found.captions, told) == (["a", "c"], None, None, ["b"])
    assert found.images.shape == (2, 3, 4, 4)
    with pytest.raises(FormatError, match=r"b\.png: not an image"):
        vqtool.read_images(tmp_path)
    with pytest.raises(VqtoolError, match="none of the 1 image could be read"):
        vqtool.read_images(tmp_path / "b.png", on_error=lambda item, error: None)
    with pytest.raises(VqtoolError, match="size 'x': expected one number"):
        vqtool.read_images(tmp_path, "x")
