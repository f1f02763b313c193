"""How t is drawn: who draws does not matter, the laws are those asked for, and the history is that of its equation."""

import math

import numpy as np
import pytest
import torch
from support.matrices import check_law

from vqtool.diffusion import kernels, schedules
from vqtool.training import times
from vqtool.training.times import History


def filled(squares, count=11):
    """A history that has seen enough."""
    history = History(len(squares))
    history.square.copy_(torch.as_tensor(squares, dtype=torch.float64))
    history.count.fill_(count)
    return history


def test_the_times_of_a_step_are_spread_evenly_and_do_not_depend_on_who_draws_them():
    drawn = times.draw_times(np.arange(400, 440), 40, 20, seed=3)
    assert torch.bincount(drawn, minlength=21).tolist() == [0] + [2] * 20
    parts = [times.draw_times(np.arange(first, first + 8), 40, 20, seed=3) for first in range(400, 440, 8)]
    assert torch.equal(torch.cat(parts), drawn)
    assert not torch.equal(times.draw_times(np.arange(440, 480), 40, 20, seed=3), drawn)


def test_times_are_uniform_over_a_run():
    drawn = times.draw_times(np.arange(30_000), 3, 7, seed=0)
    counts = torch.bincount(drawn)[1:]
    # Each count is binomial with standard deviation 61 at most; six of them: a false alarm in 10**8.
    assert (counts - 30_000 / 7).abs().max() < 6 * 61


def test_places_that_are_not_spread_are_drawn_for_each_sample_alone():
    places = times.draw_places(np.arange(20_000), 50, seed=1, spread=False)
    check_law(times.place_times(places, 7) - 1, torch.full((7,), 1 / 7, dtype=torch.float64))
    parts = torch.cat([times.draw_places(np.arange(i, i + 10), 10, 1, spread=False) for i in range(0, 100, 10)])
    assert torch.equal(parts, places[:100])


def test_importance_is_uniform_until_every_t_has_been_seen_more_than_ten_times():
    history = filled([4.0, 1.0, 9.0])
    history.count[1] = 10
    assert history.probabilities().tolist() == [1 / 3] * 3
    t, weights = history.draw(torch.tensor([0.0, 0.5, 0.999]))
    assert t.tolist() == [1, 2, 3]
    assert weights.tolist() == pytest.approx([1, 1, 1])
    history.count[1] = 11
    roots = [1.0001, 1.0001, 3.0001]  # the first is as likely as the second
    assert history.probabilities().tolist() == pytest.approx([root / sum(roots) for root in roots])
    assert filled([4.0]).probabilities().tolist() == [1.0]


def test_times_drawn_by_importance_follow_its_law_and_their_weights_undo_it():
    history = filled([1.0, 4.0, 0.01, 25.0, 9.0])
    places = torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, weights = history.draw(places)
    law = history.probabilities()
    check_law(t - 1, law)
    torch.testing.assert_close(weights * law[t - 1], torch.full_like(weights, 1 / 5))


def test_a_history_takes_in_losses_in_their_order_also_several_of_one_t():
    history = filled([1.0, 2.0, 3.0])
    history.update(torch.tensor([2, 3, 2]), torch.tensor([10.0, 4.0, 5.0]))
    assert history.square.tolist() == pytest.approx([1.0, 0.9 * (0.9 * 2 + 10) + 2.5, 0.9 * 3 + 1.6])
    assert history.count.tolist() == [11, 13, 12]


@pytest.mark.parametrize("schedule", schedules.names("absorbing"))
def test_real_times_are_where_gamma_bar_has_the_share(schedule):
    kernel = kernels.build("absorbing", schedule=schedule, codebook_size=3, num_steps=9)
    at_steps = times.find_times(kernel.gamma_bar[1:], kernel)
    torch.testing.assert_close(at_steps, torch.arange(1.0, 10.0))
    share = torch.linspace(1e-9, 1, 200, dtype=torch.float64)
    t = times.find_times(share, kernel).double()
    assert bool((t > 0).all())
    assert bool((t <= 9).all())
    low = t.floor().long().clamp(max=8)
    between = torch.lerp(kernel.gamma_bar[low], kernel.gamma_bar[low + 1], t - low)
    torch.testing.assert_close(between, share, rtol=0, atol=1e-6)
    assert math.isclose(float(t[-1]), 9.0)
