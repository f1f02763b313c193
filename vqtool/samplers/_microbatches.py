"""The samples of a batch that pass the network together: at fixed places, filled up, or side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from vqtool.denoisers import EncodedCondition
from vqtool.priors import Prior
from vqtool.samplers._settings import Settings, encode_null


@dataclass(frozen=True)
class Microbatch:
    """Samples that pass the network together."""

    rows: slice  # of the batch
    places: slice  # where they are in the microbatch
    size: int  # of the microbatch, with places that no sample fills
    exact: bool  # whether the size is that of all others
    condition: EncodedCondition  # a row a place
    reference: EncodedCondition | None  # what guidance compares with; None without guidance

    def fill(self, values: Tensor, value: int | bool) -> Tensor:
        """The rows of a batch at their places, (size, ...), and a value at those that are empty."""
        if not self.exact:
            return values[self.rows]
        filled = values.new_full((self.size, *values.shape[1:]), value)
        filled[self.places] = values[self.rows]
        return filled


def split(
    prior: Prior, samples: range, condition: Tensor | None, settings: Settings, *, most: int, exact: bool
) -> Iterator[Microbatch]:
    """The microbatches of a batch.

    Args:
        prior: encodes conditions.
        samples: numbers of the samples.
        condition: (B, ...), or None for the null condition.
        settings: guidance.
        most: samples in a microbatch.
        exact: whether all microbatches have so many, with sample i at the place i mod `most`.
    """
    first, stop, second = samples.start, samples.stop, settings.guide_with
    compare = settings.guided and (second is None or second.conditioner.kind == "none")
    begin, step = (first - first % most, most) if exact else (first, min(most, len(samples)))
    references: dict[int, EncodedCondition] = {}  # of null conditions, by how many
    for place in range(begin, stop, step):
        low, high = max(place, first), min(place + step, stop)
        size = most if exact else high - low
        rows, places = slice(low - first, high - first), slice(low - place, high - place)
        filled = prior.conditioner.null(size).clone()
        if condition is not None:
            filled[places] = condition[rows]
        reference = None
        if compare:
            if size not in references:
                references[size] = encode_null(second or prior, size, settings.null, settings.negative)
            reference = references[size]
        elif second is not None:
            reference = second.encode_condition(filled, size)
        yield Microbatch(rows, places, size, exact, prior.encode_condition(filled, size), reference)
