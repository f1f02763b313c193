"""`vqtool codebook finetune`: a decoder that learns what the codes mean, and what it says of old grids."""

import shlex

import pytest
import torch
from support.commands import build_tokenizer, error_lines, write_pictures

from vqtool import artifacts
from vqtool.grids import read_grids
from vqtool.images import read_images, to_uint8
from vqtool.priors import fits_builtin
from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer

SETTINGS = ("--size", "16", "-b", "4", "--steps", "12", "--learning-rate", "0.003")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty current folder with `imgs/`, 8 pictures of 16x16, and a tokenizer `old`."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 8)
    save_tokenizer(tmp_path / "old.safetensors", build_tokenizer(), history=[{"step": "made"}])
    return tmp_path


@pytest.fixture
def finetune(vqtool, work):
    """Run `vqtool codebook finetune old.safetensors imgs`."""

    def run(*arguments):
        return vqtool("codebook", "finetune", "old.safetensors", "imgs", *SETTINGS, *arguments)

    return run


def test_decoder_and_codes_are_new_the_encoder_is_not_and_the_file_says_where_it_came_from(finetune):
    result = finetune("-o", "new.safetensors")
    assert (result.code, result.data) == (0, b"")
    old, new = load_tokenizer("old.safetensors"), load_tokenizer("new.safetensors")
    for name, tensor in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], tensor) is name.startswith("encoder")
    header = artifacts.verify("new.safetensors")
    assert header.parents == {"tokenizer": old.fingerprint}
    assert [record["step"] for record in header.history] == ["made", "codebook finetune"]


def named_command(lines, word):
    """The arguments of a command that is named in one of the lines."""
    line = next(line for line in lines if f"vqtool {word}" in line)
    return shlex.split(line[line.index("vqtool ") :])[1:]


def test_the_commands_that_it_names_bring_old_grids_along(finetune, vqtool):
    assert vqtool("encode", "imgs", "--size", "16", "-t", "old.safetensors").code == 0
    lines = finetune("-o", "new.safetensors").err.splitlines()
    for word in ("codebook", "encode"):
        assert vqtool(*named_command(lines, word)).code == 0
    new = load_tokenizer("new.safetensors")
    assert (new.identity, new.codes_of) == (new.fingerprint, "")
    for grids in ("new.h5", "tok.h5"):
        assert read_grids(grids)[0].tokenizer_fingerprint == new.fingerprint


def test_grids_go_on_with_a_decoder_that_learned_alone(finetune, vqtool):
    """The file has the identity of its start, also after a second training; what is encoded anew is the very same."""
    assert vqtool("encode", "imgs", "--size", "16", "-t", "old.safetensors").code == 0
    lines = finetune("-o", "new.safetensors", "--keep-codes").err.splitlines()
    old, new = load_tokenizer("old.safetensors"), load_tokenizer("new.safetensors")
    assert (new.identity, new.codes_of) == (old.fingerprint, old.fingerprint)
    assert new.fingerprint != old.fingerprint
    assert artifacts.verify("new.safetensors").parents == {"tokenizer": old.fingerprint, "codes": old.fingerprint}
    result = vqtool(*named_command(lines, "decode"))
    assert result.code == 0
    assert "another tokenizer" not in result.err
    header, before = read_grids("tok.h5")
    decoded = read_images(["new"], (16, 16), words="none").images
    by_new, by_old = (to_uint8(each.decode(torch.from_numpy(before.tokens.astype(int)))) for each in (new, old))
    assert (decoded == by_new).all()
    assert (decoded != by_old).any()

    assert vqtool("encode", "imgs", "--size", "16", "-t", "new.safetensors", "-o", "again.h5").code == 0
    again, after = read_grids("again.h5")
    assert (after.tokens == before.tokens).all()
    assert (again.tokenizer_fingerprint, again.tokenizer_location) == (old.fingerprint, "new.safetensors")
    again.check_same(header, "again.h5", "tok.h5")
    assert vqtool("codebook", "finetune", "new.safetensors", "imgs", *SETTINGS, "--keep-codes", "-o", "more").code == 0
    more = load_tokenizer("more")
    assert (more.identity, artifacts.read_header("more").parents["tokenizer"]) == (old.fingerprint, new.fingerprint)


def test_the_built_in_prior_is_decoded_by_a_decoder_of_ones_own_and_goes_on_with_its_grids(vqtool, work):
    """The weights of the built-in tokenizer have 16 bits, and so has what comes of it."""
    settings = ("--size", "16", "-b", "1", "--steps", "1", "--keep-codes")
    assert vqtool("codebook", "finetune", "builtin", "imgs", *settings, "-o", "mine.safetensors").code == 0
    mine, builtin = load_tokenizer("mine.safetensors"), load_tokenizer()
    assert (mine.identity, mine.half_precision) == (builtin.fingerprint, True)
    assert vqtool("sample", "builtin", "--caption", "a red apple", "-n", 1, "--steps", 1, "-o", "s.h5").code == 0
    result = vqtool("decode", "s.h5", "-t", "mine.safetensors", "-o", "apple")
    assert (result.code, "warning" in result.err) == (0, False)
    assert vqtool("encode", "imgs", "-t", "mine.safetensors", "-o", "tok.h5").code == 0
    assert fits_builtin(read_grids("tok.h5")[0], size=True)


def test_a_decoder_that_learned_alone_can_be_refused_for_nothing_but_rounding(finetune, vqtool):
    """--half rounds the encoder of 32-bit weights, not that of 16-bit ones; then grids are not taken."""
    assert vqtool("encode", "imgs", "--size", "16", "-t", "old.safetensors").code == 0
    result = finetune("-o", "new.safetensors", "--keep-codes", "--half")
    assert "--half rounded encoder and codes" in result.err
    assert load_tokenizer("new.safetensors").codes_of == ""
    result = vqtool("decode", "tok.h5", "-t", "new.safetensors", "-o", "new")
    assert result.code == 1
    assert "is not the tokenizer" in error_lines(result.err)[0]
    assert vqtool("codebook", "finetune", "new.safetensors", "imgs", *SETTINGS, "--keep-codes", "-o", "more").code == 0
    more = load_tokenizer("more")
    assert (more.half_precision, more.identity) == (True, load_tokenizer("new.safetensors").fingerprint)


def test_check_compares_encoder_and_codes_with_those_of_the_parent(finetune, vqtool, work):
    """A file that says so falsely is bad where the parent is at hand; where it is not, nobody can tell."""
    assert finetune("-o", "new.safetensors", "--keep-codes").code == 0
    assert vqtool("check", "new.safetensors").code == 0
    header, tensors = artifacts.load("new.safetensors")
    tensors["codebook"][0] += 1
    artifacts.save("false.safetensors", kind="tokenizer", config=header.config, tensors=tensors, parents=header.parents)
    result = vqtool("check", "false.safetensors")
    assert result.code == 1
    assert "is not that of old.safetensors" in result.out
    (work / "old.safetensors").rename(work / "old")
    assert vqtool("check", "false.safetensors").code == 0


def test_a_name_that_is_no_fingerprint_is_damage(work, vqtool):
    header, tensors = artifacts.load("old.safetensors")
    forged = {"config": header.config, "tensors": tensors, "parents": {"codes": "../old"}}
    artifacts.save("forged.safetensors", kind="tokenizer", **forged)
    result = vqtool("encode", "imgs", "-t", "forged.safetensors")
    assert result.code == 1
    assert "its vqtool header is damaged: the parent 'codes' is no fingerprint: '../old'" in error_lines(result.err)[0]


def test_info_shows_the_identity_beside_the_fingerprint(finetune, vqtool):
    assert finetune("-o", "new.safetensors", "--keep-codes").code == 0
    new = load_tokenizer("new.safetensors")
    text = vqtool("info", "new.safetensors").out
    assert f"fingerprint   {new.fingerprint}" in text
    assert f"known as      {new.identity}, whose encoder and codes it kept" in text
    assert "known as" not in vqtool("info", "old.safetensors").out


def test_an_interrupted_run_is_resumed_with_the_same_tokenizer_alone(finetune, work):
    assert finetune("-o", "new.safetensors").code == 0
    first = artifacts.read_header("new.safetensors").fingerprint
    assert finetune("-o", "new.safetensors", "--resume").code == 0
    assert artifacts.read_header("new.safetensors").fingerprint == first
    save_tokenizer("old.safetensors", build_tokenizer(seed=1), force=True)
    result = finetune("-o", "new.safetensors", "--resume")
    assert result.code == 1
    assert "not the tokenizer that the run began with" in error_lines(result.err)[0]


def test_half_precision_stays_what_it_was(finetune):
    tokenizer = build_tokenizer()
    tokenizer.half_precision = True
    save_tokenizer("old.safetensors", tokenizer, force=True)
    assert finetune("-o", "new.safetensors").code == 0
    new, old = load_tokenizer("new.safetensors"), load_tokenizer("old.safetensors")
    assert new.half_precision
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    assert torch.equal(new.latents(images), old.latents(images))


def test_codes_that_cannot_learn_and_files_that_are_none_are_named(finetune, vqtool):
    projected = Tokenizer(build_tokenizer().config, lookup="projection")
    save_tokenizer("old.safetensors", projected, force=True)
    result = finetune()
    assert result.code == 1
    assert "old.safetensors has a lookup by projection: its codes cannot learn" in error_lines(result.err)[0]
    assert finetune("--keep-codes").code == 0
    result = finetune("--keep-codes")
    assert "finetuned.safetensors: exists; use --force" in error_lines(result.err)[0]
    result = finetune("-o", "other", "--adversarial-max", "1")
    assert "--adversarial-max goes with --adversarial" in error_lines(result.err)[0]
    result = vqtool("codebook", "finetune", "gone", "imgs", "-o", "other")
    assert result.code == 1
    assert "gone" in error_lines(result.err)[0]
