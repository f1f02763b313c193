"""What the tests of the commands that edit pictures share: a prior, its tokenizer, pictures and their grids."""

import json
from dataclasses import replace

import pytest

from support.commands import write_pictures
from support.exact import random_prior
from vqtool.grids import GridWriter, read_grids
from vqtool.priors import GridSpec
from vqtool.tokenizers import load_tokenizer

SIZE = (32, 48)  # pixels of 4x6 cells


def save_prior(path, tokenizer_path, kernel="mask-replace", kind="none"):
    """A prior of random weights whose tokens are those of a tokenizer of 16 codes."""
    prior = random_prior(kernel, kind, codebook_size=16)
    grid_spec = GridSpec(load_tokenizer(tokenizer_path).fingerprint, str(tokenizer_path), (4, 6), SIZE, "crop")
    return replace(prior, grid_spec=grid_spec).save(path, force=True)


@pytest.fixture(name="work")
def make_work(vqtool, tmp_path, monkeypatch, tokenizer_path):
    """A current folder with `imgs/` (3 pictures, one with a caption), their grids tok.h5, and prior.safetensors."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 3, size=SIZE)
    rows = ({"file_name": f"{i:02d}.png", **({"text": "a bee"} if i == 1 else {})} for i in range(3))
    (tmp_path / "imgs" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    save_prior("prior.safetensors", tokenizer_path)
    assert vqtool("encode", "imgs", "--size", "32x48", "-t", tokenizer_path, "-o", "tok.h5").code == 0
    return tmp_path


def tokens(path):
    return read_grids(path)[1].tokens.astype(int)


def rewrite(path, source, change, **header):
    """A copy of a grid file with other tokens and other fields of its header."""
    old, batch = read_grids(source)
    batch = replace(batch, tokens=change(batch.tokens.astype(int)))
    with GridWriter(path, replace(old, **header)) as writer:
        writer.write(batch)


def entries(folder="."):
    from pathlib import Path

    return sorted(path.name for path in Path(folder).iterdir())
