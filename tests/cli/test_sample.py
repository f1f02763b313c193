"""`vqtool sample`: files, streams, conditions, processes and what is refused."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.exact import random_prior
from support.two import free_port, run_in_two
from typer.testing import CliRunner

import vqtool
from vqtool.cli.main import app
from vqtool.errors import VqtoolWarning
from vqtool.grids import read_grids
from vqtool.samplers.trajectories import animated
from vqtool.tokenizers import load_tokenizer

APP = app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder that holds prior.safetensors."""
    monkeypatch.chdir(tmp_path)
    random_prior().save("prior.safetensors")
    return tmp_path


def run(*arguments, code=0, text=None):
    result = CliRunner().invoke(APP, ["sample", *map(str, arguments)], input=text)
    assert result.exit_code == code, result.stderr
    return result


def test_the_file_holds_what_the_library_draws_and_says_how_it_was_made(folder):
    result = run("-n", 5, "--seed", 3, "--steps", 4, "-o", "x.h5")
    header, batch = read_grids("x.h5")
    assert np.array_equal(batch.tokens, vqtool.sample(random_prior(), 5, seed=3, steps=4).numpy())
    assert batch.ids == [f"sample-00000{i}" for i in range(5)]
    assert batch.labels is None
    assert batch.captions is None
    assert (header.codebook_size, header.grid_size, header.image_size) == (11, (4, 6), (32, 48))
    assert (header.tokenizer_fingerprint, header.tokenizer_location) == ("0123456789abcdef", "builtin")
    record = header.history[-1]
    assert (record["step"], record["seed"], record["sampler"], record["steps"]) == ("sample", 3, "ancestral", 4)
    assert record["inputs"] == {"prior": vqtool.load_prior("prior.safetensors").fingerprint}
    assert result.stdout == ""
    assert "5 grids by ancestral sampling" in result.stderr
    assert "4 network calls a grid" in result.stderr


def test_the_best_of_several_candidates_is_among_them_and_what_cannot_be_judged_is_one_line(folder):
    result = run("-n", 2, "--steps", 2, "--best", 3, "--judge-times", 2, "-o", "best.h5")
    assert "best of 3 by likelihood: a grid takes the calls of 3, and 6 to judge them" in result.stderr
    assert "12 network calls a grid" in result.stderr
    run("-n", 6, "--steps", 2, "-o", "all.h5")
    kept, candidates = (read_grids(name)[1].tokens for name in ("best.h5", "all.h5"))
    assert all((candidates[3 * i : 3 * i + 3] == kept[i]).all((1, 2)).any() for i in (0, 1))
    run("-n", 2, "--steps", 2, "--best", 3, "--dry-run")
    for options, words in (
        (("--judge", "features"), "error: --judge is about candidates to choose from: give --best 2 or more"),
        (("--best", 2, "--judge", "text", "--judge-with", "x"), "error: --judge text compares pictures with captions"),
        (("--best", 2, "--judge", "features", "--judge-with", "none"), "error: none: no such file"),
    ):
        assert run(*options, "-o", "y.h5", code=1).stderr.splitlines()[-1].startswith(words)


def test_times_are_planned_by_what_eval_wrote_and_a_prior_without_a_curve_says_how(folder):
    refused = run("--times", "auto", "--steps", 4, "-o", "x.h5", code=1).stderr.splitlines()[-1]
    assert refused.startswith(
        "error: --times auto goes by how much of the bound each t adds, which this prior does not say"
    )
    assert refused.endswith("-o likelihood.json` and name that file with --curve")
    run("-n", 8, "--steps", 4, "-o", "tok.h5")
    measured = CliRunner().invoke(
        APP, ["eval", "--likelihood", "tok.h5", "--prior", "prior.safetensors", "-o", "c.json"]
    )
    assert measured.exit_code == 0, measured.stderr
    result = run("-n", 2, "--times", "auto", "--steps", 4, "--curve", "c.json", "-o", "x.h5")
    assert "4 network calls a grid" in result.stderr
    assert read_grids("x.h5")[0].history[-1]["curve"] == "c.json"


def test_without_a_prior_in_the_folder_the_built_in_one_is_used_and_told(builtin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = random_prior(kind="caption").save(builtin / "prior.safetensors")
    result = run("--caption", "a bee", "--steps", 2, "-o", "x.h5")
    header, batch = read_grids("x.h5")
    assert header.history[-1]["inputs"] == {"prior": saved.fingerprint}
    assert batch.captions == ["a bee"]
    assert result.stderr.count("no prior.safetensors here: the built-in prior is used") == 1
    random_prior().save("prior.safetensors")
    result = run("builtin", "-n", 2, "--steps", 2, "-o", "y.h5")
    assert read_grids("y.h5")[0].history[-1]["inputs"] == {"prior": saved.fingerprint}
    assert "no prior.safetensors here" not in result.stderr


def test_a_caption_of_few_words_is_read_whole_whatever_a_prior_learned_from(folder):
    random_prior(kind="caption").save("prior.safetensors", force=True)  # of three captions of two or three words
    result = run("--caption", "a blue cat on a mat", "--steps", 1, "-o", "x.h5")
    assert "longer" not in result.stderr


def test_sampling_ends_at_its_next_call_when_nobody_reads_its_stream_any_more(folder):
    typed = command("-n", 4, "--steps", 20, "-b", 4)
    with subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read().decode()
    assert process.returncode == 141
    assert "wrote" not in error


def test_as_many_samples_are_drawn_as_captions_or_classes_are_named(folder):
    random_prior(kind="class").save("prior.safetensors", force=True)
    first, second = vqtool.load_prior("prior.safetensors").conditioner.examples[:2]
    run("--label", first, "--label", second, "--steps", 1, "-o", "x.h5")
    assert read_grids("x.h5")[1].labels == [first, second]
    run("--steps", 1, "-o", "y.h5")
    assert len(read_grids("y.h5")[1].ids) == 64


def test_start_and_batch_size_do_not_change_a_sample(folder):
    run("-n", 9, "--purity", "-b", 7, "-o", "all.h5")
    run("-n", 3, "--sampler", "purity", "--start", 5, "-b", 2, "-o", "some.h5")
    _, everything = read_grids("all.h5")
    _, some = read_grids("some.h5")
    assert np.array_equal(some.tokens, everything.tokens[5:8])
    assert some.ids == everything.ids[5:8]


def command(*arguments):
    return [sys.executable, "-m", "vqtool", "sample", *map(str, arguments)]


def test_a_pipe_gets_a_stream_with_the_same_grids(folder):
    run("-n", 5, "--steps", 2, "-o", "x.h5")
    piped = subprocess.run(command("-n", 5, "--steps", 2, "-b", 2), capture_output=True, check=True)
    (folder / "stream.h5").write_bytes(piped.stdout)
    _, stream = read_grids("stream.h5")
    _, batch = read_grids("x.h5")
    assert np.array_equal(stream.tokens, batch.tokens)
    assert stream.ids == batch.ids


def test_two_processes_leave_the_file_and_the_stream_of_one(folder):
    arguments = ["-n", 5, "--steps", 2, "-b", 2]
    run(*arguments, "-o", "one.h5")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port()}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for output, path in (("two.h5", "two.h5"), ("-", "piped.h5")):
        module = command(*arguments, "-o", output)[2:]
        if output == "-":
            done = run_in_two(*module)
        else:
            done = subprocess.run([*launch, "-m", *module], capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert b"2 of 2 grids)" in done.stderr  # the main process's share
        if output == "-":
            (folder / path).write_bytes(done.stdout)
        _, one = read_grids("one.h5")
        _, two = read_grids(path)
        assert np.array_equal(one.tokens, two.tokens)
        assert one.ids == two.ids
    assert [path.name for path in folder.iterdir() if path.name.startswith(".vqtool")] == []


@pytest.fixture
def class_folder(folder):
    random_prior(kind="class").save("prior.safetensors", force=True)
    return folder


def test_labels_are_drawn_in_turn_and_written(class_folder):
    run("-n", 5, "--label", "bee", "--label", "ant", "--cfg-scale", 2, "--steps", 2, "-o", "x.h5")
    _, batch = read_grids("x.h5")
    assert batch.labels == ["bee", "ant", "bee", "ant", "bee"]
    prior = random_prior(kind="class")
    condition = prior.conditioner.encode(batch.labels)
    assert np.array_equal(batch.tokens, vqtool.sample(prior, 5, condition=condition, cfg_scale=2.0, steps=2).numpy())


def test_without_a_condition_the_priors_own_examples_are_drawn_in_turn_and_that_is_said(class_folder):
    result = run("-n", 4, "--steps", 1, "-o", "x.h5")
    assert read_grids("x.h5")[1].labels == ["ant", "bee", "cat", "ant"]
    assert "the prior's own 3 labels, in turn" in result.stderr


@pytest.mark.parametrize("source", ["-", "prompts.txt"])
def test_captions_come_one_a_line_and_say_how_many_to_draw(folder, source):
    random_prior(kind="caption").save("prior.safetensors", force=True)
    herd = 10 * "\N{ELEPHANT}"  # of four tokens each
    text = f"an ant\n\n a bee \nelephants {herd}\n"
    (folder / "prompts.txt").write_text(text, encoding="utf-8")
    result = run("--captions", source, "--steps", 1, "-o", "x.h5", text=text.encode())
    assert read_grids("x.h5")[1].captions == ["an ant", "a bee", f"elephants {herd}"]
    assert "longer than the prior can read" in result.stderr


def test_guidance_without_a_condition_is_warned_about_and_sampling_goes_on(folder):
    result = run("-n", 2, "--cfg-scale", 3, "--purity", "--steps", 2, "-o", "x.h5")
    assert "warning: --cfg-scale 3 has nothing to guide" in result.stderr
    assert len(read_grids("x.h5")[1]) == 2


def test_settings_go_from_the_flags_to_the_library_and_into_the_history(class_folder):
    weak = random_prior(kind="class", scale=0.2).save("weak.safetensors")
    run(
        *("-n", 3, "--label", "bee", "--sampler", "psi", "--times", "15,10,5", "--kappa", 0.7),
        *("--kappa-interval", "0.2,0.8", "--cfg-scale", 2, "--cfg-schedule", "cosine", "--cfg-interval", "0.4,1"),
        *("--guide-with", "weak.safetensors", "--top-k", 5, "-o", "x.h5"),
    )
    header, batch = read_grids("x.h5")
    settings = {"sampler": "psi", "times": (15, 10, 5), "kappa": 0.7, "kappa_interval": (0.2, 0.8), "top_k": 5}
    settings |= {"cfg_scale": 2.0, "cfg_schedule": "cosine", "cfg_interval": (0.4, 1.0)}
    prior = random_prior(kind="class")
    drawn = vqtool.sample(prior, 3, condition=prior.conditioner.encode(["bee"]), guide_with=weak, **settings)
    assert np.array_equal(batch.tokens, drawn.numpy())
    record = header.history[-1]
    assert {name: record[name] for name in settings} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }
    assert record["guide_with"] == weak.fingerprint


def test_the_calls_of_a_guidance_interval_are_counted(class_folder):
    result = run("-n", 2, "--steps", 10, "--cfg-scale", 3, "--cfg-interval", "0.2,0.5", "-o", "x.h5")
    assert "14 network calls a grid" in result.stderr  # 10, and once more at the shares 0.2, 0.3, 0.4 and 0.5


def test_a_second_prior_guides_a_prior_without_condition_without_a_warning(folder):
    random_prior(scale=0.2).save("weak.safetensors")
    result = run("-n", 2, "--steps", 3, "--cfg-scale", 2, "--guide-with", "weak.safetensors", "-o", "x.h5")
    assert "warning" not in result.stderr
    assert "6 network calls a grid" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors"], "no such file: train a prior with `vqtool train-prior`"),
        (["--sampler", "magic"], "unknown sampler 'magic': known are ancestral, first-hitting, psi, fewer"),
        (["--sampler", "ancestral", "--purity"], "leave one out"),
        (["-n", "0"], "--num 0: at least 1"),
        (["--start", "-1"], "--start -1"),
        (["--steps", "0"], "takes 1 to 20 steps"),
        (["--steps", "21"], "takes 1 to 20 steps"),
        (["--purity", "--steps", "25"], "1 to 24 steps"),
        (
            ["--purity", "--rule", "mixture"],
            "--rule is not an option of sampler purity; of ancestral, psi, gibbs it is",
        ),
        (
            ["--sampler", "first-hitting"],
            "needs an absorbing kernel, but this prior's is mask-replace",
        ),
        (["--times", "9,x"], "--times 9,x: numbers with commas"),
        (["--times", "9,9"], "--times 9,9: times that fall"),
        (["--kappa", "0.5"], "--kappa is not an option of sampler ancestral; of psi it is"),
        (["--top-k", "0"], "--top-k 0: must be 1 or more"),
        (["--cfg-interval", "0.2,0.8"], "--cfg-interval is about guidance, and there is none: give --cfg-scale"),
        (["--cfg-scale", "2", "--cfg-interval", "0.8,0.2"], "--cfg-interval 0.8,0.2: two rising numbers"),
        (
            ["--cfg-scale", "2", "--cfg-schedule", "steep"],
            "--cfg-schedule steep: unknown; known are constant, linear, cosine",
        ),
        (["--cfg-scale", "2", "--null", "empty"], "--null empty: unknown; known are learned, zero-shot"),
        (["--cfg-scale", "2", "--guide-with", "none.safetensors"], "none.safetensors: no such file"),
        (["--purity-weight", "1"], "--purity-weight is not an option of sampler ancestral; of purity it is"),
        (["--label", "ant"], "--label does not go with this prior, which takes no condition"),
        (["--label", "a", "--caption", "b"], "--label and --caption are given"),
        (["--temperature", "0"], "temperature"),
        (["--truncation", "2"], "truncation"),
        (["--cfg-scale", "nan"], "--cfg-scale nan: must be 0 or more"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(folder, arguments, message):
    kind = "class" if "--cfg-scale" in arguments else "none"
    random_prior(kind=kind).save("prior.safetensors", force=True)
    result = run(*arguments, "-o", "x.h5", code=1)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (folder / "x.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "be"], "unknown label 'be': did you mean 'bee'?"),
        (["--caption", "a bee"], "--caption does not go with this prior, which takes labels: use --label"),
        (["--captions", "none.txt"], "none.txt: cannot be read"),
        (["--captions", "empty.txt"], "empty.txt: no captions in it"),
        (["--captions", "latin.txt"], "latin.txt: not UTF-8 text"),
    ],
)
def test_conditions_that_cannot_be_used_are_refused(class_folder, arguments, message):
    (class_folder / "empty.txt").write_text(" \n\n")
    (class_folder / "latin.txt").write_bytes("h\xe9ron\n".encode("latin-1"))
    assert message in run(*arguments, "-o", "x.h5", code=1).stderr


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("", "an empty caption asks for nothing: the prior draws anything that it knows"),
        ("  \t", "an empty caption asks for nothing"),
        ("\U0001f34e\u2764\ufe0f", "in letters that the prior has never seen, so that it draws anything: '\U0001f34e"),
        ("\u05ea\u05e4\u05d5\u05d7 \u200f", "in letters that the prior has never seen"),  # from right to left
        ("apple " * 1667, "longer than the prior can read, its end is left out: 'apple apple"),  # 10,000 characters
    ],
)
def test_a_caption_that_cannot_be_read_is_told_in_one_line_and_drawn_anyway(folder, caption, said):
    prior = random_prior(kind="caption").save("prior.safetensors", force=True)
    result = run("--caption", caption, "--steps", 2, "-o", "x.h5")
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert said in warnings[0]
    with pytest.warns(VqtoolWarning):
        condition = vqtool.condition(prior, captions=[caption])
    assert torch.equal(condition, prior.conditioner.null(1)) == (not caption.strip())  # as in training
    assert read_grids("x.h5")[1].captions == [caption]


def test_a_class_of_a_text_prior_is_refused_and_names_what_it_takes(folder):
    random_prior(kind="caption").save("prior.safetensors", force=True)
    result = run("--label", "ant", "-o", "x.h5", code=1)
    assert result.stderr.splitlines() == [
        "error: --label does not go with this prior, which takes captions: use --caption"
    ]


def test_purity_on_a_uniform_prior_names_the_samplers_that_work(folder):
    random_prior("uniform").save("prior.safetensors", force=True)
    assert "this prior's is uniform: use ancestral" in run("--purity", "-o", "x.h5", code=1).stderr


def test_an_existing_output_is_kept_without_force(folder):
    (folder / "x.h5").write_bytes(b"precious")
    assert "exists" in run("-n", 1, "-o", "x.h5", code=1).stderr
    assert (folder / "x.h5").read_bytes() == b"precious"
    run("-n", 1, "--steps", 1, "-o", "x.h5", "--force")
    assert len(read_grids("x.h5")[1]) == 1


def test_a_reader_that_goes_away_ends_it_quietly_with_141(folder):
    process = subprocess.Popen(
        command("-n", 400, "--steps", 1, "-b", 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(1000)
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 141
    assert "Traceback" not in errors


def test_larger_grids_say_their_own_size_and_what_they_take(folder):
    result = run("--grid", "7x13", "-n", 2, "--steps", 2, "--overlap", 1, "-o", "x.h5")
    header, batch = read_grids("x.h5")
    assert (header.grid_size, header.image_size) == ((7, 13), (56, 104))
    assert np.array_equal(batch.tokens, vqtool.sample(random_prior(), 2, grid_size=(7, 13), overlap=1, steps=2).numpy())
    assert (header.history[-1]["grid_size"], header.history[-1]["overlap"]) == ([7, 13], 1)
    assert "grids of 7x13: 6 tiles of 4x6 a call" in result.stderr
    assert "GB of memory" in result.stderr
    run("--grid", "7x13", "-n", 2, "--steps", 2, "--grid-mode", "stretch", "-o", "y.h5")
    assert not np.array_equal(read_grids("y.h5")[1].tokens, batch.tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "3x6"], "--grid 3x6: smaller than the 4x6 cells"),
        (["--grid", "0"], "--grid '0': expected one number or HEIGHTxWIDTH in cells"),
        (["--grid", "3x6x9"], "--grid '3x6x9': expected one number or HEIGHTxWIDTH in cells"),
        (["--overlap", "2"], "--overlap is about grids larger than those of training"),
        (["--grid", "8x8", "--overlap", "4"], "share 0 to 3 cells"),
        (["--grid", "8x8", "--grid-mode", "windows"], "known are tiles, stretch"),
        (["--batch-size", "0"], "--batch-size 0: auto, or a number from 1 on, is expected"),
        (["--batch-size", "all"], "--batch-size all"),
        (["--tokenizer", "builtin"], "--tokenizer is what --trajectory decodes with"),
        (["--trajectory", "x.mp4"], "x.mp4: an animation is a .webp, .gif, .png file"),
        (["--trajectory", "there.gif"], "there.gif: exists"),
        (["--trajectory", "x.webp", "-t", "none.safetensors"], "none.safetensors"),
    ],
)
def test_runs_that_cannot_be_are_one_line_and_leave_nothing(folder, arguments, message):
    (folder / "there.gif").write_bytes(b"precious")
    before = sorted(path.name for path in folder.iterdir())
    result = run(*arguments, "-n", 1, "-o", "x.h5", code=1)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(path.name for path in folder.iterdir()) == before
    assert (folder / "there.gif").read_bytes() == b"precious"


@pytest.mark.parametrize("seed", ["-1", str(2**63), "x"])
def test_seeds_out_of_range_are_wrong_usage(folder, seed):
    assert "seed" in run("--seed", seed, "-o", "x.h5", code=2).stderr
    assert not (folder / "x.h5").exists()


def test_a_dry_run_says_calls_memory_and_time_and_writes_nothing(folder):
    (folder / "x.h5").write_bytes(b"precious")
    result = run("-n", 5, "--steps", 4, "--grid", 8, "--trajectory", "x.webp", "--dry-run", "-o", "x.h5")
    assert "4 network calls a grid" in result.stderr
    assert "GB of memory" in result.stderr
    assert "s for 5 grids; nothing is written" in result.stderr
    assert result.stdout == ""
    assert (folder / "x.h5").read_bytes() == b"precious"
    assert sorted(path.name for path in folder.iterdir()) == ["prior.safetensors", "x.h5"]


def test_progress_and_the_last_line_tell_calls_seconds_and_rates(folder):
    result = run("-n", 5, "--steps", 4, "-o", "x.h5")
    assert re.search(r"sample: 20 calls in [0-9.]+ s \([0-9.]+ calls/s, 5 of 5 grids\)", result.stderr)
    assert re.search(r"wrote 5 grids to x.h5: 4 network calls a grid, [0-9.]+ s, [0-9.e+]+ grids/s", result.stderr)
    assert "batches of 5: about" in result.stderr


def test_a_file_that_can_be_resumed_is_written_in_batches_of_which_little_is_lost(folder):
    arguments = ["-n", 2000, "--steps", 4, "--dry-run"]
    assert "batches of 60: about" in run(*arguments, "-o", "x.h5").stderr  # 6 microbatches of 10
    assert "batches of 680: about" in run(*arguments).stderr
    assert "batches of 500: about" in run(*arguments, "-b", 500, "-o", "x.h5").stderr


@pytest.fixture
def animated_folder(folder, tokenizer_path):
    """A prior whose tokenizer is there."""
    prior, tokenizer = random_prior(codebook_size=16), load_tokenizer(tokenizer_path)
    grid_spec = replace(
        prior.grid_spec, tokenizer_fingerprint=tokenizer.fingerprint, tokenizer_location=str(tokenizer_path)
    )
    replace(prior, grid_spec=grid_spec).save("prior.safetensors", force=True)
    return folder


def test_a_trajectory_is_an_animation_of_the_same_samples_and_does_not_change_them(animated_folder):
    arguments = ["-n", 3, "--purity", "--steps", 6]
    run(*arguments, "-o", "x.h5")
    result = run(*arguments, "--trajectory", "x.webp", "-o", "y.h5")
    assert "wrote x.webp: 7 frames of 3 grids" in result.stderr
    with Image.open("x.webp") as image:
        assert image.n_frames == 7
    assert np.array_equal(read_grids("x.h5")[1].tokens, read_grids("y.h5")[1].tokens)
    run(*arguments, "--trajectory", "z.webp", "-b", 1, "-o", "z.h5")
    assert (animated_folder / "z.webp").read_bytes() == (animated_folder / "x.webp").read_bytes()


def test_an_animation_of_samples_that_were_drawn_before_is_left_out_with_a_warning(folder, tokenizer_path):
    with (
        pytest.warns(VqtoolWarning, match="x.webp: not written"),
        animated(folder / "x.webp", range(3), lambda: load_tokenizer(tokenizer_path)) as observe,
    ):
        assert observe is not None
    assert not (folder / "x.webp").exists()


def test_another_runtime_draws_the_same_and_is_refused_in_one_line_where_it_is_missing(folder, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    for runtime in ("torch", "onnx", "auto"):
        run("-n", 5, "--steps", 4, "--runtime", runtime, "-o", f"{runtime}.h5")
    expected = read_grids("torch.h5")[1].tokens
    assert all(np.array_equal(read_grids(f"{runtime}.h5")[1].tokens, expected) for runtime in ("onnx", "auto"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("-n", 5, "--runtime", "onnx", "-o", "x.h5", code=1)
    assert result.stderr.startswith("error: --runtime onnx: onnx and onnxruntime not installed: pip install ")
    assert result.stderr.count("\n") == 1
    assert "unknown; known are torch, onnx, auto" in run("--runtime", "tensorrt", "-o", "x.h5", code=1).stderr
