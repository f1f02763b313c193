"""What moves the weights of a network and their average, and what gradients are computed from."""

from functools import partial

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from vqtool.errors import VqtoolError


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
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise VqtoolError("`checkpoint`: this network has no blocks to compute again; leave it out")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move averaged weights towards those of the model by 1 - decay; buffers are copied."""
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average(list(ema.parameters()), list(model.parameters()), None)
    for average, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        average.copy_(buffer)
