"""Plots: the bars of a curve by hand, the same bytes every time, and matplotlib only where it is asked for."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vqtool.errors import VqtoolError
from vqtool.extras import install_command
from vqtool.metrics import plots


def curve(t, bits, looks=None, errors=None):
    return {
        "t": list(t),
        "looks": looks or [10] * len(bits),
        "bits_per_token": bits,
        "standard_errors": errors or [0.1] * len(bits),
    }


def test_a_short_curve_has_a_bar_a_step():
    edges, bits, errors = plots.bars(curve(range(1, 6), [5.0, 1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(edges, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
    np.testing.assert_allclose(bits, [5, 1, 2, 3, 4])
    np.testing.assert_allclose(errors, 0.1)


def test_steps_that_share_a_bar_are_one_sample_of_looks():
    """Looks {1, 3} at t = 2 and {8} at t = 3, drawn in bars of two steps; t = 1 is by itself."""
    values = np.array([1.0, 3.0, 8.0])
    shared = curve([1, 2, 3, 100], [0.5, 2.0, 8.0, 0.0], [5, 2, 1, 1], [0.0, 1.0, None, None])
    edges, bits, errors = plots.bars(shared)
    np.testing.assert_allclose(edges[:3], [0.5, 1.5, 3.5])
    assert edges[-1] == 100.5
    assert bits[1] == pytest.approx(values.mean())
    assert errors[1] == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert np.isnan(bits[2])
    assert errors[-1] == 0


@pytest.mark.parametrize("num_steps", [1, 2, 64, 65, 1000])
def test_bars_are_few_and_reach_from_the_first_step_to_the_last(num_steps):
    edges, bits, errors = plots.bars(curve(range(1, num_steps + 1), [1.0] * num_steps))
    assert len(bits) == len(errors) == len(edges) - 1 <= plots.MAX_BARS
    assert (edges[0], edges[-1]) == (0.5, num_steps + 0.5)
    assert (np.diff(edges) * bits).sum() == pytest.approx(num_steps)  # the area is the sum over steps


def test_the_same_curve_gives_the_same_small_picture_and_is_not_overwritten(tmp_path):
    pytest.importorskip("matplotlib")
    some = curve(range(1, 101), list(np.linspace(1, 0, 100)))
    some["bits_per_token"][5] = None  # an infinite term
    for name in ("a.png", "b.png"):
        plots.plot_curve(some, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 80_000
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert not set(image.info) & {"Software", "Creation Time"}
    with pytest.raises(VqtoolError, match="`force`"):
        plots.plot_curve(some, tmp_path / "a.png")
    plots.plot_curve(some, tmp_path / "a.png", force=True)


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(VqtoolError, match=rf"a plot needs matplotlib .*{re.escape(install_command('eval'))}"):
        plots.check_matplotlib()


def test_matplotlib_is_imported_for_a_plot_only_and_its_windows_never(tmp_path):
    pytest.importorskip("matplotlib")
    code = (
        "import sys; from vqtool.metrics import plots; import vqtool.metrics.likelihood\n"
        "assert 'matplotlib' not in sys.modules\n"
        "one = dict(t=[1, 2], looks=[2, 2], bits_per_token=[1.0, 2.0], standard_errors=[0.1, 0.1])\n"
        f"plots.plot_curve(one, {str(tmp_path / 'c.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
