"""A step of training on a device of which nothing can be asked: its tensors have shapes and no values.

Torch's device "meta" stands for a GPU: `.item()`, `bool(tensor)`, `nonzero` and copies to the CPU fail on it, as do
operations between it and the CPU; copies to it, which a GPU has to be sent, are counted.
"""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.exact import grid_spec
from support.matrices import build_kernel
from support.text_priors import text_prior
from support.training_run import CONFIG
from torch.utils._python_dispatch import TorchDispatchMode

from vqtool import conditions
from vqtool.diffusion.losses import LOSSES
from vqtool.tokenizers import quantizers
from vqtool.training import _run
from vqtool.training._autoencoder import TokenizerLoss, build_model
from vqtool.training.building import build_prior
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.discriminator import DiscriminatorConfig
from vqtool.training.fitting import TokenizerObjective
from vqtool.training.objectives import PriorLoss, PriorObjective
from vqtool.training.texts import KeptTexts

DEVICE = torch.device("meta")
MASKED = [name for name, loss in LOSSES.items() if loss.of_masked]
CASES = [
    *(("absorbing", {"loss": name}) for name in LOSSES),
    *((name, {"loss": loss}) for name in ("mask-replace", "uniform") for loss in ("reweighted", "bound")),
    ("mask-replace", {"loss": "bound", "mask_weights": (1.0, 0.5), "adaptive_auxiliary": True}),
    ("absorbing", {"times": "uniform"}),
    ("absorbing", {"times": "importance"}),
    ("mask-replace", {"times": "importance"}),
]


class Crossings(TorchDispatchMode):
    """Counts operations by the devices that they read from and write to, where these differ or values are asked for."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        given, made = ({x.device.type for x in torch.utils._pytree.tree_leaves(t) if isinstance(x, torch.Tensor)}
                       for t in (args, result))  # fmt: skip
        if DEVICE.type in given | made and (
            name in ("_local_scalar_dense", "nonzero") or (given and made and given != made)
        ):
            self.seen[name] += 1
        return result


class OnDevice(Accelerator):
    """An accelerator whose device is ours."""

    device = DEVICE


def build(kernel, loss, **config):
    """A run on twenty grids with two captions each, and its objective."""
    tokens = np.random.default_rng(0).integers(0, 7, (20, 2, 3)).astype(np.uint16)
    captions = ["a red cat", "a blue dog", "nothing"] * 14
    conditioner = conditions.build("caption", None, captions)
    grids = GridData(tokens, conditioner.encode(captions[:40]), grid_spec((2, 3)), np.arange(0, 41, 2))
    forward = build_kernel(kernel, codebook_size=7, num_steps=10)
    prior = build_prior(forward, conditioner, grids.grid_spec, "light", seed=0, tokens=tokens)
    run = LoopConfig(50, 8, **config)
    return prior, PriorObjective(prior, grids, PriorLoss(**loss), run), run


@pytest.mark.parametrize(("kernel", "loss"), CASES, ids=str)
def test_a_step_asks_nothing_of_the_device_and_sends_it_the_numbers_of_its_grids_alone(monkeypatch, kernel, loss):
    prior, objective, config = build(kernel, loss)
    monkeypatch.setattr(_run, "Accelerator", OnDevice)
    run = _run.Run(prior.denoiser, config)
    run.take_step(objective, 20)  # places grids and tables
    with Crossings() as crossings:
        metrics = run.take_step(objective, 20)
    assert crossings.seen == {"_to_copy": 1}
    assert {value.device for value in metrics.values()} == {DEVICE}
    assert {parameter.device for parameter in run.ema.parameters()} == {DEVICE}


def test_features_of_captions_are_found_on_the_cpu_and_sent_once(monkeypatch):
    prior = text_prior()
    captions = ["a red cat", "a blue dog", "nothing"]
    rows = torch.cat([prior.conditioner.encode(captions), prior.conditioner.null(1)])
    kept = prior.text_encoder(rows).half().numpy()
    prior = replace(prior, text_encoder=KeptTexts(prior.text_encoder, rows, kept))
    prior.denoiser.requires_grad_(True)
    grids = np.random.default_rng(0).integers(0, prior.codebook_size, (30, *prior.cells))
    data = GridData(grids, prior.conditioner.encode(captions * 10), prior.grid_spec)
    monkeypatch.setattr(_run, "Accelerator", OnDevice)
    config = LoopConfig(50, 8)
    objective = PriorObjective(prior, data, PriorLoss(), config)
    run = _run.Run(prior.denoiser, config)
    run.take_step(objective, 30)
    with Crossings() as crossings:
        run.take_step(objective, 30)
    assert crossings.seen == {"_to_copy": 2}  # the numbers of the grids, and what their captions say


@pytest.mark.parametrize("adversarial", [None, 0.8])
@pytest.mark.parametrize("quantizer", quantizers.NAMES)
def test_a_step_of_a_tokenizer_sends_pictures_and_draws_and_asks_nothing(monkeypatch, quantizer, adversarial):
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8)).astype(np.uint8)
    size = {"codebook_size": 1000, "code_dim": 4} if quantizer == "fsq" else {}
    judge = None if adversarial is None else DiscriminatorConfig(1, 8)
    model = build_model(replace(CONFIG, **size), 0, quantizer=quantizer, discriminator=judge)
    model.quantizer._known_ready = True  # asked once, before codes are placed
    loss, config = TokenizerLoss(quantize_from=0.0, adversarial=adversarial, adversarial_start=0), LoopConfig(50, 4)
    monkeypatch.setattr(_run, "Accelerator", OnDevice)
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: nullcontext())  # knows no such device
    objective, run = TokenizerObjective(images, model, loss, config), _run.Run(model, config)
    run.take_step(objective, 10)
    with Crossings() as crossings:
        metrics = run.take_step(objective, 10)
    assert crossings.seen == {"_to_copy": 3}  # pictures, how they are mirrored and turned, and picks of codes
    assert {value.device for value in metrics.values()} == {DEVICE}
    assert ("discriminator" in metrics) == (adversarial is not None)


def test_such_a_step_is_seen_to_ask_where_it_does():
    with Crossings() as crossings:
        torch.ones(3, device=DEVICE) + torch.ones(3).to(DEVICE)
    assert crossings.seen == {"_to_copy": 1}
    with pytest.raises(RuntimeError):
        bool(torch.ones((), device=DEVICE))
    with pytest.raises(NotImplementedError):
        torch.ones(3, device=DEVICE).cpu()
    with pytest.raises(RuntimeError):
        torch.ones(3, device=DEVICE) + torch.ones(3)
