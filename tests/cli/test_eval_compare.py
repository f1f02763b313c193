"""vqtool eval compare: a table on stderr, JSON on stdout, and a refusal that names the line."""

import json

import pytest
from support.commands import error_lines
from support.sets import SixNumbers, write_noise

from vqtool.metrics import features


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Results of two folders against one reference, and one against another."""
    monkeypatch.setattr(features, "load_features", lambda *_, **__: SixNumbers())
    for seed, name in enumerate("abcd"):
        write_noise(tmp_path / name, 8, seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_results_against_one_reference_compare_and_others_do_not_without_force(work, vqtool):
    for name, ref in (("a", "c"), ("b", "c"), ("b", "d")):
        assert vqtool("eval", name, "--ref", ref, "-o", f"{name}{ref}.json").code == 0
    result = vqtool("eval", "compare", "ac.json", "bc.json")
    assert result.code == 0
    assert "difference" in result.err
    found = json.loads(result.out)
    assert found["difference_of_cards"] is None
    assert found["results"]["bc.json"]["scores"] == json.loads((work / "bc.json").read_text())["scores"]
    refused = vqtool("eval", "compare", "ac.json", "bd.json")
    assert (refused.code, refused.out) == (1, "")
    (error,) = error_lines(refused.err)
    assert "ac.json and bd.json do not compare: reference id: " in error
    assert "--force shows them all the same" in error
    forced = vqtool("eval", "compare", "ac.json", "bd.json", "--force", "-o", "x.json")
    assert (forced.code, forced.out) == (0, "")
    assert "warning: ac.json and bd.json do not compare: reference id" in forced.err
    assert json.loads((work / "x.json").read_text())["difference_of_cards"].startswith("reference id")
