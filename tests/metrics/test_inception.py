"""FID's Inception-v3: the numbers of torch-fidelity, the published layouts, what other files are told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.inception import random_weights
from torch import nn

from vqtool.errors import FormatError, VqtoolError
from vqtool.metrics import load_features
from vqtool.metrics.features import inception
from vqtool.metrics.features.resizing import RESIZES

GOLDEN = Path(__file__).parents[1] / "golden" / "inception" / "io.safetensors"
MIXED = {"5b": "a", "5c": "a", "5d": "a", "6a": "b", "6b": "c", "6c": "c", "6d": "c", "6e": "c", "7a": "d", "7b": "e"}


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(1).randint(0, 256, (2, 3, 70, 110)).astype(np.uint8)


def test_features_are_those_of_torch_fidelity_for_the_same_weights(file, images):
    """Golden: FeatureExtractorInceptionV3 of torch-fidelity 0.4.0, which is also what ADM's suite computes."""
    network = load_features("inception", weights=file, resize="legacy-tf")
    golden = {name: value.numpy() for name, value in load_file(GOLDEN).items()}
    found = network(images)
    np.testing.assert_allclose(found.pooled, golden["pooled"], atol=1e-4)
    np.testing.assert_allclose(found.spatial, golden["spatial"], atol=1e-4)
    expected = torch.from_numpy(golden["logits_unbiased"]).softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    assert found.name == f"Inception-legacy-tf@{found.digest[:8]}"


def test_policies_resize_and_scale_as_they_are_defined(weights, images):
    """Oracle: the layers alone, fed by hand."""
    layers = inception.Network()
    layers.load_state_dict(weights)
    network = inception.Inception(layers, "clean")
    x = torch.nn.functional.interpolate(torch.from_numpy(images[:1]) / 255, (299, 299), mode="bilinear")
    with torch.inference_mode():
        expected = layers(2 * x - 1)[0].numpy()
    found = {}
    for network.resize in RESIZES:
        found[network.resize] = network(images[:1]).pooled
    np.testing.assert_allclose(found["legacy-pytorch"], expected, atol=1e-3)
    np.testing.assert_array_equal(found["adm"], found["legacy-tf"])
    assert np.abs(found["clean"] - found["legacy-tf"]).max() > 0.01
    assert np.abs(found["legacy-pytorch"] - found["legacy-tf"]).max() > 0.01


class Layer(nn.Module):
    """A convolution as StyleGAN's archive holds it."""

    def __init__(self, weights, name):
        super().__init__()
        self.weight = nn.Parameter(weights[f"{name}.conv.weight"])
        self.beta = nn.Parameter(weights[f"{name}.bn.bias"])
        self.mean = nn.Parameter(weights[f"{name}.bn.running_mean"])
        self.var = nn.Parameter(weights[f"{name}.bn.running_var"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def tree(weights, names):
    """Modules in modules; names: the path in the archive -> the layer in the state dict."""
    found = nn.Module()
    for top in dict.fromkeys(path.partition(".")[0] for path in names):
        below = {path.partition(".")[2]: name for path, name in names.items() if path.partition(".")[0] == top}
        found.add_module(top, Layer(weights, below[""]) if "" in below else tree(weights, below))
    return found


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_archive_of_stylegan_gives_the_network_of_the_state_dict_and_runs_no_code(weights, tmp_path):
    """Two rows of its graph by hand: the first branch of Mixed_6b, and a pair of Mixed_7c."""
    for name in weights:
        if name.endswith("bn.weight"):
            weights[name] = torch.ones_like(weights[name])
    names = {}
    for i, name in enumerate(["1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"]):
        names[f"layers.conv_{i}" if i else "layers.conv"] = f"Conv2d_{name}"
    for i, (name, kind) in enumerate([*MIXED.items(), ("7c", "e")]):
        for theirs, ours in inception._TOWERS[kind].items():
            names[f"layers.mixed{f'_{i}' if i else ''}.{theirs}"] = f"Mixed_{name}.{ours}"
    assert names["layers.mixed_4.tower_1.conv_4"] == "Mixed_6b.branch7x7dbl_5"
    assert names["layers.mixed_10.tower_1_mixed_conv_1"] == "Mixed_7c.branch3x3dbl_3b"
    module = tree(weights, names)
    module.output = nn.Linear(2048, 1008)
    module.output.load_state_dict({"weight": weights["fc.weight"], "bias": weights["fc.bias"]})
    torch.jit.save(torch.jit.script(module), tmp_path / "inception.pt")
    torch.save(weights, tmp_path / "state.pth")
    script, state = (
        load_features("inception", weights=tmp_path / name, resize="clean") for name in ("inception.pt", "state.pth")
    )
    assert (script.digest, script.name) == (state.digest, state.name)


def test_the_published_file_gives_a_name_without_digest(file, monkeypatch):
    monkeypatch.setattr(inception, "PUBLISHED", "")  # every digest begins with it
    clean, adm = (load_features("inception", weights=file, resize=policy) for policy in (None, "adm"))
    assert (clean.name, adm.name) == ("Inception-clean", "Inception-adm")
    assert clean.digest != adm.digest


def test_other_files_are_refused_in_one_line(weights, tmp_path):
    with pytest.raises(VqtoolError, match="inception needs `weights`: the file pt_inception"):
        load_features("inception")
    with pytest.raises(VqtoolError, match=r"none\.pth"):
        load_features("inception", weights=tmp_path / "none.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match=r"other\.safetensors: tensors are missing: Conv2d_1a_3x3"):
        load_features("inception", weights=tmp_path / "other.safetensors")
    broken = {**weights, "fc.bias": torch.full_like(weights["fc.bias"], torch.nan)}
    save_file(broken, tmp_path / "nan.safetensors")
    with pytest.raises(FormatError, match=r"nan\.safetensors: fc\.bias holds numbers that are not finite"):
        load_features("inception", weights=tmp_path / "nan.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(FormatError, match=r"list\.pth: no tensors by name are in it"):
        load_features("inception", weights=tmp_path / "list.pth")
    with pytest.raises(VqtoolError, match="unknown resize policy of inception 'nearest': known are clean, legacy"):
        load_features("inception", weights=tmp_path / "list.pth", resize="nearest")


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_features(weights, images, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for runtime in ("torch", "onnx"):
        layers = inception.Network()
        layers.load_state_dict(weights)
        network = inception.Inception(layers, "clean")
        assert network.use_runtime(runtime) == runtime
        found.append(network(images).arrays())
    for kind in ("pooled", "spatial", "probabilities"):
        np.testing.assert_allclose(found[1][kind], found[0][kind], atol=1e-4)
