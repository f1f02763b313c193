"""How the commands that edit go about it: dry runs, batches and animations of inpaint, outpaint, vary and complete."""

import json
import re
import signal

import numpy as np
import pytest
from PIL import Image
from support.commands import error_lines, shell
from support.editing_run import entries, make_work, rewrite, save_prior, tokens  # noqa: F401

from vqtool.grids import read_grids
from vqtool.samplers import _editor, trajectories

LINES = {
    "inpaint": ("tok.h5", "--mask", "left-half"),
    "outpaint": ("tok.h5", "--left", "2", "--top", "3"),
    "vary": ("tok.h5", "--strength", "0.5"),
    "complete": ("partial.h5",),
}


@pytest.fixture
def files(work):
    """As `work`, with partial.h5: the first grid whole, 2 cells of the second unknown, 12 of the third."""

    def punch(old):
        old[1, 2, 3:5] = 16
        old[2, :2] = 16
        return old

    rewrite("partial.h5", "tok.h5", punch, masked=True)
    return work


def calls(text):
    """What standard error says of the calls a grid: the least and the most."""
    (found,) = re.findall(r"([0-9.]+(?: to [0-9.]+)?) network calls? a grid", text)
    first, _, last = found.partition(" to ")
    return float(first), float(last or first)


@pytest.mark.parametrize("options", [["--steps", 7], ["--purity", "--steps", 9], ["--sampler", "entropy"]])
@pytest.mark.parametrize("command", LINES)
def test_a_dry_run_counts_the_calls_of_the_real_one_and_writes_nothing(vqtool, files, command, options):
    before = entries()
    line = [command, *LINES[command], *options]
    result = vqtool(*line, "--dry-run", "--trajectory", "x.webp", "-o", "x.h5")
    assert (result.code, result.data) == (0, b"")
    assert "GB of memory" in result.err
    assert "s for 3 grids; nothing is written" in result.err
    assert entries() == before
    least, most = calls(result.err)
    (real, _) = calls(vqtool(*line, "-o", "x.h5").err)
    assert least - 0.005 <= real <= most + 0.005  # three digits are said
    if "entropy" not in options:  # it alone calls as often as the predictions say
        assert least == most


def test_a_dry_run_leaves_what_is_there_and_takes_pictures_and_streams(vqtool, files):
    (files / "there.h5").write_bytes(b"precious")
    line = ["inpaint", "imgs", "-m", "center", "--steps", 4, "-n", 5, "--dry-run"]
    for output in ("there.h5", "imgs", "new", "-"):
        result = vqtool(*line, "-o", output)
        assert (result.code, result.data) == (0, b"")
        assert "s for 15 grids; nothing is written" in result.err
    assert (files / "there.h5").read_bytes() == b"precious"
    assert "new" not in entries()
    result = shell("cat tok.h5 | $vqtool inpaint - -m center --steps 4 --dry-run | wc -c", files)
    assert result.out.split() == ["0"]
    assert calls(result.err) == (4, 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("command", LINES)
def test_signals_that_ask_for_the_end_leave_nothing_half_and_say_so(vqtool, files, monkeypatch, command, number):
    make = _editor.Editor.make

    def stopped(*arguments, **options):
        made = make(*arguments, **options)
        signal.raise_signal(number)
        return made

    monkeypatch.setattr(_editor.Editor, "make", stopped)
    before = entries()
    result = vqtool(command, *LINES[command], "--steps", 2, "-o", "x.h5")
    assert (result.code, result.err.splitlines()[-1]) == (128 + number, "interrupted: x.h5 was not written")
    assert entries() == before
    (files / "there.h5").write_bytes(b"precious")
    result = vqtool(command, *LINES[command], "--steps", 2, "-o", "there.h5", "--force")
    assert result.err.splitlines()[-1] == "interrupted: there.h5 is as it was"
    assert (files / "there.h5").read_bytes() == b"precious"
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("command", ["inpaint", "outpaint", "vary"])
def test_flags_choose_images_and_are_refused_for_grids(vqtool, files, command):
    line = [command, "imgs", *LINES[command][1:], "--steps", 1]
    names = sorted(path.name for path in (files / "imgs").glob("*.png"))
    result = vqtool(*line, "--include", names[0], "-o", "one")
    assert result.code == 0, result.err
    assert "1 picture:" in result.err
    assert len(list((files / "one").glob("*.png"))) == 1
    result = vqtool(*line, "--exclude", names[0], "-o", "rest")
    assert f"{len(names) - 1} picture" in result.err
    result = vqtool(*line, "--split", "train", "-o", "none")
    assert result.code == 1
    result = vqtool(command, *LINES[command], "--include", "*.png", "-o", "x.h5")
    assert error_lines(result.err) == ["error: --include is for images, but tok.h5 holds token grids"]


@pytest.mark.parametrize("command", ["inpaint", "outpaint", "vary"])
def test_flags_say_where_the_pictures_own_captions_and_labels_stand(vqtool, files, tokenizer_path, command):
    save_prior("prior.safetensors", tokenizer_path, kind="caption")
    names = sorted(path.name for path in (files / "imgs").glob("*.png"))
    rows = "".join(f"{name},an ant {i},{'ab'[i % 2]}\n" for i, name in enumerate(names))
    (files / "words.csv").write_text(f"file,poem,kind\n{rows}")
    line = [command, "imgs", *LINES[command][1:], "--steps", 1, "--captions", "words.csv:poem"]
    result = vqtool(*line, "--labels", "words.csv:kind", "-o", "x.h5")
    assert f"{len(names)} pictures: captions for {len(names)}, labels for {len(names)} in 2 classes" in result.err
    batch = read_grids("x.h5")[1]
    assert batch.captions == [f"an ant {i}" for i in range(len(names))]
    assert batch.labels == ["ab"[i % 2] for i in range(len(names))]
    assert error_lines(vqtool(*line, "--label", "ant", "-o", "y.h5").err) == [
        "error: --label does not go with this prior, which takes captions: use --caption"
    ]
    assert error_lines(vqtool(*line, "--label", "ant", "--caption", "bee", "-o", "y.h5").err) == [
        "error: --label and --caption are given: one of them says what to draw"
    ]
    result = vqtool(command, *LINES[command], "--captions", "words.csv", "-o", "y.h5")
    assert error_lines(result.err) == ["error: --captions is for images, but tok.h5 holds token grids"]


def test_a_label_that_the_prior_does_not_know_is_told_before_a_picture_is_read(vqtool, files, tokenizer_path):
    save_prior("prior.safetensors", tokenizer_path, kind="class")
    for path in (files / "imgs").glob("*.png"):
        path.write_bytes(b"no picture")
        path.with_suffix(".cls").write_text("whale")
    result = vqtool("inpaint", "imgs", "-m", "center", "-o", "x.h5")
    assert error_lines(result.err) == ["error: unknown label 'whale': the prior knows ant, bee, cat"]
    assert "skipped" not in result.err


def test_info_has_the_numbers_of_the_last_line(vqtool, files):
    (files / "imgs" / "zz.png").write_bytes(b"no picture")
    result = vqtool("inpaint", "imgs", "-m", "center", "--steps", 1, "-n", 2, "-o", "x.h5")
    assert "3 pictures: captions for 1, no labels; 1 file skipped (names above)" in result.err
    assert "captions for 2, no labels; 1 file skipped" in vqtool("info", "x.h5").out  # 2 variants
    assert vqtool("vary", "tok.h5", "--steps", 1, "-n", 2, "-o", "y.h5").code == 0
    assert "skipped" not in vqtool("info", "y.h5").out


def test_a_caption_too_long_for_grids_is_refused_before_a_picture_is_encoded(vqtool, files):
    name = min((files / "imgs").glob("*.png"))
    name.with_suffix(".txt").write_text("x" * 70_000)
    result = vqtool("inpaint", "imgs", "-m", "center", "-o", "x.h5")
    (line,) = error_lines(result.err)
    assert line.startswith(f"error: imgs/{name.name}: the captions 'xxx")
    assert "have 70,000 characters, more than the 65,536 bytes that token grids hold" in line


def test_a_dry_run_of_bad_images_alone_is_an_error(vqtool, files):
    (files / "bad").mkdir()
    (files / "bad" / "0.png").write_bytes(b"no picture")
    result = vqtool("inpaint", "bad", "-m", "center", "--dry-run")
    assert result.code == 1
    assert "bad: no picture to rehearse with" in error_lines(result.err)[0]


def test_guided_calls_are_counted_with_the_pictures_own_captions(vqtool, files, tokenizer_path):
    save_prior("prior.safetensors", tokenizer_path, kind="caption")
    line = ["inpaint", "tok.h5", "-m", "center", "--steps", 5, "--cfg-scale", 2]
    assert calls(vqtool(*line, "--dry-run").err) == calls(vqtool(*line, "-o", "x.h5").err) == (10, 10)


@pytest.mark.parametrize("command", LINES)
def test_the_size_of_the_batches_changes_no_byte_of_the_tokens(vqtool, files, command):
    line = [command, *LINES[command], "--purity", "--steps", 5, "-n", 3]
    for size in (1, 2, "auto"):
        assert vqtool(*line, "-b", size, "-o", f"{size}.h5").code == 0
        assert tokens(f"{size}.h5").tobytes() == tokens("1.h5").tobytes()


def test_progress_and_the_last_line_tell_calls_seconds_and_rates(vqtool, files):
    text = vqtool("vary", "tok.h5", "-n", 2, "--steps", 4, "-b", 2, "-o", "x.h5").err
    assert "batches of 2: about" in text
    assert re.search(r"vary: 24 calls in [0-9.]+ s \([0-9.]+ calls/s, 6 of 6 grids\)", text)
    assert re.search(r"wrote 6 pictures to x.h5: 4 network calls a grid, [0-9.]+ s, [0-9.e+]+ grids/s", text)
    text = vqtool("outpaint", "tok.h5", "--left", 2, "--steps", 2, "-o", "y.h5").err
    assert "grids of 4x8: 2 tiles of 4x6 a call" in text


@pytest.mark.parametrize("sampler", ["ancestral", "psi", "purity"])
@pytest.mark.parametrize("command", ["inpaint", "outpaint", "complete"])
def test_an_animation_ends_with_the_result_and_shows_what_is_given_throughout(
    vqtool, files, monkeypatch, command, sampler
):
    animations, draw = [], trajectories.draw_frames
    monkeypatch.setattr(
        trajectories, "draw_frames", lambda grids, *more: animations.append(grids.numpy()) or draw(grids, *more)
    )
    line = [command, *LINES[command], "--sampler", sampler, "--steps", 6, "-n", 3]
    result = vqtool(*line, "--trajectory", "x.webp", "-o", "x.h5")
    assert result.code == 0
    (frames,) = animations
    assert f"wrote x.webp: {len(frames)} frames of 8 grids" in result.err
    assert len(frames) > 3
    assert np.array_equal(frames[-1], tokens("x.h5")[:8])
    old = tokens("tok.h5").repeat(3, axis=0)[:8]
    known = {
        "inpaint": np.s_[:, :, 3:],
        "outpaint": np.s_[:, 3:, 2:],
        "complete": np.s_[:, 3:],
    }[command]
    shown = old[:, :, 3:] if command == "inpaint" else old[:, 3:] if command == "complete" else old
    assert all(np.array_equal(frame[known], shown) for frame in frames)
    with Image.open("x.webp") as image:
        assert image.n_frames <= len(frames)  # frames that look the same are one
    assert vqtool(*line, "-o", "y.h5").code == 0
    assert np.array_equal(tokens("x.h5"), tokens("y.h5"))


def test_pictures_are_animated_too_whatever_the_batch(vqtool, files):
    line = ["inpaint", "imgs", "-m", "center", "--purity", "--steps", 5, "--feather", 2]
    for size in (1, "auto"):
        assert vqtool(*line, "-b", size, "--trajectory", f"{size}.gif", "-o", f"out{size}").code == 0
    assert (files / "1.gif").read_bytes() == (files / "auto.gif").read_bytes()
    assert (files / "out1" / "00.png").read_bytes() == (files / "outauto" / "00.png").read_bytes()


def test_where_nothing_moves_there_is_no_animation_and_a_warning(vqtool, files):
    result = vqtool("vary", "tok.h5", "--strength", 0, "--trajectory", "x.gif", "-o", "x.h5")
    assert result.code == 0
    assert "warning: x.gif: not written" in result.err
    assert "x.gif" not in entries()


def test_larger_grids_can_be_stretched_over(vqtool, files):
    line = ["outpaint", "tok.h5", "--left", 3, "--purity"]
    assert vqtool(*line, "-o", "x.h5").code == 0
    assert vqtool(*line, "--grid-mode", "stretch", "-o", "y.h5").code == 0
    assert not np.array_equal(tokens("x.h5"), tokens("y.h5"))
    assert np.array_equal(tokens("y.h5")[:, :, 3:], tokens("tok.h5"))
    record = json.loads(vqtool("info", "y.h5", "--json").out)["history"][-1]
    assert record["grid_mode"] == "stretch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0: auto, or a number from 1 on, is expected"),
        (["--grid-mode", "stretch"], "--grid-mode is about grids larger than those of training"),
        (["--overlap", "2"], "--overlap is about grids larger than those of training"),
        (["--trajectory", "x.mp4"], "x.mp4: an animation is a .webp, .gif, .png file"),
        (["--trajectory", "tok.h5"], "tok.h5: an animation is"),
        (["--trajectory", "x.png", "-o", "x.png"], "--trajectory and --output both name x.png"),
        (["--masked", "--dry-run"], "--masked makes nothing"),
        (["--masked", "--trajectory", "x.gif"], "--masked makes nothing"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(vqtool, files, arguments, message):
    before = entries()
    output = [] if "-o" in arguments else ["-o", "x.h5"]
    result = vqtool("inpaint", "tok.h5", "-m", "center", *arguments, *output)
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert message in line
    assert entries() == before
