"""Samplers that choose which masked cells to reveal: counts, orders, times, choices, and their laws.

"Enumerated" laws are those of two independent cells, where every choice can be summed over.
"""

import itertools
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy import stats
from support.exact import exact_prior, random_prior
from support.matrices import FALSE_ALARM, check_law
from typer.testing import CliRunner

import vqtool
from vqtool import rng, samplers
from vqtool.cli.main import app
from vqtool.diffusion import kernels
from vqtool.diffusion.guidance import scales
from vqtool.errors import VqtoolError
from vqtool.grids import read_grids
from vqtool.samplers import _machine, halton
from vqtool.samplers._settings import interpolate
from vqtool.samplers._unmask import PLANS

UNMASKING = ("fewer", "purity", "confidence", "halton", "entropy", "moment")
COUNTED = tuple(name for name in UNMASKING if name != "entropy")  # those that are told how many calls
FOUR_CELLS = torch.tensor([30, 2, 3, 5, 1, 0, 7, 4, 6, 2, 1, 3, 2, 8, 5, 21], dtype=torch.float64) / 100
P, Q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.5, 0.1, 0.4]).double()  # two independent cells


@pytest.fixture(scope="module")
def golden():
    with safe_open(Path(__file__).parents[1] / "golden" / "schedules" / "io.safetensors", "pt") as file:
        assert json.loads(file.metadata()["meta"])
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def aa_bb():
    """Two cells that are equal: AA or BB."""
    return exact_prior(torch.tensor([0.5, 0, 0, 0.5]), (1, 2), kernels.build("absorbing", codebook_size=2, num_steps=8))


def independent():
    """Two cells that know nothing of each other."""
    return exact_prior(torch.outer(P, Q), (1, 2), kernels.build("absorbing", codebook_size=3, num_steps=4))


def watch(prior, num):
    """The list to which every call adds its x_t and t of the first `num` samples of a group."""
    seen, forward = [], prior.denoiser.forward

    def watched(x_t, t, condition=None, cells=None):
        seen.append((x_t[:num].clone(), t[:num].clone()))
        return forward(x_t, t, condition, cells)

    prior.denoiser.forward = watched
    return seen


def count_masked(seen, mask_id):
    """How many cells are masked in each call, and after the last."""
    return [(x_t == mask_id).flatten(1).sum(1).tolist() for x_t, _ in seen]


# ---------------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", COUNTED)
def test_aa_bb_in_one_call_is_mixed_half_of_the_time_and_one_cell_a_call_never(name):
    mixed = {}
    for steps in (1, 2):
        drawn = vqtool.sample(aa_bb(), 4000, sampler=name, steps=steps, batch_size=2000).flatten(1)
        mixed[steps] = int((drawn[:, 0] != drawn[:, 1]).sum())
    assert stats.binomtest(mixed[1], 4000, 0.5).pvalue > FALSE_ALARM
    assert mixed[2] == 0


def test_aa_bb_is_mixed_if_the_entropy_budget_allows_both_cells_at_once():
    for budget, calls in ((0.69, 2), (0.70, 1)):  # ln 2 = .693
        batches = list(samplers.sample_batches(aa_bb(), 4000, sampler="entropy", entropy_budget=budget))
        drawn = torch.cat([batch.grids for batch in batches]).flatten(1)
        assert {batch.num_calls for batch in batches} == {calls}
        mixed = int((drawn[:, 0] != drawn[:, 1]).sum())
        assert mixed == 0 if calls == 2 else stats.binomtest(mixed, 4000, 0.5).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    "chosen",
    [
        {"sampler": "fewer", "steps": 4},
        {"sampler": "halton", "steps": 4},
        {"sampler": "halton", "steps": 4, "roll": True},
        {"sampler": "purity", "steps": 4, "purity_weight": 0.0},
        {"sampler": "entropy", "entropy_budget": 0.0},
    ],
    ids=str,
)
def test_one_cell_a_call_has_the_law_of_the_data_in_any_order_that_knows_only_what_is_seen(chosen):
    prior = exact_prior(FOUR_CELLS, (2, 2), kernels.build("absorbing", codebook_size=2, num_steps=12))
    drawn = vqtool.sample(prior, 8192, batch_size=4096, **chosen)
    check_law((drawn.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1), FOUR_CELLS)


def pair_law(drawn, law):
    check_law(drawn.flatten(1) @ torch.tensor([3, 1]), law.flatten())


@pytest.mark.parametrize(("form", "powers"), [("code", (2.0, 2.0)), ("paper", (1 / 0.7, 1 / 0.5))])
def test_purity_sharpens_by_either_form(form, powers):
    """In two calls each cell is alone, or the one of greater purity, or has a score of .5 / .7."""
    first = 0.7 / 1.2
    law = torch.zeros(3, 3, dtype=torch.float64)
    for chance, one in ((first, True), (1 - first, False)):
        score = 1.0 if one else 0.5 / 0.7  # of the cell that is chosen of two; the other is then alone
        power = {True: powers[0], False: powers[1]}
        if form == "code":
            power[one] = 1 + score
        p, q = (each ** power[cell] / (each ** power[cell]).sum() for each, cell in ((P, True), (Q, False)))
        law += chance * torch.outer(p, q)
    drawn = vqtool.sample(independent(), 8192, sampler="purity", steps=2, purity_form=form, batch_size=4096)
    pair_law(drawn, law)


def test_confidence_without_noise_keeps_the_likelier_of_two_draws_and_draws_the_other_again():
    law = torch.zeros(3, 3, dtype=torch.float64)
    for i, j in itertools.product(range(3), repeat=2):
        if P[i] >= Q[j]:  # a tie keeps the first, but none is here
            law[i] += P[i] * Q[j] * Q
        else:
            law[:, j] += P[i] * Q[j] * P
    drawn = vqtool.sample(independent(), 8192, sampler="confidence", steps=2, choice_temperature=0.0, batch_size=4096)
    pair_law(drawn, law)


def test_confidence_chooses_by_the_likelihood_of_the_draw_to_the_power_of_one_over_its_noise():
    """Gumbel noise times a: the first of two is kept with chance p ** (1 / a) / (p ** (1 / a) + q ** (1 / a))."""
    noise = 1.5 * (1 - 1 / 2)
    law = torch.zeros(3, 3, dtype=torch.float64)
    for i, j in itertools.product(range(3), repeat=2):
        first = 1 / (1 + (Q[j] / P[i]) ** (1 / noise))
        law[i] += P[i] * Q[j] * first * Q
        law[:, j] += P[i] * Q[j] * (1 - first) * P
    drawn = vqtool.sample(independent(), 8192, sampler="confidence", steps=2, choice_temperature=1.5, batch_size=4096)
    pair_law(drawn, law)


def test_moment_chooses_cells_by_their_moments_and_draws_from_the_power_of_the_law():
    power = 1 + 1 / (1.5 * (1 - 1 / 2))
    moments = (P**power).sum(), (Q**power).sum()
    first = moments[0] / (moments[0] + moments[1])
    law = first * torch.outer(P**power / moments[0], Q) + (1 - first) * torch.outer(P, Q**power / moments[1])
    drawn = vqtool.sample(independent(), 8192, sampler="moment", steps=2, choice_temperature=1.5, batch_size=4096)
    pair_law(drawn, law)


def test_fewer_opens_any_cell_first_alike():
    prior = exact_prior(torch.ones(64), (2, 3), kernels.build("absorbing", codebook_size=2, num_steps=6))
    seen = watch(prior, 42)
    vqtool.sample(prior, 1008, sampler="fewer", steps=6, batch_size=1008)
    shown = torch.stack([(x_t != 2).flatten(1) for x_t, _ in seen]).view(6, 24, 42, 6)[1]  # groups, samples, cells
    firsts = shown.long().argmax(-1).flatten()
    assert bool((shown.sum(-1) == 1).all())
    assert stats.chisquare(torch.bincount(firsts, minlength=6)).pvalue > FALSE_ALARM


# ---------------------------------------------------------------------------- counts and times


@pytest.mark.parametrize("name", ["ancestral", "psi", *COUNTED])
@pytest.mark.parametrize("side", [4, 8, 16])
def test_the_usual_steps_are_one_for_ten_cells_and_at_least_those_of_8x8(name, side):
    prior = random_prior("mask-replace", grid_size=(side, side), num_steps=100)
    (batch,) = samplers.sample_batches(prior, 1, sampler=name)
    least = min(samplers.options(name)["steps"].usual, side * side)
    assert batch.num_calls == (25 if side == 16 else least)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("steps", [1, 5, 7, 23, 24, None])
def test_every_call_unmasks_cells_changes_nothing_unmasked_and_is_told_the_right_time(name, steps):
    prior = random_prior("mask-replace")
    seen = watch(prior, 4)
    (batch,) = samplers.sample_batches(prior, 4, sampler=name, **({} if steps is None else {"steps": steps}))
    steps = min(samplers.options(name)["steps"].usual, 24) if steps is None else steps
    assert batch.num_calls == len(seen) == steps
    masked = [*count_masked(seen, 11), [0] * 4]
    for before, after in itertools.pairwise(masked):
        assert len(set(before)) == 1
        assert before[0] > after[0]
        assert name not in ("fewer", "purity") or before[0] - after[0] in (24 // steps, -(-24 // steps))
    for (x_t, t), (count, *_) in zip(seen, masked, strict=False):
        shown = x_t != 11
        assert torch.equal(x_t[shown], batch.grids[shown])
        distance = (prior.kernel.gamma_bar - count / 24).abs()
        assert bool((distance[t] == distance[1:].min()).all())
    assert int(batch.grids.max()) < 11


@pytest.mark.parametrize("name", ["confidence", "moment"])
@pytest.mark.parametrize(("size", "steps"), [(16, 8), (16, 12), (8, 8)])
def test_the_counts_of_confidence_and_moment_are_those_of_maskgit(golden, name, size, steps):
    prior = random_prior(grid_size=(size, size))
    seen = watch(prior, 1)
    vqtool.sample(prior, 1, sampler=name, steps=steps)
    left = [masked for (masked,) in count_masked(seen, 11)][1:]
    wanted = golden[f"maskgit_N{size**2}_T{steps}_remasked"].tolist()[:-1]  # its last one is never masked
    assert left == wanted


@pytest.mark.parametrize(("size", "steps"), [(16, 32), (8, 8)])
def test_the_counts_and_cells_of_halton_are_those_of_halton_maskgit(golden, size, steps):
    prior = random_prior(grid_size=(size, size))
    seen = watch(prior, 1)
    vqtool.sample(prior, 1, sampler="halton", steps=steps)
    masked = [masked for (masked,) in count_masked(seen, 11)]
    revealed = golden[f"halton_{size}_steps{steps}_revealed"]
    assert masked == (size**2 - revealed.cumsum(0) + revealed).tolist()
    rows, columns = golden[f"halton_{size}"].T
    order = rows * size + columns
    for (x_t, _), count in zip(seen, masked, strict=True):
        shown = (x_t != 11).flatten().nonzero().flatten().tolist()
        assert shown == sorted(order[: size**2 - count].tolist())


def test_halton_orders_are_those_of_the_peer(golden):
    for size in (8, 16):
        order = halton.find_order(size, size)
        assert torch.equal(torch.stack([order // size, order % size], dim=1), golden[f"halton_{size}"])


def digits_behind_the_point(number, base):
    value, place = Fraction(0), Fraction(1, base)
    while number:
        number, digit = divmod(number, base)
        value, place = value + digit * place, place / base
    return value


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (7, 9), (5, 4)])
def test_the_halton_order_of_any_grid_is_that_of_the_exact_fractions(size):
    order, number = [], 0
    while len(order) < size[0] * size[1]:
        number += 1
        row, column = (
            int(digits_behind_the_point(number, base) * length) for base, length in zip((2, 3), size, strict=True)
        )
        if row * size[1] + column not in order:
            order.append(row * size[1] + column)
    assert halton.find_order(*size).tolist() == order


@pytest.mark.parametrize("size", [(24, 24), (32, 48), (48, 32), (3, 100), (64, 64)])
def test_a_halton_order_visits_every_cell_once(size):
    assert torch.equal(halton.find_order(*size).sort().values, torch.arange(size[0] * size[1]))


def test_a_rolled_halton_order_starts_anywhere_and_goes_round():
    prior = random_prior()
    seen = watch(prior, 10)
    vqtool.sample(prior, 10, sampler="halton", steps=24, roll=True)
    order, starts = halton.find_order(4, 6).tolist(), set()
    shown = torch.stack([(x_t != 11).flatten(1) for x_t, _ in seen] + [torch.ones(10, 24, dtype=torch.bool)])
    opened = (shown[1:] & ~shown[:-1]).long().argmax(-1)  # (24, 10): the cell that a call opens
    for cells in opened.T.tolist():
        start = order.index(cells[0])
        starts.add(start)
        assert cells == order[start:] + order[:start]
    assert len(starts) > 6
    assert not torch.equal(
        vqtool.sample(prior, 2, sampler="halton"), vqtool.sample(prior, 2, sampler="halton", roll=True)
    )


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_of_the_cells_that_are_unknown_at_the_start_in_each_sample(name):
    """Samples with 24, 12, 3, 1 and no unknown cells, in 6 calls: as many as cells where those are fewer."""
    prior, unknown = random_prior(), (24, 12, 3, 1, 0)
    given = torch.stack([torch.arange(24).view(4, 6).flip(1) % 11] * 5)
    for row, number in zip(given, unknown, strict=True):
        row.view(-1)[torch.randperm(24, generator=torch.Generator().manual_seed(number))[:number]] = 11
    seen = watch(prior, 5)
    (batch,) = samplers.sample_batches(prior, 5, sampler=name, steps=6, known=given)
    assert torch.equal(torch.where(given < 11, batch.grids, 11), given)
    assert len(seen) == 6
    assert batch.num_calls == (6 + 6 + 3 + 1 + 0) / 5
    counts = torch.tensor(count_masked(seen, 11)).T.tolist()
    for sample, number in enumerate(unknown):
        alone = watch(prior, 5)
        same = vqtool.sample(prior, 1, sampler=name, steps=6, known=given[sample, None], start=sample)[0]
        assert torch.equal(same, batch.grids[sample])
        assert counts[sample][0] == number
        assert len(alone) == min(number, 6)


# ---------------------------------------------------------------------------- choices, recomputed


@torch.no_grad()
@pytest.mark.parametrize("form", ["code", "paper"])
def test_purity_is_what_its_formulas_give_cell_by_cell_in_float64(form):
    prior, steps, weight = random_prior(), 5, 0.7
    gamma = prior.kernel.gamma_bar.tolist()
    for sample in range(3):
        grid = [11] * 24
        for call in range(1, steps + 1):
            share = grid.count(11) / 24
            t = min(range(1, 21), key=lambda t, share=share: abs(gamma[t] - share))
            p = prior.log_x0(torch.tensor(grid).view(1, 4, 6), torch.tensor([t]))[0].double().exp().view(24, 11)
            noise = rng.uniform(0, [sample], call, (2, 4, 6), stream=rng.SAMPLING)[0].view(2, 24)
            masked = [cell for cell in range(24) if grid[cell] == 11]
            purity = {cell: float(p[cell].max()) for cell in masked}
            race = {cell: float(-(1 - noise[1, cell]).log()) / purity[cell] for cell in masked}  # the first come
            count = len(masked) - 24 * (steps - call) // steps
            for cell in sorted(masked, key=race.__getitem__)[:count]:
                score = purity[cell] / max(purity.values())
                sharp = p[cell] ** (1 + weight * score if form == "code" else purity[cell] ** -weight)
                reached = (sharp / sharp.sum()).cumsum(0) > noise[0, cell]
                grid[cell] = int(reached.long().argmax())
        drawn = vqtool.sample(prior, 1, start=sample, sampler="purity", steps=5, purity_weight=0.7, purity_form=form)
        assert drawn.flatten().tolist() == grid


def dependent():
    """Ten cells whose law has few likely grids: some become certain early, in other samples others."""
    law = torch.rand(2**10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 200
    return exact_prior(law, (2, 5), kernels.build("absorbing", codebook_size=2, num_steps=20))


def entropies(prior, x_t, t):
    p = prior.log_x0(x_t[None], t[None])[0].double().exp().flatten(0, 1)
    return torch.special.entr(p).sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("budget", [0.0, 0.5, 2.0])
def test_entropy_unmasks_the_largest_prefix_that_its_budget_allows_sample_by_sample(budget):
    prior = dependent()
    seen = watch(prior, 6)
    (batch,) = samplers.sample_batches(prior, 6, sampler="entropy", entropy_budget=budget)
    seen, calls = list(seen), []
    for sample in range(6):
        states = [(x_t[sample], t[sample]) for x_t, t in seen if bool((x_t[sample] == 2).any())]
        calls.append(len(states))
        grids = [x_t.flatten() for x_t, _ in states] + [batch.grids[sample].flatten()]
        for (x_t, t), before, after in zip(states, grids[:-1], grids[1:], strict=True):
            assert torch.equal(before[before != 2], after[before != 2])
            entropy = entropies(prior, x_t, t)
            hidden = entropy[before == 2].sort().values
            opened = entropy[(before == 2) & (after != 2)].sort().values
            torch.testing.assert_close(opened, hidden[: len(opened)])
            assert len(opened) == 1 or float(opened[:-1].sum()) <= budget + 1e-5
            assert len(opened) == len(hidden) or float(opened.sum()) > budget - 1e-5
    assert len(set(calls)) > 1
    assert batch.num_calls == pytest.approx(sum(calls) / 6)


def test_samples_that_are_finished_cost_nothing(monkeypatch):
    monkeypatch.setattr(_machine, "CPU_CELLS", 10)  # each sample is a microbatch of its own
    prior = dependent()
    seen = watch(prior, 1)
    (batch,) = samplers.sample_batches(prior, 40, sampler="entropy", entropy_budget=0.5)
    assert all(bool((x_t == 2).any()) for x_t, _ in seen)
    assert len(seen) == pytest.approx(40 * batch.num_calls)


# ---------------------------------------------------------------------------- from the command line


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        (["--purity"], {"sampler": "purity"}),
        (["--purity", "--purity-form", "paper"], {"sampler": "purity", "purity_form": "paper"}),
        (["--sampler", "halton", "--roll"], {"sampler": "halton", "roll": True}),
        (["--sampler", "entropy", "--entropy-budget", "3"], {"sampler": "entropy", "entropy_budget": 3.0}),
        (["--sampler", "moment", "--choice-temperature", "2"], {"sampler": "moment", "choice_temperature": 2.0}),
    ],
    ids=str,
)
def test_flags_are_the_arguments_of_the_samplers(tmp_path, flags, arguments):
    prior, output = random_prior(), tmp_path / "x.h5"
    prior.save(tmp_path / "prior.safetensors")
    result = CliRunner().invoke(
        app, ["sample", str(tmp_path / "prior.safetensors"), "-n", "3", *flags, "-o", str(output)]
    )
    assert result.exit_code == 0, result.stderr
    assert torch.equal(
        torch.from_numpy(read_grids(output)[1].tokens.astype("int64")), vqtool.sample(prior, 3, **arguments)
    )


# ---------------------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("steps", [0, 25])
def test_a_number_of_steps_that_leaves_some_without_a_cell_is_refused(name, steps):
    with pytest.raises(VqtoolError, match=f"`steps` {steps}: this sampler unmasks .* 1 to 24 steps here"):
        vqtool.sample(random_prior(), 1, sampler=name, steps=steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "purity", "purity_form": "essay"}, "`purity_form` essay: unknown; known are code, paper"),
        ({"sampler": "purity", "purity_weight": float("nan")}, "must be 0 or more"),
        ({"sampler": "confidence", "choice_temperature": -1.0}, "`choice_temperature` -1: must be 0 or more"),
        ({"sampler": "moment", "choice_temperature": 0.0}, "`choice_temperature` 0: must be 1e-06 or more"),
        ({"sampler": "entropy", "entropy_budget": -1.0}, "`entropy_budget` -1: must be 0 or more"),
        ({"sampler": "entropy", "steps": 4}, "`steps` is not an option of sampler entropy; of ancestral, "),
        ({"sampler": "fewer", "roll": True}, "`roll` is not an option of sampler fewer; of halton it is"),
        ({"choice_temperature": 1.0}, "not an option of sampler ancestral; of confidence, moment, remask it is"),
    ],
)
def test_options_that_are_not_possible_are_refused(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        vqtool.sample(random_prior(), 1, **arguments)


@pytest.mark.parametrize("name", UNMASKING)
def test_a_prior_without_a_mask_is_refused(name):
    with pytest.raises(VqtoolError, match=f"sampler {name} needs a kernel with a mask"):
        vqtool.sample(random_prior("uniform"), 1, sampler=name)


TITOK = Path(__file__).parents[1] / "golden" / "titok-prior" / "io.safetensors"


def test_the_plan_arccos_is_that_of_titok():
    for row in load_file(TITOK)["count_rows"].tolist():
        cells, steps, *left = row
        found = [int(table[-1]) for table in PLANS["arccos"](cells, steps)]
        if steps <= cells:
            assert found == left[:steps], (cells, steps)


def test_schedules_of_guidance_over_calls_are_those_of_titok():
    for kind, scale, power, steps, *expected in load_file(TITOK)["guidance_rows"].tolist():
        share = torch.arange(int(steps), dtype=torch.float64) / steps
        name = ("constant", "linear", "power-cosine")[int(kind)]
        own = int(kind != 2)  # theirs are one less than ours there
        found = scales(share, scale + own, name, (0.0, 1.0), power if kind == 2 else 1.0) - own
        assert (found - torch.tensor(expected[: int(steps)], dtype=torch.float64)).abs().max() <= 2e-4, (name, steps)


def test_the_annealed_temperature_of_titok_is_a_list_of_two():
    rows = [row for row in load_file(TITOK)["temperature_rows"].tolist() if row[2] == 0]
    assert rows
    for steps, _, _, *expected in rows:
        share = torch.arange(int(steps), dtype=torch.float64) / max(1, int(steps) - 1)
        found = interpolate([1.3 - 0.8 / steps, 0.5], share)
        assert (found - torch.tensor(expected[: int(steps)], dtype=torch.float64)).abs().max() <= 2e-4
