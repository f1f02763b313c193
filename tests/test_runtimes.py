"""ONNX Runtime in the place of PyTorch: the same numbers, and a cache that mends itself."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from vqtool import runtimes
from vqtool.errors import VqtoolError, VqtoolWarning
from vqtool.runtimes import Graphs

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")), reason="needs the extra vqtool[onnx]"
)
AXES = {"x": ("batch", "", "height", "width")}
X = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)


class Blur(nn.Module):
    """A network of one convolution, whose calls are counted."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.calls = 0
        self.eval().requires_grad_(False)

    def forward(self, x):
        self.calls += 1
        return self.conv(x).relu()


class Odd(nn.Module):
    """A network that ONNX has no operators for."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that graphs are kept in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "vqtool" / "onnx"


def graphs(network=None, axes=AXES):
    return Graphs(network or Blur(), axes, "config", name="the network")


@needs_onnx
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 4, 4), (5, 3, 7, 9)])
def test_batches_and_pictures_of_any_size_give_the_network_s_numbers(cache, shape):
    made = graphs()
    made.prepare(x=X)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.run(x=x), Blur()(x), rtol=1e-6, atol=1e-6)


@needs_onnx
def test_a_graph_is_made_once_and_then_read_from_the_cache(cache):
    graphs().run(x=X)
    (file,) = cache.iterdir()
    before = file.stat().st_mtime_ns
    network = Blur()
    graphs(network).run(x=X)
    assert network.calls == 1  # compared with the graph, not traced
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [before]


@needs_onnx
def test_other_weights_have_a_graph_of_their_own(cache):
    first, second = graphs(Blur(0)).run(x=X), graphs(Blur(1)).run(x=X)
    torch.testing.assert_close(second, Blur(1)(X), rtol=1e-6, atol=1e-6)
    assert not torch.equal(first, second)
    assert len(list(cache.iterdir())) == 2


@needs_onnx
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other weights"])
def test_a_damaged_graph_is_made_anew_and_said(cache, damage):
    graphs().run(x=X)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    if damage == "other weights":
        graphs(Blur(1)).run(x=X)
        (other,) = set(cache.iterdir()) - {file}
        file.write_bytes(other.read_bytes())
    else:
        file.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"no graph"}[damage])
    with pytest.warns(VqtoolWarning, match=f"{file.name}: damaged, and made anew"):
        found = graphs().run(x=X)
    torch.testing.assert_close(found, Blur()(X), rtol=1e-6, atol=1e-6)
    assert file.read_bytes() == data


@needs_onnx
def test_a_cache_that_cannot_be_written_is_said_and_done_without(cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.warns(
        VqtoolWarning, match="exported anew each time: .*File exists|exported anew each time: .*Not a dir"
    ):
        found = graphs().run(x=X)
    torch.testing.assert_close(found, Blur()(X), rtol=1e-6, atol=1e-6)


@needs_onnx
def test_a_full_disk_is_said_and_done_without(cache, monkeypatch):
    def write(path: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.warns(VqtoolWarning, match="exported anew each time: .*No space left on device"):
        found = graphs().run(x=X)
    torch.testing.assert_close(found, Blur()(X), rtol=1e-6, atol=1e-6)
    assert not [path for path in cache.iterdir() if path.suffix == ".onnx"]


@needs_onnx
def test_a_missing_operator_is_named_in_one_line(cache, capfd):
    with pytest.raises(VqtoolError, match=r"the network cannot be exported to ONNX \(.*bessel_j0"):
        graphs(Odd().eval()).run(x=X)
    assert capfd.readouterr() == ("", "")


@needs_onnx
def test_auto_leaves_a_network_that_cannot_be_exported_to_pytorch_and_says_so(cache):
    network = Odd().eval()

    def by_onnx():
        return runtimes.run_by_onnx(network, AXES, "config", name="the network", example=X)

    with pytest.warns(VqtoolWarning, match=r"PyTorch runs this network: .*bessel_j0"):
        assert runtimes.try_to_run("auto", torch.device("cpu"), network, by_onnx) == (network, "torch")
    with pytest.raises(
        VqtoolError, match=r"`runtime` onnx: the network cannot be exported .*bessel_j0.*: take `runtime` torch"
    ):
        runtimes.try_to_run("onnx", torch.device("cpu"), network, by_onnx)


@needs_onnx
def test_a_module_keeps_what_else_it_has(cache):
    network = Blur()
    run = runtimes.run_by_onnx(network, AXES, "config", name="the network", example=X)
    assert isinstance(run, Blur)
    assert run.conv is network.conv
    before = network.calls
    torch.testing.assert_close(run(X), Blur()(X), rtol=1e-6, atol=1e-6)
    assert network.calls == before
    assert runtimes.run_by_onnx(run, AXES, "config", name="the network", example=X) is run


@pytest.mark.parametrize("missing", [["onnx"], ["onnxruntime"], ["onnx", "onnxruntime"]])
def test_without_the_extra_onnx_names_it_and_auto_is_pytorch(monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else object() or find(name))
    with pytest.raises(
        VqtoolError, match=rf"`runtime` onnx: {' and '.join(missing)} not installed: pip install .*\[onnx\]"
    ):
        runtimes.choose("onnx", torch.device("cpu"))
    assert runtimes.choose("auto", torch.device("cpu")) == "torch"


@needs_onnx
def test_auto_is_onnx_on_a_cpu_and_pytorch_on_a_gpu():
    assert runtimes.choose("auto", torch.device("cpu")) == "onnx"
    assert runtimes.choose("auto", torch.device("cuda")) == "torch"
    with pytest.raises(VqtoolError, match="`runtime` onnx is for CPUs, and the device is cuda"):
        runtimes.choose("onnx", torch.device("cuda"))


def test_an_unknown_runtime_lists_the_known():
    with pytest.raises(VqtoolError, match="unknown runtime 'tensorrt': known are torch, onnx, auto"):
        runtimes.choose("tensorrt", torch.device("cpu"))
