"""Unleashing Transformers' absorbing priors: the numbers of its own code, and what the file does not say."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vqtool import interop
from vqtool.diffusion import kernels
from vqtool.errors import FormatError
from vqtool.interop import Options, Source
from vqtool.priors import load_prior
from vqtool.samplers import sample

FOLDER = Path(__file__).parents[1] / "golden" / "ut-absorbing"


def source():
    return interop.read_source(FOLDER / "absorbing_ema_2000000.th")


@pytest.fixture(scope="module")
def imported():
    return interop.load(source(), Options(num_heads=4))


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


def test_the_network_gives_the_numbers_of_the_original_at_any_time(imported, io):
    assert interop.recognise(source()) == "unleashing"
    x_t = io["x_t"].view(-1, 4, 4)
    for t in (io["t"], torch.full_like(io["t"], 3)):
        logits = imported.prior.denoiser(x_t, t).flatten(1, 2)
        assert float((logits - io["logits"]).abs().max()) <= 1e-5
    log_x0 = imported.prior.log_x0(x_t, io["t"]).flatten(1, 2)
    assert float((log_x0 - io["logits"].log_softmax(-1)).abs().max()) <= 1e-5


def test_the_kernel_is_absorbing_and_linear_with_a_step_a_cell(imported):
    exact = kernels.build("absorbing", schedule="linear", codebook_size=56, num_steps=16)
    assert imported.prior.kernel.config == exact.config
    assert torch.equal(imported.prior.kernel.alpha_bar, exact.alpha_bar)
    assert imported.notes == ["grids: 4x4 cells, from 16 positions (`grid_size`)"]


def test_a_prior_saved_and_loaded_is_the_same(imported, io, tmp_path):
    imported.prior.save(tmp_path / "p.safetensors")
    again = load_prior(tmp_path / "p.safetensors")
    x_t = io["x_t"].view(-1, 4, 4)
    assert torch.equal(again.log_x0(x_t, io["t"]), imported.prior.log_x0(x_t, io["t"]))


@pytest.mark.parametrize("sampler", ["ancestral", "purity"])
def test_samples_do_not_depend_on_the_batch_size_and_hold_no_mask(imported, sampler):
    grids = sample(imported.prior, 3, sampler=sampler, steps=6, seed=1)
    assert torch.equal(sample(imported.prior, 3, sampler=sampler, steps=6, seed=1, batch_size=1), grids)
    assert 0 <= int(grids.min()) <= int(grids.max()) < 56


def test_the_number_of_steps_is_never_guessed():
    without = changed(lambda found: found.pop("Lt_count"))
    with pytest.raises(FormatError, match=r"Lt_count, .*is missing: say it with `num_steps` .*here 16"):
        interop.load(without, Options(num_heads=4))
    assert interop.load(without, Options(num_heads=4, num_steps=9)).prior.kernel.num_steps == 9


def test_cells_may_be_laid_out_in_another_way():
    prior = interop.load(source(), Options(num_heads=4, grid_size=(2, 8))).prior
    assert prior.grid_spec.grid_size == (2, 8)
    assert prior.denoiser.config.grid_size == (2, 8)


def changed(change):
    tensors = dict(source().content)
    change(tensors)
    return Source(FOLDER / "absorbing_ema_2000000.th", tensors)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda found: None, {}, "48 is not the width of the published models: say it with `num_heads`"),
        (lambda found: None, {"num_heads": 5}, "cannot be shared by 5 heads"),
        (
            lambda found: None,
            {"num_heads": 4, "grid_size": (3, 5)},
            "has 16 positions, a grid of 3x5 cells: .*`grid_size`",
        ),
        (
            lambda found: found.update({"_denoise_fn.pos_emb": torch.zeros(1, 15, 48)}),
            {"num_heads": 4},
            "has 15 positions, no square grid",
        ),
        (
            lambda found: found.pop("_denoise_fn.blocks.1.attn.query.weight"),
            {"num_heads": 4},
            r"1 tensors are missing: _denoise_fn\.blocks\.1\.attn\.query\.weight",
        ),
        (lambda found: found.pop("_denoise_fn.tok_emb.weight"), {"num_heads": 4}, r"missing: _denoise_fn\.tok_emb"),
        (
            lambda found: found.update({"_denoise_fn.time_emb.weight": torch.zeros(1)}),
            {"num_heads": 4},
            r"not understood: _denoise_fn\.time_emb\.weight",
        ),
    ],
)
def test_what_the_file_lacks_or_does_not_say_is_one_clear_error(change, options, message):
    with pytest.raises(FormatError, match=message):
        interop.load(changed(change), Options(**options))


def test_published_widths_have_the_published_heads_and_say_so():
    def widen(found):
        for name, value in list(found.items()):
            if name.startswith("_denoise_fn."):
                sides = [512 * (side // 48) if side in (48, 192) else side for side in value.shape]
                found[name] = torch.zeros(sides)

    found = interop.load(changed(widen), Options())
    assert found.prior.denoiser.config.num_heads == 8
    assert any(note.startswith("attention heads: 8, as in the published models") for note in found.notes)


def test_a_file_cut_short_is_one_clear_error(tmp_path):
    whole = (FOLDER / "absorbing_ema_2000000.th").read_bytes()
    (tmp_path / "cut.th").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"cut\.th: cut short"):
        interop.read_source(tmp_path / "cut.th")
