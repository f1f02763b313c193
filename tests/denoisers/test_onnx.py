"""Denoisers run by ONNX Runtime predict what they predict in PyTorch."""

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from support.shaken import shaken

from vqtool import denoisers
from vqtool.denoisers import EncodedCondition
from vqtool.denoisers._onnx import run_by_onnx
from vqtool.errors import VqtoolError

CLASSES = torch.tensor([0, 3, 1])
CAPTIONS = torch.tensor([[5, 2, 0], [1, 0, 0], [7, 7, 3]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def first(encoded):
    return EncodedCondition(*(None if part is None else part[:1] for part in encoded))


def check(network, condition, size=(8, 8)):
    """Both ways of asking, for a batch and for one grid of it."""
    noise = torch.Generator().manual_seed(0)
    x_t = torch.randint(13, (3, *size), generator=noise)
    t, cells = torch.tensor([1, 7, 20]), torch.rand(3, size[0] * size[1], generator=noise).argsort()[:, :9]
    encoded = network.encode_condition(condition)
    found = run_by_onnx(network, first(encoded), "it")
    for one in (slice(0, 3), slice(1, 2)):
        own = EncodedCondition(*(None if part is None else part[one] for part in encoded))
        for wanted in (None, cells[one]):
            expected = network(x_t[one], t[one], own, wanted)
            torch.testing.assert_close(found(x_t[one], t[one], own, wanted), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(denoisers.NAMES) - {"amused", "meissonic"}))
def test_every_denoiser_runs_as_in_pytorch(name):
    network = shaken(name, **({"codebook_size": 16} if name == "maskbit" else {}))
    check(network, torch.zeros(3, 0, dtype=torch.int64))


def texts(network):
    least = max(network.config.text_width, network.config.pooled_width)
    return torch.randn(3, 5, least, generator=torch.Generator().manual_seed(1))


def test_denoisers_of_texts_run_as_in_pytorch():
    network = shaken("amused")
    check(network, texts(network))


def test_meissonic_s_turned_positions_are_refused():
    network = shaken("meissonic")
    with pytest.raises(VqtoolError, match="it cannot be exported to ONNX"):
        check(network, texts(network))


@pytest.mark.parametrize(
    ("name", "condition", "more"),
    [
        ("transformer", CLASSES, {"num_classes": 3}),
        ("transformer", CAPTIONS, {"vocabulary_size": 30, "max_length": 6}),
        ("vq-diffusion", CLASSES, {"num_classes": 3}),
        ("vq-diffusion", torch.linspace(-1, 1, 3 * 5 * 16).view(3, 5, 16), {"text_width": 16, "text_length": 5}),
    ],
)
def test_conditions_steer_as_in_pytorch(name, condition, more):
    check(shaken(name, **more), condition)


def test_grids_of_other_sizes_pass_the_graph_where_they_pass_the_network():
    check(shaken("transformer"), torch.zeros(3, 0, dtype=torch.int64), size=(5, 11))
