"""vqtool eval: what the inputs hold decides what is measured; table on stderr, JSON on stdout."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import error_lines, write_pictures
from support.exact import random_prior
from support.features import use_mean_colour

from vqtool.cli.main import main
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.images import find_images, read_batches, to_float, to_uint8
from vqtool.metrics import frechet_distance, usage
from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from vqtool.tokenizers.vqvae import VqVaeConfig


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    use_mean_colour(monkeypatch)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vqtool", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def write_colours(folder, num, *, seed=0):
    """Single-coloured PNG files of 8x8; returns the colours (num, 3)."""
    folder.mkdir()
    colours = np.random.default_rng(seed).integers(0, 256, (num, 3)).astype(np.uint8)
    for i, colour in enumerate(colours):
        Image.new("RGB", (8, 8), tuple(map(int, colour))).save(folder / f"{i:03d}.png")
    return colours


def write_noise(folder, num, size=16):
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (num, size, size, 3)).astype(np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i}.png")


def write_grids(path, tokens, *, codebook_size=8, tokenizer="0123456789abcdef"):
    height, width = tokens.shape[1:]
    header = GridHeader(codebook_size, (height, width), (8 * height, 8 * width), tokenizer, "builtin", "test")
    with GridWriter(path, header) as writer:
        writer.write(GridBatch(tokens.astype(np.uint8), [str(i) for i in range(len(tokens))]))


def write_tokenizer(path):
    torch.manual_seed(0)
    config = VqVaeConfig(16, 4, channels=(16, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    tokenizer = Tokenizer(config).eval()
    tokenizer.codebook.normal_()
    save_tokenizer(path, tokenizer)


def test_images_against_images_give_a_table_on_stderr_and_json_on_stdout(run, tmp_path):
    a, b = write_colours(tmp_path / "a", 20), write_colours(tmp_path / "b", 20, seed=1)
    code, out, err = run(tmp_path / "a", "--ref", tmp_path / "b")
    record = json.loads(out)
    assert code == 0
    assert record["scores"]["FD-MeanColour"] == pytest.approx(frechet_distance(a, b), rel=1e-5)
    assert record["standard_errors"]["KID-MeanColour"] > 0
    assert (record["num_images"], record["num_skipped"], record["size"]) == (20, 0, "8x8")
    assert record["inputs"] == [str(tmp_path / "a")]
    for name in ("FD", "KID", "precision", "recall", "density", "coverage"):
        assert f"{name}-MeanColour" in err
    assert "20 images a side, of 20 and 20 (seed 0)" in err
    assert "FID" not in out + err


def test_a_small_number_of_images_gives_a_warning(run, tmp_path):
    write_colours(tmp_path / "a", 2)
    write_colours(tmp_path / "b", 2, seed=1)
    code, out, err = run(tmp_path / "a", "--ref", tmp_path / "b")
    assert code == 0
    assert "warning: 2 images a side are fewer than the 3 features" in err
    assert len(json.loads(out)["warnings"]) == 1


def test_the_same_seed_gives_the_same_scores_and_max_images_limits_both_sides(run, tmp_path):
    write_colours(tmp_path / "a", 30)
    write_colours(tmp_path / "b", 25, seed=1)
    command = (tmp_path / "a", "--ref", tmp_path / "b", "--max-images", 10)
    first, again, other = (json.loads(run(*command, "--seed", seed)[1]) for seed in (1, 1, 2))
    assert first == again
    assert first["scores"] != other["scores"]
    assert first["num_images"] == 10


def test_output_goes_to_a_file_that_is_not_overwritten_without_force(run, tmp_path):
    write_colours(tmp_path / "a", 5)
    file = tmp_path / "scores.json"
    command = (tmp_path / "a", "--ref", tmp_path / "a", "-o", file)
    code, out, err = run(*command)
    assert (code, out) == (0, "")
    assert json.loads(file.read_text())["num_images"] == 5
    assert f"wrote {file}" in err
    code, _, err = run(*command)
    assert code == 1
    assert "exists; use --force" in err
    assert run(*command, "--force")[0] == 0


def test_a_corrupt_picture_is_named_skipped_and_counted(run, tmp_path):
    write_colours(tmp_path / "a", 6)
    write_colours(tmp_path / "b", 6, seed=1)
    (tmp_path / "b" / "003.png").write_bytes(b"not a picture")
    command = (tmp_path / "a", "--ref", tmp_path / "b")
    code, out, err = run(*command)
    assert code == 1
    assert "003.png" in err
    assert "error: 1 bad input skipped" in err
    assert (json.loads(out)["num_images"], json.loads(out)["num_skipped"]) == (5, 1)
    code, out, err = run(*command, "--strict")
    assert (code, out) == (1, "")
    assert "003.png" in err.splitlines()[-1]


def test_paired_and_tokenizer_agree_on_the_psnr_of_reconstructions(run, tmp_path):
    write_noise(tmp_path / "imgs", 5)
    write_tokenizer(tmp_path / "t.safetensors")
    tokenizer = load_tokenizer(tmp_path / "t.safetensors")
    (tmp_path / "decoded").mkdir()
    counts = np.zeros(16)
    for batch in read_batches(find_images([tmp_path / "imgs"]), (16, 16), 2):
        grid = tokenizer.encode(to_float(batch.images))
        counts += np.bincount(grid.flatten(), minlength=16)
        for item, picture in zip(batch.items, to_uint8(tokenizer.decode(grid)), strict=True):
            Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "decoded" / f"{item.id}.png")
    code, out, err = run(tmp_path / "imgs", "--tokenizer", tmp_path / "t.safetensors", "--size", "16")
    assert code == 0
    scores = json.loads(out)["scores"]
    assert scores["usage"] == usage(counts)
    assert json.loads(out)["num_tokens"] == counts.sum() == 5 * 16
    assert "5 of 5 images; 16x16 pixels, 4x4 tokens" in err
    code, out, _ = run(tmp_path / "decoded", "--ref", tmp_path / "imgs", "--paired")
    assert code == 0
    for name in ("PSNR", "PSNR-pooled"):
        assert json.loads(out)["scores"][name] == pytest.approx(scores[name], abs=1e-9)


def test_token_grids_give_usage_perplexity_and_the_distance_to_others(run, tmp_path):
    write_grids(tmp_path / "a.h5", np.repeat([0, 0, 1, 2], 20).reshape(5, 4, 4))
    write_grids(tmp_path / "b.h5", np.repeat([0, 1], 16).reshape(2, 4, 4))
    code, out, err = run(tmp_path / "a.h5")
    record = json.loads(out)
    assert code == 0
    assert record["scores"] == pytest.approx({"usage": 3 / 8, "usage-10": 3 / 8, "perplexity": 2**1.5})
    assert (record["num_grids"], record["num_tokens"]) == (5, 80)
    assert "5 grids, 80 tokens" in err
    code, out, _ = run(tmp_path / "a.h5", "--ref", tmp_path / "b.h5")
    assert code == 0
    assert json.loads(out)["scores"]["total-variation"] == pytest.approx(0.25)
    assert json.loads(out)["reference"]["scores"]["perplexity"] == pytest.approx(2)


def test_token_grids_come_through_a_pipe(tmp_path):
    write_grids(tmp_path / "a.h5", np.zeros((3, 4, 4), int))
    with (tmp_path / "a.h5").open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "vqtool", "eval", "-"], input=file.read(), capture_output=True, check=True
        )
    assert json.loads(done.stdout)["num_grids"] == 3


def test_the_likelihood_of_token_grids_comes_as_a_table_json_and_a_curve(run, tmp_path):
    pytest.importorskip("matplotlib")
    random_prior(codebook_size=8).save(tmp_path / "p.safetensors")
    write_grids(tmp_path / "tok.h5", np.random.default_rng(0).integers(0, 8, (6, 4, 6)))
    command = (tmp_path / "tok.h5", "--likelihood", "--prior", tmp_path / "p.safetensors", "--times", 4)
    code, out, err = run(*command, "--plot", tmp_path / "curve.png")
    record = json.loads(out)
    assert code == 0
    assert 3 < record["scores"]["bits-per-token"] < 30  # log2(8) = 3 is what knowing nothing costs
    assert record["standard_errors"]["bits-per-token"] > 0
    assert (record["num_grids"], record["times"], record["num_steps"]) == (6, 4, 20)
    assert sum(record["curve"]["looks"]) == 24
    assert "6 grids, 144 tokens" in err
    assert f"wrote {tmp_path / 'curve.png'}" in err
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG"
    again = run(*command, "-o", tmp_path / "l.json")
    assert again[:2] == (0, "")
    assert json.loads((tmp_path / "l.json").read_text()) == record
    assert json.loads(run(*command, "--seed", 1)[1])["scores"] != record["scores"]
    code, out, err = run(*command, "--plot", tmp_path / "curve.png")
    assert (code, out) == (1, "")
    assert "exists; use --force" in err
    assert run(*command, "--plot", tmp_path / "curve.png", "--force")[0] == 0


def test_the_likelihood_needs_no_labels_where_none_are_wanted(run, tmp_path):
    random_prior(codebook_size=8, kind="class").save(tmp_path / "p.safetensors")
    write_grids(tmp_path / "tok.h5", np.zeros((2, 4, 6), int))
    command = (tmp_path / "tok.h5", "--likelihood", "--prior", tmp_path / "p.safetensors", "--times", 2)
    code, out, err = run(*command)
    assert code == 0
    assert "warning: 2 of 2 grids have no label or caption" in err
    code, other, err = run(*command, "--unconditional")
    assert code == 0
    assert "warning" not in err
    assert json.loads(other)["scores"] == json.loads(out)["scores"]
    assert (json.loads(out)["condition"], json.loads(other)["condition"]) == ("class", "none")


def test_tokens_of_different_tokenizers_do_not_compare(run, tmp_path):
    write_grids(tmp_path / "a.h5", np.zeros((3, 4, 4), int))
    write_grids(tmp_path / "b.h5", np.zeros((3, 4, 4), int), tokenizer="fedcba9876543210")
    code, out, err = run(tmp_path / "a.h5", "--ref", tmp_path / "b.h5")
    assert (code, out) == (1, "")
    assert "0123456789abcdef" in err
    assert "fedcba9876543210" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imgs"], "images alone have no score: add --ref"),
        (["imgs", "--ref", "tok.h5"], "is not the tokenizer 0123456789abcdef that this input was made with"),
        (["tok.h5", "--ref", "imgs"], "is not the tokenizer 0123456789abcdef"),
        (["imgs", "tok.h5", "--ref", "imgs"], "imgs holds images, tok.h5 token grids: one kind on a side"),
        (["tok.h5", "--ref", "imgs", "--paired"], "--paired is for images, but tok.h5 holds token grids"),
        (["tok.h5", "--decode"], "--decode compares token grids as pictures: add --ref"),
        (["tok.h5", "--tokenizer", "builtin"], "--tokenizer is for images, but tok.h5 holds token grids"),
        (["tok.h5", "--size", "64"], "--size is for images"),
        (["tok.h5", "--ref", "tok.h5", "--paired"], "--paired is for images"),
        (["imgs", "--ref", "imgs", "--tokenizer", "builtin"], "give one of them"),
        (["imgs", "--paired"], "--paired needs originals"),
        (["imgs", "--tokenizer", "no.safetensors"], "no.safetensors"),
        (["imgs", "--tokenizer", "t.safetensors", "--size", "18"], "multiples of 4"),
        (["imgs", "--ref", "other", "--paired"], "no picture is on both sides"),
        (["imgs", "--ref", "empty"], "empty"),
        (["imgs", "--ref", "missing"], "missing: no such file or folder"),
        (["imgs", "--ref", "one"], "1 image on one side: at least 2 on each"),
        (["imgs", "--ref", "bad"], "0 images on one side"),
        (["bad", "--tokenizer", "t.safetensors"], "none of the 2 images could be read"),
        (["imgs", "--ref", "imgs", "--size", "x"], "size 'x'"),
        (["cut.h5"], "cut.h5: truncated"),
        (["none.h5"], "none.h5: no token grids in it"),
        (["imgs", "--ref", "imgs", "--device", "nosuch"], "--device nosuch"),
        (["tok.h5", "-o", "nowhere/scores.json"], "the folder nowhere does not exist"),
        (["tok.h5", "--prior", "p.safetensors"], "--prior is for --likelihood, which is not given"),
        (["tok.h5", "--times", "4"], "--times is for --likelihood"),
        (["tok.h5", "--unconditional"], "--unconditional is for --likelihood"),
        (["tok.h5", "--plot", "p.png"], "--plot is for --likelihood"),
        (["imgs", "--ref", "imgs", "--likelihood"], "--likelihood is for token grids, but imgs holds images"),
        (["tok.h5", "--ref", "tok.h5", "--likelihood"], "leave --ref out"),
        (["tok.h5", "--likelihood"], "the prior has tokenizer"),  # the built-in one
        (["tok.h5", "--likelihood", "--prior", "p.safetensors"], "grid size 4x4, but the prior has grid size 4x6"),
        (["tok.h5", "--likelihood", "--plot", "nowhere/p.png"], "the folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_scored_is_one_clear_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_colours(tmp_path / "imgs", 3)
    write_colours(tmp_path / "one", 1)
    for name, file in (("other", "x.png"), ("bad", "y.png"), ("bad", "z.png")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_bytes(b"not a picture")
    (tmp_path / "empty").mkdir()
    write_tokenizer(tmp_path / "t.safetensors")
    random_prior(codebook_size=8).save(tmp_path / "p.safetensors")
    write_grids(tmp_path / "tok.h5", np.zeros((3, 4, 4), int))
    write_grids(tmp_path / "none.h5", np.zeros((0, 4, 4), int))
    (tmp_path / "cut.h5").write_bytes((tmp_path / "tok.h5").read_bytes()[:-100])
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_on_a_terminal_there_is_the_table_alone_unless_json_is_asked_for(run, tmp_path, monkeypatch):
    write_grids(tmp_path / "a.h5", np.zeros((3, 4, 4), int))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = run(tmp_path / "a.h5")
    assert (code, out) == (0, "")
    assert "perplexity" in err
    assert json.loads(run(tmp_path / "a.h5", "-o", "-")[1])["num_grids"] == 3


def test_the_own_outputs_are_left_out_of_the_reference_and_told(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("imgs", "decoded"):
        write_pictures(tmp_path / name, 3)
    code, _, err = run("decoded", "--ref", ".", "--paired")
    assert code == 1
    assert "warning: decoded: left out of ., since it is given on the other side" in err
    assert "no picture is on both sides: ids such as '00' and 'imgs/00'" in error_lines(err)[0]


def test_what_is_given_on_the_other_side_is_left_out_of_a_folder_that_holds_it(vqtool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("imgs", "decoded"):
        write_pictures(tmp_path / folder, 2)
    files = [f"decoded/{i:02d}.png" for i in range(2)]
    for sources, ref, told in (
        (["decoded"], ".", "decoded: left out of ."),
        (files, ".", "2 files left out of ."),
        (["."], "decoded", "decoded: left out of ."),
    ):
        result = vqtool("eval", *sources, "--ref", ref, "--paired", "--size", "8")
        assert f"warning: {told}, since " in result.err
        assert "no picture is on both sides" in error_lines(result.err)[0]  # 00 and imgs/00


def test_another_runtime_gives_the_same_scores_and_is_named_in_the_report(run, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    random_prior(codebook_size=8).save(tmp_path / "p.safetensors")
    write_grids(tmp_path / "tok.h5", np.random.default_rng(0).integers(0, 8, (6, 4, 6)))
    write_noise(tmp_path / "imgs", 5)
    write_tokenizer(tmp_path / "t.safetensors")
    for arguments in (
        (tmp_path / "tok.h5", "--likelihood", "--prior", tmp_path / "p.safetensors", "--times", 4),
        (tmp_path / "imgs", "--tokenizer", tmp_path / "t.safetensors", "--size", "16"),
    ):
        first, second = (json.loads(run(*arguments, "--runtime", runtime)[1]) for runtime in ("torch", "onnx"))
        assert second["scores"] == pytest.approx(first["scores"], rel=1e-5)
        assert "runtime" not in first
        assert second["runtime"] == "onnx"
