"""Images by number, decoded when they are wanted: what is seen, what is kept, how much is under way."""

import threading
import weakref

import h5py
import numpy as np
import pytest
from PIL import Image
from support.commands import write_pictures
from support.sources import make_tar, make_zip

from vqtool.errors import FormatError, VqtoolError, VqtoolWarning
from vqtool.images import find_images, read_images
from vqtool.images import stream as streaming
from vqtool.images.stream import DiskStore, ImageStream, MemoryStore

SIZE = (8, 12)


@pytest.fixture
def imgs(tmp_path):
    """9 pictures of noise."""
    return write_pictures(tmp_path / "imgs", 9, size=(16, 24))


def build_store(kind, folder):
    """A store of a kind for 9 images."""
    if kind == "memory":
        return MemoryStore(np.zeros((9, 3, *SIZE), np.uint8))
    return DiskStore(folder / "x.cache", (3, *SIZE)) if kind == "disk" else None


@pytest.mark.parametrize("kind", ["none", "memory", "disk"])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_taken_are_the_images_as_they_are_read_one_by_one(imgs, tmp_path, kind, workers):
    expected = read_images(imgs, SIZE).images
    stream = ImageStream(find_images([imgs]), SIZE, store=build_store(kind, tmp_path), workers=workers)
    for seed in range(3):
        indices = np.random.default_rng(seed).integers(0, 9, 7)
        assert np.array_equal(stream.take(indices), expected[indices])
        stream.expect(np.arange(5))
    stream.close()


def test_every_kind_of_source_gives_the_same_images(imgs, tmp_path):
    files = {path.name: path.read_bytes() for path in sorted(imgs.iterdir())}
    make_tar(tmp_path / "x.tar", files)
    make_tar(tmp_path / "x.tar.gz", files, "w:gz")
    make_zip(tmp_path / "x.zip", files)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = read_images(imgs).images
    order = np.array([8, 0, 3, 3, 1])
    expected = read_images(imgs, SIZE).images[order]
    for name in ("x.tar", "x.tar.gz", "x.zip", "x.h5"):
        items = find_images([tmp_path / name], words="none")
        stream = ImageStream(items, SIZE, workers=2)
        assert np.array_equal(stream.take(order), expected), name
        assert len({item.origin.num_bytes for item in items} - {None}) > 0 or name == "x.h5"
        stream.close()


@pytest.mark.parametrize("kind", ["none", "memory", "disk"])
def test_the_next_image_takes_the_place_of_a_bad_one_which_is_told_once(imgs, tmp_path, kind):
    """3, 4 and 8, the last, cannot be read: 5 and 0 are seen in their places."""
    expected = read_images(imgs, SIZE).images
    for name in ("03", "04", "08"):
        (imgs / f"{name}.png").write_bytes(b"no image")
    told = []
    stream = ImageStream(
        find_images([imgs]), SIZE, store=build_store(kind, tmp_path), on_error=lambda item, error: told.append(item.id)
    )
    for _ in range(2):
        stream.expect(np.arange(9))
        assert np.array_equal(stream.take(np.arange(9)), expected[[0, 1, 2, 5, 5, 5, 6, 7, 0]])
    assert told == ["03", "04", "08"]
    assert list(stream.left_out) == [3, 4, 8]
    stream.close()


def test_without_a_listener_a_bad_image_is_an_error_when_it_is_wanted_and_not_before(imgs):
    (imgs / "03.png").write_bytes(b"no image")
    stream = ImageStream(find_images([imgs]), SIZE)
    stream.expect(np.arange(9))
    stream.take(np.array([2, 4]))
    with pytest.raises(FormatError, match=r"03\.png"):
        stream.take(np.array([2, 3]))
    stream.close()


def test_an_image_that_disappears_is_told_and_replaced_and_none_at_all_is_an_error(imgs):
    told = []
    stream = ImageStream(find_images([imgs]), SIZE, on_error=lambda item, error: told.append(str(error)))
    before = stream.take(np.arange(9))
    (imgs / "04.png").unlink()
    assert np.array_equal(stream.take(np.array([4, 1])), before[[5, 1]])
    assert len(told) == 1
    assert "04.png: cannot be read: No such file" in told[0]
    for path in imgs.iterdir():
        path.unlink()
    with pytest.raises(VqtoolError, match="none of the 9 images could be read"):
        stream.take(np.array([4]))
    stream.close()


def test_so_many_images_are_in_memory_as_are_asked_for_and_expected(monkeypatch):
    """A count of arrays that are alive, over a million images that are never there."""
    alive, most, lock = [0], [0], threading.Lock()

    class Counted(np.ndarray):
        pass

    def gone():
        with lock:
            alive[0] -= 1

    def read(item, size, fit):
        image = np.full((3, *size), item % 251, np.uint8).view(Counted)
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        weakref.finalize(image, gone)
        return image

    monkeypatch.setattr(streaming, "read_image", read)
    stream = ImageStream(range(1_000_000), (2, 2), workers=2)
    for step in range(40):
        indices = (np.arange(8) + 8 * step) * 7919 % len(stream)
        assert np.array_equal(stream.take(indices)[:, 0, 0, 0], indices % 251)
        stream.expect((np.arange(8 + stream.ahead) + 8 * (step + 1)) * 7919 % len(stream))
    stream.close()
    assert 8 < most[0] <= 8 + 8 + stream.ahead


def test_a_file_keeps_images_for_later_streams_and_what_is_torn_is_decoded_again(imgs, tmp_path, monkeypatch):
    items, path = find_images([imgs]), tmp_path / "x.cache"
    expected = read_images(imgs, SIZE).images
    stream = ImageStream(items, SIZE, store=DiskStore(path, (3, *SIZE)))
    stream.take(np.array([1, 7]))
    stream.close()
    record = 4 + 3 * 8 * 12
    content = bytearray(path.read_bytes())
    content[7 * record + 100] ^= 1
    path.write_bytes(content[:-20])
    read, decoded = streaming.read_image, []
    monkeypatch.setattr(streaming, "read_image", lambda item, *rest: (decoded.append(item.id), read(item, *rest))[1])
    again = ImageStream(items, SIZE, store=DiskStore(path, (3, *SIZE)))
    assert np.array_equal(again.take(np.array([1, 7, 0])), expected[[1, 7, 0]])
    again.close()
    assert sorted(decoded) == ["00", "07"]


def test_black_images_are_not_taken_for_those_that_were_never_written(tmp_path):
    store = DiskStore(tmp_path / "x.cache", (3, 4, 4))
    store.write(2, np.ones((3, 4, 4), np.uint8))
    assert store.read(0) is None
    store.write(0, np.zeros((3, 4, 4), np.uint8))
    assert not store.read(0).any()
    assert store.read(1) is None
    store.close()


def test_two_processes_share_a_file(imgs, tmp_path, monkeypatch):
    items = find_images([imgs])
    one, other = (ImageStream(items, SIZE, store=DiskStore(tmp_path / "x", (3, *SIZE))) for _ in range(2))
    taken = one.take(np.arange(9))
    monkeypatch.setattr(streaming, "read_image", None)
    assert np.array_equal(other.take(np.arange(9)), taken)
    one.close()
    other.close()


def test_a_full_disk_is_told_once_and_the_images_are_decoded_each_time(imgs, tmp_path):
    expected = read_images(imgs, SIZE).images
    store = DiskStore(tmp_path / "x", (3, *SIZE))
    store._file.close()
    store._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115 - closed with the stream
    stream = ImageStream(find_images([imgs]), SIZE, store=store, workers=1)
    with pytest.warns(VqtoolWarning, match="No space left on device") as told:
        taken = [stream.take(np.arange(9)) for _ in range(2)]
    assert len(told) == 1
    assert all(np.array_equal(each, expected) for each in taken)
    stream.close()


def test_images_that_are_there_are_seen_as_a_whole(imgs):
    images = read_images(imgs, SIZE).images
    assert ImageStream.of(images).whole is images
    store = MemoryStore(np.zeros((9, 3, *SIZE), np.uint8))
    (imgs / "03.png").write_bytes(b"no image")
    stream = ImageStream(find_images([imgs]), SIZE, store=store, on_error=lambda item, error: None)
    stream.take(np.arange(8))
    assert stream.whole is None
    stream.take(np.array([8]))
    assert np.array_equal(stream.whole[stream.readable(np.arange(9))], images[[0, 1, 2, 4, 4, 5, 6, 7, 8]])
    stream.close()


def test_a_picture_is_as_it_is_read_when_it_is_wanted(imgs):
    stream = ImageStream(find_images([imgs]), SIZE)
    Image.new("RGB", (24, 16), "red").save(imgs / "06.png")
    assert stream.take(np.array([6]))[0, :, 0, 0].tolist() == [255, 0, 0]
    stream.close()
