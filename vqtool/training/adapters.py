"""What of a trained denoiser goes on learning: all, all but some parts, small adapters (LoRA), or its null condition.

A low-rank adapter leaves a weight W as it is and learns two small matrices beside it, W + alpha / rank * up @ down,
with `up` zero at the start, so that the first predictions are those of the prior. A kernel of a convolution counts as
the matrix of its output channels. Of the null condition a single row is learnt in the same way. What was learnt beside
the weights becomes part of them when the run is over (`merged`): the prior that is written is an ordinary one.

Source: Hu et al. 2021 (arXiv:2106.09685); Tang et al. 2022 (arXiv:2205.16007) for a null condition that is learnt.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vqtool import denoisers
from vqtool.adapters import Adapter
from vqtool.denoisers import Denoiser
from vqtool.errors import VqtoolError
from vqtool.options import Checked, option

# Part -> how the names of its parameters begin.
PARTS = {
    "embedding": ("tokens.", "enter.", "rows", "columns", "positions", "registers"),
    "time": ("time.",),
    "text": ("text.",),
    "blocks": ("blocks.", "shared_modulation.", "down.", "middle.", "up."),
    "head": ("norm", "modulation.", "last.", "leave.", "head"),
}
TARGETS = {"attention": ("attention", "cross"), "mlp": ("mlp",)}  # words of which one is in the names of its modules


@dataclass(frozen=True, kw_only=True)
class TuningOptions(Checked):
    """What of a prior goes on learning."""

    train: str = option("all", "null: the null condition alone, for guidance.", choices=("all", "null"), advanced=True)
    freeze: str | None = option(
        None, "Parts that stay as they are: embedding, time, text, blocks, head; with commas between.", advanced=True
    )
    lora: int | None = option(
        None, "Rank: train small adapters beside attention and MLP only.", minimum=1, advanced=True
    )
    lora_alpha: float | None = option(None, "Their scale times the rank.", shown="the rank", above=0, advanced=True)
    lora_targets: str | None = option(
        None, "attention, mlp, or both with a comma between.", shown="both", advanced=True
    )

    keep_adapter: str | None = option(
        None, "File to write the adapters to as well; it is read like a prior, beside its own.", advanced=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        ways = {"train": self.train == "null", "freeze": self.freeze is not None, "lora": self.lora is not None}
        used = [f"`{name}`" for name, chosen in ways.items() if chosen]
        if len(used) > 1:
            raise VqtoolError(f"{' and '.join(used)} say different things about what is trained: give one of them")
        for name in ("lora_alpha", "lora_targets", "keep_adapter"):
            if getattr(self, name) is not None and self.lora is None:
                raise VqtoolError(f"`{name}` is about adapters: give their rank with `lora`, or leave it out")

    @property
    def is_small(self) -> bool:
        """Whether little is learnt beside weights that stay."""
        return self.lora is not None or self.train == "null"

    def check_fresh(self) -> None:
        """Raise VqtoolError if something is asked for that only a prior to begin with has."""
        for name, value in vars(self).items():
            if value not in (None, "all"):
                raise VqtoolError(f"`{name}` is for a prior to begin with: name one with `from_`, or leave it out")

    def begin(self, denoiser: Denoiser, grown: Iterable[str], *, seed: int) -> list[str]:
        """Make a denoiser learn what is asked for and nothing else; says what that is.

        Args:
            denoiser: with trained weights.
            grown: names of its parameters that are new, or have new rows; adapters leave them to learn as a whole.
            seed: of the adapters.

        Raises:
            VqtoolError: there is no such part, no null condition, or no weight as wide as the rank.
        """
        denoiser.requires_grad_(True)
        if self.train == "null":
            _learn_null(denoiser)
            return ["the null condition alone is trained"]
        if self.freeze is not None:
            return [_freeze(denoiser, self.freeze)]
        if self.lora is None:
            return []
        targets = parse_names("lora_targets", self.lora_targets or ",".join(TARGETS), TARGETS)
        matrices = _find_matrices(denoiser, targets, self.lora)
        denoiser.requires_grad_(False)
        for name in grown:
            denoiser.get_parameter(name).requires_grad_(True)
        noise = torch.Generator().manual_seed(seed)
        for matrix in matrices:
            adapter = LowRank(matrix.weight, self.lora, (self.lora_alpha or self.lora) / self.lora, noise)
            parametrize.register_parametrization(matrix, "weight", adapter)
        learned = sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
        return [f"adapters of rank {self.lora} beside {len(matrices)} weights: {learned / 1e6:.2f} M parameters learn"]


def adapter_of(denoiser: Denoiser, prior: str, location: str) -> tuple[Adapter, dict[str, Tensor]]:
    """The adapters of a denoiser that has some, apart from its weights.

    Args:
        denoiser: that `TuningOptions.begin` gave adapters.
        prior: fingerprint of the prior that they are for.
        location: where that is.
    """
    tensors: dict[str, Tensor] = {}
    scale = 1.0
    for name, part in denoiser.named_modules():
        if isinstance(part, LowRank):
            place, scale = name.removesuffix(".parametrizations.weight.0"), part.scale
            tensors |= {f"{place}.up": part.up, f"{place}.down": part.down}
    return Adapter(scale, prior, location), tensors


class LowRank(nn.Module):
    """A weight, and what is learnt beside it: W + scale * up @ down."""

    def __init__(self, weight: Tensor, rank: int, scale: float, noise: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.scale = scale
        self.down = nn.Parameter(torch.randn(rank, columns, generator=noise) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in, ...) of (out, in, ...)."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)


class Row(nn.Module):
    """A table with one row that is learnt; the others stay."""

    def __init__(self, table: Tensor, row: int) -> None:
        super().__init__()
        self.number = row % len(table)
        self.value = nn.Parameter(table[row].detach().clone())

    def forward(self, table: Tensor) -> Tensor:
        """(rows, D) of (rows, D)."""
        return torch.cat([table[: self.number], self.value[None], table[self.number + 1 :]])


@torch.no_grad()
def merged(denoiser: Denoiser, name: str) -> Denoiser:
    """The same denoiser, one of denoisers.NAMES, with all that was learnt beside its weights as part of them."""
    with torch.random.fork_rng(devices=[]):
        result = denoisers.build(name, vars(denoiser.config))
    for place, part in result.named_modules():
        twin = denoiser.get_submodule(place)
        for own, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            tensor.copy_(getattr(twin, own))
    return result.eval().requires_grad_(False)


def parse_names(option_name: str, text: str, known: Iterable[str]) -> list[str]:
    """Names with commas between them.

    Raises:
        VqtoolError: one of them is not known.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise VqtoolError(f"`{option_name}` {name}: unknown; known are {', '.join(known)}")
    return names


def _freeze(denoiser: Denoiser, text: str) -> str:
    for part in parse_names("freeze", text, PARTS):
        parameters = [p for name, p in denoiser.named_parameters() if name.startswith(PARTS[part])]
        if not parameters:
            raise VqtoolError(f"`freeze` {part}: this prior's denoiser has no such part")
        for parameter in parameters:
            parameter.requires_grad_(False)
    left = sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
    if not left:
        raise VqtoolError(f"`freeze` {text}: nothing is left to learn")
    return f"{text} stays as it is: {left / 1e6:.2f} M parameters learn"


def _learn_null(denoiser: Denoiser) -> None:
    if not denoiser.null_weights:
        raise VqtoolError("`train` null is for priors of classes or captions: this one has no condition to leave out")
    denoiser.requires_grad_(False)
    for name, row in denoiser.null_weights:
        if row is None:
            denoiser.get_parameter(name).requires_grad_(True)
            continue
        place, _, own = name.rpartition(".")
        adapter = Row(denoiser.get_parameter(name), row)
        parametrize.register_parametrization(denoiser.get_submodule(place), own, adapter)


def _find_matrices(denoiser: Denoiser, targets: Sequence[str], rank: int) -> list[nn.Linear | nn.Conv2d]:
    """The linear maps and convolutions of some targets.

    Raises:
        VqtoolError: there are none, or one is narrower than the rank.
    """
    words = [word for target in targets for word in TARGETS[target]]
    found = {
        name: part
        for name, part in denoiser.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and any(word in name for word in words)
    }
    if not found:
        raise VqtoolError(f"`lora_targets` {','.join(targets)}: this prior's denoiser has no such part")
    narrowest = min(found, key=lambda name: min(found[name].weight.flatten(1).shape))
    width = min(found[narrowest].weight.flatten(1).shape)
    if rank > width:
        raise VqtoolError(f"`lora` {rank}: above the width of {narrowest}, {width}: a rank well below it is meant")
    return list(found.values())
