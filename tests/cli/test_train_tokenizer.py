"""`vqtool train-tokenizer`: what it leaves, how it is interrupted and resumed, and what it refuses."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.commands import error_lines, start, write_pictures

from vqtool import artifacts
from vqtool.options import read_options
from vqtool.tokenizers import SIZES, load_tokenizer

SETTINGS = ("--size", "16", "-b", "4", "-K", "32")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty current folder with `imgs/`: 6 pictures of 16x16."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 6)
    return tmp_path


@pytest.fixture
def train(vqtool, work, monkeypatch):
    """Run `vqtool train-tokenizer imgs` with a narrow network."""
    small = {"channels": (16, 16, 16), "encoder_blocks": (0, 0, 1), "decoder_blocks": (1, 0, 0)}
    monkeypatch.setitem(SIZES, "vqvae-f8", replace(SIZES["vqvae-f8"], **small))

    def run(*arguments, images="imgs"):
        return vqtool("train-tokenizer", images, *SETTINGS, *arguments)

    return run


def entries(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


FILES = ["tokenizer.log.jsonl", "tokenizer.preview.png", "tokenizer.safetensors", "tokenizer.state.safetensors"]


def read_log(path="tokenizer.log.jsonl"):
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_run_leaves_a_tokenizer_a_log_a_preview_and_its_state(train):
    result = train("--steps", "5", "--preview-every", "2", "--code-dim", "3")
    assert (result.code, result.data) == (0, b"")
    assert entries() == ["imgs", *FILES]
    tokenizer = load_tokenizer("tokenizer.safetensors")
    assert tokenizer.codebook.shape == (32, 3)
    header = artifacts.verify("tokenizer.safetensors")
    assert (header.summary["steps"], header.summary["num_images"]) == (5, 6)
    assert header.summary["loss"] == read_log()[-1]["loss"]
    assert header.history[0]["command"].startswith("vqtool train-tokenizer imgs --size 16")
    assert [line["step"] for line in read_log()] == [1, 2, 3, 4, 5]
    assert {"loss", "psnr", "usage", "perplexity"} <= read_log()[0].keys()
    with Image.open("tokenizer.preview.png") as preview:
        assert preview.format == "PNG"
    assert "6 images of 16 pixels" in result.err
    assert "a run of 5 steps" in result.err
    assert f"wrote tokenizer.safetensors: tokenizer {tokenizer.fingerprint}" in result.err


def test_the_result_depends_on_the_seed_alone(train):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train("--steps", "2", "-o", f"{name}.safetensors", "--seed", seed).code == 0
    one, same, other = (artifacts.read_header(f"{name}.safetensors").fingerprint for name in "abc")
    assert one == same != other


def test_weights_can_be_stored_at_half_the_size(train):
    assert train("--steps", "1", "--half", "-o", "half.safetensors").code == 0
    assert train("--steps", "1", "-o", "full.safetensors").code == 0
    assert load_tokenizer("half.safetensors").half_precision
    assert Path("half.safetensors").stat().st_size < 0.6 * Path("full.safetensors").stat().st_size


def test_a_finished_run_resumes_to_the_same_tokenizer(train):
    assert train("--steps", "3").code == 0
    first, log = artifacts.read_header("tokenizer.safetensors"), read_log()
    result = train("--resume")
    assert result.code == 0
    assert "resuming a run of 3 steps" in result.err
    again = artifacts.read_header("tokenizer.safetensors")
    assert (again.fingerprint, again.summary) == (first.fingerprint, first.summary)
    assert read_log() == log


@pytest.mark.slow
def test_ctrl_c_saves_the_state_says_how_to_go_on_and_the_losses_are_those_of_one_run(work, vqtool):
    """A real process with the real network; the other run is never interrupted."""
    arguments = ("train-tokenizer", "imgs", *SETTINGS, "--steps", "12", "--preview-every", "0")
    process = start(*arguments, cwd=work, stderr=-1)
    log, deadline = work / "tokenizer.log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 1):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, err
    last = err.splitlines()[-1]
    assert last.startswith("interrupted: stopped after step ")
    assert "the state is in tokenizer.state.safetensors: the same command with --resume goes on from there" in last
    assert not Path("tokenizer.safetensors").exists()
    torch.set_num_threads(1)  # as in the process
    assert vqtool(*arguments, "--resume").code == 0
    assert vqtool(*arguments, "-o", "whole.safetensors").code == 0
    assert len(read_log()) == 12
    assert read_log() == read_log("whole.log.jsonl")
    one, other = (artifacts.read_header(f"{name}.safetensors").fingerprint for name in ("tokenizer", "whole"))
    assert one == other


def test_a_resume_with_another_rate_or_other_images_is_refused(train, work):
    assert train("--steps", "2").code == 0
    result = train("--resume", "--learning-rate", "0.5")
    assert result.code == 1
    assert "--learning-rate was 0.001 when the run began, now it is 0.5" in error_lines(result.err)[0]
    result = train("--resume", "--code-dim", "7")
    assert result.code == 1
    assert "--network is not what the run began with (--code-dim was 16, now it is 7)" in error_lines(result.err)[0]
    write_pictures(work / "imgs", 6, seed=1)
    result = train("--resume")
    assert result.code == 1
    assert "not the images that the run began with" in error_lines(result.err)[0]


def test_nothing_that_is_there_is_overwritten_without_force(train):
    assert train("--steps", "1").code == 0
    before = {name: Path(name).read_bytes() for name in FILES}
    result = train("--steps", "1", "--seed", "1")
    assert result.code == 1
    assert "tokenizer.safetensors: exists; use --force" in error_lines(result.err)[0]
    Path("tokenizer.safetensors").rename("kept")
    result = train("--steps", "1", "--seed", "1")
    assert result.code == 1
    assert "an earlier run is there: --resume goes on with it, --force starts anew" in error_lines(result.err)[0]
    Path("kept").rename("tokenizer.safetensors")
    assert {name: Path(name).read_bytes() for name in FILES} == before
    assert train("--steps", "1", "--seed", "1", "--force").code == 0
    assert Path("tokenizer.safetensors").read_bytes() != before["tokenizer.safetensors"]


def test_a_loss_that_explodes_is_one_clear_error(train):
    result = train("--steps", "30", "--learning-rate", "1e30")
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert "start anew with a smaller --learning-rate" in error_lines(result.err)[0]
    assert not Path("tokenizer.safetensors").exists()


def test_a_bad_image_is_named_skipped_and_counted_or_stops_it(train, work):
    (work / "imgs" / "02.png").write_bytes(b"no image")
    result = train("--steps", "1", "--strict")
    assert result.code == 1
    assert "imgs/02.png" in error_lines(result.err)[0]
    assert entries() == ["imgs"]
    result = train("--steps", "1")
    assert result.code == 1
    assert "warning: skipped imgs/02.png" in result.err
    assert error_lines(result.err) == ["error: 1 bad input skipped; the rest is done"]
    summary = artifacts.read_header("tokenizer.safetensors").summary
    assert (summary["num_images"], summary["num_skipped"]) == (5, 1)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        ("empty", [], "empty: no images here"),
        ("gone", [], "gone: no such file or folder"),
        ("bad", [], "none of the 2 images could be read"),
        ("imgs", ["--size", "20"], "--size 20x20: both sides must be multiples of the factor 8"),
        ("imgs", ["--loss", "l3"], "--loss l3: unknown; known are l1, l2"),
        ("imgs", ["--resume"], "tokenizer.state.safetensors: no earlier run is there"),
        ("imgs", ["-o", "gone/t.safetensors"], "the folder gone does not exist"),
        ("imgs", ["-o", "/proc/t.safetensors"], "/proc/t.safetensors: cannot be written: "),
        ("imgs", ["-o", "-"], "does not go to standard output"),
    ],
)
def test_bad_inputs_and_outputs_are_named_before_anything_is_trained(train, work, images, arguments, message):
    (work / "empty").mkdir()
    for path in write_pictures(work / "bad", 2).iterdir():
        path.write_bytes(b"")
    result = train("--steps", "1", *arguments, images=images)
    assert (result.code, result.data) == (1, b"")
    assert message in error_lines(result.err)[0]
    assert entries() == ["bad", "empty", "imgs"]


@pytest.mark.parametrize(
    ("arguments", "shape", "lookup"),
    [
        (["--quantizer", "vq", "--gradient", "rotation", "--k-means", "0", "--no-restart"], (32, 16), "nearest"),
        (["--quantizer", "cosine", "--commitment", "1", "--codebook-weight", "2"], (32, 8), "cosine"),
        (["--quantizer", "simvq", "--code-dim", "5"], (32, 5), "nearest"),
        (["--quantizer", "lfq", "--entropy", "0.2"], (32, 5), "nearest"),
    ],
)
def test_every_quantizer_leaves_a_tokenizer_that_the_other_commands_take(train, vqtool, arguments, shape, lookup):
    assert train("--steps", "4", *arguments).code == 0
    tokenizer = load_tokenizer("tokenizer.safetensors")
    assert (tuple(tokenizer.codebook.shape), tokenizer.lookup) == (shape, lookup)
    assert vqtool("encode", "imgs", "--size", "16", "-t", "tokenizer.safetensors").code == 0
    assert vqtool("decode", "tok.h5", "-o", "back").code == 0
    assert len(list(Path("back").iterdir())) == 6
    assert vqtool("codebook", "usage", "tok.h5").code == 0


def test_fsq_has_the_codes_that_its_levels_make(train, vqtool, work):
    result = vqtool("train-tokenizer", "imgs", "--size", "16", "-b", "4", "--steps", "3", "--quantizer", "fsq")
    assert result.code == 0
    assert "fsq: 1000 codes of 4 numbers" in result.err
    arguments = ["--size", "16", "-b", "4", "--steps", "3", "--quantizer", "fsq", "--levels", "4x3", "--force"]
    assert vqtool("train-tokenizer", "imgs", *arguments).code == 0
    tokenizer = load_tokenizer("tokenizer.safetensors")
    assert (tuple(tokenizer.codebook.shape), tokenizer.lookup) == ((12, 2), "bounded")
    assert vqtool("encode", "imgs", "--size", "16", "-t", "tokenizer.safetensors").code == 0
    assert vqtool("codebook", "prune", "tok.h5", "-o", "small").code == 0
    assert load_tokenizer("small").lookup == "bounded"


def test_a_vqgan_has_its_terms_in_the_log_and_goes_on_exactly(vqtool, work, monkeypatch):
    narrow = {"stem_channels": 16, "channels": (16,) * 5, "latent_channels": 16}
    monkeypatch.setitem(SIZES, "vqgan-f16-small", replace(SIZES["vqgan-f16-small"], **narrow))
    write_pictures(work / "large", 4, size=(40, 40))
    arguments = ["large", "--size", "32", "-b", "2", "-K", "16", "--network", "vqgan-f16-small", "--steps", "4"]
    arguments += [
        "--perceptual",
        "efficientnet-lite0",
        "--perceptual-weight",
        "0.1",
        "--perceptual-share",
        "0.5",
        "--crop",
        "1.25",
        "--zoom",
        "--jitter",
        "0.1",
    ]
    arguments += ["--adversarial", "0.8", "--adversarial-start", "2", "--adversarial-layers", "2"]
    arguments += ["--adversarial-width", "8", "--adversarial-max", "5"]
    arguments += ["--adversarial-warmup", "1"]
    result = vqtool("train-tokenizer", *arguments)
    assert result.code == 0
    log, first = read_log(), artifacts.read_header("tokenizer.safetensors")
    assert first.config["network"] == "vqgan"
    for line in log:
        assert {"reconstruction", "edges", "perceptual", "usage", "perplexity"} <= line.keys()
        assert ("adversarial_weight" in line) is (line["step"] > 2)
    assert 0 < log[-1]["adversarial_weight"] <= 5
    assert vqtool("train-tokenizer", *arguments, "--resume").code == 0
    assert artifacts.read_header("tokenizer.safetensors").fingerprint == first.fingerprint
    result = vqtool("train-tokenizer", *arguments, "--resume", "--no-flip")
    assert "--flip was True when the run began, now it is False" in error_lines(result.err)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "vqgan"], "--network vqgan: unknown; known are vqvae-f4, vqvae-f8"),
        (["--quantizer", "gumbel"], "--quantizer gumbel: unknown; known are ema, vq, cosine, simvq, fsq, lfq"),
        (["--gradient", "none"], "--gradient none: unknown; known are straight-through, rotation"),
        (
            ["--quantizer", "fsq"],
            "--codebook-size is for --quantizer ema, vq, cosine, simvq, lfq, not for fsq: leave it out",
        ),
        (["--levels", "4x4"], "--levels is for --quantizer fsq, not for ema"),
        (["--quantizer", "fsq", "--levels", "4x1"], "--levels 1: must be 2 or more"),
        (["--quantizer", "fsq", "--levels", "many"], "--levels many: numbers with commas between them are expected"),
        (["--quantizer", "fsq", "--commitment", "1"], "--commitment is for --quantizer ema, vq"),
        (["--codebook-weight", "1"], "--codebook-weight is for --quantizer vq, cosine, simvq, not for ema"),
        (["--entropy", "1"], "--entropy is for --quantizer lfq, not for ema"),
        (["--quantizer", "simvq", "--no-restart"], "--restart is for --quantizer ema, vq, cosine, not for simvq"),
        (["--quantizer", "lfq", "--k-means", "3"], "--k-means is for --quantizer ema, vq"),
        (
            ["--quantizer", "lfq", "--code-dim", "5"],
            "--code-dim is for --quantizer ema, vq, cosine, simvq, not",
        ),
        (["--quantizer", "lfq", "-K", "33"], "--codebook-size 33: --quantizer lfq needs a power of two, such as 32"),
        (["--zoom"], "--zoom goes with --crop above 1: images have to be larger than what is learned from"),
        (["--bf16"], "--bf16 goes with a CUDA GPU, and there is none"),
        (["--compile"], "--compile goes with a CUDA GPU, and there is none"),
        (["--perceptual-share", "0.5"], "--perceptual-share goes with --perceptual, which is not given"),
        (["--adversarial-warmup", "1"], "--adversarial-warmup goes with --adversarial, which is not given"),
        (["--perceptual-weight", "1"], "--perceptual-weight goes with --perceptual, which is not given"),
        (["--adversarial-start", "1"], "--adversarial-start goes with --adversarial, which is not given"),
        (["--perceptual", "gone.pth"], "--perceptual gone.pth: neither efficientnet-lite0 nor a file"),
        (["--perceptual", "efficientnet-lite0"], "images of 16x16 are too small for a perceptual network"),
        (["--adversarial", "1"], "images of 16x16 are too small for a discriminator of 3 layers"),
        (["--size", "4"], "--size 4x4: both sides must be multiples of the factor 8"),
    ],
)
def test_what_does_not_go_together_is_named_before_anything_is_trained(vqtool, work, arguments, message):
    codes = () if "fsq" in arguments[:-1] else ("-K", "32")
    result = vqtool("train-tokenizer", "imgs", "--size", "16", "-b", "4", *codes, "--steps", "1", *arguments)
    assert result.code == 1
    assert message in error_lines(result.err)[0]
    assert entries() == ["imgs"]


def test_training_begins_with_the_networks_and_codes_of_a_tokenizer(vqtool, work):
    """At a learning rate of next to nothing it stays what it was, whatever has learned its codes before."""
    settings = ("imgs", "--size", "16", "-b", "4", "--steps", "2", "--learning-rate", "1e-8", "--no-restart")
    for name, quantizer in (("old", "vq"), ("cosine", "cosine"), ("fsq", "fsq")):
        codes = ["--levels", "4x3"] if quantizer == "fsq" else ["-K", "32"]
        first = ("train-tokenizer", "imgs", "--size", "16", "-b", "4", "--steps", "3", "--quantizer", quantizer)
        assert vqtool(*first, *codes, "-o", name).code == 0
    for begun, arguments in (("old", ["--quantizer", "simvq"]), ("old", ["--quantizer", "vq"]), ("cosine", [])):
        quiet = settings if "simvq" not in arguments else settings[:-1]
        assert vqtool("train-tokenizer", *quiet, "--from", begun, *arguments, "-o", "new", "--force").code == 0
        old, new = load_tokenizer(begun), load_tokenizer("new")
        images = torch.rand(4, 3, 16, 16) * 2 - 1
        torch.testing.assert_close(new.codebook, old.codebook, atol=1e-5, rtol=0)
        torch.testing.assert_close(new.decode(old.encode(images)), old.decode(old.encode(images)), atol=1e-3, rtol=0)
        assert new.lookup == old.lookup
        header = artifacts.verify("new")
        assert header.parents == {"tokenizer": old.fingerprint}
        assert [record["step"] for record in header.history] == ["train-tokenizer", "train-tokenizer"]
    assert (
        vqtool(
            "train-tokenizer", *settings[:-1], "--from", "fsq", "--quantizer", "fsq", "--levels", "4x3", "-o", "f2"
        ).code
        == 0
    )
    assert torch.equal(load_tokenizer("f2").codebook, load_tokenizer("fsq").codebook)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "vqvae-f8"], "--network is for new networks and codes, --from begins with those of old"),
        (["-K", "32"], "--codebook-size is for new networks and codes"),
        (["--k-means", "3"], "--k-means is for new networks and codes"),
        (["--quantizer", "cosine"], "old looks codes up by 'nearest', cosine by 'cosine': take another quantizer"),
        (["--quantizer", "fsq"], "--quantizer fsq has 1000 codes of 4 numbers here, the tokenizer to begin with 32 of"),
        (["--quantizer", "lfq"], "--quantizer lfq has 32 codes of 5 numbers here, the tokenizer to begin with 32 of"),
    ],
)
def test_what_a_tokenizer_to_begin_with_has_cannot_be_asked_for(train, vqtool, arguments, message):
    assert train("--steps", "1", "-o", "old").code == 0
    result = vqtool("train-tokenizer", "imgs", "--size", "16", "--steps", "1", "--from", "old", *arguments, "-o", "new")
    assert result.code == 1
    assert message in error_lines(result.err)[0]
    assert "new" not in entries()


def test_one_code_is_no_codebook(train):
    result = train("-K", "1")
    assert result.code == 1
    assert "--codebook-size 1: must be 2 or more" in error_lines(result.err)[0]


def test_steps_and_minutes_exclude_each_other(train):
    result = train("--steps", "1", "--minutes", "1")
    assert result.code == 1
    assert "give --steps or --minutes, not both" in error_lines(result.err)[0]


def test_the_networks_of_the_flag_are_those_that_there_are():
    (network,) = [each for each in read_options("training/tokenizer.py", "NetworkOptions") if each.name == "network"]
    assert network.known == tuple(SIZES)
