"""Networks of whose weights, gradients and moments each process holds a part (FSDP2), and their way to whole ones.

`accelerate launch --use_fsdp` asks for it. PyTorch's `fully_shard` does it, without accelerate, which has it from
version 1.6 on and for GPUs alone. Weights are gathered in float32, block by block, so that a run has the numbers of one
whose processes hold all weights, and its state is that of any other run.
"""

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from vqtool import distributed
from vqtool.errors import VqtoolError


def find_blocks(model: nn.Module, what: str) -> list[nn.Module]:
    """The blocks that a network is a chain of.

    Args:
        model: the network.
        what: is done with blocks, for the error.

    Raises:
        VqtoolError: it has none.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise VqtoolError(f"{what}; leave it out")
    return list(blocks)


def split(model: nn.Module, device: torch.device) -> None:
    """Let each process hold a part of a network, on its device.

    Raises:
        VqtoolError: the network has no blocks.
    """
    blocks = find_blocks(
        model, "FSDP (`accelerate launch --use_fsdp`): this network has no blocks that processes could hold parts of"
    )
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)  # nobody writes to logits
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in blocks:
        for place in getattr(model, "called_apart", ()):
            name, _, method = place.rpartition(".")
            part = _find(block, name)
            if part is not None and hasattr(part, method):
                fully_shard(part, mesh=mesh)
                register_fsdp_forward_method(part, method)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _find(block: nn.Module, name: str) -> nn.Module | None:
    """A part of a block by its name; None where this block has none."""
    return dict(block.named_modules()).get(name)


def gather_again(model: nn.Module) -> None:
    """Forget the whole weights that a call without gradients has left, if the network is split."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which processes may hold parts; all of them have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of tensors."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, split as another one is."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a network, which may be split, with whole tensors.

    Raises:
        RuntimeError: they are not those of the network.
    """
    mine = model.state_dict()
    model.load_state_dict({name: like(t, mine[name]) if name in mine else t for name, t in tensors.items()})
