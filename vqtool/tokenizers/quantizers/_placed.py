"""A codebook that starts on data and does not collapse: k-means initialisation, and restart of dead codes.

Equation: at first codes are latents of the batch, far from each other (k-means++), moved to the means of those nearest
to them a few times. Later the use of each code is followed by a running mean; a code below a share of an even use is
put on a latent of the batch. How long the mean remembers depends on how many latents a batch has for each code.
Source: restart as in Jukebox (Dhariwal et al. 2020, arXiv:2005.00341); k-means: Lancucki et al. 2020
(arXiv:2005.08520); its seeding: Arthur and Vassilvitskii 2007.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool import distributed
from vqtool.options import option
from vqtool.tokenizers.quantizers._contract import Quantized, Quantizer, QuantizerOptions
from vqtool.tokenizers.quantizers._gradients import pass_gradient
from vqtool.tokenizers.quantizers._lookup import nearest

DEAD_SHARE = 0.05  # a code with less than this share of an even use is dead
PATIENCE = 100  # latents that an even code gets before one that gets none is dead
SHORTEST_MEMORY = 0.9  # decay of the running mean, however many latents there are


@dataclass(frozen=True, kw_only=True)
class PlacedOptions(QuantizerOptions):
    """What quantizers with a codebook that is placed on data can be told."""

    codebook_size: int | None = option(None, "How many codes.", shown="the network's", minimum=2, flag="-K")
    code_dim: int | None = option(None, "Numbers in a code.", shown="the network's", minimum=1)
    gradient: str = option(
        "straight-through",
        "How the gradient of a code becomes one of its latent.",
        choices="tokenizers/quantizers/_gradients.py:GRADIENTS",
    )
    k_means: int = option(10, "Steps of k-means that codes start with; 0 starts on single latents.", minimum=0)
    commitment: float = option(0.25, "Weight of the pull of latents to their codes.", minimum=0)

    def shape(self, codebook_size: int, code_dim: int) -> tuple[int, int]:
        """(K, D): what is asked for, else the network's."""
        return self.codebook_size or codebook_size, self.code_dim or code_dim


@dataclass(frozen=True, kw_only=True)
class RestartOptions(PlacedOptions):
    """What those of them with dead codes can be told."""

    restart: bool = option(True, "Move dead codes, which no latent chooses, onto latents.")


class PlacedQuantizer(Quantizer):
    """The nearest code of a codebook that is placed on data; subclasses say what the codes are and how they learn."""

    ready: Tensor  # () whether the codebook has been placed on data

    def __init__(self, codebook_size: int, code_dim: int, options: PlacedOptions) -> None:
        """See Quantizer."""
        super().__init__(codebook_size, code_dim, options)
        self.weights = {"commitment": options.commitment}
        self.register_buffer("ready", torch.tensor(False))
        self._known_ready = False

    def prepares(self, *, restart: bool) -> bool:
        """Where the codes have to be placed."""
        return not self.is_ready()

    def prepare(self, flat: Tensor, picks: Tensor, *, restart: bool) -> None:
        """Place the codes on latents, if that has not been done."""
        if not self.is_ready():
            codes = k_means(distributed.gather(flat), picks, self.options.k_means)
            codes = distributed.of_main(codes)  # GPUs add up in any order
            self.place(codes, even_use(flat, self.codebook_size))
            self.ready.fill_(True)

    def quantise(self, latents: Tensor) -> Quantized:
        """See Quantizer; loss terms "commitment", which moves latents, and "codebook", if gradients move the codes."""
        codebook = self.effective_codebook()
        tokens = nearest(latents.detach().reshape(-1, self.code_dim).float(), codebook.detach())
        codes = codebook[tokens].view_as(latents)
        losses = {"commitment": (latents - codes.detach()).square().mean()}
        if codes.requires_grad:
            losses["codebook"] = (codes - latents.detach()).square().mean()
        passed = pass_gradient(latents, codes, self.options.gradient)
        return Quantized(passed, tokens.view(latents.shape[:-1]), losses)

    def is_ready(self) -> bool:
        """Whether the codebook has been placed on data."""
        self._known_ready = self._known_ready or bool(self.ready)  # once True, a GPU is not waited for any more
        return self._known_ready

    @torch.no_grad()
    def begin(self, codebook: Tensor) -> None:
        """Begin with the codes (K, D) of a tokenizer, as if each had been used."""
        self.place(codebook, 1.0)
        self.ready.fill_(True)

    def place(self, codes: Tensor, even: float) -> None:
        """Start on these codes (K, D); an even use of them would be `even` latents a batch."""
        raise NotImplementedError


class RestartedQuantizer(PlacedQuantizer):
    """One that knows which of its codes are dead."""

    use: Tensor  # (K,) running mean of how many latents of a batch chose each code

    def __init__(self, codebook_size: int, code_dim: int, options: RestartOptions) -> None:
        """See Quantizer."""
        super().__init__(codebook_size, code_dim, options)
        self.register_buffer("use", torch.ones(codebook_size))

    def watch(self, counts: Tensor, even: float) -> None:
        """Take the counts (K,) of a batch into account."""
        # A code that is not chosen any more falls to DEAD_SHARE in the steps that give an even code PATIENCE latents.
        decay = max(SHORTEST_MEMORY, DEAD_SHARE ** (even / PATIENCE))
        self.use.lerp_(counts, 1 - decay)

    def find_dead(self, even: float) -> Tensor:
        """(K,) bool: which codes are dead and to be restarted, which counts as an even use of them."""
        if not self.options.restart:
            return torch.zeros_like(self.use, dtype=torch.bool)
        dead = self.use < DEAD_SHARE * even
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
