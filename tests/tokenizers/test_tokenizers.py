"""Tokenizers: images to tokens and back, files of them, and how the one that grids name is found."""

import numpy as np
import pytest
import torch
from support.commands import TINY, build_tokenizer

import vqtool
from vqtool import artifacts
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.grids import GridHeader
from vqtool.images import to_float, to_uint8
from vqtool.metrics.reconstruction import mean_squared_errors, psnr
from vqtool.tokenizers import BUILTIN, Tokenizer, load_tokenizer, save_tokenizer, tokenizer_of
from vqtool.tokenizers.vqvae import VqVaeConfig
from vqtool.training._autoencoder import TokenizerLoss, build_model
from vqtool.training.clock import LoopConfig
from vqtool.training.fitting import TokenizerObjective, fit
from vqtool.training.reconstruction import edges, reconstruction


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def noise(num, height, width, seed=0):
    return torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (8, 8)])
def test_tokens_are_the_nearest_codes_on_a_grid_of_image_over_factor(tokenizer, size):
    images = noise(3, *size)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (3, size[0] // 8, size[1] // 8)
    assert tokens.dtype == torch.int64
    latents = tokenizer.latents(images)
    assert latents.shape == (*tokens.shape, TINY.code_dim)
    assert torch.equal(tokens, (latents[..., None, :] - tokenizer.codebook).square().sum(-1).argmin(-1))
    assert tokenizer.decode(tokens).shape == images.shape
    assert torch.equal(tokenizer.decode(tokens), tokenizer.decode_codes(tokenizer.codebook[tokens]))
    assert tokenizer.grid_size(size) == tuple(tokens.shape[1:])


def test_images_do_not_change_with_the_batch_that_they_are_in(tokenizer):
    images = noise(5, 16, 24)
    tokens = tokenizer.encode(images)
    assert torch.equal(torch.cat([tokenizer.encode(image[None]) for image in images]), tokens)
    one_by_one = torch.cat([tokenizer.decode(grid[None]) for grid in tokens])
    assert torch.allclose(one_by_one, tokenizer.decode(tokens), atol=1e-5)


def test_a_size_that_does_not_fit_is_refused_with_one_that_does(tokenizer):
    for size, near in (((20, 33), "24x32|16x32"), ((3, 16), "8x16"), ((16, 0), "16x8")):
        with pytest.raises(VqtoolError, match=rf"factor 8.*multiples of 8, e\.g\. ({near})"):
            tokenizer.grid_size(size)
    with pytest.raises(VqtoolError, match="factor 8"):
        tokenizer.encode(noise(1, 20, 16))


@pytest.mark.parametrize("bad", [-1, 16])
def test_tokens_outside_the_codebook_are_an_error_of_the_caller(tokenizer, bad):
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 15\]"):
        tokenizer.decode(torch.tensor([[[0, bad]]]))


def test_what_comes_out_can_go_into_a_graph_of_ones_own(tokenizer):
    images = noise(1, 16, 16)
    tokens, rebuilt = tokenizer.encode(images), tokenizer.decode(tokenizer.encode(images))
    table = torch.zeros(16, 2, requires_grad=True)
    weight = torch.ones((), requires_grad=True)
    (torch.nn.functional.embedding(tokens, table).sum() + (rebuilt * weight).sum()).backward()
    assert table.grad.sum() == 2 * tokens.numel()
    assert weight.grad.item() == pytest.approx(rebuilt.sum().item(), rel=1e-5)
    rebuilt.clamp_(-1, 1)


def test_latents_have_gradients_for_training(tokenizer):
    images = noise(1, 16, 16).requires_grad_()
    tokenizer.latents(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_saved_tokenizer_is_loaded_bit_for_bit(tmp_path, tokenizer):
    header = save_tokenizer(tmp_path / "t.safetensors", tokenizer, history=[{"step": "made"}], summary={"psnr": 20.0})
    loaded = load_tokenizer(tmp_path / "t.safetensors", fingerprint=header.fingerprint)
    images = noise(2, 16, 24)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert torch.equal(loaded.decode(loaded.encode(images)), tokenizer.decode(tokenizer.encode(images)))
    assert not loaded.training
    assert (loaded.config, loaded.history) == (TINY, ({"step": "made"},))
    assert (loaded.fingerprint, loaded.location) == (header.fingerprint, str(tmp_path / "t.safetensors"))
    assert artifacts.verify(tmp_path / "t.safetensors").summary == {"psnr": 20.0}


def test_half_precision_rounds_once_and_halves_the_file(tmp_path, tokenizer):
    full, half, again = (tmp_path / f"{name}.safetensors" for name in ("full", "half", "again"))
    save_tokenizer(full, tokenizer)
    loaded = load_tokenizer(full)
    loaded.half_precision = True
    save_tokenizer(half, loaded)
    rounded = load_tokenizer(half)
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(rounded.state_dict()[name], tensor.half().float())
    assert rounded.codebook.dtype == torch.float32
    assert rounded.half_precision
    assert save_tokenizer(again, rounded).fingerprint == rounded.fingerprint != loaded.fingerprint
    data = 4 * sum(tensor.numel() for tensor in tokenizer.state_dict().values())
    assert full.stat().st_size - half.stat().st_size == pytest.approx(data / 2, abs=200)


@pytest.mark.parametrize(("changed", "kept"), [("decoder.", True), ("encoder.", False), ("codebook", False)])
def test_a_tokenizer_is_known_as_its_parent_as_long_as_its_decoder_alone_is_another(tmp_path, tokenizer, changed, kept):
    save_tokenizer(tmp_path / "old.safetensors", tokenizer)
    parent, child = (load_tokenizer(tmp_path / "old.safetensors") for _ in range(2))
    tensor = next(tensor for name, tensor in child.state_dict().items() if name.startswith(changed))
    tensor[(0,) * tensor.ndim] += 1e-3
    header = save_tokenizer(tmp_path / "new.safetensors", child, parent=parent)
    assert header.fingerprint != parent.fingerprint
    assert header.identity == (parent.fingerprint if kept else header.fingerprint)
    found = load_tokenizer(tmp_path / "new.safetensors", fingerprint=header.fingerprint)
    assert (found.identity, found.fingerprint) == (header.identity, header.fingerprint)
    if kept:
        load_tokenizer(tmp_path / "new.safetensors", fingerprint=parent.fingerprint)
    else:
        with pytest.raises(MismatchError, match="is not the tokenizer"):
            load_tokenizer(tmp_path / "new.safetensors", fingerprint=parent.fingerprint)


def test_the_same_weights_looked_up_otherwise_are_another_tokenizer(tmp_path, tokenizer):
    save_tokenizer(tmp_path / "old.safetensors", tokenizer)
    other = Tokenizer(tokenizer.config, lookup="cosine")
    other.load_state_dict(tokenizer.state_dict())
    header = save_tokenizer(tmp_path / "new", other, parent=load_tokenizer(tmp_path / "old.safetensors"))
    assert header.identity == header.fingerprint


def test_a_parent_that_was_never_saved_names_nothing(tmp_path, tokenizer):
    header = save_tokenizer(tmp_path / "new.safetensors", tokenizer, parent=tokenizer)
    assert header.identity == header.fingerprint


def test_another_fingerprint_is_refused_naming_both(tokenizer_path):
    found = load_tokenizer(tokenizer_path).fingerprint
    with pytest.raises(MismatchError, match=rf"tokenizer {found} is not the tokenizer 0123abcd .*`tokenizer`.*encode"):
        load_tokenizer(tokenizer_path, fingerprint="0123abcd")


def test_files_that_are_no_tokenizer_say_why(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(VqtoolError, match=r"t\.safetensors: cannot be read: No such file"):
        load_tokenizer(path)
    tensors = build_tokenizer().state_dict()
    good = {"network": "vqvae", **TINY.__dict__}
    for kind, config, kept, message in (
        ("prior", good, tensors, "a prior, but a tokenizer is needed"),
        ("tokenizer", {**good, "network": "vqgen"}, tensors, "network 'vqgen' is not known"),
        ("tokenizer", {**good, "spin": 1}, tensors, "do not fit its config"),
        ("tokenizer", {**good, "channels": [16, 16]}, tensors, "do not fit its config"),
        ("tokenizer", {**good, "code_dim": 5}, tensors, "do not fit its config"),
        ("tokenizer", good, {"codebook": tensors["codebook"]}, "do not fit its config"),
    ):
        artifacts.save(path, kind=kind, config=config, tensors=kept, force=True)
        with pytest.raises(FormatError, match=message):
            load_tokenizer(path)


def place(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_tokenizer(path, build_tokenizer(seed), force=True).fingerprint


def find(fingerprint, location, **where):
    """The tokenizer that a header of grids names."""
    return tokenizer_of(GridHeader(16, (2, 3), (16, 24), fingerprint, location, ""), **where)


def test_a_named_tokenizer_is_looked_for_there_then_beside_the_file_then_here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    near = tmp_path / "near"
    wanted = place(near / "t.safetensors", 0)
    for location in ("t.safetensors", "gone/t.safetensors", str(tmp_path / "elsewhere" / "t.safetensors")):
        assert find(wanted, location, source=near / "x.h5").location == str(near / "t.safetensors")
    place(near / "gone" / "t.safetensors", 0)
    assert find(wanted, "gone/t.safetensors", source=near / "x.h5").location == str(near / "gone/t.safetensors")
    place(tmp_path / "here" / "t.safetensors", 0)
    assert find(wanted, "t.safetensors", source=near / "x.h5").location == "t.safetensors"
    assert find(wanted, "gone/t.safetensors").location == "t.safetensors"


def test_a_file_of_that_name_with_another_fingerprint_or_damage_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = place(tmp_path / "near" / "t.safetensors", 0)
    other = place(tmp_path / "t.safetensors", 1)
    assert find(wanted, "t.safetensors", source=tmp_path / "near" / "x.h5").fingerprint == wanted
    with pytest.raises(MismatchError, match=f"tokenizer {other} is not the tokenizer {wanted}"):
        find(wanted, "t.safetensors")
    (tmp_path / "t.safetensors").write_bytes(b"damaged")
    assert find(wanted, "t.safetensors", source=tmp_path / "near" / "x.h5").fingerprint == wanted
    with pytest.raises(FormatError, match="not a safetensors file"):
        find(wanted, "t.safetensors")


def test_the_tokenizer_that_the_user_names_wins_and_has_to_fit(tmp_path, tokenizer_path, other_tokenizer_path):
    wanted = load_tokenizer(tokenizer_path).fingerprint
    assert find(wanted, "gone", given=str(tokenizer_path)).fingerprint == wanted
    with pytest.raises(MismatchError, match=wanted):
        find(wanted, str(tokenizer_path), given=str(other_tokenizer_path))


def test_a_tokenizer_that_is_nowhere_is_named_with_the_remedy():
    with pytest.raises(VqtoolError, match=r"tokenizer 0123 .* is not at gone/t\.safetensors: .*--tokenizer"):
        find("0123", "gone/t.safetensors")


def test_losses_are_as_worked_out_by_hand():
    images, rebuilt = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 2.0], [0.0, -3.0]]]])
    assert reconstruction(images, rebuilt, "l1").item() == 6 / 4
    assert reconstruction(images, rebuilt, "l2").item() == 14 / 4
    assert edges(images, rebuilt).item() == (1 + 5) / 2 + (1 + 3) / 2
    with pytest.raises(ValueError, match="'l3'"):
        reconstruction(images, rebuilt, "l3")


def test_a_trained_tokenizer_rebuilds_better_than_any_constant_picture(tmp_path):
    """120 steps on pictures of two colours; the mean of all pictures is the best of the constant ones."""
    draw = np.random.default_rng(0)
    images = np.empty((64, 3, 16, 16), np.uint8)
    for image in images:
        image[..., :8], image[..., 8:] = draw.choice([0, 255], (2, 3, 1, 1))
    config = VqVaeConfig(
        codebook_size=64, code_dim=8, channels=(16, 24, 32), encoder_blocks=(0, 0, 1), decoder_blocks=(1, 0, 0)
    )
    model, run = build_model(config, seed=0), LoopConfig(120, 16, 4e-3, warmup_steps=10, ema_decay=0.9)
    trained, summary = fit(
        model,
        TokenizerObjective(images, model, TokenizerLoss("l2", quantize_from=0.4), run),
        state_path=tmp_path / "state.safetensors",
        log_path=tmp_path / "log.jsonl",
        data={},
    )
    rebuilt = trained.decode(trained.encode(to_float(images)))
    constant = to_float(images).mean(0, keepdim=True).expand_as(rebuilt)

    def pooled_psnr(found):
        return float(psnr(mean_squared_errors(images, to_uint8(found)).mean()))

    assert pooled_psnr(rebuilt) > pooled_psnr(constant) + 3
    assert summary["steps"] == 120
    assert summary["num_images"] == 64


def test_the_package_offers_it_by_name(tokenizer_path):
    assert vqtool.load_tokenizer is load_tokenizer
    assert vqtool.Tokenizer is Tokenizer
    tokenizer = vqtool.load_tokenizer(tokenizer_path)
    assert tokenizer.codebook.shape == (tokenizer.codebook_size, TINY.code_dim) == (16, 4)
    assert tokenizer.factor == 8
    with pytest.raises(AttributeError, match="no attribute 'load_tokeniser'"):
        _ = vqtool.load_tokeniser


def test_the_builtin_tokenizer_saved_again_is_the_same_tokenizer(tmp_path):
    tokenizer = vqtool.load_tokenizer()
    assert save_tokenizer(tmp_path / "t.safetensors", tokenizer).fingerprint == tokenizer.fingerprint
    assert (tokenizer.network, tokenizer.lookup, tokenizer.num_full_codes) == ("vqvae", "nearest", None)


def test_an_unknown_lookup_is_an_error_of_the_caller_or_of_the_file(tmp_path):
    with pytest.raises(ValueError, match="lookup is 'manhattan', known are"):
        Tokenizer(TINY, lookup="manhattan")
    config = {"network": "vqvae", **TINY.__dict__, "lookup": "manhattan"}
    artifacts.save(tmp_path / "t.safetensors", kind="tokenizer", config=config, tensors=build_tokenizer().state_dict())
    with pytest.raises(FormatError, match="do not fit its config: lookup is 'manhattan'"):
        load_tokenizer(tmp_path / "t.safetensors")


def test_the_builtin_tokenizer_has_factor_8_and_4096_codes():
    tokenizer = vqtool.load_tokenizer()
    assert (tokenizer.location, tokenizer.factor, tokenizer.codebook.shape[0]) == (BUILTIN, 8, 4096)
    assert tokenizer.encode(noise(1, 16, 24)).shape == (1, 2, 3)
