"""Samplers: their laws with an exact denoiser, their counts, their seeds."""

import itertools
from dataclasses import replace

import pytest
import torch
from scipy import stats
from support.exact import exact_prior, random_prior
from support.matrices import build_kernel

import vqtool
from vqtool import rng, samplers
from vqtool.diffusion import kernels
from vqtool.diffusion.posterior import average_posterior, draw, sample_posterior
from vqtool.errors import VqtoolError, VqtoolWarning
from vqtool.samplers import Settings, Walk, ancestral

FALSE_ALARM = 1e-6  # of each distribution test below; seeds are fixed, so a test that passes keeps passing
GUIDED = Settings(cfg_scale=2.0, temperature=0.9, truncation=0.9)
AA_BB = torch.tensor([0.5, 0.0, 0.0, 0.5])  # two cells, two tokens: AA or BB


def chi_square(samples, law):
    """P-value of grids (N, H, W) under a law over all grids."""
    count = round(len(law) ** (1 / samples[0].numel()))
    powers = count ** torch.arange(samples[0].numel() - 1, -1, -1)
    numbers = (samples.flatten(1) * powers).sum(1)
    observed = torch.bincount(numbers, minlength=len(law)).double()
    expected = torch.as_tensor(law, dtype=torch.float64) * len(samples)
    assert observed[expected == 0].sum() == 0
    kept = expected > 0
    return stats.chisquare(observed[kept].numpy(), expected[kept].numpy()).pvalue


def called(sampler, steps):
    """The arguments of a sampler with so many steps, if it can be told how many."""
    return {"sampler": sampler, **({"steps": steps} if "steps" in samplers.options(sampler) else {})}


@pytest.mark.parametrize("name", ["mask-replace", "absorbing", "uniform"])
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_ancestral_sampling_of_one_cell_has_the_law_of_the_data_for_any_number_of_steps(name, steps):
    law = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    prior = exact_prior(law, (1, 1), build_kernel(name, codebook_size=4, num_steps=50))
    drawn = vqtool.sample(prior, 2048, steps=steps, batch_size=1024)
    assert chi_square(drawn, law) > FALSE_ALARM
    assert prior.denoiser.calls == 2048 // 256 * steps


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_ancestral_sampling_of_aa_bb_mixes_them_as_often_as_both_cells_open_in_one_step(steps):
    # Linear absorbing schedule: each cell opens in any of the steps alike, so both in one with 1 / steps, half of
    # which are AB or BA.
    prior = exact_prior(AA_BB, (1, 2), kernels.build("absorbing", codebook_size=2, num_steps=8))
    drawn = vqtool.sample(prior, 4000, steps=steps, batch_size=2000).flatten(1)
    mixed = int((drawn[:, 0] != drawn[:, 1]).sum())
    assert stats.binomtest(mixed, 4000, 1 / (2 * steps)).pvalue > FALSE_ALARM


def test_purity_sampling_of_aa_bb_in_one_call_mixes_them_half_of_the_time_and_in_two_never():
    prior = exact_prior(AA_BB, (1, 2), kernels.build("absorbing", codebook_size=2, num_steps=8))
    mixed = {}
    for steps in (1, 2):
        drawn = vqtool.sample(prior, 4000, sampler="purity", steps=steps, batch_size=2000).flatten(1)
        mixed[steps] = int((drawn[:, 0] != drawn[:, 1]).sum())
    assert stats.binomtest(mixed[1], 4000, 0.5).pvalue > FALSE_ALARM
    assert mixed[2] == 0


def test_purity_sampling_one_cell_a_call_without_sharpening_has_the_law_of_the_data():
    weights = torch.arange(1, 28, dtype=torch.float64) ** 2
    law = weights / weights.sum()
    prior = exact_prior(law, (1, 3), kernels.build("absorbing", codebook_size=3, num_steps=12))
    drawn = vqtool.sample(prior, 6000, sampler="purity", steps=3, purity_weight=0.0, batch_size=2000)
    assert chi_square(drawn, law) > FALSE_ALARM


def test_purity_chooses_cells_in_proportion_to_purity():
    # Independent cells with purities 0.9 and 0.6: the first is revealed first with 0.9 / 1.5.
    law = torch.einsum("i,j->ij", torch.tensor([0.9, 0.1]), torch.tensor([0.4, 0.6])).double()
    prior = exact_prior(law, (1, 2), kernels.build("absorbing", codebook_size=2, num_steps=2))
    firsts = []
    forward = prior.denoiser.forward

    def watch(x_t, t, condition=None, cells=None):
        firsts.extend((x_t[:, 0] != 2).nonzero()[:, 1].tolist() if prior.denoiser.calls % 2 else [])
        return forward(x_t, t, condition, cells)

    prior.denoiser.forward = watch
    vqtool.sample(prior, 4096, sampler="purity", steps=2, batch_size=128)
    assert len(firsts) == 4096
    assert stats.binomtest(firsts.count(0), 4096, 0.9 / 1.5).pvalue > FALSE_ALARM


def test_purity_sharpens_by_one_plus_weight_times_score():
    # One cell: its score is 1, so weight 1 squares the law.
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    prior = exact_prior(law, (1, 1), kernels.build("absorbing", codebook_size=3, num_steps=4))
    drawn = vqtool.sample(prior, 4000, sampler="purity", purity_weight=1.0, batch_size=2000)
    assert chi_square(drawn, law**2 / (law**2).sum()) > FALSE_ALARM


def kernel_for(sampler):
    """The richest kernel that a sampler is for."""
    return "absorbing" if getattr(samplers.find(sampler), "NEEDS_ABSORBING", False) else "mask-replace"


@pytest.mark.parametrize("sampler", samplers.NAMES)
@pytest.mark.parametrize("kind", ["none", "class", "caption"])
def test_a_sample_depends_on_seed_and_number_only(sampler, kind):
    prior = random_prior(kernel_for(sampler), kind=kind)
    texts = None if kind == "none" else [prior.conditioner.examples[i % 3] for i in range(9)]
    chosen = {**called(sampler, 4), "seed": 5, "truncation": 0.95, "temperature": 0.9}
    if texts is not None:
        chosen |= {"condition": prior.conditioner.encode(texts), "cfg_scale": 2.0}
    whole = vqtool.sample(prior, 9, batch_size=7, **chosen)
    for batch_size in (1, 4, 9):
        assert torch.equal(vqtool.sample(prior, 9, batch_size=batch_size, **chosen), whole)
    if texts is not None:
        chosen["condition"] = chosen["condition"][5:8]
    assert torch.equal(vqtool.sample(prior, 3, start=5, batch_size=2, **chosen), whole[5:8])
    assert not torch.equal(vqtool.sample(prior, 3, start=5, **{**chosen, "seed": 6}), whole[5:8])


@pytest.mark.parametrize("num_cells", [None, 8, 24, 64])
@pytest.mark.parametrize("kind", ["class", "caption"])
def test_predictions_are_the_same_bit_for_bit_in_every_batch(kind, num_cells):
    # Matrix products round differently for different batch sizes; see Walk on how that is kept out.
    prior = random_prior(kind=kind, grid_size=(8, 8), codebook_size=509)
    noise = torch.Generator().manual_seed(0)
    x_t, t = torch.randint(0, 510, (20, 8, 8), generator=noise), torch.randint(1, 21, (20,), generator=noise)
    choice = torch.rand(20, 8, 8, dtype=torch.float64, generator=noise)
    cells = None if num_cells is None else torch.rand(20, 64, generator=noise).argsort()[:, :num_cells]
    texts = ["ant", "bee", "cat"] if kind == "class" else ["an ant", "a striped cat"]
    condition = prior.conditioner.encode([texts[i % len(texts)] for i in range(20)])

    def predict(first, stop):
        rows = slice(first, stop)
        walk = Walk(prior, range(first, stop), condition[rows], seed=0, grid_size=(8, 8), settings=GUIDED)
        inputs, wanted = (x_t[rows], t[rows]), None if cells is None else cells[rows]
        return walk.log_x0(*inputs, wanted), walk.draw_x0(*inputs, choice[rows], wanted)

    with torch.no_grad():
        whole = predict(0, 20)
        for size in (1, 3, 4, 7):
            parts = [predict(first, min(first + size, 20)) for first in range(0, 20, size)]
            for got, wanted in zip(zip(*parts, strict=True), whole, strict=True):
                assert torch.equal(torch.cat(got), wanted)


def test_predictions_at_some_cells_are_those_of_the_whole_grid():
    prior = random_prior(kind="class", grid_size=(8, 8), codebook_size=50)
    walk = Walk(prior, range(20), torch.arange(20) % 4, seed=0, grid_size=(8, 8), settings=GUIDED)
    x_t = torch.randint(0, 51, (20, 8, 8), generator=torch.Generator().manual_seed(0))
    t, cells = torch.arange(1, 21), torch.arange(20)[:, None] + torch.tensor([[40, 3, 0]])
    with torch.no_grad():
        whole, some = walk.log_x0(x_t, t), walk.log_x0(x_t, t, cells)
    wanted = whole.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, 50))
    torch.testing.assert_close(some.exp(), wanted.exp(), rtol=1e-4, atol=1e-6)


def test_a_drawn_x0_follows_the_guided_tempered_and_truncated_law():
    prior = random_prior(kind="class", grid_size=(8, 8), codebook_size=7)
    walk = Walk(prior, range(64), torch.ones(64).long(), seed=0, grid_size=(8, 8), settings=GUIDED)
    x_t, t = torch.full((64, 8, 8), 7), torch.full((64,), 15)
    drawn = torch.zeros(7, dtype=torch.float64)
    with torch.no_grad():
        law = walk.log_x0(x_t, t)[0, 2, 3].exp()
        for step in range(20):
            drawn += torch.bincount(walk.draw_x0(x_t, t, walk.noise(step, 1)[0])[:, 2, 3], minlength=7)
    assert bool((drawn[law == 0] == 0).all())
    kept = law > 0
    assert 1 < int(kept.sum()) < 7
    assert stats.chisquare(drawn[kept], law[kept].double() / law[kept].double().sum() * 1280).pvalue > FALSE_ALARM


def walk_densely(prior, num, steps):
    """Ancestral sampling as the formulas say it: x_0 of every cell at every step, from the same noise."""
    kernel, size = prior.kernel, prior.grid_spec.grid_size
    noise = [rng.uniform(0, range(num), step, (2, *size), stream=rng.SAMPLING) for step in range(steps + 1)]
    x_t = kernel.sample_stationary(rng.uniform(0, range(num), 0, (1, *size), stream=rng.SAMPLING)[:, 0])
    times = torch.linspace(kernel.num_steps, 0, steps + 1).round().long()
    for call, pair in enumerate(itertools.pairwise(times), start=1):
        t, s = (time.expand(num) for time in pair)
        x_0 = draw(prior.log_x0(x_t, t), noise[call][:, 0])
        x_t = sample_posterior(x_0, x_t, t, s, kernel, noise[call][:, 1])
    return x_t


@pytest.mark.parametrize("name", ["absorbing", "mask-replace", "uniform"])
def test_looking_at_few_cells_draws_the_same_grids_as_looking_at_all(name):
    law = torch.rand(2**10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 8
    prior = exact_prior(law, (2, 5), build_kernel(name, codebook_size=2, num_steps=50))
    asked = []
    forward = prior.denoiser.forward

    def watch(x_t, t, condition=None, cells=None):
        asked.append(10 if cells is None else cells.shape[1])
        return forward(x_t, t, condition, cells)

    prior.denoiser.forward = watch
    drawn = vqtool.sample(prior, 20, steps=50)
    assert min(asked) == 8  # counts are multiples of 8
    assert torch.equal(drawn, walk_densely(prior, 20, 50))


def test_ancestral_sampling_asks_for_few_more_cells_than_open():
    prior = random_prior("absorbing", grid_size=(16, 16), num_steps=100)
    asked = []
    forward = prior.denoiser.forward

    def watch(x_t, t, condition=None, cells=None):
        asked.append(cells.shape[1])
        return forward(x_t, t, condition, cells)

    prior.denoiser.forward = watch
    vqtool.sample(prior, 1, steps=100)
    assert asked == [16] * 100  # 2.56 open on average


def test_cells_that_do_not_fit_are_looked_at_in_further_parts():
    wanted = torch.zeros(3, 2, 5, dtype=torch.bool)
    wanted[0] = True
    wanted[1, 1, 1:4] = True
    parts = list(ancestral.split(wanted, 4))
    assert [tuple(part.shape) for part in parts] == [(3, 4)] * 3
    for row in range(3):
        cells = [part[row].tolist() for part in parts]
        marked = wanted[row].flatten().nonzero().flatten().tolist()
        assert list(itertools.chain(*cells))[: len(marked)] == marked
    assert len(list(ancestral.split(wanted[2:], 4))) == 1


def test_samples_do_not_change_when_cells_come_in_parts(monkeypatch):
    prior = exact_prior(torch.arange(1, 513).double(), (3, 3), kernels.build("absorbing", codebook_size=2, num_steps=9))
    whole = vqtool.sample(prior, 30, steps=3)
    monkeypatch.setattr(ancestral, "expect", lambda changing, num_cells: 2)
    assert torch.equal(vqtool.sample(prior, 30, steps=3), whole)


@pytest.mark.parametrize("name", ["mask-replace", "absorbing", "uniform"])
def test_ancestral_sampling_by_the_plug_in_rule_has_the_law_of_its_averages(name):
    """One cell; its law is the product of the averages' matrices."""
    data = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    kernel = build_kernel(name, codebook_size=4, num_steps=9)
    prior = exact_prior(data, (1, 1), kernel)
    states = torch.arange(4 + kernel.has_mask).view(-1, 1, 1)
    gamma = kernel.gamma_bar[-1]
    law = torch.cat([(1 - gamma).expand(4) / 4, gamma[None]])[: len(states)]
    for t, s in itertools.pairwise((9, 6, 3, 0)):
        steps = torch.full((len(states),), t), torch.full((len(states),), s)
        average = average_posterior(prior.log_x0(states, steps[0]).double(), states, *steps, kernel, "plug-in")
        law = law @ average.exp()[:, 0, 0, : len(states)]
    drawn = vqtool.sample(prior, 4096, steps=3, rule="plug-in", batch_size=2048)
    assert chi_square(drawn, law[:4]) > FALSE_ALARM


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_settings_of_one_do_nothing_bit_for_bit(sampler):
    prior = random_prior(kernel_for(sampler), kind="class")
    condition = prior.conditioner.encode(["bee"])
    chosen = {**called(sampler, 5), "condition": condition}
    plain = vqtool.sample(prior, 6, **chosen)
    off = {"cfg_scale": 1.0, "temperature": 1.0, "truncation": 1.0, "top_k": 11}
    assert torch.equal(vqtool.sample(prior, 6, **chosen, **off), plain)
    assert not torch.equal(vqtool.sample(prior, 6, **chosen, cfg_scale=4.0), plain)


def test_guidance_of_zero_is_sampling_without_a_condition():
    prior = random_prior(kind="class")
    guided = vqtool.sample(prior, 6, steps=5, condition=prior.conditioner.encode(["bee"]), cfg_scale=0.0)
    assert torch.equal(guided, vqtool.sample(prior, 6, steps=5))


def test_one_condition_serves_all_samples_and_a_function_gives_each_its_own():
    prior = random_prior(kind="class")
    names = list(itertools.islice(itertools.cycle(["ant", "cat"]), 6))
    rows = prior.conditioner.encode(names)
    by_rows = vqtool.sample(prior, 6, steps=4, condition=rows)
    by_function = vqtool.sample(prior, 6, steps=4, condition=lambda samples: rows[list(samples)], batch_size=4)
    assert torch.equal(by_rows, by_function)
    ants = vqtool.sample(prior, 6, steps=4, condition=prior.conditioner.encode(["ant"]))
    assert torch.equal(ants[::2], by_rows[::2])
    with pytest.raises(VqtoolError, match=r"`condition` has shape \(2,\): a tensor of 1 or 6 rows is expected"):
        vqtool.sample(prior, 6, condition=rows[:2])


def test_batches_report_their_samples_and_calls():
    prior = random_prior(kind="class")
    condition = prior.conditioner.encode(["ant"])
    batches = list(
        samplers.sample_batches(prior, 5, steps=3, batch_size=2, start=10, cfg_scale=2.0, condition=condition)
    )
    assert [(batch.samples, batch.num_calls) for batch in batches] == [
        (range(10, 12), 6),
        (range(12, 14), 6),
        (range(14, 15), 6),
    ]


def test_a_prior_is_sampled_by_its_own_rule_unless_told_otherwise():
    prior = random_prior("uniform")
    mixture = vqtool.sample(prior, 4, steps=5)
    plug_in = vqtool.sample(prior, 4, steps=5, rule="plug-in")
    assert not torch.equal(mixture, plug_in)
    trained_so = replace(prior, rule="plug-in")
    assert torch.equal(vqtool.sample(trained_so, 4, steps=5), plug_in)
    assert torch.equal(vqtool.sample(trained_so, 4, steps=5, rule="mixture"), mixture)
    assert int(plug_in.max()) < 11


def test_grids_larger_than_the_training_grid_do_not_crash():
    prior = random_prior()
    assert vqtool.sample(prior, 2, steps=3, grid_size=(7, 9)).shape == (2, 7, 9)


def test_guidance_without_a_condition_is_warned_about_and_left_out():
    prior = random_prior()
    with pytest.warns(VqtoolWarning, match="nothing to guide"):
        guided = vqtool.sample(prior, 3, steps=3, cfg_scale=3.0)
    assert torch.equal(guided, vqtool.sample(prior, 3, steps=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "magic"}, "unknown sampler 'magic': known are ancestral, first-hitting, psi, fewer, purity"),
        ({"steps": 0}, "takes 1 to 20 steps"),
        ({"steps": 21}, "takes 1 to 20 steps"),
        ({"sampler": "purity", "steps": 0}, "1 to 24 steps here"),
        ({"sampler": "purity", "steps": 25}, "1 to 24 steps here"),
        ({"sampler": "purity", "purity_weight": -1.0}, "must be 0 or more"),
        ({"purity_weight": 1.0}, "`purity_weight` is not an option of sampler ancestral; of purity it is"),
        (
            {"sampler": "purity", "rule": "mixture"},
            "is not an option of sampler purity; of ancestral, psi, gibbs it is",
        ),
        ({"flavour": 1}, "of no sampler it is"),
        ({"rule": "median"}, "known are mixture, plug-in"),
        ({"num": 0}, "cannot draw 0 samples"),
        ({"start": -1}, "from number -1 on"),
        ({"batch_size": 0}, "batches of 0"),
        ({"truncation": 0.0}, "truncation"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        vqtool.sample(random_prior(), **{"num": 2, **arguments})


def test_purity_without_a_mask_names_the_samplers_that_work():
    with pytest.raises(VqtoolError, match="needs a kernel with a mask, but this prior's is uniform: use ancestral"):
        vqtool.sample(random_prior("uniform"), 2, sampler="purity")
