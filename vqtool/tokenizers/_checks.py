"""What goes with a tokenizer: grids that can be its own, and another tokenizer that makes the same tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqtool.artifacts import DECODER
from vqtool.errors import MismatchError
from vqtool.grids import GridHeader

if TYPE_CHECKING:
    from vqtool.tokenizers import Tokenizer


def makes_same_tokens(tokenizer: "Tokenizer", stored: Mapping[str, Tensor], other: "Tokenizer") -> bool:
    """Whether a tokenizer makes the tokens of another one: all but their decoders is equal to the last bit.

    Args:
        tokenizer: of this config and lookup.
        stored: its tensors by name as its file has them, which may be rounded.
        other: as it was loaded.
    """
    mine, theirs = ((each.config, each.lookup, each.num_full_codes) for each in (tokenizer, other))
    return mine == theirs and all(
        torch.equal(stored[name].to(tensor), tensor)
        for name, tensor in other.state_dict().items()
        if not name.startswith(DECODER)
    )


def check_grids(header: GridHeader, tokenizer: "Tokenizer", source: str) -> None:
    """Raise MismatchError unless grids under this header can be a tokenizer's."""
    if not header.tokenizer_fingerprint and header.image_size == header.grid_size:  # of a prior without a tokenizer
        size = header.grid_size
    else:
        size = tokenizer.grid_size(header.image_size)
    if (header.codebook_size, header.grid_size) != (tokenizer.codebook_size, size):
        rows, columns = header.grid_size
        height, width = header.image_size
        raise MismatchError(
            f"{source}: grids of {rows}x{columns} tokens below {header.codebook_size} for images of {height}x{width} "
            f"do not fit the tokenizer they name, {tokenizer.location}, which has {tokenizer.codebook_size} codes and "
            f"factor {tokenizer.factor}: encode the images again"
        )
