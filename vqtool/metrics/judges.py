"""Judges: which of several candidates for a picture is the best one. What `sample --best` chooses by.

- ``likelihood``: the prior itself: the bound on log p(x_0 | condition) at a few t, with the same masks and noise for
  all candidates of a sample; the likeliest pictures may be the plainest. What the condition adds to it, as a classifier
  counts, was worse than no choice where samples are guided (docs/sampling.md). Cost: a denoiser call a t and candidate.
- ``features``: realism (Kynkäänniemi et al. 2019): among real pictures the largest ratio of one's distance to its third
  neighbour over the candidate's distance to it, where those half with the largest neighbourhoods do not count.
- ``text``: the cosine of picture and caption, by the CLIP of a local folder or by a dual encoder (dual_encoder.py).

Source: Gu et al. 2022 (arXiv:2111.14822), acceptance by a classifier; Kynkäänniemi et al. 2019 (arXiv:1904.06991),
section 5; Radford et al. 2021 (arXiv:2103.00020).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool import rng
from vqtool.diffusion.losses import variational_bound
from vqtool.errors import VqtoolError, count_text
from vqtool.images import find_images, to_uint8
from vqtool.metrics.compare.scores import reference_features
from vqtool.metrics.features import FeatureNetwork, extract
from vqtool.metrics.features.efficientnet_lite0 import EfficientNetLite0
from vqtool.metrics.text import TextEncoder, load_encoder
from vqtool.options import Checked, option, options_of
from vqtool.priors import Prior
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer, tokenizer_of

NEIGHBOURS = 3
JUDGES = ("likelihood", "features", "text")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(Checked):
    """Who chooses among candidates."""

    best: int = option(1, "Candidates a picture, of which a judge keeps one.", minimum=1)
    judge: str = option(
        "likelihood", "Who chooses: the prior, realism by --judge-with IMAGES, or text by --judge-with.",
        choices="metrics/judges.py:JUDGES", advanced=True,
    )  # fmt: skip
    judge_with: Path | None = option(
        None, "Real images for features; CLIP's folder or builtin for text.", advanced=True
    )
    judge_times: int = option(8, "Looks of the likelihood at each candidate.", minimum=1, advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in options_of(JudgeOptions):
            if self.best == 1 and getattr(self, each.name) != each.default:
                raise VqtoolError(f"`{each.name}` is about candidates to choose from: give `best` 2 or more")
        if (self.judge_with is None) != (self.judge == "likelihood"):
            what = {"features": "real images", "text": "the folder of a CLIP model"}.get(self.judge)
            raise VqtoolError(
                f"`judge` {self.judge} judges with {what}: name them with `judge_with`"
                if what
                else "`judge_with` is for `judge` features or text: leave it out"
            )
        if self.judge_times != JudgeOptions.judge_times and self.judge != "likelihood":
            raise VqtoolError(f"`judge_times` is for `judge` likelihood, not for {self.judge}")


def build(
    prior: Prior, options: JudgeOptions, *, seed: int, tokenizer: str | Path | None = None, progress: Progress = silent
) -> Any:
    """The judge that is asked for; None for one candidate a picture.

    Args:
        prior: whose samples are judged.
        options: who judges.
        seed: of the likelihood's noise.
        tokenizer: decodes candidates; None for the one that the prior names.
        progress: shows how far reference features are.

    Raises:
        VqtoolError: the prior takes no captions, or what is judged with cannot be read.
    """
    if options.best == 1:
        return None
    if options.judge == "likelihood":
        return LikelihoodJudge(prior, times=options.judge_times, seed=seed)
    given = Path(options.judge_with or "")
    if options.judge == "text" and prior.conditioner.kind == "none":
        raise VqtoolError("`judge` text compares pictures with captions or labels, and this prior takes none")
    encoder = load_encoder(given, prior.device, option="judge_with") if options.judge == "text" else None
    items = [] if encoder is not None else find_images([given])
    decoder = tokenizer_of(prior.grid_spec, prior.location or None, given=tokenizer).to(prior.device)
    if encoder is not None:
        return TextJudge(decoder, encoder)
    network = EfficientNetLite0(decoder.device)
    reference = reference_features(items, network, prior.grid_spec.image_size, progress=progress)
    return RealismJudge(decoder, network, reference.pooled)


class LikelihoodJudge:
    """The prior: the bound on the likelihood of candidates, given their condition if it takes any.

    Args:
        prior: on the device to use.
        times: looks at each candidate, each at a time t of its own.
        seed: of the times and the noise.
    """

    name = "likelihood"

    def __init__(self, prior: Prior, *, times: int, seed: int) -> None:
        self._prior, self._times, self._seed = prior, times, seed
        self.calls = float(times)

    @torch.no_grad()
    def __call__(self, grids: Tensor, samples: Sequence[int], texts: Sequence[str | None]) -> Tensor:
        """Scores (n,) float64, nats; see `samplers._best.Judge`."""
        prior, kernel = self._prior, self._prior.kernel
        x_0, numbers = prior.split(grids).to(prior.device), torch.tensor(samples)
        encoded = prior.encode_condition(prior.conditioner.encode(list(texts)), len(grids))
        shifts = rng.uniform(self._seed, numbers, 0, (), stream=rng.JUDGE)
        total = torch.zeros(len(grids), dtype=torch.float64)
        for look in range(self._times):
            places = (look + shifts) / self._times
            t = (1 + (places * kernel.num_steps).long().clamp(max=kernel.num_steps - 1)).to(prior.device)
            noise = rng.uniform(self._seed, numbers, 1 + look, tuple(x_0.shape[1:]), stream=rng.JUDGE)
            x_t = kernel.sample(x_0, t, noise.to(prior.device))
            bound = variational_bound(prior.log_x0(x_t, t, encoded), x_0, x_t, t, kernel, prior.rule)
            total -= bound.double().sum((1, 2)).cpu()
        return total * kernel.num_steps / self._times


class _PictureJudge:
    """Base of judges of decoded pictures."""

    calls = 0.0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @torch.no_grad()
    def _decode(self, grids: Tensor) -> NDArray[np.uint8]:
        return to_uint8(self._tokenizer.decode(grids.to(self._tokenizer.device)))


class RealismJudge(_PictureJudge):
    """How near a candidate is to real pictures, by how near these are to each other.

    Raises:
        VqtoolError: too few real pictures.
    """

    name = "features"

    def __init__(self, tokenizer: Tokenizer, network: FeatureNetwork, reference: NDArray[np.floating]) -> None:
        super().__init__(tokenizer)
        if len(reference) <= NEIGHBOURS:
            raise VqtoolError(
                f"`judge_with`: {count_text(len(reference), 'image')}; at least {NEIGHBOURS + 1} are needed"
            )
        self._network = network
        real = torch.from_numpy(np.asarray(reference, np.float64))
        radii = torch.cdist(real, real).kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is itself
        small = radii <= radii.median()
        self._real, self._radii = real[small], radii[small]

    def __call__(self, grids: Tensor, samples: Sequence[int], texts: Sequence[str | None]) -> Tensor:
        """Scores (n,) float64: above 1 inside of what real pictures cover."""
        found = torch.from_numpy(np.asarray(extract(self._network, [self._decode(grids)]).pooled, np.float64))
        return (self._radii / torch.cdist(found, self._real).clamp(min=1e-12)).amax(1)


class TextJudge(_PictureJudge):
    """How well a candidate fits its caption, by CLIP."""

    name = "text"

    def __init__(self, tokenizer: Tokenizer, encoder: TextEncoder) -> None:
        super().__init__(tokenizer)
        self._encoder = encoder

    def __call__(self, grids: Tensor, samples: Sequence[int], texts: Sequence[str | None]) -> Tensor:
        """Scores (n,) float64: cosines."""
        pictures = self._encoder.pictures(self._decode(grids))
        return (pictures * self._encoder.texts([text or "" for text in texts])).sum(1)
