"""The likelihood bound: against full enumeration with explicit matrices, its estimate, its error, and its files."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from support.exact import exact_prior, random_prior
from support.matrices import CASES, between

from vqtool.diffusion import kernels
from vqtool.diffusion.losses import stationary_term
from vqtool.diffusion.posterior import RULES
from vqtool.errors import MismatchError, VqtoolError, VqtoolWarning
from vqtool.grids import GridBatch, GridHeader, GridWriter, cat, read_grids
from vqtool.metrics import likelihood
from vqtool.metrics.likelihood import Likelihood, choose_times, measure_likelihood, step_bound

FALSE_ALARM = 1e-6  # of each distribution test; seeds are fixed, so a pass stays one
LAW = torch.tensor([0.45, 0.05, 0.2, 0.3], dtype=torch.float64)  # of two cells with two tokens: AA, AB, BA, BB
GRIDS = torch.tensor(list(itertools.product(range(2), repeat=2)))  # (4, 2)
ENTROPY = float(-(LAW * LAW.log2()).sum()) / 2  # bits per token


def prior_of(name, schedule, num_steps, rule="mixture", law=LAW):
    kernel = kernels.build(name, schedule=schedule, codebook_size=2, num_steps=num_steps)
    return replace(exact_prior(law, (1, 2), kernel), rule=rule)


def term_by_enumeration(kernel, t, rule):
    """The sum over x_0 and x_t of law(x_0) q(x_t | x_0) KL(q(x_s | x_t, x_0) || p(x_s | x_t)), s = t - 1, in nats.

    Both laws are written out over all states of both cells; p is made of the Bayes posterior of each cell.
    """
    before, step, both = between(kernel, 0, t - 1)[:2], between(kernel, t - 1, t), between(kernel, 0, t)[:2]
    total = 0.0
    for x_t in itertools.product(range(3), repeat=2):
        chance = torch.stack([both[grid[0], x_t[0]] * both[grid[1], x_t[1]] for grid in GRIDS])
        joint = LAW * chance  # (4,) of x_0 and this x_t
        if joint.sum() == 0:
            continue
        bayes = joint / joint.sum()
        steps_back = []
        for cell, seen in enumerate(x_t):
            p_0 = torch.stack([bayes[GRIDS[:, cell] == token].sum() for token in range(2)])
            if rule == "plug-in":
                weights = (p_0 @ before) * step[:, seen]
                steps_back.append(weights / weights.sum())
            else:
                given = (before * step[:, seen] / both[:, seen, None]).nan_to_num()
                steps_back.append(p_0 @ given)
        p = torch.outer(*steps_back)
        for grid, weight in zip(GRIDS, joint, strict=True):
            if weight > 0:
                q = torch.outer(*(before[k] * step[:, v] / both[k, v] for k, v in zip(grid, x_t, strict=True)))
                total += float(weight * torch.where(q > 0, q * (q / p).log(), 0.0).sum())
    return total


def terms_by_library(prior):
    """(T,): the same sums, in nats, with `step_bound` for the divergence."""
    kernel = prior.kernel
    states = torch.tensor(list(itertools.product(range(2 + kernel.has_mask), repeat=2)))
    x_0, x_t = GRIDS.repeat_interleave(len(states), 0), states.repeat(len(GRIDS), 1)
    sums = []
    for t in range(1, kernel.num_steps + 1):
        chances = LAW.repeat_interleave(len(states)) * between(kernel, 0, t)[x_0, x_t].prod(-1)
        some = chances > 0
        steps = torch.full((int(some.sum()),), t)
        bounds = step_bound(prior, x_0[some][:, None], x_t[some][:, None], steps)
        sums.append(float((chances[some] * bounds).sum()))
    return torch.tensor(sums, dtype=torch.float64)


def bits(prior):
    """The bound in bits per token, enumerated."""
    stationary = float(stationary_term(torch.zeros(1, 1, 2, dtype=torch.int64), prior.kernel).sum())
    return (float(terms_by_library(prior).sum()) + stationary) / (2 * math.log(2))


def draw_grids(num, seed, law=LAW):
    numbers = torch.multinomial(law, num, replacement=True, generator=torch.Generator().manual_seed(seed))
    return GRIDS[numbers][:, None]


def measure(prior, times, num, seed):
    result = Likelihood(prior, times=times, seed=seed)
    result.add(draw_grids(num, seed))
    return result


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_terms_of_an_exact_denoiser_equal_full_enumeration(name, schedule, rule):
    prior = prior_of(name, schedule, 4, rule)
    wanted = torch.tensor([term_by_enumeration(prior.kernel, t, rule) for t in range(1, 5)], dtype=torch.float64)
    torch.testing.assert_close(terms_by_library(prior), wanted, rtol=1e-5, atol=1e-6)  # log_x0 is float32


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_bound_lies_above_the_entropy_and_its_excess_halves_when_T_doubles(name, schedule):
    """Cells that change in one step do so independently: a probability of order 1 / T per step, 1 / T**2 for both."""
    excess = [bits(prior_of(name, schedule, num_steps)) - ENTROPY for num_steps in (1, 16, 32, 64)]
    assert all(value > 0 for value in excess)
    assert excess[0] > 4 * excess[1]
    assert 0.4 < excess[2] / excess[1] < 0.6
    assert 0.4 < excess[3] / excess[2] < 0.6


def test_with_the_plug_in_the_bound_of_the_bayes_denoiser_is_looser():
    assert bits(prior_of("uniform", "cosine", 16, "plug-in")) > bits(prior_of("uniform", "cosine", 16)) + 0.01


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("times", [2, 4, 99])
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_the_estimate_is_the_enumerated_bound_within_its_error_for_all_and_for_some_t(name, times, rule):
    prior = prior_of(name, None, 9, rule)
    result = measure(prior, times, 4000, seed=1)
    assert result.times == min(times, 9)
    error = float(result.total.standard_error)
    assert 0 < error < 0.1
    assert 2 * stats.norm.sf(abs(float(result.total.value) - bits(prior)) / error) > FALSE_ALARM


@pytest.mark.parametrize(("num_steps", "times"), [(9, 2), (9, 4), (9, 9), (7, 6), (100, 16), (2, 2), (1, 1)])
def test_step_1_is_always_measured_and_all_others_equally_often_with_an_even_shift(num_steps, times):
    shifts = (torch.arange(3 * 5 * 7 * 99 * 8, dtype=torch.float64) + 0.5) / (3 * 5 * 7 * 99 * 8)
    chosen = choose_times(shifts, times, num_steps)
    assert chosen.shape == (len(shifts), times)
    assert bool((chosen.sort(-1).values.diff(dim=-1) > 0).all())  # no t twice
    share = torch.bincount(chosen.flatten(), minlength=num_steps + 1).double() / len(shifts)
    wanted = torch.full((num_steps + 1,), (times - 1) / max(1, num_steps - 1), dtype=torch.float64)
    wanted[0], wanted[1] = 0, 1
    torch.testing.assert_close(share, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("times", [2, 4])
def test_two_standard_errors_cover_the_bound_in_95_of_100_runs(times):
    prior = prior_of("absorbing", "linear", 9)
    runs = [measure(prior, times, 100, seed) for seed in range(200)]
    exact = bits(prior)
    hits = sum(abs(float(run.total.value) - exact) < 2 * float(run.total.standard_error) for run in runs)
    assert stats.binomtest(hits, len(runs), 0.9545).pvalue > FALSE_ALARM


def test_parts_add_up_and_the_curve_holds_every_timestep_sample():
    prior = prior_of("absorbing", "linear", 9)
    result = measure(prior, 9, 500, seed=0)
    curve = result.curve
    assert curve["t"] == list(range(1, 10))
    assert curve["looks"] == [500] * 9
    assert curve["bits_per_token"][0] == pytest.approx(float(result.decoder.value), abs=1e-12)
    assert sum(curve["bits_per_token"]) + result.stationary == pytest.approx(float(result.total.value), abs=1e-12)
    terms = terms_by_library(prior) / (2 * math.log(2))
    for value, error, wanted in zip(curve["bits_per_token"], curve["standard_errors"], terms, strict=True):
        assert abs(value - wanted) < 4.9 * error + 1e-6


def test_the_error_is_that_of_the_mean_of_the_values():
    values = torch.tensor([3.0, 5.0, 4.0, 9.0], dtype=torch.float64)
    mean = likelihood._Mean(2)
    mean.add(values[:3], torch.tensor([0, 0, 1]))
    mean.add(values[3:], torch.tensor([0]))
    group = values[[0, 1, 3]]
    torch.testing.assert_close(mean.value, torch.stack([group.mean(), values[2]]))
    torch.testing.assert_close(mean.standard_error[0], group.std() / math.sqrt(3))
    assert mean.standard_error[1].isnan()


def test_one_step_has_a_decoder_and_a_stationary_term_only():
    result = measure(prior_of("uniform", "cosine", 1), 16, 100, seed=0)
    assert result.times == 1
    assert float(result.total.value) == pytest.approx(float(result.decoder.value) + result.stationary)


# ---------------------------------------------------------------------------- files


def write(path, prior, tokens, labels=None, **changes):
    grid_spec = prior.grid_spec
    header = GridHeader(
        prior.kernel.codebook_size,
        grid_spec.grid_size,
        grid_spec.image_size,
        grid_spec.tokenizer_fingerprint,
        "builtin",
        "test",
    )
    with GridWriter(path, replace(header, **changes)) as writer:
        writer.write(GridBatch(tokens.astype(np.uint8), [str(i) for i in range(len(tokens))], labels))
    return path


@pytest.fixture
def classes(tmp_path):
    """A prior with classes, and a file of 10 labelled grids."""
    prior = random_prior(kind="class")
    tokens = np.random.default_rng(0).integers(0, 11, (10, 4, 6))
    return prior, write(tmp_path / "tok.h5", prior, tokens, ["ant", "bee"] * 5)


def scores(report):
    return report.as_dict()["scores"]


def test_a_report_is_the_mean_over_the_grids_of_a_file_with_their_labels(classes):
    prior, path = classes
    report = measure_likelihood(prior, [path], times=5, seed=3)
    result = Likelihood(prior, times=5, seed=3)
    x_0 = torch.from_numpy(read_grids(path)[1].tokens.astype("int64"))
    result.add(x_0, prior.conditioner.encode(["ant", "bee"] * 5))
    total = float(result.total.value)
    assert scores(report)["bits-per-token"] == pytest.approx(total, rel=1e-6)
    assert scores(report)["perplexity-per-token"] == pytest.approx(2**total, rel=1e-6)
    assert scores(report)["decoder-term"] == pytest.approx(float(result.decoder.value), rel=1e-6)
    assert scores(report)["decoder-share"] == pytest.approx(float(result.decoder.value) / total, rel=1e-6)
    assert report.as_dict()["standard_errors"]["bits-per-token"] == pytest.approx(
        float(result.total.standard_error), rel=1e-5
    )
    about = report.as_dict()
    assert (about["num_grids"], about["num_tokens"], about["times"], about["condition"]) == (10, 240, 5, "class")
    assert (about["kernel"], about["schedule"], about["rule"]) == ("mask-replace", "paper", "mixture")
    assert about["curve"]["looks"][0] == 10
    assert sum(about["curve"]["looks"]) == 50
    assert report.warnings == []


def test_neither_batches_nor_files_matter_but_seeds_and_labels_do(classes, tmp_path, monkeypatch):
    prior, path = classes
    first = measure_likelihood(prior, [path], times=5)
    assert measure_likelihood(prior, [path], times=5).as_dict() == first.as_dict()
    monkeypatch.setattr(likelihood, "MAX_BATCH", 3)
    assert scores(measure_likelihood(prior, [path], times=5)) == pytest.approx(scores(first), rel=1e-5)
    assert scores(measure_likelihood(prior, [path], times=5, seed=1)) != pytest.approx(scores(first), rel=1e-3)
    unconditional = measure_likelihood(prior, [path], times=5, conditional=False)
    assert scores(unconditional) != pytest.approx(scores(first), rel=1e-3)
    assert unconditional.about["condition"] == "none"
    twice = measure_likelihood(prior, [path, path], times=5)
    assert twice.about["num_grids"] == 20


def test_a_network_of_no_knowledge_needs_log2_K_bits_a_token(tmp_path):
    """The even law over K tokens has entropy log2 K; random tokens are as likely as any."""
    prior = random_prior(scale=0.0, kernel="absorbing")
    path = write(tmp_path / "tok.h5", prior, np.random.default_rng(0).integers(0, 11, (40, 4, 6)))
    report = measure_likelihood(prior, [path], times=20)
    error = report.as_dict()["standard_errors"]["bits-per-token"]
    assert abs(scores(report)["bits-per-token"] - math.log2(11)) < 4.9 * error


@pytest.mark.gpu
def test_a_gpu_measures_what_a_cpu_does(gpu, classes):
    prior, path = classes
    expected = scores(measure_likelihood(prior, [path], times=5))
    assert scores(measure_likelihood(prior.to(gpu), [path], times=5)) == pytest.approx(expected, rel=1e-3)


def test_grids_without_labels_get_the_null_condition_and_a_warning(classes, tmp_path):
    prior, _ = classes
    tokens = np.zeros((3, 4, 6))
    for labels, number in ((None, 3), (["ant", "", "bee"], 1)):
        path = write(tmp_path / f"{number}.h5", prior, tokens, labels)
        report = measure_likelihood(prior, [path], times=2)
        assert report.warnings == [f"{number} of 3 grids have no label or caption: they get the null condition"]
        assert not measure_likelihood(prior, [path], times=2, conditional=False).warnings


def test_one_grid_has_no_error_and_an_impossible_one_no_bound(tmp_path):
    sure = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    prior = prior_of("absorbing", "linear", 4, law=sure)
    path = write(tmp_path / "tok.h5", prior, np.array([[[1, 1]]]))
    report = measure_likelihood(prior, [path], times=4)
    assert "bits-per-token" not in report.as_dict()["standard_errors"]
    assert [text.split(":")[0] for text in report.warnings] == [
        "one grid has no standard error",
        "the bound is infinite",
    ]
    assert scores(report)["bits-per-token"] is None
    path = write(tmp_path / "fine.h5", prior, np.array([[[0, 0]], [[0, 0]]]))
    assert scores(measure_likelihood(prior, [path], times=4))["bits-per-token"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_measured_is_refused(classes, tmp_path):
    prior, path = classes
    tokens = np.zeros((2, 4, 6))
    with pytest.raises(VqtoolError, match="at least 2 timesteps a grid"):
        measure_likelihood(prior, [path], times=1)
    with pytest.raises(MismatchError, match="has tokenizer fedcba9876543210, but the prior has tokenizer 0123"):
        measure_likelihood(prior, [write(tmp_path / "t.h5", prior, tokens, tokenizer_fingerprint="fedcba9876543210")])
    with pytest.raises(MismatchError, match="grid size 2x2, but the prior has grid size 4x6"):
        measure_likelihood(prior, [write(tmp_path / "s.h5", prior, np.zeros((2, 2, 2)), grid_size=(2, 2))])
    with pytest.raises(VqtoolError, match="unknown label 'wasp'"):
        measure_likelihood(prior, [write(tmp_path / "l.h5", prior, tokens, ["wasp", "ant"])])
    empty = write(tmp_path / "n.h5", prior, tokens[:0])
    with pytest.raises(VqtoolError, match="no token grids in it"):
        measure_likelihood(prior, [empty])
    with pytest.warns(VqtoolWarning, match=r"n\.h5: no token grids in it: passed over"):
        report = measure_likelihood(prior, [path, empty], times=2)
    assert scores(report) == scores(measure_likelihood(prior, [path], times=2))
    cat([path], tmp_path / "tok.index", index=True)
    assert scores(report) == scores(measure_likelihood(prior, [tmp_path / "tok.index"], times=2))
    with pytest.raises(VqtoolError, match="no files of token grids are named"):
        measure_likelihood(prior, [])
