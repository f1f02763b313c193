"""What moves the weights of a network and their average, and what gradients are computed from."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from vqtool.training._splitting import find_blocks, own, whole


def build_optimizer(
    model: nn.Module, rate: float, betas: tuple[float, float], weight_decay: float, *, decays_all: bool = False
) -> torch.optim.AdamW:
    """AdamW, whose decay spares biases, gains and what a module names `undecayed`, unless all decay; fused on a GPU."""
    exempt = {parameter for module in model.modules() for parameter in getattr(module, "undecayed", ())}
    learned = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learned if decays_all or (p.ndim >= 2 and p not in exempt)]
    others = [p for p in learned if not decays_all and (p.ndim < 2 or p in exempt)]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = learned[0].device.type == "cuda" or None  # on a CPU it would round otherwise than runs that began without
    return torch.optim.AdamW([g for g in groups if g["params"]], rate, betas, fused=fused)


def checkpoint_blocks(model: nn.Module) -> None:
    """Let a network's blocks compute again for the gradient what they would have kept: less memory, a third slower.

    Raises:
        VqtoolError: it has no blocks.
    """
    blocks = find_blocks(model, "`checkpoint`: this network has no blocks to compute again")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_network(model: nn.Module, *, by_block: bool) -> None:
    """Let torch compile a network as a whole, or each of its blocks, between which weights come and go."""
    for part in find_blocks(model, "`compile`: this network has no blocks") if by_block else [model]:
        part.compile()


def clip(model: nn.Module, largest: float) -> Tensor:
    """Scale gradients down to a norm if theirs is larger; says what it was."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move averaged weights towards those of the model by 1 - decay; buffers are copied."""
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average(own(ema.parameters()), own(model.parameters()), None)
    for average, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        average.copy_(buffer)
