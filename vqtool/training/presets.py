"""How the papers' own priors are trained, by name: what `train-prior --preset` sets.

A preset is the options of `train_prior` that the published code stands for, fields of the network beside those of its
size, and the optimiser. Options that somebody gives go before it, and that is told. Sizes are not part of it: the
published ones take weeks on many GPUs. Differs from the published code: a tenth of a run at most is warm-up; weights
are averaged after every step, not every 10 or 25, with as long a memory; VQ-Diffusion's rate, which its code halves
after 25,000 to 100,000 steps without gain, stays; and a tenth of the conditions is left out for guidance, as in
Improved VQ-Diffusion.
Sources: the published code and settings of Gu et al. 2022 (arXiv:2111.14822), Bond-Taylor et al. 2022
(arXiv:2111.12701) and Hu et al. 2022 (arXiv:2112.01799).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vqtool import denoisers
from vqtool.errors import VqtoolError
from vqtool.options import Checked, option
from vqtool.progress import Notify

NO_CLIPPING = 1e9  # largest norm of the gradient


@dataclass(frozen=True)
class Preset:
    """How a prior is trained, as far as somebody has published it."""

    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)  # of `train_prior`, by name
    network: Mapping[str, Any] = field(default_factory=dict)  # fields of the denoiser's config
    optimiser: Mapping[str, Any] = field(default_factory=dict)  # fields of `LoopConfig`


NO_PRESET = Preset()
PRESETS: dict[str, Preset] = {
    "vq-diffusion": Preset(
        "vq-diffusion",
        {
            "kernel": "mask-replace", "schedule": "release", "diffusion_steps": 100, "rule": "mixture",
            "denoiser": "vq-diffusion", "parameterisation": "direct", "loss": "bound", "auxiliary_weight": 5e-4,
            "adaptive_auxiliary": True, "mask_weights": (1.0, 1.0), "times": "importance", "batch_size": 32,
            "learning_rate": 4.5e-4,
        },
        optimiser={
            "betas": (0.9, 0.96), "weight_decay": 0.045, "decays_all": True, "clip_norm": 0.5, "warmup_steps": 5000,
            "rate_course": "constant", "ema_decay": 0.99 ** (1 / 25), "ema_share": None,
        },
    ),
    "unleashing": Preset(
        "unleashing",
        {
            "kernel": "absorbing", "schedule": "linear", "diffusion_steps": 256, "rule": "mixture",
            "denoiser": "vq-diffusion", "parameterisation": "direct", "loss": "reweighted-elbo", "times": "uniform",
            "batch_size": 20, "learning_rate": 2e-4,
        },
        network={"time": "none", "positions": "flat", "activation": "gelu", "head_bias": False},
        optimiser={
            "betas": (0.9, 0.999), "weight_decay": 0.0, "clip_norm": NO_CLIPPING, "warmup_steps": 10_000,
            "rate_course": "constant", "ema_decay": 0.995**0.1, "ema_share": None,
        },
    ),
    "vq-ddm": Preset(
        "vq-ddm",
        {
            "kernel": "uniform", "schedule": "cosine", "diffusion_steps": 4000, "rule": "plug-in",
            "denoiser": "unet", "parameterisation": "residual", "loss": "bound", "auxiliary_weight": 0.0,
            "times": "importance", "batch_size": 180, "learning_rate": 1e-4,
        },
        network={"bounded_attention": False},
        optimiser={
            "betas": (0.9, 0.999), "weight_decay": 0.0, "clip_norm": NO_CLIPPING, "warmup_steps": 0,
            "ema_decay": 0.0, "ema_share": None,
        },
    ),
}  # fmt: skip
DEFAULT_LOSS = {"loss": "reweighted", "times": "stratified"}  # of denoisers that name no LOSS
NEEDED = {"schedule": "kernel", "parameterisation": "denoiser", "times": "loss"}  # option -> what it goes with
WITH_BOUND = ("auxiliary_weight", "adaptive_auxiliary", "mask_weights")


@dataclass(frozen=True, kw_only=True)
class PresetOptions(Checked):
    """Whose way of training is followed."""

    preset: str | None = option(
        None, "Kernel, loss, network and optimiser as published; further flags go before it.",
        choices="training/presets.py:PRESETS", listed=False, advanced=True,
    )  # fmt: skip


def settle(given: Mapping[str, Any], *, denoiser: str | None, notify: Notify) -> tuple[dict[str, Any], Preset]:
    """All options of a training, and the preset that they are of: of none, an empty one.

    Args:
        given: the options of `train_prior` that somebody gave, `preset` among them.
        denoiser: of the prior to begin with; None for fresh weights.
        notify: is told which of them go before those of the preset.

    Returns:
        Options without `preset`; those of the denoiser's own loss are among them.

    Raises:
        VqtoolError: an unknown preset, or one with a prior to begin with.
    """
    options = dict(given)
    name = PresetOptions(preset=options.pop("preset", None)).preset
    if name is not None and denoiser is not None:
        raise VqtoolError(f"`preset` {name} is for fresh weights: leave it out, or train without `from_`")
    preset = NO_PRESET if name is None else PRESETS[name]
    if name is not None:
        preset = _overridden(preset, options, notify)
    options = {**preset.options, **options}
    if "loss" not in options:
        options = own_loss(denoiser or choose_denoiser(options)) | options
    return options, preset


def choose_denoiser(options: Mapping[str, Any]) -> str:
    """The kind of network that options of `train_prior` ask for."""
    given = options.get("denoiser")
    return str(given or ("transformer" if options.get("text_encoder") is None else "vq-diffusion"))


def own_loss(denoiser: str) -> dict[str, Any]:
    """The loss, and how t is drawn, that serve a denoiser best where nobody names a loss; unknown ones fail later."""
    own = getattr(denoisers.module(denoiser), "LOSS", DEFAULT_LOSS) if denoiser in denoisers.NAMES else {}
    return dict(own)


def _overridden(preset: Preset, given: Mapping[str, Any], notify: Notify) -> Preset:
    """A preset without what goes with a part that somebody replaces; says what is replaced."""
    others = {each for each, value in preset.options.items() if each in given and given[each] != value}
    lost = {each for each, part in NEEDED.items() if part in others and each not in given and each in preset.options}
    if "loss" in others:
        lost |= {each for each in WITH_BOUND if each in preset.options and each not in given}
    told = [f"{each} {given[each]} in place of {value}" for each, value in preset.options.items() if each in others]
    told += [f"{each} no longer {value}" for each, value in preset.options.items() if each in lost]
    notify(f"as published for {preset.name}{', but ' if told else ''}{', '.join(told)}")
    options = {each: value for each, value in preset.options.items() if each not in lost}
    return Preset(preset.name, options, {} if "denoiser" in others else preset.network, preset.optimiser)
