"""Perceptual distances: worked out by hand on networks that hand pixels through, and beside their references."""

import importlib.util
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vqtool.errors import FormatError, VqtoolError
from vqtool.images.efficientnet import load_efficientnet
from vqtool.training.perceptual import EFFICIENTNET, FEATURE_WEIGHT, LAYER_WEIGHTS, StLpips, load_perceptual

CONVOLUTIONS = {
    "vgg": {"slice1": (0, 2), "slice2": (6, 8), "slice3": (12, 14, 16), "slice4": (20, 22, 24), "slice5": (28, 30, 32)},
    "alex": {"slice1": (0,), "slice2": (5,), "slice3": (9,), "slice4": (11,), "slice5": (13,)},
}
BLURS = {
    "vgg": {"slice2": 5, "slice3": 11, "slice4": 19, "slice5": 27},
    "alex": {"slice1": 1, "slice2": 4, "slice3": 8},
}
KERNELS = {0: 11, 5: 5}  # of the convolutions of "alex"; all others are 3


def transparent(kind):
    """Weights of a network that hands three channels through: every kernel is 1 in its middle."""
    tensors = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for part, places in CONVOLUTIONS[kind].items():
        for place in places:
            size = KERNELS.get(place, 3) if kind == "alex" else 3
            weight = torch.zeros(3, 3, size, size)
            weight[range(3), range(3), size // 2, size // 2] = 1
            tensors |= {f"net.{part}.{place}.weight": weight, f"net.{part}.{place}.bias": torch.zeros(3)}
    for part, place in BLURS[kind].items():
        tensors[f"net.{part}.{place}.filt"] = torch.ones(3, 1, 3, 3) / 9
    for level in range(5):
        tensors[f"lin{level}.model.1.weight"] = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    return tensors


def constant(*channels):
    return torch.tensor(channels).view(1, 3, 1, 1).expand(1, 3, 32, 32)


@pytest.mark.parametrize("kind", ["vgg", "alex"])
def test_the_distance_is_that_of_directions_weighted_by_channel_and_summed_over_layers(kind):
    """By hand: directions (.6, .8, 0) and (1, 0, 0) differ by (.4, .8, 0); squared and weighted .16 + 2 * .64 = 1.44,
    in each of 5 layers. What is below 0 is cut off, lengths do not matter."""
    network = StLpips(transparent(kind), "t")
    if kind == "vgg":
        distance = network.distances(constant(0.3, 0.4, -0.5), constant(0.2, 0.0, 0.0))
        assert distance.tolist() == pytest.approx([5 * 1.44], rel=1e-5)
    assert network.distances(constant(0.3, 0.4, 0.1), constant(0.6, 0.8, 0.2)).item() == pytest.approx(0, abs=1e-9)
    tensors = transparent(kind) | {"scaling_layer.shift": torch.tensor([0.1, -0.1, 0.0]).view(1, 3, 1, 1)}
    moved = StLpips(tensors, "t").distances(constant(0.4, 0.3, 0.0), constant(0.3, -0.1, 0.0))
    assert moved.item() == pytest.approx(network.distances(constant(0.3, 0.4, 0.0), constant(0.2, 0, 0)).item())


def test_no_gradient_is_lost_or_infinite_where_all_channels_are_0():
    network = StLpips(transparent("vgg"), "t")
    rebuilt = constant(-0.5, -0.5, -0.5).clone().requires_grad_()
    network(constant(0.3, 0.4, 0.0), rebuilt).backward()
    assert rebuilt.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_weights_are_read_from_a_file_and_named_after_it(tmp_path):
    torch.save(transparent("alex"), tmp_path / "alex.pth")
    network = load_perceptual(str(tmp_path / "alex.pth"))
    assert network.name == "alex.pth"
    network.check_size((32, 48))
    with pytest.raises(VqtoolError, match="images of 48x16 are too small for a perceptual network, which needs 32"):
        network.check_size((48, 16))


REFERENCE = {  # stlpips-pytorch 0.0.2, torch 2.13, its own code on the pictures below
    "vgg": [0.012322824448347092, 0.012018503621220589],
    "alex": [0.005056870635598898, 0.0056420681066811085],
}


@pytest.mark.parametrize("kind", REFERENCE)
def test_distances_are_those_of_the_reference(kind):
    spec = importlib.util.find_spec("stlpips_pytorch")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs: pip install --no-deps stlpips-pytorch==0.0.2")
    path = Path(spec.submodule_search_locations[0]) / "weights" / "vST0.0" / f"{kind}_shift_tolerant.pth"
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=noise) * 2 - 1
    others = (images + 0.3 * torch.randn(2, 3, 64, 64, generator=noise)).clamp(-1, 1)
    assert load_perceptual(str(path)).distances(images, others).tolist() == pytest.approx(REFERENCE[kind], rel=1e-5)


def test_efficientnet_compares_wide_layers_and_the_features_of_scores():
    """Oracle: the network as it was published, layer by layer, and its own features; and 0 for equal pictures."""
    pytest.importorskip("efficientnet_lite_pytorch")
    network = load_perceptual(EFFICIENTNET)
    images, others = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in (0, 1))
    assert network(images, images).item() == 0
    assert not network.train().network.training
    inner = load_efficientnet()
    wide = {}
    for number, block in enumerate(inner._blocks):
        if number in LAYER_WEIGHTS:
            block._bn0.register_forward_hook(lambda module, given, result, n=number: wide.update({n: result.clone()}))

    def layers(pictures):
        inner.extract_features(((pictures + 1) * 127.5 - 127) / 128)
        return {number: result.clamp(0, 6) for number, result in wide.items()}

    expected = torch.zeros(2)
    first, second = layers(images), layers(others)
    assert [first[number].shape[2:] for number in (2, 4, 6)] == [(8, 8), (4, 4), (2, 2)]
    for number, weight in LAYER_WEIGHTS.items():
        a, b = (x[number] / x[number].norm(dim=1, keepdim=True) for x in (first, second))
        expected += weight * (a - b).square().sum(1).mean((1, 2))
    large = [functional.interpolate(x, (224, 224), mode="bilinear") for x in (images, others)]
    f, g = (inner.extract_features((x * 127.5 + 0.5) / 128).mean((2, 3)) for x in large)
    expected += FEATURE_WEIGHT * (f - g).square().sum(1) / f.square().sum(1)
    assert torch.allclose(network.distances(images, others), expected, rtol=1e-4)


def test_files_that_are_none_are_named_with_the_remedy(tmp_path):
    remedy = r"give vgg_shift_tolerant\.pth or alex_shift_tolerant\.pth of the package stlpips-pytorch"
    with pytest.raises(VqtoolError, match=f"`perceptual` gone: neither efficientnet-lite0 nor a file: {remedy}"):
        load_perceptual("gone")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    with pytest.raises(FormatError, match=rf"other\.pth: not the weights of ST-LPIPS .*: {remedy}"):
        load_perceptual(str(other))
    torch.save([1, 2], other)
    with pytest.raises(FormatError, match=r"other\.pth: not the weights"):
        load_perceptual(str(other))
    for content in (b"", b"no tensors"):
        other.write_bytes(content)
        with pytest.raises(FormatError, match=r"other\.pth: (not a checkpoint that can be read|empty)"):
            load_perceptual(str(other))


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    tensors = transparent("alex")
    tensors["lin2.model.1.weight"] = tensors["lin2.model.1.weight"] * float("nan")
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(FormatError, match=r"nan\.pth: heads\.2 holds numbers that are not finite"):
        load_perceptual(str(tmp_path / "nan.pth"))


class Hostile:
    """Would make a file if a pickle of it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path):
    torch.save({"weight": Hostile(tmp_path / "executed")}, tmp_path / "hostile.pth")
    assert zipfile.is_zipfile(tmp_path / "hostile.pth")
    with pytest.raises(FormatError, match=r"hostile\.pth: not the weights of ST-LPIPS"):
        load_perceptual(str(tmp_path / "hostile.pth"))
    assert not (tmp_path / "executed").exists()
