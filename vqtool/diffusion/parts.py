"""Tokens of several parts: K = K'^G tokens as G neighbours of K' codes in a row, of which each is masked on its own.

To kernels, samplers and losses a part is a cell: a grid of H x W tokens is one of H x (G W) parts. Only where tokens
come in and go out are they split and joined. The first part is the least significant: token = sum_m part_m * K'^m.
Source: Weber et al. 2024 (arXiv:2409.16211), MaskBit, section 4.2.
"""

import torch
from torch import Tensor


def split_tokens(tokens: Tensor, num_codes: int, num_parts: int) -> Tensor:
    """The parts of tokens.

    Args:
        tokens: (..., H, W) int64 in [0, K], K = num_codes ** num_parts where masked.
        num_codes: K', of a part.
        num_parts: G.

    Returns:
        (..., H, W * G) int64 in [0, K'], K' where masked.
    """
    if num_parts == 1:
        return tokens
    powers = num_codes ** torch.arange(num_parts, device=tokens.device)
    parts = tokens[..., None] // powers % num_codes
    masked = tokens == num_codes**num_parts
    return torch.where(masked[..., None], num_codes, parts).flatten(-2)


def join_parts(parts: Tensor, num_codes: int, num_parts: int) -> Tensor:
    """The tokens of parts, the other way round; a token is masked where one of its parts is.

    Args:
        parts: (..., H, W * G) int64 in [0, K'].
        num_codes: K', of a part.
        num_parts: G.

    Returns:
        (..., H, W) int64 in [0, K].
    """
    if num_parts == 1:
        return parts
    apart = parts.reshape(*parts.shape[:-1], -1, num_parts)
    powers = num_codes ** torch.arange(num_parts, device=parts.device)
    return torch.where((apart == num_codes).any(-1), num_codes**num_parts, (apart * powers).sum(-1))
