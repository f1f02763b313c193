"""Features of models in folders of transformers: those of transformers itself, and what other folders are told."""

import json

import numpy as np
import pytest
import torch

from vqtool.errors import FormatError, VqtoolError
from vqtool.metrics import load_features
from vqtool.metrics.features import clip, dinov2

transformers = pytest.importorskip("transformers")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def build(kind):
    torch.manual_seed(0)
    if kind == "dinov2":
        config = transformers.Dinov2Config(image_size=56, patch_size=14, **TINY)
        return transformers.Dinov2Model(config).eval()
    config = transformers.CLIPConfig(
        text_config={**TINY, "vocab_size": 99}, vision_config={**TINY, "image_size": 32, "patch_size": 8}
    )
    return transformers.CLIPModel(config).eval()


@pytest.fixture(scope="module", params=["dinov2", "clip"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp(kind)
    build(kind).save_pretrained(path)
    return path


def test_features_are_what_transformers_makes_of_the_same_pixels(kind, folder):
    file, size = (dinov2, 224) if kind == "dinov2" else (clip, 32)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, size, size)).astype(np.uint8)
    pixels = (torch.from_numpy(images) / 255 - torch.tensor(file.MEAN).view(3, 1, 1)) / torch.tensor(file.STD).view(
        3, 1, 1
    )
    model = build(kind)
    with torch.inference_mode():
        if kind == "dinov2":
            expected = model(pixel_values=pixels).pooler_output
        else:
            found = model.get_image_features(pixel_values=pixels)
            expected = getattr(found, "pooler_output", found)
    network = load_features(kind, weights=folder)
    found = network(images)
    np.testing.assert_allclose(found.pooled, expected.numpy(), atol=1e-5)
    assert found.pooled.shape == (3, network.feature_dim)
    assert found.name == {"dinov2": "DINOv2", "clip": "CLIP"}[kind] + f"@{found.digest[:8]}"


def test_other_weights_have_another_name(kind, folder, tmp_path):
    model = build(kind)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save_pretrained(tmp_path)
    assert load_features(kind, weights=tmp_path).name != load_features(kind, weights=folder).name


def test_folders_that_hold_something_else_are_refused_in_one_line(kind, folder, tmp_path):
    with pytest.raises(VqtoolError, match=r"needs a folder of transformers: config\.json and model\.safetensors"):
        load_features(kind)
    with pytest.raises(VqtoolError, match="no such folder"):
        load_features(kind, weights=tmp_path / "none")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(FormatError, match="that can be read") as caught:
        load_features(kind, weights=tmp_path)
    assert "\n" not in str(caught.value)
    config = json.loads((folder / "config.json").read_text())
    deeper = config.get("vision_config", config)
    deeper["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(FormatError, match="its weights lack"):
        load_features(kind, weights=tmp_path)
    broken = build(kind)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    broken.save_pretrained(tmp_path)
    with pytest.raises(FormatError, match="holds numbers that are not finite"):
        load_features(kind, weights=tmp_path)
