"""Confidence sampling (MaskGIT): draw all masked cells, keep the likeliest tokens, mask the rest again.

When to use it: for kernels with a mask, in few calls (8 to 16); less variety than samplers that choose at random.
Equation: x_0 ~ p(x_0 | x_t) in every masked cell; its confidence is log p(x_0 | x_t) + a * Gumbel noise with
a = choice_temperature * (1 - i / S) in call i of S; the cells of greatest confidence are unmasked, so that
max(1, min(masked - 1, floor(cells * cos(pi / 2 * i / S)))) stay masked, and none after the last call. Other plans have
in place of the cosine arccos(i / S) / (pi / 2), TiTok's and MaskBit's, or 1 - i / S, aMUSEd's for parts of pictures;
Halton-MaskGIT's confidence sampler begins with a single cell.
With `score` logit cells are chosen by the logit of their token plus a * Gumbel noise, and tokens are drawn at
temperature a, so that the last call takes the likeliest: TiTok's way, whose published scores need it.
Cost: `steps` denoiser calls, whose head computes the masked cells only.
Source: Chang et al. 2022 (arXiv:2202.04200), section 3.2, and its code, whose counts are golden;
Besnier et al. 2025 (arXiv:2503.17076), whose code draws known cells anew in every call: here they are kept; Yu et al.
2024 (arXiv:2406.07550), whose walks are golden.
"""

from dataclasses import dataclass

from torch import Tensor

from vqtool.diffusion.posterior import draw
from vqtool.options import Checked, option
from vqtool.samplers._unmask import find_largest, gumbel, unmask_by_choice_temperature
from vqtool.samplers._walk import Walk

NEEDS_MASK = True


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How the cells are chosen."""

    steps: int | None = option(None, "Denoiser calls, 1 to the number of cells.", usual=16)
    plan: str = option(
        "cosine", "How many cells a call.", choices="samplers/_unmask.py:PLANS", flag="--unmask", advanced=True
    )
    score: str = option(
        "log-p",
        "What cells are chosen by; logit is TiTok's way: tokens are drawn at the choice temperature, too.",
        choices=("log-p", "logit"),
        advanced=True,
    )
    choice_temperature: float | tuple[float, ...] = option(
        4.5,
        "Randomness of the choice of cells; falls to 0. A list goes from the first call to the last.",
        minimum=0,
        advanced=True,
    )


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        options: how.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps is not possible.
    """
    walk.raw = options.score == "logit"
    return unmask_by_choice_temperature(walk, options, _choose_by_logit if walk.raw else _choose)


def _choose(
    temperature: float, count: int, log_x0: Tensor, choice: Tensor, order: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor]:
    tokens = draw(log_x0, choice)  # (G, n)
    log_p = log_x0.gather(-1, tokens[..., None])[..., 0].double()
    places = find_largest(log_p + temperature * gumbel(order) if temperature else log_p, masked, count)
    return places, tokens.gather(1, places)


def _choose_by_logit(
    temperature: float, count: int, logits: Tensor, choice: Tensor, order: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor]:
    tokens = draw((logits / temperature).log_softmax(-1), choice) if temperature else logits.argmax(-1)  # (G, n)
    score = logits.gather(-1, tokens[..., None])[..., 0].double() + temperature * gumbel(order)
    places = find_largest(score, masked, count)
    return places, tokens.gather(1, places)
