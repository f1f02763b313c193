"""Results side by side: refused where their cards or settings differ, with the line named."""

import json

import pytest
import torch

from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning
from vqtool.metrics import Report, Score
from vqtool.metrics.card import Card, Side
from vqtool.metrics.results import compare_results
from vqtool.metrics.text import score_texts


def write(path, value, *, num=10, subset=5, version="1", **card):
    about = Card(
        measure="images", features="F", generated=Side(num=num), reference=Side(num=num), vqtool=version, **card
    )
    scores = [Score("KID", value, standard_error=0.3, settings={"subset_size": subset, "std": value}), Score("FD", 2.0)]
    path.write_text(json.dumps(Report("", scores, {}, [], about).as_dict()))
    return path


def test_results_of_equal_cards_stand_beside_each_other(tmp_path):
    a, b = write(tmp_path / "a.json", 1.0), write(tmp_path / "b.json", 1.5)
    head, rows = compare_results([a, b]).table()
    assert head == ["score", str(a), str(b), "difference", "± error"]
    assert rows == [["KID", "1", "1.5", "+0.5", "0.4243"], ["FD", "2", "2", "+0", ""]]


def test_scores_of_captions_compare_although_the_chance_beside_them_is_another(tmp_path):
    card, files = Card(measure="texts", generated=Side(num=4)), []
    for seed in (0, 1):
        vectors = torch.nn.functional.normalize(
            torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed)), dim=2
        )
        scores = score_texts(vectors[0].double(), vectors[1].double(), torch.arange(4))
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps(Report("", scores, {}, [], card).as_dict()))
    assert compare_results(files).difference is None


def test_one_result_has_nothing_beside_it(tmp_path):
    with pytest.raises(VqtoolError, match="two results or more are compared"):
        compare_results([write(tmp_path / "a.json", 1.0)])


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"num": 11}, "generated num: 10 and 11"),
        ({"resize": "clean"}, "resize: none and clean"),
        ({"subset": 6}, "subset_size of KID: 5 and 6"),
    ],
)
def test_the_line_that_differs_is_named_and_force_shows_them_all_the_same(tmp_path, other, line):
    files = write(tmp_path / "a.json", 1.0), write(tmp_path / "b.json", 1.5, **other)
    with pytest.raises(MismatchError, match=f"do not compare: {line}; `force`"):
        compare_results(files)
    with pytest.warns(VqtoolWarning, match=line):
        assert compare_results(files, force=True).difference == line


def test_a_result_without_a_card_and_one_of_another_version_are_told(tmp_path):
    a, b = write(tmp_path / "a.json", 1.0), write(tmp_path / "b.json", 1.0, version="2")
    with pytest.warns(VqtoolWarning, match="versions 1, 2"):
        compare_results([a, b])
    record = json.loads(b.read_text())
    del record["card"]
    b.write_text(json.dumps(record))
    with pytest.raises(MismatchError, match=r"card of .*b\.json: none"):
        compare_results([a, b])


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"scores": {"FD": "x"}}', '{"scores": {"FD": 1}, "card": {"measure": 1}}']
)
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError, match=r"a\.json"):
        compare_results([tmp_path / "a.json", tmp_path / "a.json"])
