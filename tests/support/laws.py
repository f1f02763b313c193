"""Small data laws whose every state can be enumerated."""

import itertools

import torch

from support.exact import exact_prior
from vqtool.diffusion import kernels
from vqtool.diffusion.posterior import average_posterior

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


def step_back(kernel, law, grid_size, t, s, rule="mixture"):
    """(S, S): p(x_s | x_t) of whole grids under the exact denoiser; cells are drawn independently."""
    states = all_states(kernel, grid_size[0] * grid_size[1])
    x_t = states.view(-1, *grid_size)
    steps = torch.full((len(x_t),), t), torch.full((len(x_t),), s)
    log_x0 = exact_prior(law, grid_size, kernel).denoiser(x_t, steps[0]).log_softmax(-1)
    cells = average_posterior(log_x0, x_t, *steps, kernel, rule).exp().flatten(1, 2)  # (S, N, K + 1)
    whole = torch.ones(len(states), len(states), dtype=torch.float64)
    for cell in range(states.shape[1]):
        whole *= cells[:, cell][:, states[:, cell]]
    return whole


def apart(a, b):
    """Total variation of two laws."""
    return float((a - b).abs().sum() / 2)
