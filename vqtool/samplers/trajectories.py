"""Trajectories: the states that the first few samples pass through, as grids and as frames of an animation.

A sampler reports its grids before every call of the denoiser and at the end. A state that equals the one before is not
kept, so that the trajectory of a sample does not depend on the others in its batch. Of a long trajectory every second,
fourth, ... state is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqtool.distributed import is_main_process
from vqtool.errors import count_text, warn
from vqtool.images import to_uint8
from vqtool.images.animations import check_animation, save_animation
from vqtool.images.preview import preview_grid
from vqtool.progress import Notify, ignore
from vqtool.samplers import Observer, Walk
from vqtool.tokenizers import Tokenizer

NUM_SAMPLES = 8
MAX_FRAMES = 60
GREY = 128  # of what is still masked
_FRAME = 120  # milliseconds, of an animation of few frames
_ANIMATION = 5000  # milliseconds, of one of many


class Trajectory:
    """Records the states of the first few samples; pass its `observe` to `vqtool.sample`.

    Attributes:
        samples: the numbers of the samples that are recorded.
    """

    def __init__(self, samples: range) -> None:
        """Record the first NUM_SAMPLES of these samples."""
        self.samples = samples[:NUM_SAMPLES]
        self._walks = {number: _States() for number in self.samples}

    def observe(self, walk: Walk, x_t: Tensor) -> None:
        """Record the states x_t (B, H, W) of a batch."""
        wanted = [place for place, number in enumerate(walk.samples) if number in self._walks]
        if wanted:
            for place, grid in zip(wanted, walk.tokens(x_t[wanted]).to("cpu", torch.int32), strict=True):
                self._walks[walk.samples[place]].add(grid)

    @property
    def seen(self) -> list[int]:
        """The numbers of the samples that have been recorded."""
        return [number for number, walk in self._walks.items() if walk.last is not None]

    def grids(self) -> Tensor:
        """(F, B, H, W) int64: the frames, first to last; a shorter trajectory shows each state for several frames."""
        walks = [self._walks[number].states() for number in self.seen]
        if not walks:
            return torch.empty(0, 0, 0, 0, dtype=torch.int64)
        num = max(len(states) for states in walks)
        picked = [
            [states[round(frame * (len(states) - 1) / max(1, num - 1))] for frame in range(num)] for states in walks
        ]
        return torch.stack([torch.stack(states) for states in picked], dim=1).long()


class _States:
    """The distinct states of one sample: at most MAX_FRAMES of them, evenly thinned out, and the last."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self._kept: list[Tensor] = []
        self._stride, self._num = 1, 0

    def add(self, grid: Tensor) -> None:
        if self.last is not None and torch.equal(grid, self.last):
            return
        self.last = grid
        if self._num % self._stride == 0:
            self._kept.append(grid)
        self._num += 1
        if len(self._kept) == MAX_FRAMES:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def states(self) -> list[Tensor]:
        """The states that were kept, and the last."""
        more = [] if self.last is None or self.last is self._kept[-1] else [self.last]
        return self._kept + more


def draw_frames(grids: Tensor, tokenizer: Tokenizer, captions: Sequence[str] | None = None) -> list[Image.Image]:
    """One preview a state, masked cells in grey.

    Args:
        grids: (F, B, H, W) int64 tokens or mask_id.
        tokenizer: what they decode with, on the device to use.
        captions: one a sample.
    """
    return [preview_grid(decode_masked(frame, tokenizer), captions) for frame in grids]


@torch.no_grad()
def decode_masked(grid: Tensor, tokenizer: Tokenizer) -> NDArray[np.uint8]:
    """Images of grids with masked cells: grey where they have a place, and for the others the codebook's mean.

    Args:
        grid: (B, H, W) int64 tokens, or codebook_size where masked.
        tokenizer: on the device to use.

    Returns:
        (B, 3, h, w).
    """
    masked = grid == tokenizer.codebook_size
    codes = tokenizer.codebook[torch.where(masked, 0, grid).to(tokenizer.device)]
    codes[masked.to(tokenizer.device)] = tokenizer.codebook.mean(0)
    images = to_uint8(tokenizer.decode_codes(codes))
    if not tokenizer.factor:
        return images
    grey = masked.numpy().repeat(tokenizer.factor, axis=1).repeat(tokenizer.factor, axis=2)
    return np.where(grey[:, None], np.uint8(GREY), images)


@contextmanager
def animated(
    path: Path | None,
    samples: range,
    find_tokenizer: Callable[[], Tokenizer],
    *,
    texts: Sequence[str] = (),
    force: bool = False,
    notify: Notify = ignore,
) -> Iterator[Observer | None]:
    """Observe a run, and write an animation of it at the end; None if there is to be none, or in other processes.

    Args:
        path: of the animation; None for none.
        samples: the numbers of this process's samples.
        find_tokenizer: finds what the grids decode with.
        texts: captions of the samples, in turn.
        force: overwrite the file.
        notify: is told what has been written.

    Raises:
        VqtoolError: it cannot be written, or its tokenizer is not there; early, before anything is drawn.
    """
    if path is None or not is_main_process():
        yield None
        return
    path = Path(path)
    check_animation(path, force=force)
    tokenizer, trajectory = find_tokenizer(), Trajectory(samples)
    yield trajectory.observe
    grids = trajectory.grids()
    if not len(grids):
        warn(f"{path}: not written; none of the first samples was drawn by this run")
        return
    captions = [texts[number % len(texts)] for number in trajectory.seen] if texts else None
    frames = draw_frames(grids, tokenizer, captions)
    save_animation(frames, path, milliseconds=min(_FRAME, _ANIMATION // len(frames)), force=force)
    notify(f"wrote {path}: {len(frames)} frames of {count_text(len(trajectory.seen), 'grid')}")
