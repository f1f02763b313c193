"""`vqtool inpaint`: what the mask leaves stays as it was, in tokens and in pixels; what cannot be is one line."""

import io
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import error_lines, shell, write_pictures
from support.editing_run import SIZE, entries, make_work, rewrite, save_prior, tokens  # noqa: F401
from support.png import make_png

from vqtool import samplers
from vqtool.grids import open_grids, read_grids
from vqtool.images import find_images, read_batches
from vqtool.priors import load_prior

LEFT = np.zeros((4, 6), bool)
LEFT[:, :3] = True


def read_pixels(folder):
    return next(read_batches(find_images([folder]), None, 100)).images


def save_mask(path, white, size=SIZE):
    pixels = np.zeros(size, np.uint8)
    pixels[white] = 255
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("kernel", ["mask-replace", "absorbing", "uniform"])
def test_tokens_outside_of_the_mask_stay_and_the_others_are_made_anew(vqtool, work, tokenizer_path, kernel):
    save_prior("prior.safetensors", tokenizer_path, kernel)
    result = vqtool("inpaint", "tok.h5", "--mask", "left-half", "-n", "3", "--steps", "5", "-o", "x.h5")
    assert (result.code, result.data) == (0, b"")
    assert "wrote 9 pictures to x.h5: 5 network calls a grid" in result.err
    old, new = np.repeat(tokens("tok.h5"), 3, axis=0), tokens("x.h5")
    assert np.array_equal(old[:, ~LEFT], new[:, ~LEFT])
    assert (old[:, LEFT] != new[:, LEFT]).mean() > 0.5
    assert not np.array_equal(new[0], new[1])
    header, batch = read_grids("x.h5")
    assert batch.ids == [f"0{i}-{v}" for i in range(3) for v in (1, 2, 3)]
    assert batch.captions == ["", "", "", "a bee", "a bee", "a bee", "", "", ""]
    record = header.history[-1]
    assert (record["step"], record["mask"], record["num"], record["steps"]) == ("inpaint", "left-half", 3, 5)
    assert record["inputs"]["prior"] == load_prior("prior.safetensors").fingerprint
    assert [entry["step"] for entry in header.history] == ["encode", "inpaint"]


def test_variants_do_not_depend_on_the_batches_and_are_what_the_library_draws(vqtool, work):
    line = ["inpaint", "tok.h5", "-m", "center", "-n", 2, "--purity"]
    for size in (1, 4, 64):
        assert vqtool(*line, "-b", size, "-o", f"{size}.h5").code == 0
        assert np.array_equal(tokens(f"{size}.h5"), tokens("1.h5"))
    given = torch.from_numpy(tokens("tok.h5").repeat(2, axis=0))
    given[:, 1:3, 1:5] = 16  # a half of 6 columns ends inside of cells
    drawn = samplers.sample(load_prior("prior.safetensors"), 6, sampler="purity", known=given)
    assert np.array_equal(drawn.numpy(), tokens("1.h5"))


@pytest.mark.parametrize(
    ("mask", "cells"),
    [
        ("right-half", np.s_[:, 3:]),
        ("top-half", np.s_[:2, :]),
        ("bottom-half", np.s_[2:, :]),
        ("box:8,16,8,8", np.s_[1:2, 2:3]),
        ("box:7,15,10,10", np.s_[0:3, 1:4]),  # one pixel more on every side touches all neighbours
        ("box:31,47,1,1", np.s_[3:, 5:]),
        ("mask.png", np.s_[2:3, :2]),
    ],
)
def test_every_cell_that_the_mask_touches_is_made_anew_and_no_other(vqtool, work, mask, cells):
    save_mask("mask.png", np.s_[20:23, 0:9])
    assert vqtool("inpaint", "tok.h5", "--mask", mask, "--masked", "-o", "x.h5").code == 0
    with open_grids("x.h5", masked=True) as reader:
        (batch,) = reader.batches()
    expected = tokens("tok.h5")
    expected[(slice(None), *cells)] = 16
    assert np.array_equal(batch.tokens, expected)


def test_a_random_mask_has_its_share_of_each_picture_and_another_for_each(vqtool, work):
    for seed in (0, 0, 1):
        line = ["inpaint", "tok.h5", "-m", "random:0.25", "--masked", "--seed", seed]
        assert vqtool(*line, "-f", "-o", f"{seed}.h5").code == 0
    masked = []
    for seed in (0, 1):
        with open_grids(f"{seed}.h5", masked=True) as reader:
            masked += [next(reader.batches()).tokens == 16]
    assert [grid.sum() for grid in np.concatenate(masked)] == [6] * 6
    assert len({grid.tobytes() for grid in np.concatenate(masked)}) == 6


def test_images_get_back_every_pixel_outside_of_the_mask(vqtool, work):
    old, white = read_pixels("imgs"), np.zeros(SIZE, bool)
    white[4:13, 10:30] = True
    line = ["inpaint", "imgs", "-m", "box:4,10,9,20", "--steps", 4]
    assert vqtool(*line, "-o", "out").code == 0
    new = read_pixels("out")
    assert np.array_equal(new[:, :, ~white], old[:, :, ~white])
    assert (new[:, :, white] != old[:, :, white]).mean() > 0.9
    assert vqtool(*line, "-o", "x.h5").code == 0
    assert vqtool("decode", "x.h5", "-o", "plain").code == 0
    assert vqtool(*line, "--no-paste", "-o", "all").code == 0
    plain = read_pixels("plain")
    assert np.array_equal(read_pixels("all"), plain)
    assert np.array_equal(new[:, :, white], plain[:, :, white])
    assert vqtool(*line, "--feather", 3, "-o", "soft").code == 0
    soft, far = read_pixels("soft"), np.ones(SIZE, bool)
    far[1:16, 7:33] = False
    assert np.array_equal(soft[:, :, far], old[:, :, far])
    assert np.array_equal(soft[:, :, white], plain[:, :, white])
    edge = (old[:, :, 8, 30] + 0.75 * (plain[:, :, 8, 30].astype(float) - old[:, :, 8, 30])).round()
    assert np.array_equal(soft[:, :, 8, 30], edge)
    assert "a bee" in (work / "out" / "metadata.jsonl").read_text()


def test_a_class_or_caption_is_the_pictures_own_unless_another_is_given(vqtool, work, tokenizer_path):
    save_prior("prior.safetensors", tokenizer_path, kind="caption")
    prior, given = load_prior("prior.safetensors"), tokens("tok.h5")
    given[:, :2] = 16
    for flags, texts in (([], [None, "a bee", None]), (["--caption", "an ant"], ["an ant"] * 3)):
        line = ["inpaint", "tok.h5", "-m", "top-half", "--cfg-scale", 2, "--purity", *flags]
        assert vqtool(*line, "-f", "-o", "x.h5").code == 0
        arguments = {"sampler": "purity", "cfg_scale": 2.0, "condition": prior.conditioner.encode(texts)}
        drawn = samplers.sample(prior, 3, known=torch.from_numpy(given), **arguments)
        assert np.array_equal(drawn.numpy(), tokens("x.h5"))
        captions = read_grids("x.h5")[1].captions
        assert captions == (["an ant"] * 3 if flags else ["", "a bee", ""])  # what it shows now
    result = vqtool("inpaint", "tok.h5", "-m", "top-half", "--label", "ant", "-o", "y.h5")
    assert "--label does not go with this prior" in error_lines(result.err)[0]


def test_it_works_in_pipes(work):
    line = "cat tok.h5 | $vqtool inpaint - -m center --masked | $vqtool complete - --purity | $vqtool check -"
    result = shell(line, work)
    assert (result.code, result.out) == (0, "ok -\n")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("box:0,0,0,5", "the box is empty, or not inside of pictures of 32x48 pixels"),
        ("box:0,40,8,9", "not inside of pictures of 32x48 pixels"),
        ("box:1,2,3", "expected box:TOP,LEFT,HEIGHT,WIDTH in pixels"),
        ("box:0,0,32,48", "keeps no cell of the 4x6: `vqtool sample` makes whole pictures anew"),
        ("random:0", "some but not all"),
        ("random:1", "some but not all"),
        ("random:half", "expected a share of the 24 cells"),
        ("random:nan", "expected a share of the 24 cells"),
        ("middle", "neither a file nor one of left-half, right-half"),
        ("black.png", "keeps the whole picture, so that there is nothing to make anew"),
        ("large.png", "has 64x48 pixels, the pictures have 32x48 (height x width)"),
        ("gray.png", "neither black (keep) nor white (make anew): not a mask"),
        ("tok.h5", "cannot be read as an image"),
        ("imgs", "neither a file nor one of"),
    ],
)
def test_a_mask_that_cannot_be_is_one_line(vqtool, work, mask, message):
    save_mask("black.png", np.s_[0:0])
    save_mask("large.png", np.s_[:9], (64, 48))
    Image.fromarray(np.full(SIZE, 128, np.uint8)).save("gray.png")
    before = entries()
    result = vqtool("inpaint", "tok.h5", "--mask", mask, "-o", "x.h5")
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert message in error_lines(result.err)[0]
    assert entries() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tok.h5", "--feather", "2"], "--feather is about pictures, but --output asks for token grids"),
        (["imgs", "--feather", "2", "--no-paste", "-o", "new"], "--paste is off"),
        (["tok.h5", "--masked", "-n", "2"], "--masked writes one masked grid a picture"),
        (["tok.h5", "--masked", "-o", "new"], "it needs an --output like x.h5"),
        (["tok.h5", "--size", "32"], "--size is for images, but tok.h5 holds token grids"),
        (["imgs", "--size", "16"], "makes grids of 2x2, but the prior knows those of 4x6 and no parts of them"),
        (["small.h5"], "makes grids of 4x4, but the prior knows those of 4x6"),
        (["other.h5"], "has tokenizer ffffffffffffffff, but the prior has tokenizer"),
        (["large.h5"], "has codebook size 17, but the prior has codebook size 16"),
        (["tok.h5", "tok.h5"], "one grid file at a time"),
        (["tok.h5", "-p", "gone.safetensors"], "gone.safetensors: no such file"),
        (["tok.h5", "--sampler", "magic"], "unknown sampler 'magic'"),
        (["tok.h5", "--steps", "0"], "--steps 0"),
        (["tok.h5", "--caption", "an ant"], "--caption does not go with this prior, which takes no condition"),
        (["tok.h5", "-o", "tok.h5"], "tok.h5: exists"),
        (["tok.h5", "-o", "imgs"], "imgs: exists and is not empty"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(vqtool, work, arguments, message):
    rewrite("small.h5", "tok.h5", lambda old: old[:, :, :4], grid_size=(4, 4), image_size=(32, 32))
    rewrite("other.h5", "tok.h5", lambda old: old, tokenizer_fingerprint="f" * 16)
    rewrite("large.h5", "tok.h5", lambda old: old, codebook_size=17)
    before = entries(), (work / "tok.h5").read_bytes()
    output = [] if "-o" in arguments else ["-o", "x.h5"]
    result = vqtool("inpaint", *arguments, *output, "--mask", "left-half")
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert message in error_lines(result.err)[0]
    assert (entries(), (work / "tok.h5").read_bytes()) == before


def test_bad_images_are_skipped_named_and_counted(vqtool, work):
    (work / "imgs" / "005.png").write_bytes(b"no picture")
    result = vqtool("inpaint", "imgs", "-m", "center", "--purity", "-o", "x.h5")
    assert (result.code, len(error_lines(result.err))) == (1, 1)
    assert "skipped imgs/005.png" in result.err
    assert h5py.File("x.h5")["tokens"].shape == (3, 4, 6)
    assert vqtool("inpaint", "imgs", "-m", "center", "--strict", "-o", "y.h5").code == 1
    result = vqtool("inpaint", "imgs/005.png", "-m", "center", "-o", "y.h5")
    assert error_lines(result.err) == ["error: none of the 1 image could be read"]
    assert "y.h5" not in entries()


def test_a_sheet_and_a_tar_can_be_written(vqtool, work):
    assert vqtool("inpaint", "imgs", "-m", "center", "--purity", "-n", "2", "-o", "x.png").code == 0
    assert Image.open(io.BytesIO((work / "x.png").read_bytes())).size[0] > 48
    assert vqtool("inpaint", "imgs", "-m", "center", "--purity", "-o", "x.tar").code == 0
    assert len(read_pixels("x.tar")) == 3


@pytest.fixture
def photo(work):
    """A picture of 90x130 pixels with a caption, in `photo/`."""
    write_pictures(work / "photo", 1, size=(90, 130))
    (work / "photo" / "00.txt").write_text("a crow")
    return work


def test_a_picture_keeps_its_size_and_all_pixels_outside_of_the_mask(vqtool, photo):
    (old,), mask = read_pixels("photo"), np.zeros((90, 130), bool)
    mask[40:61, 100:130] = True  # at the border
    save_mask("mask.png", mask, (90, 130))
    for name in ("box:40,100,21,30", "mask.png"):
        assert vqtool("inpaint", "photo/00.png", "-m", name, "--steps", 2, "-f", "-o", "new.png").code == 0
        new = np.asarray(Image.open("new.png")).transpose(2, 0, 1)
        assert new.shape == (3, 90, 130)
        assert np.array_equal(new[:, ~mask], old[:, ~mask])
        assert (new[:, mask] != old[:, mask]).mean() > 0.9
    assert vqtool("inpaint", "photo/00.png", "-m", "mask.png", "--feather", 5, "--steps", 2, "-o", "soft.png").code == 0
    soft, near = np.asarray(Image.open("soft.png")).transpose(2, 0, 1), np.zeros((90, 130), bool)
    near[35:66, 95:] = True
    assert np.array_equal(soft[:, ~near], old[:, ~near])
    assert (soft[:, near & ~mask] != old[:, near & ~mask]).any()


MODES = {"grey": "L", "dim": "LA", "clear": "RGBA", "palette": "P"}  # of pictures by their names


@pytest.fixture
def modes(photo):
    """Pictures as files have them: grey, with opacity, of a palette; of the second and third a half is transparent."""
    opacity = np.full((90, 130), 255, np.uint8)
    opacity[:30], opacity[30:40] = 0, 128
    for name, mode in MODES.items():
        image = Image.open("photo/00.png").convert(mode)
        if "A" in mode:
            image.putalpha(Image.fromarray(opacity))
        image.save(f"photo/{name}.png")
    return photo


def own_pixels(path):
    """(height, width, C) as Pillow reads the file; of a palette the colours."""
    with Image.open(path) as image:
        return np.atleast_3d(np.asarray(image.convert("RGB") if image.mode == "P" else image))


def test_pictures_keep_their_greys_and_opacity_outside_of_the_mask(vqtool, modes):
    result = vqtool("inpaint", "photo", "-m", "box:20,5,40,9", "--steps", 2, "-n", 2, "-o", "out")
    assert result.code == 0, result.err
    assert "2 of 5 pictures (clear, ...) have transparent pixels, which the prior sees as white" in result.err
    mask = np.zeros((90, 130), bool)
    mask[20:60, 5:14] = True
    for name in MODES:
        old = own_pixels(f"photo/{name}.png")
        variants = list((modes / "out").glob(f"{name}*.png"))
        assert len(variants) == 2
        for variant in variants:
            new = own_pixels(variant)
            assert new.shape == old.shape, name
            assert np.array_equal(new[~mask], old[~mask])
            assert (new[mask] != old[mask]).any()
            if old.shape[2] in (2, 4):
                assert (new[mask, -1] == 255).all()


def test_opacity_goes_through_pipes_and_on_larger_canvases(vqtool, modes, tokenizer_path):
    line = "$vqtool inpaint photo/clear.png -m box:60,5,9,9 --steps 2 | $vqtool decode -o out"
    assert shell(line, modes).code == 0
    old, new = own_pixels("photo/clear.png"), own_pixels("out/clear.png")
    assert np.array_equal(new[:60], old[:60])
    assert vqtool("outpaint", "photo/clear.png", "--left", "20px", "--steps", 2, "-o", "wide.png").code == 0
    wide = own_pixels("wide.png")
    assert wide.shape == (90, 150, 4)
    assert np.array_equal(wide[:, 20:], old)
    assert (wide[:, :20, 3] == 255).all()
    assert vqtool("vary", "photo", "--strength", 0.5, "--steps", 2, "-o", "sheet.png").code == 0
    assert own_pixels("sheet.png").shape[2] == 3


def test_greyscale_of_sixteen_bits_keeps_them_outside_of_what_is_drawn(vqtool, photo, tokenizer_path):
    old = np.random.default_rng(0).integers(0, 65536, (90, 130), dtype=np.uint16)
    Image.fromarray(old).save("deep.png")
    Image.fromarray(old).save("deep.tif")
    mask = np.zeros((90, 130), bool)
    mask[20:60, 5:14] = True
    for name in ("deep.png", "deep.tif"):
        line = ("inpaint", name, "-m", "box:20,5,40,9", "--steps", 2, "-f", "-o", "out.png")
        assert vqtool(*line).code == 0
        new = own_pixels("out.png")[..., 0]
        assert new.dtype == np.uint16
        assert np.array_equal(new[~mask], old[~mask])
        assert (new[mask] % 257 == 0).all(), "what is drawn has 8 bits"
        assert (new[mask] != old[mask]).mean() > 0.9
        assert vqtool(*line, "--feather", 3).code == 0
        soft, near = own_pixels("out.png")[..., 0], np.zeros((90, 130), bool)
        near[17:63, 2:17] = True
        assert np.array_equal(soft[~near], old[~near])
    line = "$vqtool inpaint deep.png -m box:20,5,40,9 --steps 2 | $vqtool vary - --strength 0 | $vqtool decode -o out"
    assert shell(line, photo).code == 0
    assert own_pixels("out/deep.png").dtype == np.uint16
    assert vqtool("outpaint", "deep.png", "--left", "20px", "--steps", 2, "-o", "wide.png").code == 0
    wide = own_pixels("wide.png")[..., 0]
    assert wide.dtype == np.uint16
    assert np.array_equal(wide[:, 20:], old)


def test_colours_of_sixteen_bits_come_back_with_eight_and_that_is_told(vqtool, photo):
    rows = b"".join(b"\x00" + struct.pack(">9H", *range(9000, 18000, 1000)) for _ in range(2))
    Path("photo/deep.png").write_bytes(make_png(3, 2, 16, 2, rows))
    result = vqtool("inpaint", "photo", "-m", "box:0,0,1,2", "--steps", 2, "-o", "out")
    assert result.code == 0, result.err
    assert result.err.count("1 of 2 pictures (deep) have 16 bits a colour: they come back with the upper 8") == 1
    assert own_pixels("out/deep.png")[1, 1].tolist() == [12000 // 256, 13000 // 256, 14000 // 256]


def test_pictures_go_through_the_pipe_as_pictures_with_the_caption_that_was_drawn(vqtool, photo, tokenizer_path):
    save_prior("prior.safetensors", tokenizer_path, kind="caption")
    line = '$vqtool inpaint photo/00.png -m box:5,5,9,9 --caption "A red apple." --steps 2 | $vqtool decode -o out'
    assert shell(line, photo).code == 0
    assert (
        shell(line.replace("| $vqtool decode", "-n 2 | $vqtool vary - --strength 0 | $vqtool decode") + "2", photo).code
        == 0
    )
    (old,), (new,) = read_pixels("photo"), read_pixels("out")
    mask = np.zeros((90, 130), bool)
    mask[5:14, 5:14] = True
    assert np.array_equal(new[:, ~mask], old[:, ~mask])
    assert "A red apple." in (photo / "out" / "metadata.jsonl").read_text()
    assert "a crow" not in (photo / "out" / "metadata.jsonl").read_text()
    assert read_pixels("out2").shape == (2, 3, 90, 130)
    result = shell("$vqtool inpaint photo/00.png -m center --steps 2 | $vqtool decode -t builtin -o out3", photo)
    assert "--tokenizer is for token grids, but standard input holds images" in result.err


def test_pictures_of_several_sizes_are_edited_each_in_its_own(vqtool, work):
    for number, size in enumerate([(64, 96), (50, 50), (30, 200)]):
        write_pictures(work / "many" / str(number), 1, size=size, seed=number)
    assert vqtool("inpaint", "many", "-m", "left-half", "--steps", 2, "-n", 2, "-o", "out").code == 0
    for number, width in enumerate([96, 50, 200]):
        old = np.asarray(Image.open(f"many/{number}/00.png"))
        for variant in (1, 2):
            new = np.asarray(Image.open(f"out/{number}_00-{variant}.png"))
            assert new.shape == old.shape
            assert np.array_equal(new[:, width // 2 :], old[:, width // 2 :])
    assert vqtool("inpaint", "many", "-m", "left-half", "--steps", 2, "-o", "sheet.png").code == 0
    result = vqtool("inpaint", "many", "-m", "left-half", "--steps", 2, "-o", "x.h5")
    assert "--output takes one: edit them into a folder" in error_lines(result.err)[0]
    result = vqtool("inpaint", "many", "-m", "box:0,0,20,60", "-o", "x")
    assert error_lines(result.err)[0].startswith("error: many/1/00.png: --mask box:0,0,20,60: the box is empty, or not")
    save_mask("mask.png", np.s_[:9], (64, 96))
    result = vqtool("inpaint", "many", "-m", "mask.png", "-o", "x")
    assert "00.png: --mask mask.png: has 64x96 pixels" in error_lines(result.err)[0]
    assert "x" not in entries()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("full.png", "keeps no pixel of the 90x130: `vqtool sample` makes whole pictures anew"),
        ("empty.png", "keeps the whole picture, so that there is nothing to make anew"),
        ("other.png", "has 32x48 pixels, the pictures have 90x130 (height x width)"),
    ],
)
def test_a_mask_that_does_not_fit_a_picture_is_one_line(vqtool, photo, mask, message):
    save_mask("full.png", np.s_[:], (90, 130))
    save_mask("empty.png", np.s_[0:0], (90, 130))
    save_mask("other.png", np.s_[:9])
    before = entries()
    result = vqtool("inpaint", "photo/00.png", "-m", mask, "-o", "new.png")
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert message in line
    assert entries() == before


def test_variants_that_are_the_same_are_told(vqtool, work):
    told = "variants of 3 of 3 pictures (00, ...) differ in fewer than 5% of the cells that are drawn"
    line = ["inpaint", "tok.h5", "-m", "center", "-n", 3, "--steps", 2, "-f", "-o", "x.h5"]
    assert told not in vqtool(*line).err
    assert told in vqtool(*line, "--top-k", 1, "--sampler", "halton").err
    assert told in vqtool("vary", "tok.h5", "--strength", 0, "-n", 2, "-f", "-o", "x.h5").err
    assert told not in vqtool("vary", "tok.h5", "--strength", 0, "-f", "-o", "x.h5").err
