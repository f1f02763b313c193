"""`vqtool train-prior`: files, conditions, resuming and what is refused."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_lines import leaf_commands
from support.commands import error_lines, start
from support.two import run_in_two

import vqtool as api
from vqtool import artifacts, denoisers
from vqtool.adapters import Adapter
from vqtool.diffusion.losses import LOSSES
from vqtool.diffusion.posterior import RULES
from vqtool.errors import FormatError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridWriter, read_grids
from vqtool.locks import locked
from vqtool.priors import load_prior
from vqtool.tokenizers import load_tokenizer
from vqtool.training.times import TIMES

SHORT = ("--steps", 3, "--batch-size", 4, "--size", "tiny")


def write_grids(path, location, *, num=8, labels=None, captions=None):
    """Random grids of 2x3 tokens of the test tokenizer."""
    try:
        fingerprint = load_tokenizer(location).fingerprint
    except VqtoolError:
        fingerprint = "feedfeedfeedfeed"
    header = GridHeader(16, (2, 3), (16, 24), fingerprint, str(location), "crop", ({"step": "encode"},))
    tokens = np.random.default_rng(0).integers(0, 16, (num, 2, 3))
    with GridWriter(path, header) as writer:
        writer.write(GridBatch(tokens, [f"g{i}" for i in range(num)], labels, captions))


@pytest.fixture
def folder(tmp_path, monkeypatch, tokenizer_path):
    """A current folder with tok.h5."""
    monkeypatch.chdir(tmp_path)
    write_grids("tok.h5", tokenizer_path)
    return tmp_path


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(folder, vqtool):
    result = vqtool("train-prior", *SHORT, "--dry-run")
    assert result.code == 0, result.err
    assert "a step: 4 grids, by 1 process, 4 each" in result.err
    assert re.search(
        r"memory a process: [\d.]+ GB of weights, averages, moments and gradients, and at most", result.err
    )
    assert re.search(r"by FSDP: [\d.]+ GB over 8, [\d.]+ GB over 64 processes", result.err)
    assert re.search(r"TFLOP a step and process: [\d.e+]+ steps an hour at the .* nothing is written", result.err)
    assert [path.name for path in folder.iterdir()] == ["tok.h5"]
    Path("prior.safetensors").touch()
    assert vqtool("train-prior", *SHORT, "--dry-run").code == 0  # nothing would be overwritten


def test_tok_h5_becomes_prior_safetensors_with_log_state_and_preview(folder, vqtool, tokenizer_path):
    result = vqtool("train-prior", *SHORT)
    assert result.code == 0, result.err
    assert result.data == b""
    assert sorted(path.name for path in folder.iterdir()) == [
        "prior.log.jsonl",
        "prior.preview.png",
        "prior.safetensors",
        "prior.state.safetensors",
        "tok.h5",
    ]
    prior = load_prior("prior.safetensors")
    assert (prior.kernel.name, prior.kernel.num_steps, prior.conditioner.kind) == ("mask-replace", 100, "none")
    assert prior.grid_spec.tokenizer_fingerprint == load_tokenizer(tokenizer_path).fingerprint
    assert prior.grid_spec.image_size == (16, 24)
    assert [record["step"] for record in prior.history] == ["encode", "train-prior"]
    assert prior.summary["steps"] == 3
    lines = [json.loads(line) for line in Path("prior.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"loss", "bound", "cross_entropy"} <= set(lines[0])
    with Image.open("prior.preview.png") as preview:
        assert preview.size[0] > 100
    for words in ("8 grids of 2x3; no condition", "kernel mask-replace, schedule release, T = 100", "a run of 3 steps"):
        assert words in result.err


def test_a_preset_trains_as_published_and_says_which_flags_go_before_it(folder, vqtool):
    result = vqtool("train-prior", *SHORT, "--preset", "unleashing", "--learning-rate", "1e-3")
    assert result.code == 0, result.err
    line = "as published for unleashing, but batch_size 4 in place of 20, learning_rate 0.001 in place of 0.0002"
    assert line in result.err.splitlines()
    prior = load_prior("prior.safetensors")
    assert (prior.kernel.name, prior.kernel.num_steps, prior.denoiser.config.time) == ("absorbing", 256, "none")
    refused = vqtool("train-prior", *SHORT, "--preset", "vq-ddm", "--resume")
    assert refused.code == 1
    assert len(error_lines(refused.err)) == 1
    assert "when the run began, now it is" in error_lines(refused.err)[0]
    refused = vqtool("train-prior", *SHORT, "--preset", "vq-ddm", "--from", "prior.safetensors", "-o", "b.safetensors")
    assert error_lines(refused.err) == [
        "error: --preset vq-ddm is for fresh weights: leave it out, or train without --from"
    ]


def test_python_trains_what_the_command_trains_and_is_told_of_every_step(folder, vqtool):
    assert vqtool("train-prior", *SHORT, "--kernel", "absorbing", "--cond-dropout", "0.5").code == 0
    seen = []

    @contextmanager
    def progress(description, total, unit="images", *, done=0, detail=str):
        seen.append((description, total, unit, done))
        yield seen.append

    options = {"steps": 3, "batch_size": 4, "size": "tiny", "kernel": "absorbing", "cond_dropout": 0.5}
    prior = api.train_prior("tok.h5", "mine.safetensors", progress=progress, **options)
    assert seen == [("train", 3, "steps", 0), 1, 1, 1]
    assert (
        prior.fingerprint == load_prior("prior.safetensors").fingerprint == load_prior("mine.safetensors").fingerprint
    )
    with pytest.raises(TypeError, match="no options are called heads"):
        api.train_prior("tok.h5", "mine.safetensors", heads=3)
    with pytest.raises(VqtoolError, match="`seed` -1: a whole number from 0"):
        api.train_prior("tok.h5", "mine.safetensors", seed=-1)
    with pytest.raises(VqtoolError, match="`keep` all: unknown; known are last, best"):
        api.train_prior("tok.h5", "mine.safetensors", keep="all")


def test_its_samples_can_be_drawn_and_decoded(folder, vqtool):
    vqtool("train-prior", *SHORT, "--kernel", "absorbing", "-T", 7, "-o", "a.safetensors")
    assert vqtool("sample", "a.safetensors", "-n", 3, "-o", "s.h5").code == 0
    assert vqtool("decode", "s.h5", "-o", "out").code == 0
    assert len(list((folder / "out").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("texts", "options", "kind", "words"),
    [
        ({"labels": ["a", "b"] * 4}, (), "class", "2 classes"),
        ({"labels": ["a", "b"] * 4}, ("--condition", "none"), "none", "no condition"),
        (
            {"labels": [f"kind {i}" for i in range(8)]},
            (),
            "none",
            "8 classes of 8 grids are no condition, which takes two grids of each: --condition class learns them",
        ),
        ({"labels": ["bees"] * 8}, (), "none", "bees is the only class, and no condition"),
        ({"captions": ["a red one", "a blue one"] * 4}, (), "caption", "captions"),
        (
            {"captions": ["a red one", ""] * 4},
            ("--vocabulary", "sentencepiece"),
            "caption",
            "warning: 4 of 8 grids have no caption",
        ),
    ],
)
def test_the_condition_follows_the_grids_or_the_option(tmp_path, vqtool, tokenizer_path, texts, options, kind, words):
    write_grids(tmp_path / "t.h5", tokenizer_path, **texts)
    output = tmp_path / "p.safetensors"
    result = vqtool("train-prior", tmp_path / "t.h5", *SHORT, *options, "-o", output)
    assert result.code == 0, result.err
    assert words in result.err
    prior = load_prior(output)
    assert prior.conditioner.kind == kind
    if "sentencepiece" in options:
        assert prior.conditioner.config()["vocabulary"] == "sentencepiece"


def test_without_the_tokenizer_there_are_no_previews_but_a_prior(tmp_path, vqtool):
    write_grids(tmp_path / "t.h5", tmp_path / "gone.safetensors")
    result = vqtool("train-prior", tmp_path / "t.h5", *SHORT, "-o", tmp_path / "p.safetensors")
    assert result.code == 0
    assert "warning: no previews of samples: the tokenizer feedfeedfeedfeed" in result.err
    assert not (tmp_path / "p.preview.png").exists()


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(folder, vqtool):
    arguments = ("train-prior", "--batch-size", 4, "--size", "tiny", "--steps", 400, "--preview-every", 0)
    process = start(*arguments, stderr=subprocess.PIPE)
    log = folder / "prior.log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors.decode()
    assert b"--resume" in errors
    assert not (folder / "prior.safetensors").exists()
    refused = vqtool(*arguments)
    assert refused.code == 1
    assert "--resume goes on with it, --force starts anew" in refused.err
    step = artifacts.read_header("prior.state.safetensors").summary["step"]
    assert 0 < step < 400
    other = vqtool(*arguments, "--resume", "--kernel", "absorbing")
    assert other.code == 1
    assert "--kernel was mask-replace when the run began" in error_lines(other.err)[0]


def test_a_finished_run_can_be_resumed_without_doing_anything(folder, vqtool):
    vqtool("train-prior", *SHORT)
    before = load_prior("prior.safetensors").fingerprint
    result = vqtool("train-prior", "--batch-size", 4, "--size", "tiny", "--resume")
    assert result.code == 0, result.err
    assert "resuming a run of 3 steps" in result.err
    assert load_prior("prior.safetensors").fingerprint == before


def test_resume_auto_begins_a_run_and_goes_on_with_one(folder, vqtool):
    first = vqtool("train-prior", *SHORT, "--resume", "auto")
    assert first.code == 0, first.err
    assert "resuming" not in first.err
    second = vqtool("train-prior", *SHORT, "--resume", "auto")
    assert second.code == 0, second.err
    assert "resuming a run of 3 steps" in second.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", 2), "--steps 2: the run has taken 3 steps in"),
        (("--seed", 1), "--seed was 0 when the run began, now it is 1"),
        (("-b", 2), "--batch-size was 4 when the run began, now it is 2"),
        (("--size", "small"), "--size is not what the run began with"),
        (("--dropout", 0.3), "--size is not what the run began with (--dropout was 0.2, now it is 0.3)"),
        (("--kernel", "absorbing"), "--kernel was mask-replace when the run began, now it is absorbing"),
        (("--mask-weights", "1,0.5"), "--mask-weights was [1.0, 1.0] when the run began, now it is [1.0, 0.5]"),
        (("--cond-dropout", 0.2), "--cond-dropout was 0.1 when the run began, now it is 0.2"),
        (("other.h5",), "not the grids that the run began with"),
    ],
)
def test_a_flag_that_a_run_did_not_begin_with_is_refused_by_its_name(folder, vqtool, tokenizer_path, more, message):
    assert vqtool("train-prior", *SHORT, "--preview-every", 0).code == 0
    write_grids("other.h5", tokenizer_path, num=9)
    given = SHORT[2:] if more[0] in ("--steps", "--minutes") else SHORT
    result = vqtool("train-prior", *given, "--resume", *more)
    assert result.code == 1
    assert message in error_lines(result.err)[0]


def test_a_run_is_lengthened_by_steps_or_minutes_and_shorter_than_it_is_it_cannot_be(folder, vqtool):
    run = ("train-prior", *SHORT[2:], "--preview-every", 0)
    assert vqtool(*run, "--steps", 3).code == 0
    longer = vqtool(*run, "--steps", 5, "--resume")
    assert longer.code == 0, longer.err
    assert re.search(r"resuming a run of 3 steps after 3 steps in [0-9.]+ s; it is one of 5 steps now", longer.err)
    assert load_prior("prior.safetensors").summary["steps"] == 5
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shorter = vqtool(*run, "--steps", 4, "--resume")
    (line,) = error_lines(shorter.err)
    assert "--steps 4: the run has taken 5 steps in" in line
    assert "give more, or leave it out for the 5 steps that it began with" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("num", [8, 240])  # of 240 some are held out
def test_the_prior_of_an_interrupted_run_is_there_to_sample_from(folder, vqtool, tokenizer_path, num):
    write_grids("many.h5", tokenizer_path, num=num)

    def stop(step, metrics):
        if step == 5:
            raise RuntimeError

    told, run = [], {"steps": 16, "batch_size": 4, "size": "tiny"}
    with pytest.raises(RuntimeError):
        api.train_prior("many.h5", "p.safetensors", report=stop, notify=told.append, **run)
    assert told[-1] == "p.safetensors is written on the way, eight times or more: it can be sampled meanwhile"
    prior = load_prior("p.safetensors")
    assert (prior.summary["steps"], prior.summary["share"]) == (4, 0.25)
    assert prior.summary["num_grids"] == (8 if num == 8 else 233)
    assert vqtool("sample", "p.safetensors", "-n", 2, "-o", "s.h5").code == 0
    refused = vqtool("train-prior", "many.h5", "-o", "p.safetensors")
    assert error_lines(refused.err) == [
        "error: p.safetensors: exists; use --force to start anew, or --resume to go on with the run that made it"
    ]
    whole = api.train_prior("many.h5", "p.safetensors", resume=True, **run)
    assert load_prior("p.safetensors").fingerprint == whole.fingerprint != prior.fingerprint
    assert "share" not in whole.summary


def test_minutes_are_kept_to(folder, vqtool):
    run = ("train-prior", "--batch-size", 4, "--size", "tiny", "--minutes", 0.01, "--preview-every", 0)
    result = vqtool(*run)
    assert result.code == 0, result.err
    assert "a run of 0.01 minutes" in result.err
    assert load_prior("prior.safetensors").summary["seconds"] >= 0.6
    again = vqtool(*run, "--resume")  # the same command goes on, although a step may take another time
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("none.h5",), "none.h5: no such file: make token grids with `vqtool encode`"),
        (("--kernel", "magic"), "--kernel magic: unknown; known are mask-replace, absorbing, uniform"),
        (("--schedule", "cosine"), "not for kernel 'mask-replace'"),
        (("--size", "enormous"), "--size enormous: unknown; known are tiny, small, base, large, huge"),
        (("--denoiser", "cnn"), "--denoiser cnn: unknown; known are transformer"),
        (("--rule", "median"), "--rule median: unknown; known are mixture, plug-in"),
        (("--parameterisation", "free"), "--parameterisation free: unknown; known are evidence, direct, residual"),
        (
            ("--kernel", "uniform", "--rule", "plug-in", "--parameterisation", "evidence"),
            "--parameterisation evidence does not go with --rule plug-in",
        ),
        (("--mask-weights", "1"), "--mask-weights 1: two numbers of 0 or more are expected, such as 1,0.5"),
        (("--mask-weights", "0,0"), "--mask-weights 0,0: two numbers of 0 or more are expected"),
        (("--times", "often"), "--times often: unknown; known are stratified, uniform, importance"),
        (("--loss", "mdlm"), "--loss mdlm counts masked cells alone, so it goes with kernels that do nothing but mask"),
        (("--kernel", "absorbing", "--loss", "mlm", "--adaptive-auxiliary"), "goes with --loss reweighted, bound"),
        (("--kernel", "absorbing", "--rule", "plug-in"), "--rule plug-in goes with --kernel mask-replace, uniform"),
        (("--keep", "all"), "--keep all: unknown; known are last, best"),
        (
            ("--keep", "best"),
            "--keep best goes with 200 grids or more, of which some are held out to tell; these are 8",
        ),
        (("--bf16",), "--bf16 goes with a CUDA GPU, and there is none"),
        (("--compile",), "--compile goes with a CUDA GPU, and there is none"),
        (("--condition", "class"), "the grids have none: encode images in class folders"),
        (("--condition", "poem"), "--condition poem: unknown; known are auto, none, class, caption"),
        (("--size", "l"), "--size l: unknown to transformer, which has tiny, small, base, large, huge"),
        (("--vocabulary", "words"), "--vocabulary words: unknown"),
        (("--steps", 0), "--steps 0: must be 1 or more"),
        (("--minutes", 1), "give --steps or --minutes, not both"),
        (("--loss", "l2"), "--loss l2: unknown; known are reweighted, bound, elbo"),
        (("--resume",), "no earlier run is there to go on with"),
        (("--tokenizer", "none.safetensors"), "none.safetensors"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(folder, vqtool, options, message):
    result = vqtool("train-prior", *SHORT, *options)
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert message in error_lines(result.err)[0]
    assert sorted(path.name for path in folder.iterdir()) == ["tok.h5"]


@pytest.mark.parametrize(
    ("flag", "names"), [("--loss", LOSSES), ("--denoiser", denoisers.NAMES), ("--times", TIMES), ("--rule", RULES)]
)
def test_the_help_of_a_flag_says_every_name_that_it_takes(flag, names):
    (parameter,) = [option for option in leaf_commands()["train-prior"].params if flag in option.opts]
    for name in names:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", f"{parameter.help} {parameter.metavar}")


def test_empty_grids_are_refused(tmp_path, vqtool, tokenizer_path):
    write_grids(tmp_path / "t.h5", tokenizer_path, num=0)
    result = vqtool("train-prior", tmp_path / "t.h5", *SHORT, "-o", tmp_path / "p.safetensors")
    assert "t.h5: no token grids in it" in error_lines(result.err)[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--loss", "bound", "--auxiliary-weight", 0.001, "--adaptive-auxiliary", "--mask-weights", "1,0.5"), None),
        (("--times", "importance", "--no-bf16"), None),
        (
            (
                "--denoiser",
                "unet",
                "--kernel",
                "uniform",
                "--rule",
                "plug-in",
                "--parameterisation",
                "residual",
                "-T",
                10,
            ),
            "denoiser unet tiny:",
        ),
        (("--denoiser", "vq-diffusion"), "denoiser vq-diffusion tiny:"),
    ],
)
def test_losses_rules_and_denoisers_can_be_named(folder, vqtool, options, words):
    result = vqtool("train-prior", *SHORT, "--preview-every", 0, *options)
    assert result.code == 0, result.err
    assert (words or "denoiser transformer tiny:") in result.err
    prior = load_prior("prior.safetensors")
    assert prior.rule == ("plug-in" if "plug-in" in options else "mixture")
    assert prior.denoiser_name in result.err
    assert (prior.parameterisation == "residual") == ("residual" in options)


def test_a_condition_that_the_denoiser_does_not_take_is_refused_if_named_and_passed_over_if_not(
    tmp_path, vqtool, tokenizer_path
):
    write_grids(tmp_path / "t.h5", tokenizer_path, labels=["a", "b"] * 4, captions=["a red one", "a blue one"] * 4)
    options = (tmp_path / "t.h5", *SHORT, "--denoiser", "vq-diffusion", "-o", tmp_path / "p.safetensors")
    refused = vqtool("train-prior", *options, "--condition", "caption")
    assert refused.code == 1
    assert "denoisers that take caption: transformer" in error_lines(refused.err)[0]
    assert vqtool("train-prior", *options).code == 0
    assert load_prior(tmp_path / "p.safetensors").conditioner.kind == "class"


def test_of_two_runs_of_one_output_exactly_one_succeeds(folder, vqtool):
    """The second is refused before any work, by the lock or by what the first has left."""
    processes = [start("train-prior", *SHORT, "--preview-every", 0, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1]
    (refused,) = [text for text, process in zip(errors, processes, strict=True) if process.returncode]
    assert len(error_lines(refused)) == 1
    assert re.search(r"is writing it|exists; use --force|an earlier run is there", refused)
    assert "a run of" not in refused
    assert load_prior("prior.safetensors").summary["steps"] == 3
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_while_a_run_goes_on_another_one_of_its_output_is_refused(folder, vqtool):
    with locked("prior.safetensors"):
        process = start("train-prior", *SHORT, stderr=subprocess.PIPE)
        refused = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 1
    assert re.search(rf"prior\.safetensors: process {os.getpid()} on \S+ is writing it", error_lines(refused)[0])
    assert sorted(path.name for path in folder.iterdir()) == ["tok.h5"]


def test_an_existing_prior_is_kept_without_force(folder, vqtool):
    Path("prior.safetensors").write_bytes(b"precious")
    result = vqtool("train-prior", *SHORT)
    assert result.code == 1
    assert "exists" in result.err
    assert Path("prior.safetensors").read_bytes() == b"precious"
    assert vqtool("train-prior", *SHORT, "--force").code == 0


SEVERAL = [(), ("--loss", "bound", "--times", "importance", "-T", 2, "--steps", 16)]


@pytest.mark.parametrize("more", SEVERAL, ids=["default", "importance"])
def test_two_processes_have_the_losses_of_one(folder, vqtool, more):
    options = (*SHORT, "--preview-every", 0, "--dropout", 0, *more)  # whose noise is of a process
    assert vqtool("train-prior", *options, "-o", "one.safetensors").code == 0
    done = run_in_two("vqtool", "train-prior", *options, "-o", "two.safetensors")
    assert done.returncode == 0, done.stderr.decode()
    losses = [
        [json.loads(line)["loss"] for line in Path(f"{name}.log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert load_prior("two.safetensors").summary["steps"] == len(losses[0])
    if "importance" in more:
        histories = [artifacts.load(f"{name}.state.safetensors", "training-state")[1] for name in ("one", "two")]
        squares = [tensors["memory.square"].tolist() for tensors in histories]
        assert squares[1] == pytest.approx(squares[0], rel=1e-4)
        assert min(squares[0]) > 0


@pytest.fixture
def trained(folder, vqtool, tokenizer_path):
    """A current folder with tok.h5, whose grids have labels, and prior.safetensors that was trained on it."""
    Path("tok.h5").unlink()
    write_grids("tok.h5", tokenizer_path, labels=["a", "b"] * 4)
    assert vqtool("train-prior", *SHORT, "--preview-every", 0).code == 0
    return folder


TUNING = ("--from", "prior.safetensors", "--steps", 3, "--batch-size", 4, "--preview-every", 0, "-o", "t.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "3 classes"),
        (("--freeze", "blocks,head"), "blocks,head stays as it is: 0.0"),
        (("--lora", 4, "--lora-alpha", 8, "--lora-targets", "mlp"), "adapters of rank 4 beside 8 weights"),
        (("--train", "null"), "the null condition alone is trained"),
        (("--kernel", "absorbing"), "kernel absorbing with schedule"),
    ],
)
def test_a_prior_goes_on_learning_and_its_file_says_from_which(trained, vqtool, tokenizer_path, options, words):
    write_grids("more.h5", tokenizer_path, labels=["b", "c"] * 4)
    result = vqtool("train-prior", "more.h5", *TUNING, *options)
    assert result.code == 0, result.err
    assert words in result.err
    assert "denoiser transformer of prior.safetensors: 1." in result.err
    start, made = load_prior("prior.safetensors"), load_prior("t.safetensors")
    assert made.parent == start.fingerprint
    assert [record["step"] for record in made.history] == ["encode", "train-prior", "train-prior"]
    assert made.history[-1]["inputs"]["prior"] == start.fingerprint
    assert made.conditioner.examples == (("a", "b") if "null" in options else ("a", "b", "c"))
    assert vqtool("sample", "t.safetensors", "--label", made.conditioner.examples[-1], "-n", 2, "-o", "s.h5").code == 0


def test_a_stopped_run_that_went_on_from_a_prior_is_resumed_exactly(trained, vqtool):
    for name in ("whole", "stopped"):
        options = (*TUNING[:-1], f"{name}.safetensors", "--lora", 2, "--steps", 30)
        if name == "stopped":
            process = start("train-prior", *options, stderr=subprocess.PIPE)
            log, deadline = Path("stopped.log.jsonl"), time.monotonic() + 120
            while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            process.communicate()
            assert process.returncode == 130
            other = vqtool("train-prior", *options, "--resume", "--lora-alpha", 1)
            assert "--lora-alpha was None when the run began, now it is 1" in error_lines(other.err)[0]
            options = (*options, "--resume")
        result = vqtool("train-prior", *options)
        assert result.code == 0, result.err
    assert load_prior("whole.safetensors").fingerprint == load_prior("stopped.safetensors").fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "gone.safetensors"), "gone.safetensors: no such file"),
        (("--from", "tok.h5"), "tok.h5: not a safetensors file"),
        ((*TUNING, "--size", "tiny"), "--size is that of the prior to begin with, prior.safetensors: leave it out"),
        ((*TUNING, "--denoiser", "unet"), "--denoiser is that of the prior to begin with"),
        ((*TUNING, "--condition", "caption"), "--condition caption: prior.safetensors is asked for by class"),
        ((*TUNING, "--lora", 0), "--lora 0: must be 1 or more"),
        ((*TUNING, "--lora", 1000), "--lora 1000: above the width of blocks.0.attention.qkv, 128"),
        (("--lora", 2), "--lora is for a prior to begin with: name one with --from, or leave it out"),
        (("--train", "null"), "--train is for a prior to begin with"),
        ((*TUNING, "--resume"), "no earlier run is there to go on with"),
    ],
)
def test_what_cannot_go_on_is_one_line_and_nothing_is_written(trained, vqtool, options, message):
    before = sorted(path.name for path in trained.iterdir())
    result = vqtool("train-prior", "-o", "t.safetensors", *options)
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert message in error_lines(result.err)[0]
    assert sorted(path.name for path in trained.iterdir()) == before


def test_a_prior_of_other_codes_is_refused_and_the_command_that_carries_it_over_is_named(
    trained, vqtool, other_tokenizer_path
):
    write_grids("other.h5", other_tokenizer_path, labels=["a", "b"] * 4)
    result = vqtool("train-prior", "other.h5", *TUNING)
    assert result.code == 1
    command = f"`vqtool codebook transplant prior.safetensors -t {other_tokenizer_path}`"
    assert command in error_lines(result.err)[0]


def test_adapters_in_a_file_of_their_own_are_read_like_the_prior_that_they_were_merged_into(trained, vqtool):
    options = ("--lora", 2, "--lora-alpha", 6, "--keep-adapter", "small.safetensors", "--learning-rate", 0.1)
    result = vqtool("train-prior", *TUNING, *options)
    assert result.code == 0, result.err
    start, whole, apart = (load_prior(f"{name}.safetensors") for name in ("prior", "t", "small"))
    assert apart.parent == start.fingerprint == artifacts.read_header("small.safetensors").parents["prior"]
    assert apart.history == whole.history
    differ = []
    for name, tensor in whole.denoiser.state_dict().items():
        torch.testing.assert_close(apart.denoiser.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
        differ.append(not torch.equal(tensor, start.denoiser.state_dict()[name]))
    assert sum(differ) == 16
    assert Path("small.safetensors").stat().st_size < 0.1 * Path("t.safetensors").stat().st_size
    for prior in ("t", "small"):
        assert vqtool("sample", f"{prior}.safetensors", "-n", 4, "-o", f"{prior}.h5").code == 0
    np.testing.assert_array_equal(read_grids("t.h5")[1].tokens, read_grids("small.h5")[1].tokens)
    assert "small.safetensors: adapter" in vqtool("info", "small.safetensors").data.decode()
    again = vqtool("train-prior", *TUNING[:-1], "u.safetensors", *options)
    assert "small.safetensors: exists" in error_lines(again.err)[0]
    Path("prior.safetensors").rename("away.safetensors")
    lost = vqtool("sample", "small.safetensors", "-n", 1, "-o", "x.h5")
    assert (
        f"small.safetensors is an adapter for the prior {start.fingerprint}, which is not at prior.safetensors"
        in (error_lines(lost.err)[0])
    )
    Path("t.safetensors").rename("prior.safetensors")
    other = vqtool("sample", "small.safetensors", "-n", 1, "-o", "x.h5")
    assert "but prior.safetensors is" in error_lines(other.err)[0]


def test_adapters_do_not_stand_alone_where_more_was_changed(trained, vqtool, tokenizer_path):
    write_grids("more.h5", tokenizer_path, labels=["b", "c"] * 4)
    options = ("--lora", 2, "--keep-adapter", "small.safetensors")
    for grids, more in (("more.h5", ()), ("tok.h5", ("--kernel", "absorbing"))):
        result = vqtool("train-prior", grids, *TUNING, *options, *more)
        assert result.code == 1
        assert "--keep-adapter: the run changes more than adapters hold" in error_lines(result.err)[0]


def test_an_adapter_whose_matrices_do_not_fit_is_damaged(trained):
    prior = load_prior("prior.safetensors")
    adapter = Adapter(1.0, prior.fingerprint, "prior.safetensors")
    for name in ("head", "nowhere"):
        tensors = {f"{name}.up": torch.zeros(3, 2), f"{name}.down": torch.zeros(2, 4)}
        adapter.save("bad.safetensors", tensors, history=[], force=True)
        with pytest.raises(FormatError, match=f"its matrices of {name} do not fit the prior"):
            load_prior("bad.safetensors")


@pytest.mark.parametrize("is_its_tokenizer", [True, False])
def test_a_training_from_nothing_says_that_the_built_in_prior_would_be_quicker_where_it_fits(
    builtin, folder, vqtool, tokenizer_path, is_its_tokenizer
):
    assert vqtool("train-prior", *SHORT, "-o", builtin / "prior.safetensors").code == 0
    if not is_its_tokenizer:
        write_grids("other.h5", None)
    result = vqtool("train-prior", "tok.h5" if is_its_tokenizer else "other.h5", *SHORT)
    assert result.code == 0, result.err
    assert ("the built-in prior knows these tokens: --from builtin would be quicker" in result.err) == is_its_tokenizer
    assert result.err.index("reading") < result.err.index("a run of") < result.err.index("wrote")
    tuned = vqtool("train-prior", "--from", "builtin", "tok.h5", "--steps", 2, "-o", "tuned.safetensors")
    assert (tuned.code, "would be quicker" in tuned.err) == (0, False), tuned.err
    if is_its_tokenizer:  # without a word of a new network, it is what few grids begin with
        alone = vqtool("train-prior", "--steps", 2, "-o", "alone.safetensors")
        assert "fewer than 2,000 grids teach a new one little (--from none begins a new one)" in alone.err
        assert load_prior("alone.safetensors").fingerprint == load_prior("tuned.safetensors").fingerprint
