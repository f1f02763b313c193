"""What training minimises: against sums over all noise, in value and gradient, and against bounds that are known."""

import itertools
import math

import numpy as np
import pytest
import torch
from support.exact import exact_prior, grid_spec, random_prior
from support.matrices import build_kernel

import vqtool
from vqtool import conditions
from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.diffusion import kernels, losses
from vqtool.diffusion.losses import LOSSES
from vqtool.diffusion.parameterisations import log_probabilities
from vqtool.diffusion.posterior import average_posterior, posterior
from vqtool.errors import VqtoolError
from vqtool.priors import Prior
from vqtool.training import objectives
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.objectives import PriorLoss, PriorObjective
from vqtool.training.times import History

MASKED = [name for name, loss in LOSSES.items() if loss.of_masked]


def data(grids):
    """Grids without conditions."""
    grids = np.asarray(grids, np.int64)
    return GridData(grids, torch.zeros(len(grids), 0, dtype=torch.int64), grid_spec(grids.shape[1:]))


class Table(Denoiser):
    """A denoiser of two cells that knows p(x_0 | x_t) of a law, or any other table, in float64; blind to t."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits.double())  # (K + 1, K + 1, 2, K)

    def encode_condition(self, condition):
        return EncodedCondition()

    def set_frequencies(self, frequencies):
        raise NotImplementedError

    def forward(self, x_t, t, condition=None, cells=None):
        rows = x_t.flatten(1)
        logits = self.logits[rows[:, 0], rows[:, 1]]  # (B, 2, K)
        if cells is not None:
            return logits.gather(1, cells[..., None].expand(-1, -1, logits.shape[-1]))
        return logits.view(*x_t.shape, -1)


def table_prior(logits, kernel, rule="mixture"):
    """A prior over grids of 1x2 cells."""
    return Prior(kernel, Table(logits), "table", conditions.build("none"), grid_spec((1, 2)), "direct", rule)


def random_logits(codebook_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (codebook_size + 1, codebook_size + 1, 2, codebook_size)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def exact_logits(law):
    """Log p(x_0 cell = k | the open cells) of a law (K, K) of two cells."""
    size = len(law)
    logits = torch.zeros(size + 1, size + 1, 2, size, dtype=torch.float64)
    for first, second in itertools.product(range(size + 1), repeat=2):
        rows = law if first == size else law[first : first + 1]
        block = rows if second == size else rows[:, second : second + 1]
        if first == size:
            logits[first, second, 0] = block.sum(1).log()
        if second == size:
            logits[first, second, 1] = block.sum(0).log()
    return logits


def test_reweighting_makes_a_masked_cell_of_any_time_its_cross_entropy():
    prior = random_prior("absorbing", num_steps=20)
    grids = data(np.zeros((4, 4, 6)) + 3)
    objective = PriorObjective(prior, grids, PriorLoss(auxiliary_weight=0.0), LoopConfig(1, 4, seed=5))
    with torch.no_grad():
        total, metrics = objective(prior.denoiser, np.arange(4), np.arange(4), 0)
        x_0, _ = grids.place("cpu").rows(torch.arange(4))
        t = objectives.draw_times(np.arange(4), 4, 20, seed=5)
        noise = vqtool.rng.uniform(5, range(4), 0, (25,), stream=vqtool.rng.TRAINING)[:, 1:].view_as(x_0)
        x_t = prior.kernel.sample(x_0, t, noise)
        entropy = -prior.log_x0(x_t, t)[..., 3]
    masked = x_t == 11
    assert float(total) == pytest.approx(float(entropy[masked].sum()) / 96, rel=1e-4)
    assert float(metrics["cross_entropy"]) == pytest.approx(float(entropy[masked].sum()) / 96, rel=1e-4)


@pytest.mark.parametrize("halves", [True, False])
def test_logits_of_masked_cells_alone_give_the_loss_and_the_gradient_of_all_logits(halves):
    prior = random_prior("absorbing", num_steps=20, grid_size=(4, 6))
    network = prior.denoiser.double()
    generator = torch.Generator().manual_seed(3)
    x_0 = torch.randint(11, (7, 4, 6), generator=generator)
    t = torch.tensor([1, 20, 3, 7, 11, 15, 1])
    x_t = prior.kernel.sample(x_0, t, torch.rand(7, 4, 6, dtype=torch.float64, generator=generator))
    x_t[0] = x_0[0]  # nothing masked
    condition = torch.zeros(7, 0, dtype=torch.int64)
    weights = torch.rand(7, dtype=torch.float64, generator=generator)
    logits = network(x_t, t.double(), condition)
    dense = -logits.log_softmax(-1).gather(-1, x_0[..., None])[..., 0]
    dense = (dense * (x_t == 11)).sum((1, 2))
    ours = objectives.masked_entropies(network, prior, x_0, x_t, t.double(), condition, halves=halves)
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    parameters = list(network.parameters())
    slopes = [torch.autograd.grad((weights * loss).sum(), parameters, allow_unused=True) for loss in (ours, dense)]
    for mine, theirs in zip(*slopes, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def enumerated(prior, settings, x_0, num_steps):
    """Expected loss of a grid of two cells over t and x_t, nats a cell, by the dense definition of each loss."""
    kernel, loss, size = prior.kernel, LOSSES[settings.loss], prior.kernel.codebook_size
    auxiliary_weight = settings.auxiliary_weight or 0.0
    states = torch.cartesian_prod(torch.arange(size + 1), torch.arange(size + 1)).view(-1, 1, 2)
    if not kernel.has_mask:
        states = states[(states < size).all(-1).all(-1)]
    num, total = len(states), 0.0
    clean = x_0.expand(num, 1, 2)
    for step in range(1, num_steps + 1):
        t = torch.full((num,), step)
        alpha, beta, gamma = (float(rate[0]) for rate in kernel.cumulative(t))
        chance = torch.where(states == size, gamma, alpha * (states == clean) + beta).prod(-1)[:, 0]
        log_x0 = prior.denoiser(states, t).log_softmax(-1)
        log_q = posterior(clean, states, t, t - 1, kernel)
        log_p = average_posterior(log_x0, states, t, t - 1, kernel, prior.rule)
        some = log_q > -math.inf
        bound = (log_q.exp() * (log_q.where(some, 0.0) - log_p.where(some, 0.0))).sum(-1)
        entropy = -log_x0.gather(-1, clean[..., None])[..., 0]
        masked = states == size
        if settings.loss in ("bound", "reweighted"):
            factor = torch.where(masked, *settings.mask_weights) if step > 1 else 1.0
            adaptive = (1 - (step - 1) / num_steps) + 1 if settings.adaptive_auxiliary else 1.0
            weight = num_steps if loss.summed else float(LOSSES["reweighted"].weights(kernel)[step])
            extra = auxiliary_weight * adaptive * (num_steps if loss.summed else 1)
            if not kernel.beta_bar.any():
                entropy = entropy * masked
            each = (factor * (weight * bound + extra * entropy)).sum((1, 2))
        else:
            share, before = float(kernel.gamma_bar[step]), float(kernel.gamma_bar[step - 1])
            weight = {
                "elbo": num_steps * (share - before) / share,
                "reweighted-elbo": 1 - share,
                "reweighted-elbo-fixed": 1 - before,
            }.get(settings.loss)
            if settings.loss == "mlm":
                count = max(1, round(share * 2))
                chance = (masked.sum((1, 2)) == count) * (clean == states).logical_or(masked).all(-1)[:, 0]
                chance, weight = chance / chance.sum(), 2 / count
            each = weight * (entropy * masked).sum((1, 2))
        total = total + (chance * each).where(chance > 0, 0.0).sum() / (2 * num_steps)
    return total


class Every:
    """A prior's objective of one grid, drawn 1,500 times a step."""

    def __init__(self, prior, settings, x_0, seed):
        grids = data(x_0.numpy().reshape(1, 1, 2))
        self.objective = PriorObjective(prior, grids, settings, LoopConfig(1, 1500, seed=seed))
        self.network = prior.denoiser

    def __call__(self, step):
        samples = np.arange(1500 * step, 1500 * (step + 1))
        return self.objective(self.network, np.zeros(1500, np.int64), samples, step)[0]


CASES = [
    ("mask-replace", PriorLoss("bound", 0.0)),
    ("mask-replace", PriorLoss("bound", 0.3, adaptive_auxiliary=True, mask_weights=(1.0, 0.25))),
    ("mask-replace", PriorLoss("reweighted", 0.3, adaptive_auxiliary=True, mask_weights=(0.5, 2.0))),
    ("uniform", PriorLoss("bound", 0.1)),
    ("uniform", PriorLoss("reweighted", 0.0, times="uniform")),
    ("absorbing", PriorLoss("bound", 0.3, adaptive_auxiliary=True, mask_weights=(2.0, 5.0))),
    ("absorbing", PriorLoss("reweighted", 0.2)),
    *(("absorbing", PriorLoss(name)) for name in MASKED if name != "mdlm"),
]


@pytest.mark.parametrize(("kernel", "settings"), CASES, ids=lambda value: getattr(value, "name", value))
def test_losses_and_their_gradients_are_on_average_the_sums_over_all_times_and_noise(kernel, settings):
    prior = table_prior(random_logits(3), build_kernel(kernel, codebook_size=3, num_steps=4))
    x_0 = torch.tensor([[[2, 0]]])
    table = prior.denoiser.logits
    expected = enumerated(prior, settings, x_0, 4)
    (slope,) = torch.autograd.grad(expected, table)
    every = Every(prior, settings, x_0, seed=1)
    drawn = [every(step) for step in range(12)]
    slopes = torch.stack([torch.autograd.grad(loss, table)[0] for loss in drawn])
    values = torch.stack(drawn).detach().double()
    # 18,000 samples; seven standard errors of 12 means: a false alarm in 10**4 a case, and the seed is fixed.
    error = float(values.std()) / 12**0.5
    assert float(values.mean()) == pytest.approx(float(expected.detach()), abs=7 * error + 1e-6)
    spread = slopes.std(0) / 12**0.5
    assert bool(((slopes.mean(0) - slope).abs() <= 10 * spread + 1e-6).all())


def test_the_plug_in_rule_of_a_prior_is_that_of_its_bound():
    x_0, settings = torch.tensor([[[2, 0]]]), PriorLoss("bound", 0.0)
    kernel = kernels.build("uniform", codebook_size=3, num_steps=4)
    values = []
    for rule in ("mixture", "plug-in"):
        prior = table_prior(random_logits(3), kernel, rule)
        expected = float(enumerated(prior, settings, x_0, 4).detach())
        every = Every(prior, settings, x_0, seed=2)
        drawn = torch.stack([every(step).detach() for step in range(12)]).double()
        assert float(drawn.mean()) == pytest.approx(expected, abs=7 * float(drawn.std()) / 12**0.5 + 1e-6)
        values.append(expected)
    assert abs(values[0] - values[1]) > 0.01


def test_importance_leaves_the_loss_as_it_is_on_average_and_makes_it_less_noisy():
    prior = table_prior(random_logits(3), build_kernel("mask-replace", codebook_size=3, num_steps=20))
    x_0, spread = torch.tensor([[[2, 0]]]), []
    expected = float(enumerated(prior, PriorLoss("bound", 0.0), x_0, 20).detach())
    for times in ("uniform", "importance"):
        objective = PriorObjective(
            prior, data(x_0.numpy()), PriorLoss("bound", 0.0, times=times), LoopConfig(1, 50, seed=4)
        )
        drawn = []
        with torch.no_grad():
            for step in range(300):
                samples = np.arange(50 * step, 50 * (step + 1))
                drawn.append(objective(prior.denoiser, np.zeros(50, np.int64), samples, step)[0].double())
        late = torch.stack(drawn[20:])
        assert float(late.mean()) == pytest.approx(expected, abs=6 * float(late.std()) / 280**0.5)
        spread.append(float(late.std()))
    assert spread[1] < 0.8 * spread[0]
    assert bool((objective.history.count > 10).all())


def test_the_history_is_that_of_the_losses_of_the_grids_at_their_steps():
    prior = table_prior(random_logits(3), kernels.build("absorbing", codebook_size=3, num_steps=5))
    grids = data([[[2, 0]], [[1, 1]], [[0, 2]]])
    objective = PriorObjective(prior, grids, PriorLoss("elbo", times="importance"), LoopConfig(1, 3, seed=7))
    wanted = History(5)
    for step in range(30):
        samples = np.arange(3 * step, 3 * step + 3)
        places = objectives.draw_places(samples, 3, 7)
        t, _ = wanted.draw(places)
        noise = vqtool.rng.uniform(7, samples, 0, (3,), stream=vqtool.rng.TRAINING)[:, 1:].view(3, 1, 2)
        x_0 = grids.place("cpu").rows(torch.arange(3))[0]
        x_t = prior.kernel.sample(x_0, t, noise)
        with torch.no_grad():
            objective(prior.denoiser, np.arange(3), samples, step)
            log_p = prior.denoiser(x_t, t).log_softmax(-1).gather(-1, x_0[..., None])[..., 0]
        opened = 1 / t.double()  # of a masked cell, at a linear schedule
        wanted.update(t, (-log_p * (x_t == 3)).sum((1, 2)) * opened)
    torch.testing.assert_close(objective.history.square, wanted.square)
    assert torch.equal(objective.history.count, wanted.count)
    assert int(wanted.count.sum()) == 90


# A law of two cells, in which each tells much about the other.
LAW = torch.tensor([[0.4, 0.02, 0.05], [0.03, 0.2, 0.0001], [0.1, 0.0499, 0.15]], dtype=torch.float64)
ENTROPY = -float((LAW * LAW.log()).sum())


def expected_cross_entropies(prior):
    """(3,) of a law's grids: cross-entropy of the masked cells where 0, 1 or 2 are masked, of all such masks."""
    grids = torch.cartesian_prod(torch.arange(3), torch.arange(3)).view(-1, 1, 2)
    nothing = torch.zeros(len(grids), 0, dtype=torch.int64)
    sums = torch.zeros(3, dtype=torch.float64)
    for masked in itertools.product([False, True], repeat=2):
        x_t = torch.where(torch.tensor(masked), 3, grids)
        with torch.no_grad():
            entropy = objectives.masked_entropies(
                prior.denoiser, prior, grids, x_t, torch.ones(9, dtype=torch.int64), nothing
            )
        sums[sum(masked)] += (LAW.flatten() * entropy).sum()
    return sums


def continuous(sums):
    """Integral over g in (0, 1] of the masked cross-entropy / g: the mdlm loss on average, in closed form."""
    beta = torch.tensor([math.gamma(n) * math.gamma(3 - n) / math.gamma(3) for n in (1, 2)], dtype=torch.float64)
    return float((beta * sums[1:]).sum())


def discrete(sums, kernel):
    """Sum over t of the bounds of its steps."""
    weights = losses.masked_weights(LOSSES["elbo"], kernel)[1:] / kernel.num_steps
    gamma = kernel.gamma_bar[1:]
    return float(sum((weights * gamma**n * (1 - gamma) ** (2 - n)).sum() * sums[n] for n in (1, 2)))


@pytest.mark.parametrize("schedule", ["linear", "maskgit-cosine"])
@pytest.mark.parametrize("exact", [True, False])
def test_the_bound_of_continuous_time_is_the_limit_of_many_steps_whatever_the_schedule(schedule, exact):
    logits = exact_logits(LAW) if exact else random_logits(3)
    build = {"schedule": schedule, "codebook_size": 3}
    sums = expected_cross_entropies(table_prior(logits, kernels.build("absorbing", **build)))
    limit = continuous(sums)
    if exact:
        assert limit == pytest.approx(ENTROPY, abs=1e-9)  # the exact denoiser reaches it, by the chain rule
    errors = [discrete(sums, kernels.build("absorbing", num_steps=n, **build)) - limit for n in (1, 10, 100, 1000)]
    assert errors[-1] == pytest.approx(0, abs=2e-3)
    for few, many in itertools.pairwise(errors):
        assert abs(many) < 0.25 * abs(few)


@pytest.mark.parametrize("schedule", ["linear", "maskgit-cosine"])
def test_the_loss_of_continuous_time_is_an_unbiased_estimate_of_its_bound_and_looks_at_real_times(schedule):
    seen = []

    class Spy(Table):
        def forward(self, x_t, t, condition=None, cells=None):
            seen.append(t)
            return super().forward(x_t, t, condition, cells)

    kernel = kernels.build("absorbing", schedule=schedule, codebook_size=3, num_steps=6)
    prior = table_prior(exact_logits(LAW), kernel)
    grids = np.repeat(np.arange(9), (LAW.flatten() * 10_000).round().int().numpy())
    grids = np.stack([grids // 3, grids % 3], axis=1).reshape(-1, 1, 2)
    objective = PriorObjective(prior, data(grids), PriorLoss("mdlm"), LoopConfig(1, len(grids), seed=2))
    order = np.random.default_rng(0).permutation(len(grids))
    with torch.no_grad():
        drawn = torch.stack(
            [
                objective(Spy(prior.denoiser.logits), order, np.arange(len(grids)) + len(grids) * step, step)[1][
                    "bound"
                ]
                for step in range(8)
            ]
        )
    # Seven standard errors of 8 means.
    assert float(drawn.mean()) * 2 == pytest.approx(ENTROPY, abs=14 * float(drawn.std()) / 8**0.5)
    t = torch.cat(seen)
    assert t.dtype == torch.float32
    assert float(t.min()) > 0
    assert float(t.max()) <= 6
    assert len(t.unique()) > 10_000


def test_mlm_masks_exactly_the_rounded_share_of_the_cells_but_one_at_least():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x_t, t, condition, cells):
            seen.extend(zip(t.tolist(), (x_t == 11).sum((1, 2)).tolist(), strict=True))
            return self.inner(x_t, t, condition, cells)

    prior = random_prior("absorbing", num_steps=40)
    objective = PriorObjective(prior, data(np.zeros((1, 4, 6))), PriorLoss("mlm"), LoopConfig(1, 40))
    with torch.no_grad():
        objective(Spy(prior.denoiser), np.zeros(40, np.int64), np.arange(40), 0)
    assert sorted(seen) == [(t, max(1, round(t / 40 * 24))) for t in range(1, 41)]


@pytest.mark.parametrize("name", ["mask-replace", "absorbing", "uniform"])
def test_the_bound_of_an_exact_denoiser_of_one_cell_is_the_entropy_of_the_law(name):
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    prior = exact_prior(law, (1, 1), build_kernel(name, codebook_size=3, num_steps=8))
    grids = data(np.repeat([0, 1, 2], [600, 300, 100]).reshape(-1, 1, 1))
    entropy = -float((law * law.log()).sum())
    left = float(losses.stationary_term(torch.zeros(1, 1, 1, dtype=torch.int64), prior.kernel))
    # 8,000 terms; their spread makes an error of 0.06 a matter of more than five standard deviations.
    assert left < 0.02
    assert float(objectives.validate(prior.denoiser, prior, grids, seed=1)) == pytest.approx(entropy, abs=0.06)


def test_dropped_conditions_are_the_null_condition_in_the_share_asked_for():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = random_prior(kind="class").denoiser

        def forward(self, x_t, t, condition):
            seen.append(condition)
            return self.inner(x_t, t, condition)

    prior = random_prior(kind="class")
    grids = GridData(np.zeros((2, 4, 6), np.int64), torch.tensor([0, 1]), grid_spec((4, 6)))
    for share in (0.0, 0.25, 1.0):
        objective = PriorObjective(prior, grids, PriorLoss(cond_dropout=share), LoopConfig(1, 400))
        with torch.no_grad():
            objective(Spy(), np.arange(400) % 2, np.arange(400), 0)
    nulls = [int((condition == 3).sum()) for condition in seen]
    assert nulls[0] == 0
    assert nulls[2] == 400
    assert 50 < nulls[1] < 150  # binomial, standard deviation 8.7: a false alarm in 10**8


@pytest.mark.parametrize(
    ("kernel", "rule", "changes", "message"),
    [
        ("absorbing", "mixture", {"loss": "mlm", "auxiliary_weight": 0.1}, "`auxiliary_weight` goes with `loss` rew"),
        (
            "absorbing",
            "mixture",
            {"loss": "mdlm", "adaptive_auxiliary": True},
            "`adaptive_auxiliary` goes with `loss` rew",
        ),
        ("uniform", "mixture", {"auxiliary_weight": 0.0, "adaptive_auxiliary": True}, "an `auxiliary_weight` above 0"),
        ("absorbing", "mixture", {"loss": "elbo", "mask_weights": (1.0, 0.5)}, "`mask_weights` goes with `loss` rew"),
        ("uniform", "mixture", {"mask_weights": (1.0, 0.5)}, "`mask_weights` goes with `kernel` mask-replace, absorb"),
        ("absorbing", "mixture", {"loss": "mdlm", "times": "importance"}, "`times` importance goes with losses whose"),
        ("absorbing", "plug-in", {}, "`rule` plug-in goes with `kernel` mask-replace, uniform, not with"),
        ("uniform", "mixture", {"times": "often"}, "`times` often: unknown; known are stratified, uniform, importance"),
    ],
)
def test_settings_that_would_do_nothing_are_refused_and_the_error_says_what_they_go_with(
    kernel, rule, changes, message
):
    prior = table_prior(random_logits(3), build_kernel(kernel, codebook_size=3), rule)
    with pytest.raises(VqtoolError, match=message):
        objectives.check_loss(PriorLoss(**changes), prior)


def test_the_parameterisation_says_nothing_of_masked_cells():
    prior = random_prior("absorbing")
    x_t, t = torch.full((2, 4, 6), 11), torch.tensor([3, 20])
    logits = prior.denoiser(x_t, t)
    given = [log_probabilities(logits, x_t, t, prior.kernel, name) for name in ("evidence", "direct", "residual")]
    assert torch.equal(given[0], given[1])
    assert torch.equal(given[0], given[2])
