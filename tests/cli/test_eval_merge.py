"""vqtool eval merge: files that do not belong together are refused in one line."""

import numpy as np
import pytest
from support.commands import error_lines
from support.sets import SixNumbers, features_of, write_noise

from vqtool.metrics import features
from vqtool.metrics.saved import save


class Other(SixNumbers):
    digest = "f" * 16


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with saved features of two networks and sizes, and statistics of another program."""
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "a", 4)
    write_noise(tmp_path / "b", 4, size=16)
    write_noise(tmp_path / "c", 4, seed=1)
    save(features_of(tmp_path / "a"), "a.npz")
    save(features_of(tmp_path / "a", Other()), "other.npz")
    save(features_of(tmp_path / "a").statistics(), "same.npz")
    save(features_of(tmp_path / "c").statistics(), "s.npz")
    save(features_of(tmp_path / "b"), "large.npz")
    np.savez("fid.npz", mu=np.zeros(6), sigma=np.eye(6))
    return tmp_path


def test_features_and_statistics_give_statistics(work, vqtool):
    result = vqtool("eval", "merge", "a.npz", "s.npz", "-o", "x.npz")
    assert result.code == 0
    assert "8 images: statistics of features of SixNumbers" in result.err
    with np.load("x.npz") as merged:
        assert "features" not in merged.files


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.npz", "other.npz"], "features of digest"),
        (["s.npz", "other.npz"], "s.npz and other.npz: features of digest"),
        (["a.npz", "large.npz"], "a.npz and large.npz: pictures of size 8x8 and 16x16"),
        (["a.npz", "fid.npz"], "fid.npz"),
        (["a.npz", "s.npz", "a.npz"], "a.npz and a.npz are of the same pictures, which would count twice"),
        (["a.npz", "same.npz"], "a.npz and same.npz are of the same pictures, which would count twice"),
        (["a.npz", "none.npz"], "none.npz: cannot be read: No such file or directory"),
        (["a.npz", "a/000.png"], "a/000.png: not a whole file of statistics"),
    ],
)
def test_what_does_not_belong_together_is_one_clear_line(work, vqtool, files, message):
    result = vqtool("eval", "merge", *files, "-o", "x.npz")
    assert (result.code, result.out) == (1, "")
    (error,) = error_lines(result.err)
    assert message in error
    assert not (work / "x.npz").exists()


def test_parts_that_are_missing_are_told_when_merged_and_when_scored_against(work, vqtool, monkeypatch):
    monkeypatch.setattr(features, "load_features", lambda *_, **__: SixNumbers())
    for part in (1, 3):
        assert vqtool("eval", "stats", "a", "c", "--partial", f"{part}/3", "-o", f"p{part}.npz").code == 0
    merged = vqtool("eval", "merge", "p1.npz", "p3.npz", "-o", "x.npz")
    assert merged.code == 0
    assert "warning: x.npz: lacks part 2/3 of its pictures" in merged.err
    scored = vqtool("eval", "a", "--ref", "p1.npz")
    assert "warning: the reference lacks parts 2/3, 3/3 of its pictures" in scored.err
