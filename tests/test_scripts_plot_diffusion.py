"""scripts/plot_diffusion.py: the numbers behind the pictures of docs/diffusion.md, and the pictures."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from vqtool.diffusion import kernels

pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))
plot_diffusion = importlib.import_module("plot_diffusion")


@pytest.mark.parametrize(
    ("skip", "calls", "half_way", "last"),
    [(1, 51, 0.70, None), (3, 26, 0.83, 0.247), (7, 14, None, 0.380), (9, 11, None, 0.655)],
)
def test_the_published_fast_sampler_reveals_as_was_measured_of_it(skip, calls, half_way, last):
    """The numbers on the right are from a run of its code on a few thousand cells."""
    kernel = kernels.build("mask-replace", schedule="release", codebook_size=1024, num_steps=100)
    shares = plot_diffusion.masked_by_stride(kernel, skip, exact=False)
    assert len(shares) == calls + 1
    assert half_way is None or shares[(calls + 1) // 2] == pytest.approx(half_way, abs=0.02)
    assert last is None or shares[-2] == pytest.approx(last, abs=0.02)
    exact = plot_diffusion.masked_by_stride(kernel, skip, exact=True)
    assert exact[-2] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(("name", "schedule"), plot_diffusion.PANELS)
def test_the_mixture_is_exact_for_one_cell_and_the_plug_in_where_the_denoiser_looks_at_the_others_alone(name, schedule):
    kernel = kernels.build(name, schedule=schedule, codebook_size=4, num_steps=64)
    gap = float(kernel.alpha_bar[-1])  # the walks begin at the stationary law
    one = plot_diffusion.ONE_CELL
    assert plot_diffusion.error_of(kernel, one, 8, "mixture") <= gap + 1e-9
    assert plot_diffusion.error_of(kernel, one, 8, "plug-in", own=False) <= gap + 1e-9
    if name != "absorbing":
        assert plot_diffusion.error_of(kernel, one, 8, "plug-in") > 0.01


@pytest.mark.parametrize(("name", "schedule"), plot_diffusion.PANELS)
def test_four_cells_step_back_alike_by_mixture_and_by_plug_in_each_with_its_own_denoiser(name, schedule):
    """q(x_s | x_t) = sum_k q(x_s | x_t, k) p(k | all cells), and p(k | all) is p(k | others) q(x_t | k), normalised."""
    kernel, law = kernels.build(name, schedule=schedule, codebook_size=2, num_steps=6), plot_diffusion.FOUR_CELLS
    for t, s in ((6, 5), (6, 1), (4, 2), (1, 0)):
        mixture = plot_diffusion.step_back(kernel, law, t, s, "mixture")
        own = plot_diffusion.step_back(kernel, law, t, s, "plug-in", own=False)
        torch.testing.assert_close(own, mixture, rtol=0, atol=1e-12)


def test_the_pictures_are_small_and_those_of_the_document(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plot_diffusion.py", "--output", str(tmp_path)])
    monkeypatch.setattr(plot_diffusion, "STRIDES", [1, 2])
    threads = torch.get_num_threads()
    plot_diffusion.main()
    torch.set_num_threads(threads)
    text = (ROOT / "docs" / "diffusion.md").read_text(encoding="utf-8")
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 80_000
        assert f"({path.name})" in text
        assert (ROOT / "docs" / path.name).is_file()
    assert len(list(tmp_path.iterdir())) == len(plot_diffusion.PICTURES) == 4
    capsys.readouterr()
