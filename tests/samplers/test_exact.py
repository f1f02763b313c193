"""The exact samplers, ancestral, first-hitting and psi: their laws by enumeration, their times and their calls."""

import itertools
from itertools import pairwise

import pytest
import torch
from support.exact import exact_prior, grid_spec, random_prior
from support.laws import FOUR_CELLS, ONE_CELL, all_states, build, stationary_law
from support.matrices import CASES, between, check_law

import vqtool
from vqtool import conditions, samplers
from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.diffusion.posterior import average_posterior
from vqtool.errors import VqtoolError
from vqtool.priors import Prior
from vqtool.samplers import Settings, Walk, psi
from vqtool.samplers._times import choose_times

KERNELS = ("absorbing", "mask-replace", "uniform")


class Hurried(Denoiser):
    """A denoiser that looks at t: the exact one, the surer the noisier it is told that x_t is."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def encode_condition(self, condition):
        return EncodedCondition()

    def set_frequencies(self, frequencies):
        raise NotImplementedError

    def forward(self, x_t, t, condition=None, cells=None):
        logits = self.exact(x_t, t, condition, cells)
        power = 0.2 + 2 * t / self.exact.kernel.num_steps
        return logits.clamp(min=-1e3) * power.view(-1, *[1] * (logits.ndim - 1))


class Even(Hurried):
    """All tokens alike, at no cost."""

    def __init__(self, codebook_size):
        super().__init__(None)
        self.codebook_size = codebook_size

    def forward(self, x_t, t, condition=None, cells=None):
        shape = x_t.shape if cells is None else cells.shape
        return torch.zeros(*shape, self.codebook_size)


def enumerate_law(prior, times, kappa=1.0, interval=(0.0, 1.0)):
    """(K ** N,): the law of x_0 after steps along the times; cells change independently. A time may come twice."""
    kernel, size = prior.kernel, prior.grid_spec.grid_size
    states = all_states(kernel, size[0] * size[1])
    law = stationary_law(kernel, states.shape[1])
    x_t = states.view(-1, *size)
    for time, next_time in pairwise(times):
        t, s = (torch.full((len(states),), step) for step in (time, next_time))
        log_x0 = prior.log_x0(x_t, t).double()
        if time > next_time:
            cells = average_posterior(log_x0, x_t, t, s, kernel).exp().flatten(1, 2)
        else:
            cells = torch.nn.functional.one_hot(states, kernel.codebook_size + 1).double()
        share = kappa if interval[0] <= 1 - time / kernel.num_steps <= interval[1] else 1.0
        cells = share * cells
        forward = between(kernel, 0, next_time)[: kernel.codebook_size]
        anew = log_x0.exp().flatten(1, 2) @ forward
        if kernel.name == "absorbing":  # a token is its own x_0
            known = torch.nn.functional.one_hot(states.clamp(max=kernel.codebook_size - 1), kernel.codebook_size)
            anew = torch.where((states < kernel.mask_id)[..., None], known.double() @ forward, anew)
        cells[..., : anew.shape[-1]] += (1 - share) * anew
        whole = torch.ones(len(states), len(states), dtype=torch.float64)
        for cell in range(states.shape[1]):
            whole *= cells[:, cell][:, states[:, cell]]
        law = law @ whole
    return law[(states < kernel.codebook_size).all(-1)]


def numbers(grids, codebook_size):
    """Grids (N, H, W) as numbers, the first cell the largest digit."""
    count = grids[0].numel()
    return (grids.flatten(1) * codebook_size ** torch.arange(count - 1, -1, -1)).sum(1)


# ---------------------------------------------------------------------------- first-hitting


@pytest.mark.parametrize("steps", [None, 5, 1])
def test_first_hitting_draws_from_the_law_of_ancestral_sampling(steps):
    prior = exact_prior(FOUR_CELLS, (2, 2), build("absorbing", "maskgit-cosine", 2, 12))
    law = enumerate_law(prior, torch.linspace(12, 0, (steps or 12) + 1).round().long().tolist())
    drawn = vqtool.sample(prior, 8192, sampler="first-hitting", steps=steps, batch_size=8192)
    check_law(numbers(drawn, 2), law)


@pytest.mark.parametrize("sampler", ["ancestral", "first-hitting"])
@pytest.mark.parametrize("times", [[9, 7, 6, 2], [4, 1]])
def test_listed_times_are_walked_in_the_same_law_though_the_network_looks_at_t(sampler, times):
    law = torch.arange(1, 82, dtype=torch.float64) ** 2
    exact = exact_prior(law, (2, 2), build("absorbing", "linear", 3, 9))
    prior = Prior(exact.kernel, Hurried(exact.denoiser), "exact", exact.conditioner, exact.grid_spec, "direct")
    wanted = enumerate_law(prior, [*([] if 9 in times else [9]), *times, 0])
    drawn = vqtool.sample(prior, 8192, sampler=sampler, times=times, batch_size=8192)
    check_law(numbers(drawn, 3), wanted)


@pytest.mark.parametrize(("num_steps", "saved"), [(256, 0.367), (1000, 0.774)])
def test_first_hitting_leaves_out_the_calls_in_which_no_cell_opens(num_steps, saved):
    """Of T even steps a share (1 - 1 / T) ** N opens none of N cells; the mean of 64 samples is within 5 sigma."""
    kernel = build("absorbing", "linear", 2, num_steps)
    prior = Prior(kernel, Even(2), "even", conditions.build("none"), grid_spec((16, 16)), "direct")
    (batch,) = samplers.sample_batches(prior, 64, sampler="first-hitting")
    idle = (1 - 1 / num_steps) ** 256
    assert idle == pytest.approx(saved, abs=5e-4)
    two_idle = (1 - 2 / num_steps) ** 256
    spread = (num_steps * (idle - two_idle) + num_steps**2 * (two_idle - idle**2)) ** 0.5 / num_steps / 8
    assert abs(1 - batch.num_calls / num_steps - idle) < 5 * spread
    assert int(batch.grids.max()) == 1


def test_first_hitting_asks_at_the_times_at_which_a_cell_opens_and_skips_finished_samples():
    prior = random_prior("absorbing", grid_size=(16, 32), num_steps=40)  # a sample a group
    asked = []
    forward = prior.denoiser.forward

    def watch(x_t, t, condition=None, cells=None):
        asked.append((int(t[0]), int((x_t == 11).sum())))
        return forward(x_t, t, condition, cells)

    prior.denoiser.forward = watch
    calls = []
    for sample in range(3):
        (batch,) = samplers.sample_batches(prior, 1, start=sample, sampler="first-hitting", steps=20)
        assert batch.num_calls == len(asked)
        assert all(t > s and before > after for (t, before), (s, after) in pairwise(asked))
        assert asked[0][1] == 512
        calls.append(len(asked))
        asked.clear()
    (batch,) = samplers.sample_batches(prior, 3, sampler="first-hitting", steps=20)
    assert len(asked) == sum(calls)
    assert batch.num_calls == pytest.approx(sum(calls) / 3)


def test_first_hitting_does_not_change_when_cells_come_in_parts(monkeypatch):
    prior = exact_prior(torch.arange(1, 513).double(), (3, 3), build("absorbing", "linear", 2, 9))
    whole = vqtool.sample(prior, 30, sampler="first-hitting", steps=2)
    monkeypatch.setattr("vqtool.samplers.first_hitting.expect", lambda changing, num_cells: 2)
    assert torch.equal(vqtool.sample(prior, 30, sampler="first-hitting", steps=2), whole)


@pytest.mark.parametrize("kernel", ["uniform", "mask-replace"])
def test_first_hitting_of_tokens_that_may_change_is_refused(kernel):
    message = f"first-hitting needs an absorbing kernel, but this prior's is {kernel}: use ancestral, psi"
    with pytest.raises(VqtoolError, match=message):
        vqtool.sample(random_prior(kernel), 2, sampler="first-hitting")


# ---------------------------------------------------------------------------- psi


@pytest.mark.parametrize(("name", "schedule"), CASES)
@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.9])
def test_the_marginal_of_x_s_is_that_of_the_forward_process_for_every_kappa(name, schedule, kappa):
    """By enumeration of one cell: its x_0, x_t and x_s."""
    kernel = build(name, schedule, 4, 6)
    states = all_states(kernel, 1)
    prior = exact_prior(ONE_CELL, (1, 1), kernel)
    for t, s in itertools.combinations(range(6, -1, -1), 2):
        law = (ONE_CELL @ between(kernel, 0, t)[:4])[: len(states)]
        steps = torch.full((len(states),), t), torch.full((len(states),), s)
        log_x0 = prior.log_x0(states[:, None], steps[0]).double()
        back = average_posterior(log_x0, states[:, None], *steps, kernel).exp()[:, 0, 0]
        anew = (log_x0.exp() @ between(kernel, 0, s)[:4])[:, 0, 0]
        width = back.shape[-1]
        mixed = law @ (kappa * back + (1 - kappa) * torch.nn.functional.pad(anew, (0, width - anew.shape[-1])))
        wanted = torch.nn.functional.pad(ONE_CELL @ between(kernel, 0, s)[:4], (0, width))[:width]
        torch.testing.assert_close(mixed, wanted, rtol=0, atol=1e-7)  # float32 log-probabilities


@pytest.mark.parametrize("rule", ["mixture", "plug-in"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("t", "s"), [(9, 8), (9, 2), (5, 5), (3, 0)])
def test_a_psi_step_keeps_the_marginals(name, rule, t, s):
    """Chi-square of x_s from x_t ~ q(x_t), one cell a sample; with "plug-in" the denoiser knows the law of the data."""
    kernel = build(name, None, 3, 9)
    data = torch.tensor([0.55, 0.3, 0.15], dtype=torch.float64)
    prior = exact_prior(data, (1, 1), kernel)
    if rule == "plug-in":
        prior.denoiser.forward = lambda x_t, t, condition=None, cells=None: data.log().expand(
            len(x_t), cells.shape[1], 3
        )
    num = 4096
    walk = Walk(prior, range(num), None, seed=0, grid_size=(1, 1), settings=Settings())
    (first, second), noise = walk.noise(1, 2), walk.noise(2, 3)
    x_0 = torch.searchsorted(data.cumsum(0), first.contiguous())
    x_t = kernel.sample(x_0, walk.times(t), second)
    x_s = psi.step(walk, x_t, t, s, rule, 0.4, noise)
    if s < t or name == "uniform":
        assert not torch.equal(x_s, x_t)
    check_law(x_s.flatten(), (data @ between(kernel, 0, s)[:3]))


@pytest.mark.parametrize("name", KERNELS)
def test_psi_draws_four_cells_from_the_enumerated_law(name):
    prior = exact_prior(FOUR_CELLS, (2, 2), build(name, None, 2, 6))
    drawn = vqtool.sample(prior, 8192, sampler="psi", times=[6, 4, 3, 1], kappa=0.6, batch_size=8192)
    check_law(numbers(drawn, 2), enumerate_law(prior, [6, 4, 3, 1, 0], 0.6))


@pytest.mark.parametrize("name", KERNELS)
def test_psi_of_one_cell_has_the_law_of_the_data_with_more_steps_than_times(name):
    prior = exact_prior(ONE_CELL, (1, 1), build(name, None, 4, 20))
    drawn = vqtool.sample(prior, 2048, sampler="psi", steps=50, kappa=0.7, batch_size=2048)
    check_law(drawn.flatten(), ONE_CELL)
    assert prior.denoiser.calls >= 2048 // 256 * 50


@pytest.mark.parametrize("name", KERNELS)
def test_psi_with_more_steps_than_times_repeats_those_of_its_interval_in_the_enumerated_law(name):
    """T = 8, shares 0.25 to 0.5 are t = 6, 5 and 4: 6 further steps go to these alone."""
    interval, times = (0.25, 0.5), [8, 7, 6, 6, 6, 5, 5, 5, 4, 4, 4, 3, 2, 1, 0]
    prior = exact_prior(FOUR_CELLS, (2, 2), build(name, None, 2, 8))
    options = {"sampler": "psi", "steps": 14, "kappa": 0.6, "kappa_interval": interval}
    (batch,) = samplers.sample_batches(prior, 4096, batch_size=4096, **options)
    assert batch.num_calls == 14
    assert list(dict.fromkeys(t for t, _ in prior.denoiser.seen)) == list(range(8, 0, -1))
    law = enumerate_law(prior, times, 0.6, interval)
    check_law(numbers(batch.grids, 2), law)
    without = enumerate_law(prior, range(8, -1, -1), 0.6, interval)
    assert float((law - FOUR_CELLS).abs().sum()) < 0.9 * float((without - FOUR_CELLS).abs().sum())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("steps", "interval"), [(30, (0.3, 0.8)), (24, (0.0, 0.04)), (23, (0.95, 1.0))])
def test_psi_of_one_cell_has_the_law_of_the_data_with_more_steps_in_an_interval(name, steps, interval):
    prior = exact_prior(ONE_CELL, (1, 1), build(name, None, 4, 20))
    options = {"steps": steps, "kappa": 0.6, "kappa_interval": interval}
    drawn = vqtool.sample(prior, 1024, sampler="psi", batch_size=1024, **options)
    check_law(drawn.flatten(), ONE_CELL)


@pytest.mark.parametrize("steps", [20, 21, 27, 300])
def test_times_outside_of_the_interval_come_once_and_those_inside_equally_often(steps):
    prior = random_prior("absorbing")
    walk = Walk(prior, range(1), None, seed=0, grid_size=(4, 6), settings=Settings())
    stops = choose_times(walk, psi.Options(steps=steps), repeated=[5, 6, 7])
    assert len(stops) == steps + 1
    assert stops == sorted(stops, reverse=True)
    counts = [stops.count(t) for t in range(21)]
    assert [count for t, count in enumerate(counts) if t not in (5, 6, 7)] == [1] * 18
    assert max(counts[5:8]) - min(counts[5:8]) <= 1
    everywhere = choose_times(walk, psi.Options(steps=steps), repeated=range(1, 21))
    assert everywhere == [-(-20 * (steps - step) // steps) for step in range(steps + 1)]


@pytest.mark.parametrize("rule", ["mixture", "plug-in"])
@pytest.mark.parametrize("name", KERNELS)
def test_psi_with_a_kappa_of_one_is_ancestral_sampling_bit_for_bit(name, rule):
    prior = random_prior(name)
    ancestral = vqtool.sample(prior, 5, steps=7, rule=rule)
    assert torch.equal(vqtool.sample(prior, 5, sampler="psi", steps=7, rule=rule, kappa=1.0), ancestral)
    elsewhere = {"kappa": 0.5, "kappa_interval": (0.99, 1.0)}  # the last of 7 steps starts at 1 - 3 / 20
    assert torch.equal(vqtool.sample(prior, 5, sampler="psi", steps=7, rule=rule, **elsewhere), ancestral)
    other = vqtool.sample(prior, 5, sampler="psi", steps=7, rule=rule, kappa=0.5, kappa_interval=(0.5, 0.9))
    assert not torch.equal(other, ancestral)


def test_psi_mends_pairs_that_ancestral_sampling_of_an_absorbing_kernel_leaves_mixed():
    """AA or BB: in 4 steps 1 / 8 of the pairs come out mixed; remasking lets more steps at the same t mend them."""
    law = torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    prior = exact_prior(law, (1, 2), build("absorbing", "linear", 2, 4))
    mixed = []
    for options in ({"sampler": "ancestral"}, {"sampler": "psi", "steps": 40, "kappa": 0.8}):
        drawn = vqtool.sample(prior, 4000, batch_size=4000, **options).flatten(1)
        mixed.append(float((drawn[:, 0] != drawn[:, 1]).double().mean()))
    assert mixed[0] == pytest.approx(1 / 8, abs=0.03)
    assert mixed[1] < mixed[0] / 2


# ---------------------------------------------------------------------------- times


@pytest.mark.parametrize("sampler", ["ancestral", "psi"])
def test_a_list_of_evenly_spaced_times_is_that_number_of_steps(sampler):
    prior = random_prior()
    even = vqtool.sample(prior, 3, sampler=sampler, steps=4)
    assert torch.equal(vqtool.sample(prior, 3, sampler=sampler, times=[20, 15, 10, 5]), even)
    assert torch.equal(vqtool.sample(prior, 3, sampler=sampler, times=(15, 10, 5)), even)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"times": [10, 10]}, "`times` 10,10: times that fall from 20 or less to 1 or more"),
        ({"times": [21, 10]}, "`times` 21,10"),
        ({"times": [5, 0]}, "`times` 5,0"),
        ({"times": [5], "steps": 3}, "`steps` and `times` both"),
        ({"sampler": "psi", "kappa": 1.5}, "`kappa` 1.5: must be at least 0 and at most 1"),
        ({"sampler": "psi", "kappa": -0.1}, "`kappa` -0.1"),
        ({"sampler": "psi", "kappa_interval": (0.5, 0.5)}, "`kappa_interval` 0.5,0.5: two rising"),
        ({"sampler": "psi", "kappa": 1.0, "steps": 21}, "this sampler takes 1 to 20 steps"),
        (
            {"sampler": "psi", "kappa_interval": (0.96, 0.99), "steps": 21},
            "more would repeat times at which cells are noised anew, and there are none",
        ),
        ({"sampler": "psi", "steps": 0}, "`steps` 0"),
        ({"sampler": "first-hitting", "steps": 21}, "this sampler takes 1 to 20"),
        ({"kappa": 0.5}, "`kappa` is not an option of sampler ancestral; of psi it is"),
        (
            {"sampler": "purity", "times": [3]},
            "`times` is not an option of sampler purity; of ancestral, first-hitting",
        ),
    ],
)
def test_times_and_shares_that_are_not_possible_are_refused(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        vqtool.sample(random_prior("absorbing"), 2, **arguments)
