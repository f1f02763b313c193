"""From latents to tokens and back: how a token is looked up, and a codebook that follows the latents.

`nearest` is the lookup that most tokenizers use; `highest` is the one below it, and that of a learned projection.
`EmaQuantizer` is the codebook in training: codes are running means of the latents that chose them, and codes that
nobody chooses are put on latents of the current batch.

Source: van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1; revival of dead codes as in Jukebox
(arXiv:2005.00341).
"""

import torch
from torch import Tensor, nn

from vqtool import distributed

DISTANCE_BYTES = 1 << 28  # largest block of distances that is held at once


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of each vector in Euclidean distance; the first of equals.

    Args:
        vectors: (N, D).
        codebook: (K, D).

    Returns:
        (N,) int64 tokens. Holds at most `DISTANCE_BYTES` of distances at once.
    """
    return highest(vectors, codebook, -codebook.square().sum(1) / 2)  # |z - c|^2 = |z|^2 - 2 (z c - |c|^2 / 2)


def highest(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The row of a linear map with the highest value for each vector; the first of equals.

    Args:
        vectors: (N, D).
        weight: (K, D).
        bias: (K,).

    Returns:
        (N,) int64 in [0, K). Holds at most `DISTANCE_BYTES` of values at once.
    """
    budget = max(1, DISTANCE_BYTES // weight.element_size())
    columns = min(budget, len(weight))
    parts = torch.split(vectors, budget // columns)
    if columns == len(weight):
        found = [torch.addmm(bias, part, weight.T).argmax(1) for part in parts]
    else:
        found = [_highest_by_blocks(part, weight, bias, columns) for part in parts]
    return torch.cat(found or [torch.empty(0, dtype=torch.int64, device=vectors.device)])


def _highest_by_blocks(vectors: Tensor, weight: Tensor, bias: Tensor, columns: int) -> Tensor:
    tokens = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    values = torch.full_like(vectors[:, 0], -torch.inf)
    for begin in range(0, len(weight), columns):
        end = begin + columns
        best, row = torch.addmm(bias[begin:end], vectors, weight[begin:end].T).max(1)
        tokens = torch.where(best > values, row + begin, tokens)
        values = torch.maximum(best, values)
    return tokens


class EmaQuantizer(nn.Module):
    """A codebook that learns by exponential moving averages, with straight-through gradients."""

    codebook: Tensor  # (K, D)
    counts: Tensor  # (K,) running mean of how many latents of a batch chose each code
    sums: Tensor  # (K, D) running mean of the sum of these latents
    ready: Tensor  # () whether the codebook has been placed on data

    def __init__(self, codebook_size: int, code_dim: int, *, decay: float = 0.99, dead_share: float = 0.05) -> None:
        super().__init__()
        self.decay = decay
        self.dead_share = dead_share  # a code with less than this share of an even use is dead
        self.register_buffer("codebook", torch.zeros(codebook_size, code_dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, code_dim))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, latents: Tensor, picks: Tensor, *, revive: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise, and in training mode move the codebook towards the latents.

        Args:
            latents: (B, H, W, D).
            picks: (K,) uniform noise in [0, 1): which latents new codes are placed on.
            revive: whether dead codes are moved onto latents of this batch.

        Returns:
            codes (B, H, W, D) with straight-through gradients, commitment loss (), tokens (B, H, W).
        """
        flat = latents.detach().reshape(-1, latents.shape[-1]).float()
        if self.training and not self.ready:
            self._place(flat, picks)
        tokens = nearest(flat, self.codebook)
        codes = self.codebook[tokens].view_as(latents)
        if self.training:
            self._follow(flat, tokens, picks, revive=revive)
        commitment = (latents - codes.detach()).square().mean()
        return latents + (codes - latents).detach(), commitment, tokens.view(latents.shape[:-1])

    @torch.no_grad()
    def _place(self, flat: Tensor, picks: Tensor) -> None:
        chosen = _pick(flat, picks)
        self.codebook.copy_(chosen)
        self.counts.fill_(1.0)
        self.sums.copy_(chosen)
        self.ready.fill_(True)

    @torch.no_grad()
    def _follow(self, flat: Tensor, tokens: Tensor, picks: Tensor, *, revive: bool) -> None:
        counts = torch.zeros_like(self.counts).index_add_(0, tokens, torch.ones_like(tokens, dtype=flat.dtype))
        sums = torch.zeros_like(self.sums).index_add_(0, tokens, flat)
        counts, sums = _total(counts), _total(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        if revive:
            even = counts.sum() / len(counts)
            chosen = _pick(flat, picks)
            dead = self.counts < self.dead_share * even
            self.counts.copy_(torch.where(dead, even, self.counts))
            self.sums.copy_(torch.where(dead[:, None], chosen * even, self.sums))
        self.codebook.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])


def _total(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if distributed.world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def _pick(flat: Tensor, picks: Tensor) -> Tensor:
    """Rows of the latents of all processes, in their order: flat (N, D) here, picks (K,) in [0, 1) -> (K, D)."""
    rows = (picks.to(flat.device) * (len(flat) * distributed.world_size())).long()
    if distributed.world_size() == 1:
        return flat[rows]
    own = rows // len(flat) == distributed.rank()
    return _total(torch.where(own[:, None], flat[rows % len(flat)], 0.0))
