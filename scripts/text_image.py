"""Train a dual encoder, the text score without CLIP (vqtool/metrics/dual_encoder.py), on pictures with captions.

    python scripts/text_image.py build/pictures/emoji.tar.gz build/pictures/clipart.tar.gz --most 6000 --size 64 \\
        --cache build/scores/cache -o dual.safetensors
    vqtool eval decoded/ --text dual.safetensors

The two maps learn by InfoNCE for 20 s, after the features (25 pictures and 150 captions a second on one core), which
are kept in --cache.
They have seen the training pictures with their captions: scores of held-out concepts are the honest ones. Real pictures
give the upper bound, shuffled captions the chance.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.artifacts import history_record
from vqtool.conditions.minilm import MiniLM
from vqtool.images import ImageItem, SourceOptions, find_images, read_batches
from vqtool.metrics import EfficientNetLite0, extract
from vqtool.metrics.dual_encoder import Config, DualEncoder, save_dual_encoder

DIM, EPOCHS, BATCH = 256, 60, 512
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1


class Learner(nn.Module):
    """Two linear maps while they learn, of features with mean 0 and variance 1."""

    def __init__(self, images: Tensor, text_width: int) -> None:
        super().__init__()
        self.image = nn.Linear(images.shape[1], DIM, bias=False)
        self.text = nn.Linear(text_width, DIM, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.mean, self.deviation = images.mean(0), images.std(0) + 1e-6

    def of_images(self, features: Tensor) -> Tensor:
        """(N, image_width) -> (N, DIM) of length 1."""
        return F.normalize(self.image((features - self.mean) / self.deviation))

    def of_texts(self, features: Tensor) -> Tensor:
        """(N, text_width) -> (N, DIM) of length 1."""
        return F.normalize(self.text(features))

    @torch.no_grad()
    def learned(self) -> DualEncoder:
        """The maps of features as they are."""
        encoder = DualEncoder(Config(self.image.in_features, self.text.in_features, DIM))
        encoder.image.weight.copy_(self.image.weight / self.deviation)
        encoder.image.bias.copy_(-encoder.image.weight @ self.mean)
        encoder.text.weight.copy_(self.text.weight)
        return encoder.eval().requires_grad_(False)


def info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The mean of both cross-entropies, of pictures among captions and of captions among pictures; rows are pairs.

    Args:
        images: (B, D) of length 1.
        texts: (B, D) of length 1.
        scale: that cosines are multiplied with.
    """
    logits = scale * images @ texts.T
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def train(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    owners: NDArray[np.int64],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> DualEncoder:
    """Train the two maps.

    Args:
        images: (N, 1280) features of pictures.
        texts: (M, 384) features of captions.
        owners: (M,) the picture of each caption, ascending; each picture has one at least.
        epochs: passes through the pictures, with one caption drawn for each.
        seed: of the weights, the order and the captions drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(images), torch.from_numpy(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Learner(x, texts.shape[1])
    counts = torch.from_numpy(np.bincount(owners, minlength=len(images)))
    starts = counts.cumsum(0) - counts
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            drawn = starts[rows] + (torch.rand(len(rows), generator=generator) * counts[rows]).long()
            noisy = x[rows] + 0.1 * model.deviation * torch.randn(len(rows), x.shape[1], generator=generator)
            loss = info_nce(model.of_images(noisy), model.of_texts(y[drawn]), model.log_scale.exp().clamp(max=100))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.learned()


def ranks(scores: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank, from 1, of each picture's own caption among all; ties count against it.

    Args:
        scores: (N, M) of pictures and captions.
        own: (N,) the column of each picture's caption.
    """
    right = scores[np.arange(len(scores)), own]
    return (scores >= right[:, None]).sum(axis=1)


def picture_features(items: Sequence[ImageItem], cache: Path, size: int) -> NDArray[np.float32]:
    """EfficientNet-Lite0's features (N, 1280) of pictures, read from a file where they were computed before.

    Args:
        items: of `find_images`.
        cache: folder for the file, which is named after the pictures' ids and the size.
        size: pixels of the pictures.
    """
    digest = hashlib.sha256(
        "\n".join([str(size), *(f"{item.id} {item.origin}" for item in items)]).encode()
    ).hexdigest()
    path = cache / f"features-{digest[:16]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        network = EfficientNetLite0()
        features = extract(network, (batch.images for batch in read_batches(items, (size, size), 64))).pooled
        partial = path.with_suffix(".partial.npy")
        np.save(partial, features)
        partial.replace(path)
    return np.load(path)


def text_features(texts: Sequence[str], cache: Path) -> NDArray[np.float32]:
    """MiniLM's features (N, 384) of captions, read from a file where they were computed before."""
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    path = cache / f"texts-{digest[:16]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, MiniLM()(texts))
        partial.replace(path)
    return np.load(path)


def find_captioned(paths: Sequence[Path]) -> list[ImageItem]:
    """The pictures of some sources that have captions."""
    items = find_images(paths, SourceOptions(labels="none"))
    return [item for item in items if item.captions]


def train_on(paths: Sequence[Path], cache: Path, size: int, *, most: int, seed: int) -> tuple[DualEncoder, int]:
    """The dual encoder of at most so many pictures with captions, and how many they are.

    Args:
        paths: of the pictures.
        cache: folder for features.
        size: pixels of the pictures.
        most: pictures, chosen by seed.
        seed: of the training, too.
    """
    items = find_captioned(paths)
    rows = np.sort(np.random.default_rng([seed, 7]).permutation(len(items))[:most])
    items = [items[row] for row in rows]
    texts = text_features([caption for item in items for caption in item.captions], cache)
    owners = np.repeat(np.arange(len(items)), [len(item.captions) for item in items])
    return train(picture_features(items, cache, size), texts, owners, seed=seed), len(items)


def main() -> None:
    """Train on the pictures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pictures", type=Path, nargs="+", help="with captions")
    parser.add_argument("--output", "-o", type=Path, default=Path("dual.safetensors"))
    parser.add_argument("--cache", type=Path, default=Path("build/scores/cache"), help="folder for features")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--most", type=int, default=6000, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    encoder, num = train_on(options.pictures, options.cache, options.size, most=options.most, seed=options.seed)
    record = history_record("train-dual-encoder", seed=options.seed, num_images=num, size=options.size)
    header = save_dual_encoder(options.output, encoder, history=[record], summary={"num_images": num, "epochs": EPOCHS})
    print(f"wrote {options.output}: dual encoder {header.fingerprint} of {num} pictures")


if __name__ == "__main__":
    main()
