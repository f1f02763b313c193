"""Features of TorchScript files: those of the network that was saved, and never without trust."""

import warnings

import numpy as np
import pytest
import torch

from vqtool.errors import FormatError, VqtoolError
from vqtool.metrics import load_features
from vqtool.products import Computation


class Plain(torch.nn.Module):
    """Pictures of 0..1 in its own size to features with places."""

    size: int

    def __init__(self):
        super().__init__()
        self.size = 16
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 5, 3, stride=2)

    def forward(self, x):
        return self.convolution(x)


class Detector(torch.nn.Module):
    """As StyleGAN's: pictures of 0..255 of any size; something else without `return_features`."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.mean((2, 3)) if return_features else img[:, 0, 0]


class Writer(torch.nn.Module):
    """What a program can do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "written")
        return x.mean((2, 3))


class Odd(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


def save(network, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network.eval()), str(path))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 3, 24, 24)).astype(np.uint8)


def load(path, **how):
    return load_features("torchscript", weights=path, **how)


def test_features_are_those_of_the_network_that_was_saved(tmp_path, images):
    network = Plain()
    save(network, tmp_path / "net.pt")
    found = load(tmp_path / "net.pt", resize="legacy-tf", trust=True)(images[:, :, :16, :16])
    with torch.inference_mode():
        expected = network(torch.from_numpy(images[:, :, :16, :16]) / 255).mean((2, 3))
    np.testing.assert_allclose(found.pooled, expected.numpy(), atol=1e-6)
    assert found.name == f"TorchScript-legacy-tf@{found.digest[:8]}"
    clean = load(tmp_path / "net.pt", trust=True)
    assert (clean.resize, clean.size) == ("clean", 16)
    assert clean.digest != found.digest
    assert clean(images).pooled.shape == (7, 5)


def test_a_detector_sees_pictures_as_they_are(tmp_path, images):
    save(Detector(), tmp_path / "detector.pt")
    network = load(tmp_path / "detector.pt", trust=True)
    np.testing.assert_allclose(network(images).pooled, images.mean((2, 3), dtype=np.float64), rtol=1e-5)
    assert (network.resize, network.feature_dim) == ("own", 3)
    with pytest.raises(VqtoolError, match=r"detector\.pt brings pictures to its size itself: leave `resize` out"):
        load(tmp_path / "detector.pt", resize="clean", trust=True)


def test_without_trust_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Writer(), tmp_path / "writer.pt")
    with pytest.raises(VqtoolError, match=r"writer\.pt: a TorchScript file is a program.*`trust` runs it"):
        load("writer.pt")
    assert not (tmp_path / "written").exists()
    load("writer.pt", trust=True)
    assert (tmp_path / "written").exists()
    with pytest.raises(VqtoolError, match="`trust` is for `features` whose weights are a program"):
        load_features(trust=True)


def test_files_that_are_no_network_of_pictures_are_refused(tmp_path):
    with pytest.raises(VqtoolError, match="torchscript needs `weights`"):
        load_features("torchscript", trust=True)
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no network")
    for name in ("state.pt", "text.pt"):
        with pytest.raises(FormatError, match=rf"{name}: not a TorchScript file that can be loaded"):
            load(tmp_path / name, trust=True)
    save(Odd(), tmp_path / "odd.pt")
    with pytest.raises(FormatError, match=r"odd\.pt: features \(B, D\) are expected of it, not \(\)"):
        load(tmp_path / "odd.pt", trust=True)
    save(torch.nn.Linear(4, 2), tmp_path / "linear.pt")
    with pytest.raises(FormatError, match=r"linear\.pt: cannot be run on pictures"):
        load(tmp_path / "linear.pt", trust=True)
    save(Plain(), tmp_path / "net.pt")
    with pytest.raises(VqtoolError, match="`runtime` onnx: a TorchScript file is run by PyTorch"):
        load(tmp_path / "net.pt", runtime="onnx", trust=True)


def test_it_is_compiled_already_but_computes_in_bfloat16(tmp_path, images):
    save(Plain(), tmp_path / "plain.pt")
    exact, rounded = (
        load(tmp_path / "plain.pt", trust=True, computation=Computation(precision))(images)
        for precision in ("fp32", "bf16")
    )
    assert (rounded.precision, rounded.pooled.dtype) == ("bf16", np.float32)
    assert 0 < np.abs(rounded.pooled - exact.pooled).max() < 0.05
    with pytest.raises(VqtoolError, match="`compile` is not for TorchScript files"):
        load(tmp_path / "plain.pt", trust=True, computation=Computation(compile=True))
