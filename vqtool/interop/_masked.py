"""Priors of masked grids, as importers of many projects make them: their networks are told no time of a kernel."""

from collections.abc import Mapping
from typing import Any

from vqtool.conditions import Conditioner
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.denoisers import Denoiser
from vqtool.diffusion import kernels
from vqtool.priors import GridSpec, Prior


def build_prior(
    denoiser: Denoiser,
    name: str,
    conditioner: Conditioner,
    sampling: Mapping[str, Any],
    *,
    text_encoder: TextEncoder | None = None,
) -> Prior:
    """A prior whose kernel masks one cell after the other.

    Args:
        denoiser: the network.
        name: of its kind, one of denoisers.NAMES.
        conditioner: of its labels or captions.
        sampling: arguments of `sample` that its makers published.
        text_encoder: of captions.
    """
    config = denoiser.config
    rows, columns = config.grid_size
    size = rows, columns // getattr(config, "num_parts", 1)
    return Prior(
        kernel=kernels.build(
            "absorbing", schedule="linear", codebook_size=config.codebook_size, num_steps=config.num_steps
        ),
        denoiser=denoiser.eval().requires_grad_(False),
        denoiser_name=name,
        conditioner=conditioner,
        grid_spec=GridSpec("", "", size, size, ""),
        parameterisation="direct",
        text_encoder=text_encoder,
        sampling=sampling,
    )
