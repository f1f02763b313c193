"""What a walk does for students: the latent that each call draws, and no more calls than they were made for."""

import torch
from torch import Tensor

from vqtool import rng
from vqtool.denoisers import EncodedCondition
from vqtool.errors import VqtoolError
from vqtool.priors import Prior
from vqtool.samplers._microbatches import Microbatch

SMALLEST = 2.0**-54  # noise of 0, which is one number in 2 ** 53, is taken for this


def most_calls(prior: Prior) -> int:
    """How many calls a grid a student was made for; 0 for other priors."""
    return int(prior.summary.get("calls", 0)) if prior.denoiser.latent_size else 0


def check_calls(prior: Prior, calls: int) -> None:
    """Raise unless a prior may be called so often.

    Raises:
        VqtoolError: it is a student, made for fewer calls.
    """
    most = most_calls(prior)
    if most and calls > most:
        raise VqtoolError(
            f"this prior is a student, made for {most} network calls a grid, not for {calls}: give `steps` {most} or "
            "fewer, or sample its teacher"
        )


def draw_latents(prior: Prior, seed: int, samples: range, call: int) -> Tensor | None:
    """The latent of each sample in a call, (B, size) float64, standard normal; None for a prior without."""
    size = prior.denoiser.latent_size
    if not size:
        return None
    noise = rng.uniform(seed, samples, call, (size,), stream=rng.LATENT, device=prior.device)
    latents: Tensor = torch.special.ndtri(noise.clamp(min=SMALLEST))
    return latents


def mix(
    prior: Prior, condition: EncodedCondition | None, microbatch: Microbatch, latents: Tensor | None
) -> EncodedCondition | None:
    """A microbatch's conditions with the latents of its samples."""
    if latents is None or condition is None:
        return condition
    return prior.denoiser.mix(condition, microbatch.fill(latents, 0))
