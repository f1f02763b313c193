"""Best of n: the candidates are those of a plain run, and the judge's favourite of each sample is kept."""

import pytest
import torch
from support.exact import exact_prior, random_prior
from support.laws import FOUR_CELLS, build

import vqtool
from vqtool.errors import VqtoolError
from vqtool.grids import read_grids
from vqtool.samplers import MAX_NUMBER, Method
from vqtool.samplers._best import Best
from vqtool.samplers.drawing import sample_to_file


class Law:
    """Likes grids by a known law over 2x2 grids of two tokens."""

    name, calls = "law", 3.0

    def __call__(self, grids, samples, texts):
        self.samples, self.texts = list(samples), list(texts)
        return FOUR_CELLS[(grids.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)]


def test_the_best_candidate_of_each_sample_is_kept_and_candidates_are_those_of_a_plain_run():
    prior = exact_prior(FOUR_CELLS, (2, 2), build("absorbing", "linear", 2, 4))
    method = Method.build(prior, has_condition=False, seed=5, steps=4)
    judge = Law()
    best = Best(method, judge, 3, [])
    kept = [best.choose(each) for each in best.batches(12, start=6, batch_size=7)]  # samples 2 to 5
    assert [list(each.samples) for each in kept] == [[2, 3], [4, 5]]
    assert kept[0].num_calls == 3 * (4 + 3)
    plain = vqtool.sample(prior, 12, start=6, seed=5, steps=4)
    weights = judge(plain, range(12), [None] * 12).view(4, 3)
    wanted = plain.view(4, 3, 2, 2)[torch.arange(4), weights.argmax(1)]
    assert torch.equal(torch.cat([each.grids for each in kept]), wanted)
    assert (weights.amax(1) > weights.amin(1)).any()  # there was something to choose


def test_candidates_have_the_condition_of_their_sample():
    prior = random_prior("absorbing", "class")
    best = Best(Method.build(prior, has_condition=True), None, 1, [])
    assert best.rows(rows := lambda samples: torch.tensor(samples)[:, None]) is rows
    best = Best(best.method, Law(), 4, ["a", "b"])
    assert best.rows(rows)(range(6, 13)).flatten().tolist() == [1, 1, 2, 2, 2, 2, 3]
    assert best.candidates(range(2, 4)) == range(8, 16)


def test_a_run_of_the_best_is_the_same_in_parts_and_says_what_it_costs(tmp_path):
    prior = random_prior("absorbing", grid_size=(2, 2), codebook_size=2)
    told = []
    settings = {"best": 4, "judge": Law(), "steps": 2}
    done = sample_to_file(prior, tmp_path / "a.h5", 6, notify=told.append, **settings)
    assert done.num == 6
    assert done.num_calls == 4 * (2 + 3)
    assert "best of 4 by law: a grid takes the calls of 4, and 12 to judge them" in told
    sample_to_file(prior, tmp_path / "b.h5", 2, start=3, batch_size=1, **settings)
    (header, whole), (_, part) = read_grids(tmp_path / "a.h5"), read_grids(tmp_path / "b.h5")
    assert (whole.tokens[3:5] == part.tokens).all()
    assert part.ids == ["sample-000003", "sample-000004"]
    assert header.history[-1]["best"] == 4
    assert header.history[-1]["judge"] == "law"


def test_impossible_choices_are_refused():
    method = Method.build(random_prior("absorbing"), has_condition=False)
    for judge, num, words in (
        (Law(), 0, "`best` 0: 1 or more candidates"),
        (None, 2, "`best` 2: a `judge` has to choose"),
        (Law(), 1, "`judge` law has nothing to choose from"),
    ):
        with pytest.raises(VqtoolError, match=words):
            Best(method, judge, num, [])
    with pytest.raises(VqtoolError, match=r"`best` 3: the numbers of the candidates must lie in 0 to 2\*\*63 - 1"):
        Best(method, Law(), 3, []).candidates(range(MAX_NUMBER - 2, MAX_NUMBER))
