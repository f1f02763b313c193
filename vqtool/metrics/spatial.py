"""Spatial Fréchet distance (sFID): the Fréchet distance of activations that keep their places.

What it does: compares where things are in the pictures rather than only what is in them.
When to use it: beside the Fréchet distance, with the features `inception`, to compare with published sFID; a sampler
that gets textures right and arrangements wrong shows here.
Equation: as frechet.py, on 7 channels of 17x17 places in the middle of the network, 2,023 numbers.
Cost: as the Fréchet distance.
Source: Nash et al. 2021 (arXiv:2103.03841), in the form of ADM's evaluation suite (arXiv:2105.05233).
"""

from dataclasses import dataclass

from numpy.typing import ArrayLike

from vqtool.metrics.frechet import Statistics, frechet_distance, frechet_distance_of_statistics
from vqtool.metrics.score import Score
from vqtool.options import Checked

NEEDS = "spatial"


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """There are none."""


DEFAULTS = Options()


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The score "sFD" of spatial features (M, S) against (N, S); draws nothing from the seed."""
    return [Score("sFD", frechet_distance(reference, generated), better="lower")]


def measure_statistics(reference: Statistics, generated: Statistics) -> list[Score]:
    """The score "sFD" of two Gaussians, where only their statistics were kept."""
    return [Score("sFD", frechet_distance_of_statistics(reference, generated), better="lower")]
