"""A codebook that starts on data and does not collapse: k-means initialisation, and revival of dead codes.

Equation: at first codes are latents of the batch, far from each other (k-means++), moved to the means of those nearest
to them a few times. Later the use of each code is followed by a running mean; a code below a share of an even use is
put on a latent of the batch. How long the mean remembers depends on how many latents a batch has for each code.
Source: revival as in Jukebox (Dhariwal et al. 2020, arXiv:2005.00341); k-means: Lancucki et al. 2020
(arXiv:2005.08520); its seeding: Arthur and Vassilvitskii 2007.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from vqtool import distributed
from vqtool.tokenizers.quantizers._contract import Quantized, Quantizer
from vqtool.tokenizers.quantizers._gradients import GRADIENTS, pass_gradient
from vqtool.tokenizers.quantizers._lookup import nearest

PATIENCE = 100  # latents that an even code gets before one that gets none is dead
SHORTEST_MEMORY = 0.9  # decay of the running mean, however many latents there are


class PlacedQuantizer(Quantizer):
    """The nearest code of a codebook that is placed on data; subclasses say what the codes are and how they learn."""

    options: ClassVar[tuple[str, ...]] = ("gradient", "k_means_steps")
    terms: ClassVar[tuple[str, ...]] = ("commitment", "codebook")
    ready: Tensor  # () whether the codebook has been placed on data

    def __init__(
        self, codebook_size: int, code_dim: int, *, gradient: str = "straight-through", k_means_steps: int = 0
    ) -> None:
        """A quantizer without content.

        Args:
            codebook_size: K.
            code_dim: D.
            gradient: one of GRADIENTS.
            k_means_steps: of Lloyd's algorithm on the first batch; 0 leaves codes on single latents of it.
        """
        super().__init__()
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient is {gradient!r}, known are {GRADIENTS}")
        self.codebook_size, self.code_dim = codebook_size, code_dim
        self.gradient, self.k_means_steps = gradient, k_means_steps
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, latents: Tensor, picks: Tensor, *, revive: bool = True) -> Quantized:
        """See Quantizer; loss terms "commitment", which moves latents, and "codebook", if gradients move the codes."""
        flat = latents.detach().reshape(-1, self.code_dim).float()
        if self.training:
            with torch.no_grad():
                if not self.ready:
                    codes = k_means(distributed.gather(flat), picks, self.k_means_steps)
                    self.place(codes, even_use(flat, self.codebook_size))
                    self.ready.fill_(True)
                self.prepare(flat, picks, revive=revive)
        codebook = self.effective_codebook()
        tokens = nearest(flat, codebook.detach())
        codes = codebook[tokens].view_as(latents)
        losses = {"commitment": (latents - codes.detach()).square().mean()}
        if codes.requires_grad:
            losses["codebook"] = (codes - latents.detach()).square().mean()
        if self.training:
            with torch.no_grad():
                self.follow(flat, tokens, picks, revive=revive)
        passed = pass_gradient(latents, codes, self.gradient)
        return Quantized(passed, tokens.view(latents.shape[:-1]), losses)

    def is_ready(self) -> bool:
        """Whether the codebook has been placed on data."""
        return bool(self.ready)

    @torch.no_grad()
    def begin(self, codebook: Tensor) -> None:
        """Begin with the codes (K, D) of a tokenizer, as if each had been used."""
        self.place(codebook, 1.0)
        self.ready.fill_(True)

    def place(self, codes: Tensor, even: float) -> None:
        """Start on these codes (K, D); an even use of them would be `even` latents a batch."""
        raise NotImplementedError

    def prepare(self, flat: Tensor, picks: Tensor, *, revive: bool) -> None:
        """What is done before latents (N, D) are quantised."""

    def follow(self, flat: Tensor, tokens: Tensor, picks: Tensor, *, revive: bool) -> None:
        """What is learned of latents (N, D) and their tokens (N,) without gradients."""


class RevivedQuantizer(PlacedQuantizer):
    """One that knows which of its codes nobody chooses."""

    options: ClassVar[tuple[str, ...]] = (*PlacedQuantizer.options, "dead_share")
    use: Tensor  # (K,) running mean of how many latents of a batch chose each code

    def __init__(self, codebook_size: int, code_dim: int, *, dead_share: float = 0.05, **options: Any) -> None:
        """A quantizer without content.

        Args:
            codebook_size: K.
            code_dim: D.
            dead_share: a code with less than this share of an even use is dead.
            **options: see PlacedQuantizer.
        """
        super().__init__(codebook_size, code_dim, **options)
        self.dead_share = dead_share
        self.register_buffer("use", torch.ones(codebook_size))

    def watch(self, counts: Tensor, even: float) -> None:
        """Take the counts (K,) of a batch into account."""
        # A code that is not chosen any more falls to dead_share in the steps that give an even code PATIENCE latents.
        decay = max(SHORTEST_MEMORY, self.dead_share ** (even / PATIENCE))
        self.use.lerp_(counts, 1 - decay)

    def bury(self, even: float) -> Tensor:
        """(K,) bool: which codes are dead; they start anew with an even use."""
        dead = self.use < self.dead_share * even
        self.use.masked_fill_(dead, even)
        return dead


def even_use(flat: Tensor, codebook_size: int) -> float:
    """How many latents of a batch a code had if all had as many."""
    return len(flat) * distributed.world_size() / codebook_size


def count(flat: Tensor, tokens: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """How many latents (N, D) of all processes have each token (N,), and their sums: (K,), (K, D)."""
    counts = flat.new_zeros(codebook_size).index_add_(0, tokens, flat.new_ones(len(flat)))
    sums = flat.new_zeros(codebook_size, flat.shape[1]).index_add_(0, tokens, flat)
    return distributed.total(counts), distributed.total(sums)


def k_means(flat: Tensor, picks: Tensor, steps: int) -> Tensor:
    """Lloyd's algorithm on latents (N, D), seeded by k-means++: picks (K,) in [0, 1) -> (K, D)."""
    codes = seeds(flat, picks)
    for _ in range(steps):
        tokens = nearest(flat, codes)
        counts = flat.new_zeros(len(codes)).index_add_(0, tokens, flat.new_ones(len(flat)))
        sums = torch.zeros_like(codes).index_add_(0, tokens, flat)
        codes = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], codes)
    return codes


def seeds(flat: Tensor, picks: Tensor) -> Tensor:
    """k-means++: latents (N, D), each drawn by its squared distance to those before; picks (K,) in [0, 1) -> (K, D)."""
    picks = picks.to(flat.device, torch.float64)
    row = (picks[0] * len(flat)).long()
    chosen, distance = [flat[row]], torch.full_like(flat[:, 0], torch.inf)
    for one in picks[1:]:
        distance = torch.minimum(distance, (flat - chosen[-1]).square().sum(1))
        reach = distance.double().cumsum(0)
        row = torch.searchsorted(reach, one * reach[-1], right=True).clamp(max=len(flat) - 1)
        chosen.append(flat[row])
    return torch.stack(chosen)


def pick(flat: Tensor, picks: Tensor) -> Tensor:
    """Rows of the latents of all processes, in their order: flat (N, D) here, picks (K,) in [0, 1) -> (K, D)."""
    rows = (picks.to(flat.device) * (len(flat) * distributed.world_size())).long()
    if distributed.world_size() == 1:
        return flat[rows]
    own = rows // len(flat) == distributed.rank()
    return distributed.total(torch.where(own[:, None], flat[rows % len(flat)], 0.0))
