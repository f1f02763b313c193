"""Variants of grids: what the prior draws of each picture, and whether its variants differ."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch
from vqtool.samplers import Method, Observer
from vqtool.samplers._changes import Wanted
from vqtool.samplers._framing import Given
from vqtool.samplers._pictures import Pictures
from vqtool.samplers.estimates import NUM_REHEARSED
from vqtool.samplers.runs import Run, Summary

ALIKE = 0.05  # variants that differ in fewer of the cells that are drawn are told
Write = Callable[[GridBatch, Given], None]


@dataclass(frozen=True)
class Variants:
    """What was made of some pictures."""

    batch: GridBatch  # those of one picture in a row
    samples: range  # their numbers
    num_calls: float  # of the denoiser, the mean of the samples
    differ: Sequence[float] = ()  # by picture: in what share of the cells drawn anew one variant differs from the next

    def find_alike(self) -> list[str]:
        """The ids of pictures whose variants are nearly the same."""
        step = len(self.batch) // max(1, len(self.differ))
        firsts = self.batch.ids[::step] if self.differ else []
        return [id.removesuffix("-1") for id, share in zip(firsts, self.differ, strict=True) if share < ALIKE]


@dataclass(frozen=True)
class Editor:
    """Makes variants of grids."""

    method: Callable[[tuple[int, int]], Method]  # how grids of a size are drawn
    wanted: Wanted
    variants: int
    texts: Sequence[str]  # that pictures are made by in turn; empty for their own

    def rows(self, given: Given, number: int, *, variants: int = 1) -> dict[str, Any]:
        """What `Method.batches` is told of pictures; `number` is that of the first in the run."""

        def of_samples(rows: Tensor) -> Callable[[range], Tensor]:
            return lambda samples: rows[[sample // variants - number for sample in samples]]

        batch, conditioner = given.batch, self._method(given).prior.conditioner
        texts: Sequence[str | None] | None = conditioner.select(batch.labels, batch.captions)
        if self.texts:
            texts = self._new_texts(len(batch), number)
        known = {"condition": None if texts is None else of_samples(conditioner.encode(texts))}
        strength = self.wanted.strength
        if strength is None or self.wanted.masks:
            known["known"] = of_samples(torch.from_numpy(given.opened.tokens.astype(np.int64)))
        if strength is None:
            return known
        return known | {"source": of_samples(torch.from_numpy(batch.tokens.astype(np.int64))), "strength": strength}

    def make(self, given: Given, number: int, **how: Any) -> Variants:
        """Variants of grids; ids get -1, -2, ... where there are several."""
        batch, method = given.batch, self._method(given)
        if self.wanted.masked:
            return Variants(given.opened, range(number, number + len(batch)), 0.0)
        samples = range(number * self.variants, (number + len(batch)) * self.variants)
        rows = self.rows(given, number, variants=self.variants)
        made = list(method.batches(len(samples), start=samples.start, **rows, **how))
        tokens = torch.cat([part.grids for part in made]).numpy()
        calls = sum(part.num_calls * len(part.samples) for part in made) / max(1, len(samples))
        count = range(1, self.variants + 1)
        ids = batch.ids if self.variants == 1 else [f"{id}-{v}" for id in batch.ids for v in count]
        words = {"class": batch.labels, "caption": batch.captions}
        if self.texts:
            words[method.prior.conditioner.kind] = self._new_texts(len(batch), number)
        labels, captions = (
            None if column is None else [text for text in column for _ in count] for column in words.values()
        )
        return Variants(GridBatch(tokens, ids, labels, captions), samples, calls, self._compare(given, tokens, method))

    def _compare(self, given: Given, tokens: NDArray[np.int64], method: Method) -> list[float]:
        """By picture, in what share of the cells that are drawn one variant differs from the next."""
        if self.variants == 1:
            return []
        drawn = given.opened.tokens == method.prior.codebook_size
        drawn |= not drawn.any()
        by_picture = tokens.reshape(len(given.batch), self.variants, *tokens.shape[1:])
        other = (by_picture[:, 1:] != by_picture[:, :-1]).mean(axis=1)  # (B, H, W)
        return [float(share[cells].mean()) if cells.any() else 1.0 for share, cells in zip(other, drawn, strict=True)]

    def _method(self, given: Given) -> Method:
        return self.method((given.opened.tokens.shape[1], given.opened.tokens.shape[2]))

    def _new_texts(self, num: int, number: int) -> list[str]:
        return [self.texts[(number + row) % len(self.texts)] for row in range(num)]

    def read_and_make(
        self, pictures: Pictures, write: Write, *, batch_size: int, observe: Observer | None
    ) -> Iterator[Variants]:
        """Make and write all, as many pictures together as are `batch_size` variants."""
        number = 0
        for given in pictures.read(max(1, batch_size // self.variants)):
            made = self.make(given, number, batch_size=batch_size, observe=observe)
            write(made.batch, given)
            number += len(given.batch)
            yield made

    def rehearse(self, pictures: Pictures, run: Run) -> Summary:
        """Say what it would take, by one variant of each of the first few pictures."""
        for given in pictures.read(NUM_REHEARSED):
            return run.rehearse(range(len(given.batch)), **self.rows(given, 0))
        raise VqtoolError(f"{pictures.name}: no picture to rehearse with")
