"""`runtime` onnx draws what PyTorch draws, and the history says which it was."""

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from support.exact import random_prior
from support.walks import GUIDANCE, draw, some_known

import vqtool
from vqtool.errors import VqtoolWarning
from vqtool.grids import read_grids
from vqtool.samplers import Method
from vqtool.samplers._machine import use_runtime
from vqtool.samplers.drawing import sample_to_file

TIE = 1e-5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("none", {}),
        ("caption", {"sampler": "purity", "cfg_scale": 3.0}),
        ("class", {"sampler": "halton", **GUIDANCE["second"]}),
        ("class", {"exact": False, **GUIDANCE["zero-shot"]}),
        ("none", {"grid_size": (6, 9)}),
        ("none", {"grid_size": (6, 9), "grid_mode": "stretch"}),
        ("none", {"known": some_known(5), "sampler": "confidence"}),
    ],
)
def test_tokens_are_those_of_pytorch(kind, chosen):
    expected, found = (draw(random_prior(kind=kind), 5, steps=6, runtime=each, **chosen) for each in ("torch", "onnx"))
    assert torch.equal(found, expected)


def test_tokens_differ_only_where_the_noise_ties_with_a_boundary():
    prior = random_prior()
    noise = torch.Generator().manual_seed(0)
    x_t = torch.randint(12, (512, 4, 6), generator=noise)
    t, u = torch.full((512,), 10), torch.rand(512, 4, 6, 1, dtype=torch.float64, generator=noise)
    sums = []
    for runtime in ("torch", "onnx"):
        run, _ = use_runtime(prior, runtime)
        sums.append(run.log_x0(x_t, t).detach().double().exp().cumsum(-1))
    assert float((sums[0] - sums[1]).abs().max()) < TIE
    tokens = [torch.searchsorted(each, u) for each in sums]
    differ = tokens[0] != tokens[1]
    gap = (sums[0] - u).abs().amin(-1, keepdim=True)
    assert bool((gap[differ] < TIE).all())
    assert int(differ.sum()) <= 2  # of 12,288: some 1e-6 * K of them on average, so 0.1


def test_the_history_says_the_runtime_where_it_is_not_pytorch(tmp_path):
    for runtime, expected in (("torch", None), ("onnx", "onnx"), ("auto", "onnx")):
        path = tmp_path / f"{runtime}.h5"
        sample_to_file(random_prior(), path, 3, steps=2, runtime=runtime)
        header, _ = read_grids(path)
        assert header.history[-1].get("runtime") == expected


def test_auto_falls_back_to_pytorch_where_the_denoiser_cannot_be_exported(monkeypatch):
    prior = random_prior()
    forward = type(prior.denoiser).forward

    def odd(self, x_t, t, condition=None, cells=None):
        return torch.special.bessel_j0(forward(self, x_t, t, condition, cells))

    monkeypatch.setattr(type(prior.denoiser), "forward", odd)
    with pytest.warns(VqtoolWarning, match="PyTorch runs this network: .*denoiser transformer cannot be exported"):
        method = Method.build(prior, has_condition=False, runtime="auto")
    assert method.machine.runtime == "torch"
    assert "runtime" not in method.record
    with pytest.raises(vqtool.VqtoolError, match="`runtime` onnx: the denoiser transformer cannot be exported"):
        Method.build(prior, has_condition=False, runtime="onnx")
