"""In which precision networks compute that something is scored by: what it does, and what says so."""

import json

import numpy as np
import pytest
import torch
from support.commands import build_tokenizer, write_pictures
from support.exact import random_prior
from support.sets import write_noise
from torch import nn

import vqtool
from vqtool import products
from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.metrics import compare_results, evaluate, features, save_statistics
from vqtool.metrics.card import Card, Side
from vqtool.metrics.features._network import TorchFeatures
from vqtool.metrics.saved import load
from vqtool.products import Computation

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


class Small(TorchFeatures):
    """Sixteen sums of colours that are weighed at random."""

    name, feature_dim, size = "Small", 16, 4

    def __init__(self, device="cpu", **_):
        super().__init__(device, "0123456789abcdef", "own")
        self.network = nn.Linear(3 * 64, 16)
        for parameter, seed in zip(self.network.parameters(), (0, 1), strict=True):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        self.num_asked = 0

    def run(self, images):
        self.num_asked += len(images)
        return {"pooled": self.ask(nn.functional.adaptive_avg_pool2d(images.float(), 8).flatten(1) / 255)}


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A CPU that takes what is for GPUs, an empty cache, and `Small` for the network of features; gives all of it."""
    made = []

    def load_features(name="", *, device="cpu", computation=None, **_):
        made.append(Small(device))
        made[-1].compute(computation or Computation())
        return made[-1]

    monkeypatch.setattr(products, "refuse_without_gpu", lambda *given, **more: None)
    monkeypatch.setattr(features, "load_features", load_features)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return made


def write(report, path):
    path.write_text(json.dumps(report.as_dict()))
    return path


def write_grids(path, size=(4, 6)):
    tokens = np.random.default_rng(0).integers(0, 8, (4, *size)).astype(np.uint8)
    with GridWriter(path, GridHeader(8, size, (32, 48), "0123456789abcdef", "builtin", "test")) as writer:
        writer.write(GridBatch(tokens, [str(i) for i in range(len(tokens))]))


def test_what_a_computation_is_follows_from_what_is_asked_and_where():
    for asked, on_cpu, on_gpu in (("fp32", "fp32", "fp32"), ("auto", "fp32", "bf16")):
        assert Computation.choose(asked, CPU, compile=False) == Computation(on_cpu)
        assert Computation.choose(asked, GPU, compile=False) == Computation(on_gpu)
    assert str(Computation.choose("tf32", GPU, compile=True)) == "tf32, compiled"
    for asked, compiles in (("bf16", False), ("tf32", False), ("fp32", True)):
        with pytest.raises(VqtoolError, match="is for GPUs"):
            Computation.choose(asked, CPU, compile=compiles)


def test_a_network_computes_so_gives_float32_and_is_left_as_it_was(monkeypatch):
    compiled, real = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda call, *rest, **more: compiled.append(call) or real(call, backend="eager")
    )
    network, x = Small().network, torch.rand(5, 192)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x)
    for computation, expected in ((Computation(), exact), (Computation("bf16", compile=True), rounded.float())):
        found = computation.of(network)(x)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
    assert len(compiled) == 1
    assert torch.equal(network(x), exact)


def test_scores_of_images_say_it_and_compare_with_their_own_alone(tmp_path, pretended):
    write_noise(tmp_path / "a", 6, seed=0)
    write_noise(tmp_path / "b", 6, seed=1)
    reports = [
        evaluate(tmp_path / "a", ref=tmp_path / "b", nearest_k=2, **chosen)
        for chosen in ({}, {"precision": "bf16"}, {"precision": "bf16"})
    ]
    values = [{score.name: score.value for score in report.scores} for report in reports]
    assert values[0]["FD-Small"] != values[1]["FD-Small"] == pytest.approx(values[0]["FD-Small"], rel=0.02)
    assert values[1] == values[2]
    assert [network.num_asked for network in pretended] == [12, 12, 0]  # the cache has those of a precision apart
    assert [report.card.precision for report in reports] == ["fp32", "bf16", "bf16"]
    files = [write(report, tmp_path / f"{number}.json") for number, report in enumerate(reports)]
    assert compare_results(files[1:]).difference is None
    with pytest.raises(MismatchError, match="do not compare: precision: fp32 and bf16"):
        compare_results(files[:2])


def test_saved_features_are_of_one_precision(tmp_path, pretended):
    write_noise(tmp_path / "a", 6, seed=0)
    write_noise(tmp_path / "b", 6, seed=1)
    for keeps in (False, True):
        save_statistics(tmp_path / "b", tmp_path / "b.npz", precision="bf16", keep_features=keeps, force=True)
        assert load(tmp_path / "b.npz").named["precision"] == "bf16"
        with pytest.raises(MismatchError, match=r"precision '(fp32|bf16)'.*'(fp32|bf16)'"):
            evaluate(tmp_path / "a", ref=tmp_path / "b.npz")
        report = evaluate(tmp_path / "a", ref=tmp_path / "b.npz", precision="bf16")
        assert report.card.precision == "bf16"
        with pytest.raises(VqtoolError, match="`precision` is about pictures, but both sides are saved features"):
            evaluate(tmp_path / "b.npz", ref=tmp_path / "b.npz", precision="bf16")


def test_files_of_earlier_versions_are_of_float32(tmp_path, pretended):
    write_noise(tmp_path / "b", 6, seed=1)
    save_statistics(tmp_path / "b", tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as archive:
        arrays = dict(archive)
    about = json.loads(str(arrays["about"]))
    assert about["features"].pop("precision") == "fp32"
    np.savez(tmp_path / "old.npz", **{**arrays, "about": np.array(json.dumps(about))})
    assert load(tmp_path / "old.npz").named == load(tmp_path / "b.npz").named
    record = Card(measure="images", generated=Side(num=4)).as_dict()
    assert record.pop("precision") == "fp32"
    assert Card.parse(record, "old.json").precision == "fp32"


def test_a_likelihood_says_it(tmp_path, pretended):
    prior = random_prior(codebook_size=8)
    write_grids(tmp_path / "tok.h5")
    reports = [
        evaluate(tmp_path / "tok.h5", likelihood=True, prior=prior, times=3, precision=precision)
        for precision in ("fp32", "bf16")
    ]
    bits = [report.scores[0].value for report in reports]
    assert bits[0] != bits[1] == pytest.approx(bits[0], rel=0.02)
    assert [report.card.precision for report in reports] == ["fp32", "bf16"]


def test_a_reconstruction_says_it(tmp_path, pretended):
    imgs, tokenizer = write_pictures(tmp_path / "imgs", 4, size=(16, 16)), build_tokenizer()
    reports = [evaluate(imgs, tokenizer=tokenizer, size="16", precision=precision) for precision in ("fp32", "bf16")]
    found = [{score.name: score.value for score in report.scores}["PSNR"] for report in reports]
    assert found[0] != found[1] == pytest.approx(found[0], abs=0.5)
    assert [report.card.precision for report in reports] == ["fp32", "bf16"]


def test_decoded_grids_are_decoded_so(tmp_path, pretended, tokenizer_path):
    imgs = write_pictures(tmp_path / "imgs", 4, size=(16, 16))
    vqtool.encode([imgs], tmp_path / "tok.h5", tokenizer_path, image_size=(16, 16), device="cpu")
    cards = [
        evaluate(tmp_path / "tok.h5", ref=imgs, tokenizer=tokenizer_path, precision=precision, nearest_k=2).card
        for precision in ("fp32", "bf16")
    ]
    assert [card.precision for card in cards] == ["fp32", "bf16"]
    assert cards[0].generated.id != cards[1].generated.id  # some pixels are others


@pytest.mark.parametrize("chosen", [{"precision": "bf16"}, {"compile": True}], ids=str)
def test_what_needs_no_network_has_no_precision(tmp_path, pretended, chosen):
    write_grids(tmp_path / "tok.h5")
    write_noise(tmp_path / "a", 3)
    (name,) = chosen
    for arguments, what in (
        ({"sources": "tok.h5"}, "token grids are counted"),
        ({"sources": "a", "ref": "a", "paired": True}, "pixels are compared"),
    ):
        with pytest.raises(VqtoolError, match=f"`{name}` is about networks, and here {what} without any"):
            evaluate(**arguments, **chosen)
    assert "precision" not in evaluate("tok.h5").card.as_dict()
    assert "precision" not in evaluate("a", ref="a", paired=True).card.as_dict()
    assert evaluate("a", ref="a", paired=True, with_features=True, precision="bf16").card.precision == "bf16"


def test_without_a_gpu_it_is_refused_before_any_work(tmp_path):
    write_noise(tmp_path / "a", 3)
    with pytest.raises(VqtoolError, match="`precision` bf16 is for GPUs"):
        evaluate(tmp_path / "a", ref=tmp_path / "a", precision="bf16")
