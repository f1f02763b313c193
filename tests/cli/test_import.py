"""`vqtool import`: checkpoints of other projects become artifacts; what cannot be read is said in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import TINY, build_tokenizer, write_pictures

from vqtool.priors import load_prior
from vqtool.tokenizers import save_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_source_that_is_not_there_or_of_no_known_format_is_one_line(tmp_path, vqtool):
    result = vqtool("import", tmp_path / "none.pth")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert "no such file or folder" in result.err
    torch.save({"apple": torch.ones(1)}, tmp_path / "m.pt")
    result = vqtool("import", tmp_path / "m.pt", "-o", tmp_path / "out.safetensors")
    assert result.code == 1
    assert "of no format that is known" in result.err
    assert "apple" in result.err
    assert not (tmp_path / "out.safetensors").exists()


def test_an_unknown_format_or_choice_of_weights_lists_the_known(tmp_path, vqtool):
    result = vqtool("import", tmp_path / "m.pt", "--format", "nothing")
    assert result.code == 1
    assert "unknown format 'nothing': known are" in result.err
    assert "known are ema, raw" in vqtool("import", tmp_path / "m.pt", "--weights", "best").err


def test_flags_that_mean_nothing_for_a_source_are_named(tmp_path, vqtool):
    source = GOLDEN / "taming-vqgan" / "last.ckpt"
    for flag, value in (("--num-heads", "3"), ("--weights", "raw"), ("--grid-size", "4")):
        result = vqtool("import", source, flag, value, "-o", tmp_path / "t.safetensors")
        assert result.code == 1
        assert f"{flag} says nothing about this taming source: leave it out" in result.err
    assert not (tmp_path / "t.safetensors").exists()


def test_config_none_leaves_out_the_settings_beside_a_checkpoint(tmp_path, vqtool):
    source = GOLDEN / "taming-vqgan" / "last.ckpt"
    result = vqtool("import", source, "--config", "none", "-o", tmp_path / "t.safetensors")
    assert result.code == 0, result.err
    assert "no settings of the tokenizer were given" in result.err


def test_what_the_weights_of_vq_diffusion_do_not_say_is_asked_for_by_flags(tmp_path, vqtool):
    source = GOLDEN / "ms-prior-class" / "tiny_pretrained.pth"
    result = vqtool("import", source, "--config", "none", "-o", tmp_path / "p.safetensors")
    assert result.code == 1
    for flag in ("--config", "--num-heads", "--activation", "--grid-size"):
        assert flag in result.err


@pytest.fixture
def prior_without_tokenizer(tmp_path, vqtool):
    """A prior of 56 codes and 4x4 cells, imported alone; and a tokenizer that could be its own."""
    prior = tmp_path / "models" / "prior.safetensors"
    prior.parent.mkdir()
    source = GOLDEN / "ut-absorbing" / "absorbing_ema_2000000.th"
    assert vqtool("import", source, "--num-heads", "4", "-o", prior).code == 0
    tokenizer = tmp_path / "models" / "tok.safetensors"
    save_tokenizer(tokenizer, build_tokenizer(config=replace(TINY, codebook_size=56)))
    return prior, tokenizer, source


def test_samples_of_a_prior_without_a_tokenizer_are_decoded_by_the_one_that_is_named(
    tmp_path, vqtool, prior_without_tokenizer
):
    prior, tokenizer, _ = prior_without_tokenizer
    grids = tmp_path / "g.h5"
    assert vqtool("sample", prior, "-n", "2", "--steps", "2", "-o", grids).code == 0
    result = vqtool("decode", grids, "-o", tmp_path / "out")
    assert result.code == 1
    assert "--tokenizer" in result.err
    assert "vqtool import SOURCE --tokenizer FILE" in result.err
    assert vqtool("decode", grids, "-t", tokenizer, "-o", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_samples_are_decoded_by_the_tokenizer_beside_their_prior_wherever_both_are_called_from(
    tmp_path, monkeypatch, vqtool, prior_without_tokenizer
):
    _, _, source = prior_without_tokenizer
    monkeypatch.chdir(tmp_path / "models")
    assert vqtool("import", source, "--num-heads", "4", "-t", "tok.safetensors", "-o", "whole.safetensors").code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert (
        vqtool("sample", tmp_path / "models" / "whole.safetensors", "-n", "2", "--steps", "2", "-o", "g.h5").code == 0
    )
    assert vqtool("decode", stdin="g.h5").code == 0
    assert len(list((elsewhere / "decoded").glob("*.png"))) == 2


def test_another_tokenizer_of_as_many_codes_decodes_with_force_alone(tmp_path, vqtool, prior_without_tokenizer):
    _, tokenizer, source = prior_without_tokenizer
    prior, other, small = (tmp_path / f"{name}.safetensors" for name in ("whole", "other", "small"))
    save_tokenizer(other, build_tokenizer(1, replace(TINY, codebook_size=56)))
    save_tokenizer(small, build_tokenizer(1, replace(TINY, codebook_size=55)))
    assert vqtool("import", source, "--num-heads", "4", "-t", tokenizer, "-o", prior).code == 0
    assert vqtool("sample", prior, "-n", "1", "--steps", "2", "-o", tmp_path / "g.h5").code == 0
    result = vqtool("decode", tmp_path / "g.h5", "-t", other, "-o", tmp_path / "out")
    assert result.code == 1
    assert "is not the tokenizer" in result.err
    result = vqtool("decode", tmp_path / "g.h5", "-t", other, "--force", "-o", tmp_path / "out")
    assert result.code == 0
    assert "another tokenizer than" in result.err
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    result = vqtool("decode", tmp_path / "g.h5", "-t", small, "--force", "-o", tmp_path / "out2")
    assert result.code == 1
    assert "do not fit the tokenizer" in result.err


def test_a_published_prior_is_sampled_as_published_by_the_names_of_its_classes(tmp_path, vqtool):
    tokenizer, prior, grids = (tmp_path / name for name in ("tok.safetensors", "p.safetensors", "g.h5"))
    save_tokenizer(tokenizer, build_tokenizer(config=replace(TINY, codebook_size=48)))
    source = GOLDEN / "hm-prior" / "ImageNet_96_tiny.pth"
    result = vqtool("import", source, "-t", tokenizer, "--num-heads", "3", "-o", prior)
    assert result.code == 0, result.err
    assert "classes: 1,000, taken for ImageNet's" in result.err
    result = vqtool("sample", prior, "--label", "Goldfish", "--label", "207", "-n", "2", "-o", grids)
    assert result.code == 0, result.err
    assert (
        "as published for this prior: sampler halton, steps 32, cfg_scale 2, temperature 2,1,1,1,... (32 values)"
        in (result.err)
    )
    assert vqtool("decode", grids, "-o", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    result = vqtool("sample", prior, "--label", "goldfsh", "-n", "1", "-o", grids, "--force")
    assert result.code == 1
    assert "did you mean 'goldfish'" in result.err
    again = ("sample", prior, "--label", "1", "-n", "1", "--steps", "4", "--cfg-scale", "1", "--temperature", "1.2,0.8")
    result = vqtool(*again, "-o", grids, "--force")
    assert result.code == 0, result.err
    assert "as published for this prior: sampler halton\n" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["halton-maskgit", "amused"])
def test_training_goes_on_with_an_imported_prior_and_lowers_its_bound(tmp_path, monkeypatch, vqtool, kind):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("goldfish", "tench")):
        pictures = write_pictures(tmp_path / "imgs" / name, 6, size=(48, 48), seed=number)
        for picture in pictures.glob("*.png"):
            picture.with_suffix(".txt").write_text(f"a {name}")
    if kind == "amused":
        assert vqtool("import", GOLDEN / "amused-pipeline", "-o", "p.safetensors").code == 0
        tokenizer, size = "p.tokenizer.safetensors", "16"
    else:
        save_tokenizer("tok.safetensors", build_tokenizer(config=replace(TINY, codebook_size=48)))
        source = GOLDEN / "hm-prior" / "ImageNet_96_tiny.pth"
        result = vqtool("import", source, "-t", "tok.safetensors", "--num-heads", "3", "-o", "p.safetensors")
        assert result.code == 0, result.err
        tokenizer, size = "tok.safetensors", "48"
    assert vqtool("encode", "imgs", "-t", tokenizer, "--size", size, "-o", "tok.h5").code == 0
    result = vqtool("train-prior", "tok.h5", "--from", "p.safetensors", "--steps", "20", "-o", "tuned.safetensors")
    assert result.code == 0, result.err
    bits = []
    for name in ("p", "tuned"):
        result = vqtool("eval", "--likelihood", "tok.h5", "--prior", f"{name}.safetensors", "-o", f"{name}.json")
        assert result.code == 0, result.err
        scores = json.loads(Path(f"{name}.json").read_text())["scores"]
        bits.append(scores["bits-per-token"])
    assert bits[1] < bits[0] - 0.2
    assert load_prior("tuned.safetensors").sampling == load_prior("p.safetensors").sampling
