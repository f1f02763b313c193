"""Which denoiser each rule is exact with: the mixture with p(x_0 | all cells), the plug-in with p(x_0 | other cells).

For a cell, q(x_s | x_t) is proportional to q(its x_t | x_s) q(x_s | the other cells of x_t): the plug-in rule of what
the other cells say, at any stride. That is where the plug-in bound is least.
"""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from support.exact import grid_spec
from support.matrices import CASES, between, check_law
from torch import Tensor

import vqtool
from vqtool import conditions
from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.diffusion import kernels
from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.losses import variational_bound
from vqtool.diffusion.posterior import RULES, average_posterior
from vqtool.priors import Prior
from vqtool.training.building import build_prior

LAW = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
T = 5


def tabular(kernel: Kernel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All (x_0, x_t, t) of one cell: tokens and times (N,), and the chance of each, (N,); times are alike."""
    rows = [
        (x_0, x_t, t, float(LAW[x_0] * between(kernel, 0, t)[x_0, x_t]))
        for t, x_0, x_t in itertools.product(range(1, T + 1), range(3), range(3 + kernel.has_mask))
    ]
    x_0, x_t, t, chance = zip(*rows, strict=True)
    return torch.tensor(x_0), torch.tensor(x_t), torch.tensor(t), torch.tensor(chance, dtype=torch.float64)


@cache
def minimise(kernel: Kernel, rule: str) -> Tensor:
    """(T + 1, states, 3): log p(x_0 | x_t) of one cell, a table that minimises the bound by gradient descent."""
    x_0, x_t, t, chance = tabular(kernel)
    table = torch.zeros(T + 1, 3 + kernel.has_mask, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table], max_iter=250, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def bound() -> Tensor:
        optimizer.zero_grad()
        log_x0 = table.log_softmax(-1)[t, x_t].view(-1, 1, 1, 3)
        loss = variational_bound(log_x0, x_0.view(-1, 1, 1), x_t.view(-1, 1, 1), t, kernel, rule)
        total = (chance * loss.flatten()).sum()
        total.backward()
        return total

    optimizer.step(bound)
    return table.detach().log_softmax(-1)


def walk(kernel: Kernel, table: Tensor, rule: str, steps: list[int]) -> Tensor:
    """(3,): the law of the x_0 that ancestral sampling arrives at, enumerated."""
    states = torch.arange(3 + kernel.has_mask).view(-1, 1, 1)
    law = torch.zeros(4, dtype=torch.float64)
    law[:3], law[3] = (1 - kernel.gamma_bar[-1]) / 3, kernel.gamma_bar[-1]
    for t, s in itertools.pairwise(steps):
        times = [torch.full((len(states),), time) for time in (t, s)]
        back = average_posterior(table[t].view(-1, 1, 1, 3), states, *times, kernel, rule).exp().view(-1, 4)
        law = law[: len(states)] @ back
    return law[:3]


def bayes(kernel: Kernel) -> Tensor:
    """(T + 1, states, 3): log p(x_0 | x_t) of one cell by Bayes' rule."""
    tables = []
    for t in range(T + 1):
        joint = LAW[:, None] * between(kernel, 0, t)[:3, : 3 + kernel.has_mask]
        tables.append((joint / joint.sum(0)).T.nan_to_num(1 / 3).log())
    return torch.stack(tables)


class Table(Denoiser):
    """Logits of one cell from a table (T + 1, states, K)."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(table)

    def encode_condition(self, condition):
        return EncodedCondition()

    def set_frequencies(self, frequencies):
        raise NotImplementedError

    def forward(self, x_t, t, condition=None, cells=None):
        logits = self.table[t[:, None, None], x_t]
        return logits if cells is None else logits.flatten(1, 2)  # there is one cell


UNIFORM = kernels.build("uniform", schedule="linear", codebook_size=3, num_steps=T)
STRIDES = [[5, 4, 3, 2, 1, 0], [5, 3, 1, 0], [5, 2, 0], [5, 0]]


@pytest.mark.parametrize("steps", STRIDES, ids=str)
def test_the_least_plug_in_bound_gives_the_law_of_the_data_by_the_plug_in_rule_at_every_stride(steps):
    table = minimise(UNIFORM, "plug-in")
    torch.testing.assert_close(table[1:].exp(), LAW.expand(T, 3, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(walk(UNIFORM, table, "plug-in", steps), LAW, atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", STRIDES, ids=str)
def test_the_least_mixture_bound_is_bayes_and_gives_the_law_by_the_mixture(steps):
    table = minimise(UNIFORM, "mixture")
    torch.testing.assert_close(table[1:].exp(), bayes(UNIFORM)[1:].exp(), atol=1e-3, rtol=0)
    torch.testing.assert_close(walk(UNIFORM, table, "mixture", steps), LAW, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_fresh_prior_is_exact_for_one_cell_by_its_own_rule(rule):
    tokens = np.repeat([0, 1, 2], [60, 30, 10]).reshape(-1, 1, 1)
    prior = build_prior(UNIFORM, conditions.build("none"), grid_spec((1, 1)), "tiny", seed=0, tokens=tokens, rule=rule)
    table = torch.full((T + 1, 3, 3), torch.nan, dtype=torch.float64)
    for t in range(1, T + 1):
        table[t] = prior.log_x0(torch.arange(3).view(-1, 1, 1), torch.full((3,), t)).detach()[:, 0, 0]
    wanted = torch.tensor([60.5, 30.5, 10.5], dtype=torch.float64) / 101.5
    for steps in STRIDES:
        torch.testing.assert_close(walk(UNIFORM, table, prior.rule, steps), wanted, atol=1e-6, rtol=0)


def test_bayes_denoiser_misses_the_law_by_the_plug_in_rule():
    found = walk(UNIFORM, bayes(UNIFORM), "plug-in", STRIDES[0])
    assert float((found - LAW).abs().sum() / 2) > 0.05, "what x_t says is counted twice"


def test_the_sampler_draws_the_law_of_the_data_from_the_least_plug_in_bound():
    prior = Prior(UNIFORM, Table(minimise(UNIFORM, "plug-in")), "table", conditions.build("none"), grid_spec((1, 1)))
    prior = replace(prior, parameterisation="direct", rule="plug-in")
    check_law(vqtool.sample(prior, 20000, steps=T, batch_size=20000), LAW)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_with_two_cells_that_depend_on_each_other_both_rules_take_the_same_steps(name, schedule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=3, num_steps=4)
    law = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))  # of (left, right)
    states = torch.cartesian_prod(torch.arange(3 + kernel.has_mask), torch.arange(3 + kernel.has_mask))
    for t in range(1, 5):
        seen = between(kernel, 0, t)[:3]
        left, right = seen[:, states[:, 0]].T, seen[:, states[:, 1]].T  # (N, K): chance of what is seen from each x_0
        joint = law * left[:, :, None] * right[:, None, :]  # (N, left, right)
        possible = joint.sum((1, 2)) > 0
        of_all = torch.stack([joint.sum(2), joint.sum(1)], dim=1)[possible]  # (N, 2, K)
        of_other = torch.stack([right @ law.T, left @ law], dim=1)[possible]
        x_t = states[possible].view(-1, 1, 2)
        for s in range(t):
            times = [torch.full((len(x_t),), time) for time in (t, s)]
            steps = [
                average_posterior((p / p.sum(-1, keepdim=True)).log()[:, None], x_t, *times, kernel, rule).exp()
                for p, rule in ((of_all, "mixture"), (of_other, "plug-in"))
            ]
            torch.testing.assert_close(*steps, rtol=0, atol=1e-10)
