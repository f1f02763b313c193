"""Training of tokenizers: what is minimised, in numbers worked out by hand, and runs that are killed and resumed."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import training_run
from support.commands import build_tokenizer
from support.training_run import read_log, train
from support.two import run_in_two
from torch.utils._python_dispatch import TorchDispatchMode

from vqtool import rng, tokenizers
from vqtool.errors import VqtoolError
from vqtool.images import to_float
from vqtool.tokenizers import SIZES, Tokenizer
from vqtool.training import finetuning
from vqtool.training._autoencoder import DISCRIMINATOR_WEIGHT, Part, Phase, TokenizerLoss, build_model
from vqtool.training.augment import Augmentation, augmented, middle
from vqtool.training.clock import Length, LoopConfig
from vqtool.training.discriminator import Discriminator, DiscriminatorConfig, check_size
from vqtool.training.fitting import TokenizerObjective, fit
from vqtool.training.reconstruction import adaptive_weight, edges, hinge, last_layer, reconstruction

SMALL = training_run.CONFIG  # factor 4, 16 codes of 4 numbers
WAITING = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "_unique2"}


def pictures(num, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, 3, size, size)).astype(np.uint8)


def floats(num, size=16, seed=0):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_hinge_asks_for_margins_and_nothing_beyond_them():
    """By hand: originals 2, 0 miss by 0, 1; reconstructions -3, 1 by 0, 2: (1/2 + 2/2) / 2."""
    assert hinge(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])).item() == 0.75


@pytest.mark.parametrize(("largest", "expected"), [(1e4, 6 / (2 + 1e-4)), (1.0, 1.0)])
def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer_up_to_its_clamp(largest, expected):
    """By hand: the picture is w x with x = (1, 2). d/dw of the distances is 2 * 1 + 2 * 2 = 6, else 0 + 1 * 2."""
    weight = torch.tensor([3.0], requires_grad=True)
    rebuilt = weight * torch.tensor([1.0, 2.0])
    pull, push = torch.tensor([2.0, 2.0]), torch.tensor([0.0, 1.0])
    found = adaptive_weight(rebuilt, weight, pull, push, largest=largest)
    assert found.item() == pytest.approx(expected)
    assert not found.requires_grad


@pytest.mark.parametrize("name", SIZES)
def test_the_last_layer_is_the_convolution_that_makes_the_picture(name):
    with torch.device("meta"):
        decoder = Tokenizer(SIZES[name]).decoder
    assert last_layer(decoder).shape[0] in (3, 12)  # 12: two by two pixels


def test_a_step_against_the_discriminator_has_the_gradients_of_its_definition():
    """Oracle: autograd through everything, with the weight a constant, each network's loss by its parameters alone."""
    model = build_model(SMALL, 0, quantizer="vq", options={"commitment": 0.3}, discriminator=DiscriminatorConfig(1, 8))
    with torch.no_grad():
        model.quantizer.place(torch.randn(16, 4), 1.0)
    model.quantizer.ready.fill_(True)
    images, picks = floats(2), torch.rand(16)
    loss = TokenizerLoss(loss="l2", adversarial=0.7)
    total, metrics = model(images, picks, loss=loss, phase=Phase(restart=False), perceptual=None)
    total.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    quantized = model.quantizer(model.tokenizer.latents(images), picks, restart=False)
    rebuilt = model.tokenizer.decode_codes(quantized.codes)
    distance = reconstruction(images, rebuilt, "l2") + 0.5 * edges(images, rebuilt)
    fooled = -model.discriminator(rebuilt).mean()
    last = last_layer(model.tokenizer.decoder)
    norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (distance, fooled)]
    weight = (norms[0] / (norms[1] + 1e-4)).detach()
    terms = 0.3 * quantized.losses["commitment"] + quantized.losses["codebook"]
    generator = distance + 0.7 * weight * fooled + terms
    names = [name for name, _ in model.named_parameters()]
    mine = [name for name in names if not name.startswith("discriminator")]
    parameters = dict(model.named_parameters())
    expected = dict(zip(mine, torch.autograd.grad(generator, [parameters[n] for n in mine]), strict=True))
    theirs = [name for name in names if name not in mine]
    judged = DISCRIMINATOR_WEIGHT * hinge(model.discriminator(images), model.discriminator(rebuilt.detach()))
    expected |= dict(zip(theirs, torch.autograd.grad(judged, [parameters[n] for n in theirs]), strict=True))
    assert metrics["adversarial_weight"].item() == pytest.approx(weight.item(), rel=1e-4)
    assert total.item() == pytest.approx((generator + judged).item(), rel=1e-4)
    for name in names:
        assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-6), name


def test_before_its_first_step_the_discriminator_changes_nothing():
    """The rest of the model has the loss and gradients of one without it; its own are 0, for several processes."""
    without, with_it = (build_model(SMALL, 0, discriminator=judge) for judge in (None, DiscriminatorConfig(1, 8)))
    with_it.tokenizer.load_state_dict(without.tokenizer.state_dict())
    losses = []
    for model in (without, with_it):
        total, metrics = model(
            floats(2), torch.zeros(16), loss=TokenizerLoss(), phase=Phase(adversarial=False), perceptual=None
        )
        total.backward()
        losses.append(total.item())
        assert "discriminator" not in metrics
    assert losses[0] == losses[1]
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter.grad, with_it.get_parameter(name).grad)
    assert all(not parameter.grad.any() for parameter in with_it.discriminator.parameters())


def test_a_discriminator_sees_patches_of_70_pixels_and_says_where_pictures_are_too_small():
    """A change of one pixel changes the verdicts within 35 pixels of it at most; the published shape of the answer."""
    config = DiscriminatorConfig()
    network = Discriminator(config)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.77e6, rel=0.01)
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    for layers in (1, 2, 3):
        small = DiscriminatorConfig(layers, 8)
        size = 3 * 2**layers
        check_size(small, (size, size))
        assert Discriminator(small)(torch.zeros(1, 3, size, size)).shape == (1, 1, 1, 1)
        with pytest.raises(VqtoolError, match=f"of {layers} layers, which needs {size} pixels: take fewer"):
            check_size(small, (size, size - 1))


def step(model, run, loss, images, number):
    return TokenizerObjective(images, model, loss, run).phase(run.length.moment(number, 0.0))


def test_codes_wait_for_data_only_where_they_start_on_it():
    run, loss = LoopConfig(100, 2), TokenizerLoss(quantize_from=0.1, restart_until=0.5, adversarial_start=30)
    fresh, fixed = build_model(SMALL, 0), build_model(SMALL, 0, quantizer="lfq")
    old = finetuning.build_model(build_tokenizer(), 0)
    for model, waits in ((fresh, True), (fixed, False), (old, False)):
        assert step(model, run, loss, pictures(2), 9).quantize is not waits
        assert step(model, run, loss, pictures(2), 10).quantize
    assert [step(fresh, run, loss, pictures(2), n).restart for n in (49, 50)] == [True, False]
    assert [step(fresh, run, loss, pictures(2), n).adversarial for n in (29, 30)] == [False, True]


VARIANTS = [("vq", True), ("cosine", False), ("simvq", False), ("fsq", False), ("lfq", False)]


def train_again(folder, stop, settings):
    """Tokenizers of a run that was interrupted after a step and resumed, and of one in "whole" that was not."""
    (folder / "whole").mkdir()
    whole, _ = train(folder / "whole", **settings)

    def report(step, metrics):
        if step == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(folder, report=report, **settings)
    again, _ = train(folder, resume=True, **settings)
    return again, whole


@pytest.mark.parametrize(("quantizer", "adversarial"), VARIANTS[:3] + VARIANTS[4:])
def test_an_interrupted_run_resumes_to_the_log_and_weights_of_one_that_was_not(tmp_path, quantizer, adversarial):
    """State of quantizer, discriminator and optimiser included: every number, bit for bit."""
    settings = {"quantizer": quantizer, "adversarial": adversarial, "num_steps": 24, "save_seconds": 1e9}
    again, whole = train_again(tmp_path, 15, settings)
    log = read_log(tmp_path)
    assert log == read_log(tmp_path / "whole")
    assert ("discriminator" in log[-1]) is adversarial
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(("quantizer", "adversarial"), [("ema", True), ("vq", True), ("simvq", False), ("lfq", False)])
def test_a_batch_in_parts_has_the_losses_and_codes_of_the_whole(tmp_path, quantizer, adversarial):
    """Codes are placed at step 1, the discriminator comes at 10. Terms of codes are small differences of latents."""
    settings = {"quantizer": quantizer, "adversarial": adversarial, "batch_size": 8, "num_steps": 12}
    (tmp_path / "parts").mkdir()
    whole, _ = train(tmp_path, **settings)
    parts, _ = train(tmp_path / "parts", accumulate=4, checkpoint=True, **settings)
    for mine, other in zip(read_log(tmp_path / "parts"), read_log(tmp_path), strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["usage"] == other["usage"]
    assert ("adversarial_weight" in mine) is adversarial
    # Adam makes steps of the learning rate, 1e-3, of gradients of any size: rounding shows where they are next to none.
    close = 1e-5 if quantizer == "ema" else 5e-4
    assert torch.allclose(parts.codebook, whole.codebook, rtol=1e-5, atol=close)


@pytest.mark.parametrize("quantizer", ["vq", "lfq"])
def test_the_gradients_of_parts_add_up_to_those_of_the_batch(quantizer):
    """Those by the adaptive weight and the entropy of all codes included."""
    moment = Length(steps=100).moment(60, 0)
    gradients = []
    for num in (1, 4):
        model = build_model(SMALL, 0, quantizer=quantizer, discriminator=DiscriminatorConfig(1, 8))
        if quantizer == "vq":
            model.quantizer.begin(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))
        loss = TokenizerLoss(adversarial=0.8, adversarial_start=0, perceptual_share=0.5)
        objective = TokenizerObjective(pictures(8), model, loss, LoopConfig(100, 8), perceptual=FarPixels())
        for value, _ in objective.in_parts(model, np.arange(8), np.arange(8), moment, num):
            (value / num).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, whole in gradients[0].items():
        assert torch.allclose(gradients[1][name], whole, rtol=1e-3, atol=1e-5 * whole.abs().max()), name


class FarPixels(torch.nn.Module):
    """Stands for a perceptual network."""

    name = "far"

    def forward(self, images, rebuilt):
        return (images - rebuilt)[..., ::3, ::2].square().mean()


def test_dead_codes_are_put_onto_latents_of_the_whole_batch_that_comes_in_parts():
    for quantizer in ("ema", "vq"):
        codes = []
        for num in (1, 2):
            model = build_model(SMALL, 0, quantizer=quantizer)
            model.quantizer.begin(torch.linspace(-1, 1, 16)[:, None].expand(16, 4) * 100)
            objective = TokenizerObjective(pictures(8), model, TokenizerLoss(), LoopConfig(100, 8))
            for step in range(30):
                moment = Length(steps=100).moment(step, 0)
                rows = np.arange(8)
                list(objective.in_parts(model, rows, rows + 8 * step, moment, num))
            codes.append(model.quantizer.effective_codebook().detach().clone())
        assert (codes[0].abs().amax(1) < 6).sum() > 4  # those that were moved to where the latents are
        assert torch.allclose(codes[0], codes[1], rtol=1e-5, atol=1e-6)


def test_a_run_in_parts_resumes_exactly(tmp_path):
    settings = {"quantizer": "vq", "adversarial": True, "num_steps": 16, "accumulate": 2, "save_seconds": 1e9}
    again, whole = train_again(tmp_path, 11, settings)
    assert read_log(tmp_path) == read_log(tmp_path / "whole")
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("name", ["vqvae-f8", "vqgan-f8-small"])
def test_blocks_that_are_computed_again_are_all_of_the_chains_and_none_twice(name):
    with torch.device("meta"):
        model = build_model(SIZES[name], 0)
    blocks = list(model.blocks)
    inside = [id(parameter) for block in blocks for parameter in block.parameters()]
    assert len(set(inside)) == len(inside)
    assert len(inside) > len(list(model.tokenizer.parameters())) / 2
    model.tokenizer.encoder.requires_grad_(False)
    assert 0 < len(model.blocks) < len(blocks)


def test_a_resume_with_another_quantizer_is_refused(tmp_path):
    train(tmp_path, num_steps=2)
    with pytest.raises(VqtoolError, match="`quantizer` was ema when the run began, now it is vq"):
        train(tmp_path, num_steps=2, quantizer="vq", resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantizer", "adversarial", "parts"), [("vq", True, 1), ("simvq", False, 1), ("lfq", False, 1), ("vq", True, 2)]
)
def test_two_processes_have_the_losses_of_one(tmp_path, quantizer, adversarial, parts):
    """Sums over processes round differently: losses agree to 1e-3, which fails where noise or gradients differ."""
    settings = {"quantizer": quantizer, "adversarial": adversarial, "num_steps": 24}
    (tmp_path / "whole").mkdir()
    train(tmp_path / "whole", **settings)
    done = run_in_two("support.training_run", tmp_path, json.dumps({**settings, "accumulate": parts}))
    assert done.returncode == 0, done.stderr.decode()
    one, two = read_log(tmp_path / "whole"), read_log(tmp_path)
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-3)
    assert [line["usage"] for line in two] == [line["usage"] for line in one]


def test_weight_decay_leaves_codes_alone(tmp_path):
    """A code that no latent chooses stays exactly where it is."""
    config = replace(build_tokenizer().config, codebook_size=64)
    model = build_model(config, 0, quantizer="vq")
    model.quantizer.begin(torch.randn(64, config.code_dim) * 100)
    before = model.quantizer.effective_codebook().detach().clone()
    run = LoopConfig(5, 4, 3e-3, warmup_steps=1, ema_decay=0.0, weight_decay=1.0)
    objective = TokenizerObjective(pictures(8), model, TokenizerLoss(restart_until=0.0), run)
    files = {"state_path": tmp_path / "state.safetensors", "log_path": tmp_path / "log.jsonl"}
    new, _ = fit(model, objective, data={}, **files)
    moved = (new.codebook != before).any(1)
    assert 0 < moved.sum() < 64


def test_fine_tuning_leaves_the_encoder_and_moves_decoder_and_codes(tmp_path):
    old, tokenizer = build_tokenizer(), build_tokenizer()
    model = finetuning.build_model(tokenizer, 0)
    run = LoopConfig(20, 4, 3e-3, warmup_steps=1, ema_decay=0.5)
    objective = TokenizerObjective(pictures(8), model, TokenizerLoss(restart_until=0.0), run)
    files = {"state_path": tmp_path / "state.safetensors", "log_path": tmp_path / "log.jsonl"}
    new, _ = fit(model, objective, data={}, **files)
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, new.state_dict()[name]) is name.startswith("encoder"), name
    log = read_log(tmp_path)
    assert log[-1]["reconstruction"] < log[0]["reconstruction"]
    assert log[-1]["codebook"] <= log[0]["codebook"]


@pytest.mark.parametrize("lookup", ["nearest", "cosine", "projection", "bounded"])
def test_with_its_codes_kept_a_fine_tuned_tokenizer_makes_the_same_tokens(tmp_path, lookup):
    base = build_tokenizer()
    old, tokenizer = (Tokenizer(base.config, lookup=lookup, num_full_codes=20) for _ in range(2))
    with torch.no_grad():
        for name, tensor in old.state_dict().items():
            if not name.startswith(("encoder", "decoder")):
                tensor.copy_(torch.randint(16, tensor.shape) if name == "code_map" else torch.randn(tensor.shape))
    tokenizer.load_state_dict(old.state_dict())
    model = finetuning.build_model(tokenizer, 0, learn_codes=False)
    run = LoopConfig(3, 4, 3e-3, ema_decay=0.5)
    objective = TokenizerObjective(pictures(8), model, TokenizerLoss(), run)
    files = {"state_path": tmp_path / "state.safetensors", "log_path": tmp_path / "log.jsonl"}
    new, _ = fit(model, objective, data={}, **files)
    images = floats(3)
    assert torch.equal(new.encode(images), old.encode(images))
    assert not torch.equal(new.decode(old.encode(images)), old.decode(old.encode(images)))
    with pytest.raises(VqtoolError, match=r"has a (code map|lookup by projection): its codes cannot learn"):
        finetuning.build_model(tokenizer, 0)


def test_images_change_with_the_number_of_the_sample_alone():
    """Each sample is the same in any batch; half of them are mirrored, pieces lie anywhere inside."""
    images, samples = torch.from_numpy(pictures(64, 20)), np.arange(64)
    change = Augmentation(flip=True, jitter=0.3)
    whole = augmented(images, (16, 12), change, seed=3, samples=samples)
    assert whole.shape == (64, 3, 16, 12)
    part = augmented(images[[7, 40]], (16, 12), change, seed=3, samples=samples[[7, 40]])
    assert torch.equal(part, whole[[7, 40]])
    assert not torch.equal(augmented(images, (16, 12), change, seed=4, samples=samples), whole)


def test_a_piece_is_cut_out_of_the_image_and_mirrored():
    """Oracle: the noise itself. 20 - 16 + 1 = 5 places down, 20 - 12 + 1 = 9 across; all of them occur in 400 draws
    with probability above 1 - 9 (8/9)^400."""
    images, samples = pictures(1, 20).repeat(400, 0), np.arange(400)
    stored = torch.from_numpy(images)
    found = augmented(stored, (16, 12), Augmentation(flip=True), seed=0, samples=samples)
    noise = rng.uniform(0, samples, 0, (6,), stream=rng.TRAINING).numpy()
    tops, lefts = (noise[:, 1] * 5).astype(int), (noise[:, 2] * 9).astype(int)
    assert (set(tops), set(lefts)) == (set(range(5)), set(range(9)))
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        piece = torch.from_numpy(images[i, :, top : top + 16, left : left + 12]).float() / 127.5 - 1
        assert torch.equal(found[i], piece.flip(-1) if noise[i, 0] < 0.5 else piece)
    assert np.array_equal(middle(images, (16, 12)), images[:, :, 2:18, 4:16])


def test_without_flags_images_are_what_they_are():
    images = pictures(5)
    stored = torch.from_numpy(images)
    plain = augmented(stored, (16, 16), Augmentation(flip=False), seed=0, samples=np.arange(5))
    assert torch.equal(plain, torch.from_numpy(images).float() / 127.5 - 1)


def test_jitter_changes_contrast_brightness_and_saturation_and_stays_in_range():
    """A grey picture has no saturation to change: what is left is x -> mean + (x - mean)(1 + c) + b, the same in all
    channels."""
    grey = pictures(30)[:, :1].repeat(3, 1) // 4 + 96
    found = augmented(
        torch.from_numpy(grey), (16, 16), Augmentation(flip=False, jitter=0.2), seed=0, samples=np.arange(30)
    )
    noise = 0.2 * (2 * rng.uniform(0, range(30), 0, (6,), stream=rng.TRAINING)[:, 3:].float() - 1)
    plain = torch.from_numpy(grey).float() / 127.5 - 1
    mean = plain.mean((1, 2, 3), keepdim=True)
    expected = mean + (plain - mean) * (1 + noise[:, 0, None, None, None]) + noise[:, 1, None, None, None]
    assert torch.allclose(found, expected, atol=1e-5)
    strong = augmented(
        torch.from_numpy(pictures(30)), (16, 16), Augmentation(jitter=1.0), seed=0, samples=np.arange(30)
    )
    assert strong.abs().max() <= 1


def test_a_zoom_shrinks_pieces_of_every_size_as_interpolation_with_antialiasing_does():
    """Oracle: Pillow's bilinear filter on the same box, which lies inside so that both know the pixels around it."""
    images, samples = torch.from_numpy(pictures(40, 32)), np.arange(40)
    found = augmented(images, (16, 12), Augmentation(flip=False, crop=2, zoom=True), seed=0, samples=samples)
    noise = rng.uniform(0, samples, 0, (7,), stream=rng.TRAINING).numpy()
    factors = 2.0 ** noise[:, 6]
    assert (factors.min() < 1.1, factors.max() > 1.9) == (True, True)
    for i, factor in enumerate(factors):
        height, width = 16 * factor, 12 * factor
        top, left = noise[i, 1] * (32 - height), noise[i, 2] * (32 - width)
        box = (left, top, left + width, top + height)
        picture = Image.fromarray(images[i].permute(1, 2, 0).numpy()).resize((12, 16), Image.Resampling.BILINEAR, box)
        expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
        inside = (found[i] + 1) * 127.5  # Pillow rounds twice
        assert (inside - expected)[:, 2:-2, 2:-2].abs().max() < 1.6
    whole = augmented(images, (32, 32), Augmentation(flip=False, crop=2, zoom=True), seed=0, samples=samples)
    assert torch.allclose(whole, to_float(images), atol=1e-6)


def test_a_zoom_needs_images_that_are_larger():
    with pytest.raises(VqtoolError, match="`zoom` goes with `crop` above 1"):
        Augmentation(zoom=True)


def test_steps_of_a_run_wait_for_nothing():
    """No number is read out of a tensor and no shape depends on values: on a GPU each would wait for all work before.

    Dispatched operations are counted; `check_images`, which looks at values on a CPU alone, is left out.
    """

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation.overloadpacket.__name__ in WAITING:
                waits.append(operation)
            return operation(*args, **(kwargs or {}))

    for quantizer in ("ema", "vq", "cosine", "simvq"):
        waits = []
        model = build_model(SMALL, 0, quantizer=quantizer, discriminator=DiscriminatorConfig(1, 8))
        run, loss = LoopConfig(10, 4), TokenizerLoss(adversarial=0.5, adversarial_start=0, quantize_from=0)
        change = Augmentation(crop=2, zoom=True, jitter=0.1)
        objective = TokenizerObjective(pictures(8, 32), model, loss, run, size=(16, 16), augmentation=change)
        for step in range(2):  # codes are placed on data, and it is seen that they are
            objective(model, np.arange(4), np.arange(4), run.length.moment(step, 0.0))
        with pytest.MonkeyPatch.context() as patch, Counter():
            patch.setattr(tokenizers, "check_images", lambda images: None)
            objective(model, np.arange(4), np.arange(4), run.length.moment(2, 0.0))[0].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert waits == [], quantizer


def test_a_discriminator_that_warms_up_learns_and_nothing_learns_from_it():
    """The tokenizer has the gradients of a run without it, the discriminator those of one with it."""
    gradients = {}
    for name, phase in (("none", Phase(adversarial=False)), ("warm", Phase(fool=False)), ("on", Phase())):
        model = build_model(SMALL, 0, discriminator=DiscriminatorConfig(1, 8))
        loss = TokenizerLoss(adversarial=0.5)
        model(
            floats(2),
            torch.rand(16, generator=torch.Generator().manual_seed(0)),
            loss=loss,
            phase=phase,
            perceptual=None,
        )[0].backward()
        gradients[name] = {part: parameter.grad for part, parameter in model.named_parameters()}
    for part, gradient in gradients["warm"].items():
        other = "on" if part.startswith("discriminator") else "none"
        assert torch.allclose(gradient, gradients[other][part], rtol=1e-4, atol=1e-7), part
    last = "tokenizer.decoder.layers.0.bias"
    assert not torch.allclose(gradients["on"][last], gradients["warm"][last], rtol=1e-2)


def test_a_share_of_the_batch_is_shown_to_the_perceptual_network():
    seen = []

    def distance(images, rebuilt):
        seen.append(len(images))
        return (images - rebuilt).abs().mean()

    model = build_model(SMALL, 0)
    for share in (1.0, 0.5, 0.01):
        loss = TokenizerLoss(perceptual_share=share)
        model(floats(4), torch.rand(16), loss=loss, phase=Phase(), perceptual=distance)
    assert seen == [4, 2, 1]


@pytest.mark.parametrize("share", [1.0, 0.75, 0.3])
def test_of_a_batch_in_parts_the_perceptual_network_sees_the_same_share(share):
    seen = []

    def distance(images, rebuilt):
        seen.append(images)
        return (images - rebuilt).square().mean()

    model, loss = build_model(SMALL, 0), TokenizerLoss(perceptual_share=share)
    how = {"loss": loss, "phase": Phase(quantize=False), "perceptual": distance}
    images = floats(8)
    whole, _ = model(images, torch.rand(16), **how)
    parts = [model(each, torch.rand(16), part=Part(k, 4), **how)[0] for k, each in enumerate(images.chunk(4))]
    assert torch.equal(torch.cat(seen[1:]), seen[0])
    assert sum(parts).item() / 4 == pytest.approx(whole.item(), rel=1e-6)


def test_bfloat16_leaves_codes_and_loss_in_float32():
    """The token of a latent is that of float32, whatever computed the latent."""
    model = build_model(SMALL, 0)
    found = []
    hook = model.quantizer.register_forward_hook(lambda module, given, result: found.append((given[0], result)))
    with torch.autocast("cpu", torch.bfloat16):
        total, metrics = model(floats(2), torch.rand(16), loss=TokenizerLoss(), phase=Phase(), perceptual=None)
    hook.remove()
    ((latents, quantized),) = found
    assert {latents.dtype, quantized.codes.dtype, total.dtype, metrics["psnr"].dtype} == {torch.float32}
    distances = torch.cdist(latents.flatten(0, 2).double(), model.quantizer.effective_codebook().double())
    assert torch.equal(distances.argmin(1), quantized.tokens.flatten())
