"""`vqtool codebook transplant`, and `--prior` of refit, prune and remap: what is written and what is said."""

from pathlib import Path

import numpy as np
import pytest
from support.commands import build_tokenizer, error_lines, sharpened, write_pictures

from vqtool import artifacts
from vqtool.codebooks.rebuilt import with_codebook
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.priors import load_prior
from vqtool.tokenizers import load_tokenizer, save_tokenizer

TRAIN = ("--steps", 2, "--batch-size", 4, "--preview-every", 0)


@pytest.fixture
def work(tmp_path, monkeypatch, vqtool):
    """A current folder with a tokenizer and one with 12 other codes, grids that use ten codes, and a prior."""
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    save_tokenizer("old.safetensors", tokenizer)
    save_tokenizer("new.safetensors", with_codebook(tokenizer, tokenizer.codebook[2:14] + 0.01))
    tokens = np.random.default_rng(0).integers(0, 10, (8, 2, 3))
    header = GridHeader(16, (2, 3), (16, 24), load_tokenizer("old.safetensors").fingerprint, "old.safetensors", "crop")
    with GridWriter("tok.h5", header) as writer:
        writer.write(GridBatch(tokens, [str(i) for i in range(8)]))
    assert vqtool("train-prior", "--size", "tiny", *TRAIN).code == 0
    return tmp_path


def test_a_prior_is_carried_over_goes_on_learning_and_is_sampled(work, vqtool):
    options = ("-t", "new.safetensors", "--grids", "tok.h5", "-o", "moved.safetensors")
    result = vqtool("codebook", "transplant", "prior.safetensors", *options)
    assert result.code == 0, result.err
    assert "16 codes -> 12, by the nearest codes, counted in tok.h5" in result.err
    assert "vqtool train-prior --from moved.safetensors" in result.err
    assert vqtool("codebook", "remap", "tok.h5", "-t", "new.safetensors", "-o", "new.h5").code == 0
    tuned = vqtool("train-prior", "new.h5", "--from", "moved.safetensors", *TRAIN, "-o", "tuned.safetensors")
    assert tuned.code == 0, tuned.err
    prior = load_prior("tuned.safetensors")
    assert prior.parent == load_prior("moved.safetensors").fingerprint
    assert [record["step"] for record in prior.history] == [
        "train-prior", "codebook transplant", "codebook remap", "train-prior",
    ]  # fmt: skip
    assert vqtool("sample", "tuned.safetensors", "-n", 2, "-o", "s.h5").code == 0
    assert vqtool("decode", "s.h5", "-o", "out").code == 0


@pytest.mark.parametrize(
    ("arguments", "output", "num_codes"),
    [
        (("refit", "imgs", "-t", "old.safetensors", "--size", 16, "-K", 6, "-o", "t.safetensors"), "t", 6),
        (("prune", "tok.h5", "-o", "p.safetensors"), "p", 10),
        (("remap", "tok.h5", "-t", "new.safetensors", "-o", "new.h5"), "new", 12),
    ],
)
def test_a_rebuilt_codebook_brings_the_prior_along(work, vqtool, arguments, output, num_codes):
    write_pictures(work / "imgs", 8)
    result = vqtool("codebook", *arguments, "--prior", "prior.safetensors")
    assert result.code == 0, result.err
    assert f"wrote {output}.prior.safetensors: prior " in result.err
    prior = load_prior(f"{output}.prior.safetensors")
    assert prior.kernel.codebook_size == num_codes
    assert vqtool("sample", f"{output}.prior.safetensors", "-n", 2, "-o", "s.h5").code == 0
    again = vqtool("codebook", *arguments, "--prior", "prior.safetensors")
    assert again.code == 1
    assert len(error_lines(again.err)) == 1


def test_a_prior_goes_with_another_decoder_of_its_codes(work, vqtool):
    """It is drawn from, measured, edited and carried over as if its decoder were the one of its training."""
    sharp = sharpened("old.safetensors", "sharp.safetensors")
    assert vqtool("sample", "prior.safetensors", "-n", 2, "-o", "s.h5").code == 0
    assert vqtool("decode", "s.h5", "-t", "sharp.safetensors", "-o", "out").code == 0
    result = vqtool("codebook", "transplant", "prior.safetensors", "-t", "sharp.safetensors")
    assert "prior.safetensors is in the codes of sharp.safetensors already" in result.err
    result = vqtool("codebook", "remap", "s.h5", "-t", "sharp.safetensors", "-o", "again.h5")
    assert "its tokens are those of sharp.safetensors already" in result.err
    for arguments in (
        ("refit", write_pictures(work / "imgs", 8), "-t", "sharp.safetensors", "--size", 16, "-K", 6),
        ("prune", "tok.h5", "-t", "sharp.safetensors"),
    ):
        result = vqtool("codebook", *arguments, "-o", "few.safetensors", "--prior", "prior.safetensors", "-f")
        assert result.code == 0, result.err
        few = load_tokenizer("few.safetensors")
        assert few.identity == few.fingerprint == load_prior("few.prior.safetensors").grid_spec.tokenizer_fingerprint
        assert artifacts.read_header("few.safetensors").parents == {"tokenizer": sharp.fingerprint}
    assert vqtool("codebook", "apply-map", "tok.h5", "--map", "few.map.safetensors", "-o", "few.h5").code == 0
    write_pictures(work / "one", 1, size=(16, 24))
    result = vqtool("vary", "one", "-t", "sharp.safetensors", "-n", 1, "-o", "varied")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("transplant", "prior.safetensors", "-t", "old.safetensors"), "is in the codes of old.safetensors already"),
        (("transplant", "gone.safetensors", "-t", "new.safetensors"), "gone.safetensors: no such file"),
        (
            ("transplant", "prior.safetensors", "-t", "new.safetensors", "-o", "tok.h5"),
            "an artifact would be written there",
        ),
        (
            ("transplant", "prior.safetensors", "-t", "new.safetensors", "-o", "old.safetensors"),
            "old.safetensors: exists; use --force",
        ),
        (("refit", "imgs", "--prior", "gone.safetensors"), "gone.safetensors: no such file"),
        (("prune", "tok.h5", "--prior", "tok.h5"), "tok.h5: not a safetensors file"),
        (
            ("remap", "tok.h5", "-t", "new.safetensors", "--prior", "prior.safetensors"),
            "--prior is written beside --output, which is standard output: name a file",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(work, vqtool, arguments, message):
    before = sorted(path.name for path in Path().iterdir())
    result = vqtool("codebook", *arguments)
    assert result.code == 1
    assert message in error_lines(result.err)[0]
    assert sorted(path.name for path in Path().iterdir()) == before
