"""Features that were computed before: a file a network in the user's cache, a row a picture, found by its pixels.

What it does: a network that is asked for a picture's features again answers from the file, whatever the picture is
called and wherever it lies. Of another network, other weights, another resize policy or precision the file is another.
Cost: 4 bytes a feature; past `MOST_BYTES` a file loses its older half. A file that cannot be used (no space, another
version) is told once, and the work goes on without it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.errors import warn
from vqtool.metrics.features import KINDS, FeatureNetwork, Features, concatenate
from vqtool.metrics.pictures import pixel_digests
from vqtool.outputs import cache_folder

MOST_BYTES = 2 << 30  # of one network's file
_SECONDS = 30  # that another process may keep it
_LAYOUT = "v1"  # of the table


def remembering(network: FeatureNetwork, device: str | torch.device, runtime: str) -> "CachedNetwork":
    """A network that remembers the features of pictures, those of each device and runtime apart."""
    words = (torch.device(device).type, runtime)
    return CachedNetwork(network, run_by="-".join(word for word in words if word not in ("cpu", "torch")))


class CachedNetwork:
    """A network that remembers the features of pictures.

    Args:
        network: that computes those which are not there.
        path: of the file; None: one of its own in features/ of the user's cache.
        run_by: what computes them where that is not PyTorch on a CPU: its numbers are others in the last digits.
    """

    def __init__(self, network: FeatureNetwork, path: Path | None = None, *, run_by: str = "") -> None:
        self._network, self._run_by = network, run_by
        self.name, self.feature_dim = network.name, network.feature_dim
        self._path = path
        self._usable = True
        self._like: Features | None = None  # features of no picture: name, digest and resize policy
        self.num_found = 0  # pictures that were there

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of images (B, 3, h, w) uint8 RGB."""
        if self._like is None:
            self._like = self._network(images[:0])
        nothing = self._like
        if not self._usable or not nothing.digest or not len(images):
            return self._network(images)
        keys = pixel_digests(images)
        precision = "" if nothing.precision == "fp32" else nothing.precision.replace(", ", "-")
        words = (nothing.name, nothing.digest, nothing.resize, precision, self._run_by, _LAYOUT)
        name = f"{'-'.join(filter(None, words))}.sqlite".replace("/", "_")
        path = self._path or cache_folder("features") / name
        known = self._look_up(path, keys, nothing)
        new = [row for row, key in enumerate(keys) if key not in known]
        self.num_found += len(keys) - len(new)
        if new:
            computed = self._network(images[new])
            known |= {keys[row]: computed[place : place + 1] for place, row in enumerate(new)}
            self._keep(path, [keys[row] for row in new], computed)
        return concatenate([known[key] for key in keys])

    def _look_up(self, path: Path, keys: list[bytes], like: Features) -> dict[bytes, Features]:
        """The rows that are there, by key."""
        found: dict[bytes, Features] = {}
        with self._told(path), closing(_open(path)) as file:
            marks = ", ".join("?" * len(keys))
            for key, *blobs in file.execute(f"SELECT key, {_COLUMNS} FROM rows WHERE key IN ({marks})", keys):
                arrays = {
                    kind: np.frombuffer(blob, "<f4")[None]
                    for kind, blob in zip(KINDS, blobs, strict=True)
                    if blob is not None
                }
                if "pooled" in arrays and arrays["pooled"].shape[1] == self.feature_dim:
                    found[key] = like.with_arrays(arrays)
        return found

    def _keep(self, path: Path, keys: list[bytes], features: Features) -> None:
        arrays = features.arrays()
        if any(array.dtype != np.float32 for array in arrays.values()):
            return
        with self._told(path), closing(_open(path)) as file, file:
            rows = [
                (key, *(arrays[kind][row].astype("<f4").tobytes() if kind in arrays else None for kind in KINDS))
                for row, key in enumerate(keys)
            ]
            file.executemany(f"INSERT OR IGNORE INTO rows (key, {_COLUMNS}) VALUES (?, ?, ?, ?)", rows)
            used, free, size = (
                file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
            )
            if (used - free) * size > MOST_BYTES:
                file.execute("DELETE FROM rows WHERE rowid <= (SELECT (min(rowid) + max(rowid)) / 2 FROM rows)")

    @contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        """Go on without the file where it cannot be used."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if self._usable:
                warn(f"{path}: features are not kept: {error}")
            self._usable = False


_COLUMNS = ", ".join(KINDS)


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = sqlite3.connect(path, timeout=_SECONDS)
    file.execute(f"CREATE TABLE IF NOT EXISTS rows (key BLOB UNIQUE, {_COLUMNS})")
    return file
