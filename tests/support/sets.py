"""Sets of pictures and features for tests of what is compared and saved."""

from pathlib import Path

import numpy as np
from PIL import Image

from vqtool.images import find_images
from vqtool.metrics.features import Features
from vqtool.metrics.pictures import ImageFiles
from vqtool.metrics.sides import About, read_features


class SixNumbers:
    """A feature network of six numbers: means and spreads of the colours, with two classes and a spatial part."""

    name, feature_dim, digest, resize = "SixNumbers", 6, "0123456789abcdef", "clean"

    def __init__(self):
        self.num_seen = 0  # pictures

    def __call__(self, images):
        self.num_seen += len(images)
        x = images.astype(np.float64)
        pooled = np.concatenate([x.mean((2, 3)), x.std((2, 3))], axis=1).astype(np.float32)
        share = (pooled[:, :1] / 255).astype(np.float32)
        return Features(
            self.name,
            pooled,
            self.digest,
            self.resize,
            spatial=x[:, 0, :2, 0].astype(np.float32),
            probabilities=np.concatenate([share, 1 - share], axis=1),
        )


def write_noise(folder: Path, num: int, size: int = 8, *, seed: int = 0, ending: str = ".png", label: str = "") -> None:
    """Pictures of noise around a colour of their own, in a folder of their class if there is one."""
    rng = np.random.default_rng(seed)
    target = folder / label if label else folder
    target.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        pixels = np.clip(rng.integers(0, 200, 3) + rng.integers(0, 60, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(target / f"{label}{i:03d}{ending}")


def features_of(folder: Path, network=None, rows=slice(None)):
    """The feature set of some pictures of a folder."""
    pictures = ImageFiles(find_images([folder]))
    chosen = np.arange(len(pictures.ids))[rows]
    about = About(size=pictures.common_size(), fit="crop", num_given=len(chosen))
    return read_features(pictures, chosen, network or SixNumbers(), about)
