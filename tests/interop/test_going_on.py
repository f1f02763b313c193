"""The four papers' own priors go on being used once imported: edits keep what is given, training lowers the bound."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqtool import interop
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.metrics.likelihood import measure_likelihood
from vqtool.priors import load_prior
from vqtool.samplers import sample
from vqtool.samplers.editing import edit
from vqtool.training.prior import train_prior

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = {  # of importers and networks: source, options of its import
    "classes": ("ms-prior-class/tiny_pretrained.pth", {}),
    "convolutions": ("ms-prior-convmlp/tiny_pretrained.pth", {}),
    "absorbing": ("ut-absorbing/absorbing_ema_2000000.th", {"num_heads": 4}),
    "u-net": ("vqddm-unet/last.ckpt", {}),
    "noise": ("vqddm-noise/last.ckpt", {}),
    "pipeline": ("df-pipeline", {}),
    "muse": ("om-transformer/model", {}),
}


@pytest.fixture(params=KINDS)
def prior(request, tmp_path, monkeypatch):
    """One that was imported into p.safetensors, of this folder."""
    monkeypatch.chdir(tmp_path)
    source, options = KINDS[request.param]
    list(interop.convert(GOLDEN / source, "p.safetensors", **options))
    return load_prior("p.safetensors")


def test_edits_of_an_imported_prior_keep_the_tokens_that_are_given(prior):
    noise = torch.Generator().manual_seed(0)
    codes, size = prior.codebook_size, prior.grid_spec.grid_size
    grids = torch.randint(codes, (2, *size), generator=noise)
    hidden = torch.rand(2, *size, generator=noise) < 0.5
    drawn = edit(prior, grids, hidden.numpy(), steps=3, seed=1)
    assert torch.equal(drawn[~hidden], grids[~hidden])
    assert not torch.equal(drawn, grids)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < codes
    assert torch.equal(sample(prior, 2, source=grids, strength=0.0), grids)


@pytest.mark.filterwarnings("ignore:.*preview")
def test_training_goes_on_with_an_imported_prior_and_lowers_its_bound(prior):
    codes, size = prior.codebook_size, prior.grid_spec.grid_size
    few = np.random.default_rng(0).choice([1, 3, codes - 1], (16, *size)).astype(np.uint16)
    fingerprint = prior.grid_spec.tokenizer_fingerprint or "0" * 16
    header = GridHeader(codes, size, (16, 16), fingerprint, "nowhere.safetensors", "")
    batch = GridBatch(few, [str(i) for i in range(16)], labels=["a", "b"] * 8, captions=["a dog", "a boat"] * 8)
    with GridWriter(Path("tok.h5"), header) as writer:
        writer.write(batch)
    train_prior("tok.h5", "q.safetensors", from_="p.safetensors", steps=20)
    bits = []
    for name in ("p", "q"):
        report = measure_likelihood(load_prior(f"{name}.safetensors"), ["tok.h5"], conditional=False)
        bits += [score.value for score in report.scores if score.name == "bits-per-token"]
    assert bits[1] < bits[0] - 0.1
