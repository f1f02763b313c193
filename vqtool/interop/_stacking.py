"""Fills modules some of whose weights are several of a source's, one below the other, such as queries, keys, values."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop._sources import Module, Source, fill, listed

MAX_BLOCKS = 10_000
Names = Mapping[str, tuple[str, ...]]  # of a module -> those of the source


def block_names(parts: Names, ours: str, theirs: str, num_blocks: int) -> dict[str, tuple[str, ...]]:
    """Names of the weights and biases of the parts of each block.

    Args:
        parts: of one block: our name -> those of the source.
        ours: what stands before a block's number with us, such as "blocks.".
        theirs: what stands there in the source.
        num_blocks: how many.

    Raises:
        FormatError: so many that none can be meant.
    """
    if num_blocks > MAX_BLOCKS:
        raise FormatError(f"{num_blocks} blocks are more than any network has")
    return {
        f"{ours}{number}.{part}.{kind}": tuple(f"{theirs}{number}.{name}.{kind}" for name in names)
        for number in range(num_blocks)
        for part, names in parts.items()
        for kind in ("weight", "bias")
    }


def fill_stacked(
    module: Module | Callable[[], Module],
    names: Names,
    tensors: Mapping[str, Tensor],
    source: Source,
    *,
    ignored: Iterable[str] = (),
) -> Module:
    """Put tensors into a module and return it: all that it has, and all that there are.

    Args:
        module: as for `fill`.
        names: of the module -> those of the source, whose tensors are put one below the other.
        tensors: by the source's names.
        source: for messages.
        ignored: regular expressions of names in the source that may be left over.

    Raises:
        FormatError: tensors are missing, of another shape or left over; they are listed.
    """
    used = list(chain.from_iterable(names.values()))
    missing = [name for name in used if name not in tensors]
    if missing:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    found = {name: tensors[name] for name in tensors.keys() - set(used)}
    for ours, theirs in names.items():
        parts = [tensors[name] for name in theirs]
        if len({part.shape[1:] for part in parts}) > 1:
            raise FormatError(f"{source.path}: tensors do not fit together: {', '.join(theirs)}")
        found[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    shown = {ours: " + ".join(theirs) for ours, theirs in names.items()}
    return fill(module, found, source, names=shown, ignored=ignored)
