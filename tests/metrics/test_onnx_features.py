"""Features of .onnx files: those of the network that was exported, and what other files are told."""

import numpy as np
import pytest
import torch

from vqtool.errors import FormatError, VqtoolError
from vqtool.metrics import load_features
from vqtool.products import Computation

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Network(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 5, 3, stride=2)
        self.pools = size == 16

    def forward(self, x):
        found = self.convolution(2 * x - 1).relu()
        return found.mean((2, 3)) if self.pools else found


def export(path, size=16, batch=None):
    network = Network(size).eval()
    example = torch.rand(batch or 2, 3, size, size)
    axes = {} if batch else {"x": {0: "batch"}}
    torch.onnx.export(network, (example,), str(path), input_names=["x"], dynamic_axes=axes, dynamo=False)
    return network


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("size", "batch"), [(16, None), (16, 1), (24, 3)])
def test_features_are_those_of_the_network_that_was_exported(tmp_path, size, batch):
    network = export(tmp_path / "net.onnx", size, batch)
    images = np.random.default_rng(0).integers(0, 256, (7, 3, size, size)).astype(np.uint8)
    found = load_features("onnx", weights=tmp_path / "net.onnx", resize="legacy-tf")(images)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images) / 255)
    expected = expected if size == 16 else expected.mean((2, 3))
    np.testing.assert_allclose(found.pooled, expected.numpy(), atol=1e-5)
    assert found.name == f"ONNX-legacy-tf@{found.digest[:8]}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_that_are_no_network_of_pictures_are_refused(tmp_path):
    with pytest.raises(VqtoolError, match=r"onnx needs `weights`: an \.onnx file"):
        load_features("onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(FormatError, match=r"text\.onnx: not an \.onnx file that can be run"):
        load_features("onnx", weights=tmp_path / "text.onnx")
    torch.onnx.export(
        torch.nn.Linear(4, 2), (torch.rand(1, 4),), str(tmp_path / "linear.onnx"), input_names=["x"], dynamo=False
    )
    with pytest.raises(FormatError, match=r"linear\.onnx: one input \(B, 3, S, S\) is expected"):
        load_features("onnx", weights=tmp_path / "linear.onnx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_that_names_another_file_is_refused_and_the_file_not_read(tmp_path):
    export(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.save_model(model, tmp_path / "apart.onnx", save_as_external_data=True, location="secret.bin", size_threshold=0)
    with pytest.raises(FormatError, match=r"apart\.onnx: .* stands in another file"):
        load_features("onnx", weights=tmp_path / "apart.onnx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("computation", [Computation("bf16"), Computation(compile=True)], ids=str)
def test_a_file_is_run_in_float32_alone(tmp_path, computation):
    export(tmp_path / "net.onnx")
    with pytest.raises(VqtoolError, match=f"`precision` {computation}: an .onnx file is run on the CPU in float32"):
        load_features("onnx", weights=tmp_path / "net.onnx", computation=computation)
