"""Small data laws whose every state can be enumerated."""

import itertools

import torch

from vqtool.diffusion import kernels

ONE_CELL = torch.tensor([0.55, 0.3, 0.15, 0.0], dtype=torch.float64)  # token 3 never occurs


FOUR_CELLS = torch.tensor([30, 2, 3, 5, 1, 0, 7, 4, 6, 2, 1, 3, 2, 8, 5, 21], dtype=torch.float64) / 100


def build(name, schedule, codebook_size, num_steps):
    return kernels.build(name, schedule=schedule, codebook_size=codebook_size, num_steps=num_steps)


def all_states(kernel, num_cells):
    """(S, num_cells): every x_t."""
    states = range(kernel.codebook_size + kernel.has_mask)
    return torch.tensor(list(itertools.product(states, repeat=num_cells)))


def stationary_law(kernel, num_cells):
    """(S,): where samplers begin."""
    mask = float(kernel.gamma_bar[-1])
    cell = torch.tensor([(1 - mask) / kernel.codebook_size] * kernel.codebook_size + [mask], dtype=torch.float64)
    return cell[all_states(kernel, num_cells)].prod(-1)
