"""The cache: what was seen is not computed again, whatever it is called; another network does not find it."""

import sqlite3

import numpy as np
import pytest
from support.sets import SixNumbers

from vqtool.errors import VqtoolWarning
from vqtool.metrics import cache
from vqtool.metrics.cache import CachedNetwork, remembering

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8)).astype(np.uint8)


def same(found, expected):
    return all(np.array_equal(found.arrays()[kind], array) for kind, array in expected.arrays().items())


def test_pictures_that_were_seen_are_not_computed_again_and_are_the_same(tmp_path):
    network = SixNumbers()
    expected = SixNumbers()(IMAGES)
    assert same(CachedNetwork(network, tmp_path / "c.sqlite")(IMAGES[:4]), expected[:4])
    again = CachedNetwork(network, tmp_path / "c.sqlite")
    order = np.array([5, 3, 3, 0, 4])
    found = again(IMAGES[order])
    assert same(found, expected[order])
    assert (network.num_seen, again.num_found) == (4 + 2, 3)
    assert (found.name, found.digest, found.resize) == (network.name, network.digest, network.resize)


def test_other_weights_and_another_runtime_have_files_of_their_own_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = SixNumbers()
    other.digest = "f" * 16
    for network in (SixNumbers(), other):
        CachedNetwork(network)(IMAGES)
    for runtime in ("torch", "onnx"):
        remembering(SixNumbers(), "cpu", runtime)(IMAGES)
    names = {path.name for path in (tmp_path / "vqtool" / "features").iterdir()}
    digests = ("0123456789abcdef-clean", "0123456789abcdef-clean-onnx", f"{other.digest}-clean")
    assert names == {f"SixNumbers-{digest}-v1.sqlite" for digest in digests}


def test_a_network_without_a_digest_is_not_remembered(tmp_path):
    network = SixNumbers()
    network.digest = ""
    CachedNetwork(network, tmp_path / "c.sqlite")(IMAGES)
    assert not (tmp_path / "c.sqlite").exists()


def test_a_file_that_is_damaged_is_told_once_and_the_work_goes_on(tmp_path):
    (tmp_path / "c.sqlite").write_bytes(b"no database" * 100)
    cached = CachedNetwork(SixNumbers(), tmp_path / "c.sqlite")
    with pytest.warns(VqtoolWarning, match="features are not kept") as told:
        found = [cached(IMAGES) for _ in range(2)]
    assert len(told) == 1
    assert all(same(each, SixNumbers()(IMAGES)) for each in found)


def test_a_large_file_loses_its_older_half(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 12_288)
    cached = CachedNetwork(SixNumbers(), tmp_path / "c.sqlite")
    rng = np.random.default_rng(1)
    for _ in range(14):
        newest = rng.integers(0, 256, (8, 3, 8, 8)).astype(np.uint8)
        cached(newest)
    with sqlite3.connect(tmp_path / "c.sqlite") as file:
        (count,) = file.execute("SELECT count(*) FROM rows").fetchone()
    assert 8 <= count < 100
    before = cached.num_found
    cached(newest[-1:])
    assert cached.num_found == before + 1
