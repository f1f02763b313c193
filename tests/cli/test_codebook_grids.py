"""`vqtool codebook usage`, `remap`, `prune` and `apply-map`: what grids use, and grids in other codes."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.commands import build_tokenizer, error_lines, shell, write_pictures
from support.exact import random_prior

from vqtool import artifacts
from vqtool.codebooks.maps import load_map
from vqtool.codebooks.rebuilt import with_codebook
from vqtool.errors import MismatchError
from vqtool.extras import install_command
from vqtool.grids import GridWriter, read_grids
from vqtool.priors import GridSpec
from vqtool.tokenizers import load_tokenizer, save_tokenizer
from vqtool.tokenizers.batches import decode_batch


@pytest.fixture
def work(tmp_path, vqtool, monkeypatch):
    """A current folder with `tok.h5`: 30 pictures of 16x16 in tokens of `old.safetensors`, which uses few codes."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 30)
    tokenizer = build_tokenizer()
    tokenizer.codebook[2::3] = 100 + torch.arange(5.0)[:, None]  # far from all latents: 11 of 16 codes can be in use
    save_tokenizer("old.safetensors", tokenizer, history=[{"step": "made"}])
    assert vqtool("encode", "imgs", "--size", "16", "-t", "old.safetensors").code == 0
    return tmp_path


def refitted(name="new.safetensors", size=12):
    """A tokenizer with the networks of `old.safetensors` and other codes, written to a file."""
    old = load_tokenizer("old.safetensors")
    codes = old.codebook[:1] + torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    save_tokenizer(name, with_codebook(old, codes), parent=old, force=True)
    return load_tokenizer(name)


def tokens_of(name):
    return read_grids(name)[1].tokens


def images_of(name, tokenizer):
    return decode_batch(read_grids(name)[1], load_tokenizer(tokenizer))


# usage


def test_usage_is_what_counting_by_hand_gives(vqtool, work):
    counts = Counter(tokens_of("tok.h5").flatten().tolist())
    result = vqtool("codebook", "usage", "tok.h5", "--json", "--top", "3")
    assert result.code == 0
    about = json.loads(result.out)
    assert (about["num_grids"], about["num_tokens"], about["codebook_size"]) == (30, 120, 16)
    assert about["usage"] == len(counts) / 16
    assert about["usage-10"] == sum(count >= 10 for count in counts.values()) / 16
    shares = np.array(list(counts.values())) / 120
    assert about["perplexity"] == pytest.approx(float(np.prod(shares**-shares)))
    assert about["dead"] == [code for code in range(16) if code not in counts]
    assert about["num_dead"] == len(about["dead"])
    assert dict(about["most_used"]).items() <= counts.items()
    assert [count for _, count in about["most_used"]] == sorted(counts.values())[::-1][:3]
    assert [count for _, count in about["least_used"]] == sorted(counts.values())[:3]
    assert about["tokenizer"] == load_tokenizer("old.safetensors").fingerprint


def test_usage_of_several_files_and_of_a_pipe_is_that_of_all_their_grids(vqtool, work):
    one = json.loads(vqtool("codebook", "usage", "tok.h5", "--json").out)
    both = json.loads(vqtool("codebook", "usage", "tok.h5", "tok.h5", "--json").out)
    assert vqtool("cat", "tok.h5", "tok.h5", "-o", "twice.h5").code == 0
    assert json.loads(vqtool("codebook", "usage", "--json", stdin="twice.h5").out) == both
    assert both["num_tokens"] == 2 * one["num_tokens"]
    assert (both["usage"], both["perplexity"]) == (one["usage"], pytest.approx(one["perplexity"]))


def test_usage_is_readable_and_warns_of_few_tokens(vqtool, work):
    result = vqtool("codebook", "usage", "tok.h5")
    assert result.out.startswith("30 grids, 120 tokens; tokenizer ")
    lines = {line.split("  ")[1]: line for line in result.out.splitlines()[1:]}
    assert set(lines) == {"in use", "10 times", "perplexity", "dead", "most used", "least used"}
    assert "2, 5, 8, 11, 14" in lines["dead"]
    assert "warning: 120 tokens are few for 16 codes" in result.err


def test_the_histogram_is_drawn_when_asked_for(vqtool, work):
    assert vqtool("codebook", "usage", "tok.h5", "--plot", "usage.png").code == 0
    drawn = (work / "usage.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    result = vqtool("codebook", "usage", "tok.h5", "--plot", "usage.png")
    assert (result.code, result.data) == (1, b"")
    assert "usage.png: exists; use --force" in error_lines(result.err)[0]
    assert vqtool("codebook", "usage", "tok.h5", "--plot", "usage.png", "--force").code == 0
    assert (work / "usage.png").read_bytes() == drawn


def test_without_matplotlib_only_the_picture_is_refused(vqtool, work, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = vqtool("codebook", "usage", "tok.h5", "--plot", "usage.png")
    assert result.code == 1
    assert install_command("eval") in error_lines(result.err)[0]
    assert vqtool("codebook", "usage", "tok.h5").code == 0


def test_usage_of_grids_of_two_tokenizers_or_of_none_is_refused(vqtool, work, other_tokenizer_path):
    assert vqtool("encode", "imgs", "--size", "16", "-t", other_tokenizer_path, "-o", "other.h5").code == 0
    result = vqtool("codebook", "usage", "tok.h5", "other.h5")
    assert (result.code, result.data) == (1, b"")
    assert (
        "tokens of different codebooks do not compare; `vqtool encode` or `vqtool codebook remap`"
        in error_lines(result.err)[0]
    )
    assert vqtool("head", "-n", "0", "tok.h5", "-o", "none.h5").code == 0
    result = vqtool("codebook", "usage", "none.h5")
    assert error_lines(result.err) == ["error: none.h5: no token grids in it"]
    result = vqtool("codebook", "usage", "tok.h5", "none.h5")
    assert result.code == 0
    assert "none.h5: no token grids in it: passed over" in result.err
    assert result.data == vqtool("codebook", "usage", "tok.h5").data


# remap


def test_remap_takes_each_token_to_the_nearest_new_code(vqtool, work):
    new, old = refitted(), load_tokenizer("old.safetensors")
    result = vqtool("codebook", "remap", "tok.h5", "-t", "new.safetensors", "-o", "new.h5")
    assert (result.code, result.data) == (0, b"")
    table = torch.cdist(old.codebook, new.codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(1).numpy()
    before, (header, after) = read_grids("tok.h5")[1], read_grids("new.h5")
    np.testing.assert_array_equal(after.tokens, table[before.tokens])
    assert after.ids == before.ids
    assert (header.codebook_size, header.tokenizer_fingerprint) == (12, new.fingerprint)
    assert [record["step"] for record in header.history] == ["encode", "codebook remap"]
    assert header.history[-1]["inputs"] == {"tokenizer": new.fingerprint, "from": old.fingerprint}
    assert vqtool("decode", "new.h5", "-o", "new.png").code == 0
    assert vqtool("check", "new.h5").code == 0


def test_remap_works_in_a_pipe(work):
    refitted()
    result = shell("cat tok.h5 tok.h5 | $vqtool codebook remap -t new.safetensors | $vqtool info", work)
    assert result.code == 0
    assert "K = 12" in result.out
    assert "60 of 2x2" in result.out


def test_codes_of_another_encoder_are_not_compared_unless_told_to(vqtool, work, other_tokenizer_path):
    result = vqtool("codebook", "remap", "tok.h5", "-t", other_tokenizer_path, "-o", "new.h5")
    assert result.code == 1
    assert "their encoders differ" in error_lines(result.err)[0]
    assert f"vqtool encode -t {other_tokenizer_path}" in error_lines(result.err)[0]
    assert vqtool("codebook", "remap", "tok.h5", "-t", other_tokenizer_path, "-o", "new.h5", "--unrelated").code == 0
    result = vqtool("codebook", "remap", "tok.h5", "-t", "builtin", "-o", "other.h5", "--unrelated")
    assert result.code == 1
    assert "has codes of" in error_lines(result.err)[0]


def test_the_old_tokenizer_is_looked_for_and_can_be_named(vqtool, work):
    refitted()
    (work / "old.safetensors").rename("elsewhere.safetensors")
    remap = ["codebook", "remap", "tok.h5", "-t", "new.safetensors", "-o", "new.h5"]
    result = vqtool(*remap)
    assert result.code == 1
    assert "is not at old.safetensors: name its file with --from" in error_lines(result.err)[0]
    result = vqtool(*remap, "--from", "new.safetensors")
    assert result.code == 1
    assert "name its file with --from" in error_lines(result.err)[0]
    assert vqtool(*remap, "--from", "elsewhere.safetensors").code == 0


def test_grids_that_are_of_the_new_tokenizer_already_are_left_alone(vqtool, work):
    result = vqtool("codebook", "remap", "tok.h5", "-t", "old.safetensors", "-o", "new.h5")
    assert result.code == 1
    assert "are those of old.safetensors already" in error_lines(result.err)[0]


@pytest.mark.parametrize(
    "command", [["decode"], ["train-prior", "--steps", "1", "--size", "tiny"]], ids=lambda args: args[0]
)
def test_grids_of_the_old_codebook_are_refused_with_the_command_that_converts_them(vqtool, work, command):
    refitted()
    name, *options = command
    result = vqtool(name, "tok.h5", *options, "-t", "new.safetensors")
    assert result.code == 1
    [said] = re.findall("`vqtool (codebook remap .*?)`", error_lines(result.err)[0])
    assert said == "codebook remap GRIDS -t new.safetensors"
    assert vqtool(*said.replace("GRIDS", "tok.h5").split(), "-o", "converted.h5").code == 0
    assert vqtool(name, "converted.h5", *options, "-t", "new.safetensors").code == 0


def test_a_prior_that_grids_no_longer_fit_names_the_command_that_converts_them(work):
    header = read_grids("tok.h5")[0]
    grid_spec = GridSpec(refitted().fingerprint, "new.safetensors", header.grid_size, header.image_size, "")
    prior = replace(random_prior(grid_size=header.grid_size, codebook_size=12), grid_spec=grid_spec)
    with pytest.raises(MismatchError, match=r"`vqtool codebook remap tok\.h5 -t new\.safetensors` does it"):
        prior.check_grids(header, "tok.h5")


# prune and apply-map


def test_pruned_grids_decode_to_the_same_images_to_the_last_bit(vqtool, work):
    assert vqtool("codebook", "prune", "tok.h5").code == 0
    used = np.unique(tokens_of("tok.h5"))
    pruned = load_tokenizer("pruned.safetensors")
    assert pruned.codebook_size == len(used) < 16
    assert vqtool("codebook", "apply-map", "tok.h5", "--map", "pruned.map.safetensors", "-o", "few.h5").code == 0
    header, batch = read_grids("few.h5")
    assert (header.codebook_size, header.tokenizer_fingerprint) == (len(used), pruned.fingerprint)
    np.testing.assert_array_equal(used[batch.tokens], tokens_of("tok.h5"))
    np.testing.assert_array_equal(images_of("few.h5", "pruned.safetensors"), images_of("tok.h5", "old.safetensors"))
    assert vqtool("decode", "few.h5", "-o", "few.png").code == 0


def test_a_pruned_tokenizer_encodes_to_the_tokens_that_the_map_gives(vqtool, work):
    """The nearest of all codes is the nearest of some codes wherever it is one of them."""
    assert vqtool("codebook", "prune", "tok.h5").code == 0
    assert vqtool("codebook", "apply-map", "tok.h5", "--map", "pruned.map.safetensors", "-o", "few.h5").code == 0
    assert vqtool("encode", "imgs", "--size", "16", "-t", "pruned.safetensors", "-o", "again.h5").code == 0
    np.testing.assert_array_equal(tokens_of("again.h5"), tokens_of("few.h5"))
    assert vqtool("codebook", "remap", "tok.h5", "-t", "pruned.safetensors", "-o", "mapped.h5").code == 0
    np.testing.assert_array_equal(tokens_of("mapped.h5"), tokens_of("few.h5"))


def test_a_map_goes_back(vqtool, work):
    assert vqtool("codebook", "prune", "tok.h5").code == 0
    line = ["codebook", "apply-map", "--map", "pruned.map.safetensors", "-o"]
    assert vqtool(*line, "few.h5", stdin="tok.h5").code == 0
    assert vqtool(*line, "back.h5", "--inverse", stdin="few.h5").code == 0
    np.testing.assert_array_equal(tokens_of("back.h5"), tokens_of("tok.h5"))
    assert read_grids("back.h5")[0].tokenizer_fingerprint == load_tokenizer("old.safetensors").fingerprint
    assert vqtool("decode", "back.h5", "-o", "back.png").code == 0


def test_rare_codes_are_dropped_for_the_nearest_that_is_kept(vqtool, work):
    counts = np.bincount(tokens_of("tok.h5").flatten(), minlength=16)
    limit = sorted(counts)[-3]
    result = vqtool("codebook", "prune", "tok.h5", "--min-uses", limit, "-o", "p.safetensors", "--map", "m.safetensors")
    assert result.code == 0
    kept = np.flatnonzero(counts >= limit)
    assert f"16 -> {len(kept)} codes, which {counts[kept].sum() / 120:.2%} of the tokens have" in result.err
    codes, found = load_tokenizer("old.safetensors").codebook, load_map("m.safetensors")
    distances = torch.cdist(codes, codes[kept], compute_mode="donot_use_mm_for_euclid_dist")
    np.testing.assert_array_equal(found.forward, distances.argmin(1))
    np.testing.assert_array_equal(found.backward, kept)


def test_files_say_what_they_were_made_of(vqtool, work):
    assert vqtool("codebook", "prune", "tok.h5").code == 0
    old, header = load_tokenizer("old.safetensors"), artifacts.verify("pruned.safetensors")
    assert header.parents == {"tokenizer": old.fingerprint}
    assert [record["step"] for record in header.history] == ["made", "codebook prune"]
    assert artifacts.verify("pruned.map.safetensors").parents == {"from": old.fingerprint, "to": header.fingerprint}
    assert "code-map" in vqtool("info", "pruned.map.safetensors").out
    assert vqtool("check", "pruned.map.safetensors", "pruned.safetensors").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-uses", "1000"], "0 of 16 codes occur at least 1000 times, but a codebook needs two"),
        (["-t", "new.safetensors"], "is not the tokenizer"),
        (["-o", "old.safetensors"], "old.safetensors: exists; use --force"),
        (["--map", "old.safetensors"], "old.safetensors: exists; use --force"),
        (["-o", "gone/new"], "the folder gone does not exist"),
        (["gone.h5"], "gone.h5"),
    ],
)
def test_bad_inputs_and_outputs_of_prune_are_named(vqtool, work, arguments, message):
    refitted()
    result = vqtool("codebook", "prune", "tok.h5", *arguments)
    assert (result.code, result.data) == (1, b"")
    assert message in error_lines(result.err)[-1]
    assert not list(work.glob("pruned*"))


def test_where_every_code_is_in_use_there_is_nothing_to_prune(vqtool, work):
    header, batch = read_grids("tok.h5")
    tokens = np.arange(16).reshape(4, 2, 2)
    with GridWriter("all.h5", header) as writer:
        writer.write(type(batch)(tokens, list("abcd")))
    result = vqtool("codebook", "prune", "all.h5")
    assert error_lines(result.err) == ["error: all 16 codes occur at least 1 times: there is nothing to prune"]


def test_a_map_of_vq_diffusion_is_applied_and_goes_back_to_the_first_code(vqtool, work):
    """Full codes 3 and 7 become 1 and 2, all others 0, whose first is code 0."""
    vector = torch.zeros(16, dtype=torch.int64)
    vector[3], vector[7] = 1, 2
    torch.save(vector, "taming_vqvae.pt")
    old = load_tokenizer("old.safetensors")
    save_tokenizer("few.safetensors", with_codebook(old, old.codebook[[0, 3, 7]]))
    line = ["codebook", "apply-map", "tok.h5", "--map", "taming_vqvae.pt", "-o", "few.h5"]
    result = vqtool(*line)
    assert "does not say whose codes it makes: name the tokenizer with --tokenizer" in error_lines(result.err)[0]
    assert vqtool(*line, "-t", "few.safetensors").code == 0
    np.testing.assert_array_equal(tokens_of("few.h5"), vector.numpy()[tokens_of("tok.h5")])
    assert vqtool("decode", "few.h5", "-o", "few.png").code == 0
    back = ["--map", "taming_vqvae.pt", "--inverse", "-t", "old.safetensors", "-o", "back.h5"]
    assert vqtool("codebook", "apply-map", "few.h5", *back).code == 0
    np.testing.assert_array_equal(tokens_of("back.h5"), np.array([0, 3, 7])[tokens_of("few.h5")])
    result = vqtool(*line, "-t", "old.safetensors", "--force")
    assert "makes 3 codes, but old.safetensors has 16" in error_lines(result.err)[0]


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.tensor([0, 2, 0]), "no code becomes 1, though one becomes 2"),
        (torch.tensor([0, -1]), "must be 0 or more"),
        (torch.tensor([0, 5]), "must be 0 or more"),
        (torch.zeros(0, dtype=torch.int64), "must be 0 or more"),
        (torch.zeros(3), "not a map of codes"),
        (torch.tensor([0, 1, 0]), "maps 3 codes, but tok.h5 has tokens of a codebook of 16"),
    ],
)
def test_vectors_that_are_no_map_of_these_codes_are_refused(vqtool, work, vector, message):
    torch.save(vector, "map.pt")
    save_tokenizer("two.safetensors", with_codebook(load_tokenizer("old.safetensors"), torch.zeros(2, 4)))
    arguments = ["--map", "map.pt", "-t", "two.safetensors", "-o", "few.h5"]
    result = vqtool("codebook", "apply-map", "tok.h5", *arguments)
    assert (result.code, result.data) == (1, b"")
    assert message in error_lines(result.err)[0]
    assert not (work / "few.h5").exists()


def test_a_map_of_other_grids_or_for_another_tokenizer_is_refused(vqtool, work):
    assert vqtool("codebook", "prune", "tok.h5").code == 0
    line = ["codebook", "apply-map", "tok.h5", "--map", "pruned.map.safetensors", "-o", "few.h5"]
    result = vqtool(*line, "-t", "old.safetensors")
    assert "makes tokens of tokenizer" in error_lines(result.err)[0]
    assert vqtool(*line).code == 0
    again = vqtool("codebook", "apply-map", "few.h5", "--map", "pruned.map.safetensors", "-o", "fewer.h5")
    assert "maps tokens of tokenizer" in error_lines(again.err)[0]
    assert "(--inverse goes the other way)" in error_lines(again.err)[0]
    for name, message in (
        ("gone", "gone: cannot be read: No such file"),
        ("old.safetensors", "old.safetensors: a tokenizer, but a code-map is needed here"),
        ("imgs/00.png", "00.png"),
    ):
        result = vqtool("codebook", "apply-map", "tok.h5", "--map", name, "-o", "fewer.h5")
        assert result.code == 1
        assert message in error_lines(result.err)[0]


@pytest.mark.parametrize(
    ("forward", "backward"), [([0, 3], [0, 1]), ([0, 1], [0, 2]), ([[0]], [0]), ([], []), ([0.0], [0])]
)
def test_a_map_file_that_maps_out_of_its_codes_is_damaged(vqtool, work, forward, backward):
    rows = {"forward": torch.tensor(forward), "backward": torch.tensor(backward)}
    places = {"from_location": "a", "to_location": "b"}
    artifacts.save("m.safetensors", kind="code-map", config=places, tensors=rows, parents={"from": "a", "to": "b"})
    result = vqtool("codebook", "apply-map", "tok.h5", "--map", "m.safetensors", "-o", "few.h5")
    assert result.code == 1
    assert error_lines(result.err)[0].startswith("error: m.safetensors: ")
    assert "unexpected" not in result.err


def test_outputs_are_not_overwritten_and_inputs_not_touched(vqtool, work):
    refitted()
    assert vqtool("codebook", "prune", "tok.h5").code == 0
    before = (work / "tok.h5").read_bytes()
    for arguments in (["remap", "-t", "new.safetensors"], ["apply-map", "--map", "pruned.map.safetensors"]):
        result = vqtool("codebook", arguments[0], "tok.h5", *arguments[1:], "-o", "tok.h5")
        assert result.code == 1
        assert "tok.h5: exists; use --force" in error_lines(result.err)[0]
    assert (work / "tok.h5").read_bytes() == before
