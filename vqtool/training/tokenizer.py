"""Training of tokenizers: a network, a quantizer and what is minimised; and fine-tuning behind a frozen encoder.

Loss: reconstruction + `edge_weight` x edges [+ `perceptual_weight` x perceptual] [+ `adversarial_weight` x adaptive
weight x adversarial] + the quantizer's terms, each with its weight.
Source: van den Oord et al. 2017 (arXiv:1711.00937); Esser et al. 2021 (arXiv:2012.09841).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtool import artifacts, rng
from vqtool.images import to_float, to_uint8
from vqtool.tokenizers import Tokenizer
from vqtool.training import loop
from vqtool.training._autoencoder import Autoencoder, Phase, TokenizerLoss, build_model
from vqtool.training.augment import Augmentation, augmented, middle
from vqtool.training.loop import Indices, LoopConfig
from vqtool.training.perceptual import Perceptual

__all__ = [
    "Augmentation", "Autoencoder", "TokenizerLoss", "TokenizerObjective", "build_model", "train_tokenizer",
    "write_sheet",
]  # fmt: skip


class TokenizerObjective:
    """The objective of the training loop: which images a step sees, and what is minimised."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        model: Autoencoder,
        loss: TokenizerLoss,
        run: LoopConfig,
        *,
        size: tuple[int, int] | None = None,
        augmentation: Augmentation | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        """An objective.

        Args:
            images: (N, 3, h, w), in memory or memory-mapped.
            model: that is trained.
            loss: what is minimised.
            run: seed and length.
            size: (h, w) of what is learned from, if the images are larger: pieces of them.
            augmentation: how images change; None is as usual.
            perceptual: a distance beside those of pixels.
        """
        self.images, self.loss, self.run, self.perceptual = images, loss, run, perceptual
        self.size = size or (images.shape[2], images.shape[3])
        self.augmentation = augmentation or Augmentation()
        self.codebook_size = model.tokenizer.config.codebook_size
        self.waits = model.quantizer is not None and not model.quantizer.is_ready()

    def __call__(
        self, model: nn.Module, indices: Indices, samples: Indices, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and metrics of a step."""
        device = next(model.parameters()).device
        batch = augmented(self.images[indices], self.size, self.augmentation, seed=self.run.seed, samples=samples)
        picks = rng.uniform(self.run.seed, [0], step, (self.codebook_size,), stream=rng.SELECTION)[0]
        perceptual = None if self.perceptual is None else self.perceptual.to(device)
        found: tuple[Tensor, dict[str, Tensor]] = model(
            batch.to(device, memory_format=torch.channels_last),
            picks.to(device),
            loss=self.loss,
            phase=self.phase(step),
            perceptual=perceptual,
        )
        return found

    def phase(self, step: int) -> Phase:
        """What is done in a step."""
        progress = step / self.run.num_steps
        return Phase(
            quantize=not self.waits or progress >= self.loss.quantize_from,
            revive=progress < self.loss.revive_until,
            adversarial=step >= self.loss.adversarial_start,
        )

    def identity(self) -> dict[str, Any]:
        """What has to be the same for a resume."""
        perceptual = None if self.perceptual is None else self.perceptual.name
        return {"size": self.size, "perceptual": perceptual, **asdict(self.augmentation), **asdict(self.loss)}


def train_tokenizer(
    model: Autoencoder,
    objective: TokenizerObjective,
    *,
    state_path: Path,
    log_path: Path,
    identity: Mapping[str, Any],
    resume: bool = False,
    sheet: Callable[[Tokenizer, int], None] | None = None,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[Tokenizer, dict[str, Any]]:
    """Train a tokenizer on images.

    Args:
        model: from `build_model` or `finetuning.build_model`.
        objective: what is minimised, on which images, for how long.
        state_path: file that the run can be resumed from.
        log_path: JSON-lines log.
        identity: of the data; a resume with another one is refused.
        resume: go on from `state_path`.
        sheet: draws a picture of the progress.
        report: is told (step, metrics).

    Returns:
        The tokenizer and its training summary.
    """
    result = loop.run(
        model,
        objective,
        num_items=len(objective.images),
        config=objective.run,
        state_path=state_path,
        log_path=log_path,
        identity={**identity, **model.design, **objective.identity()},
        resume=resume,
        sheet=None if sheet is None else lambda ema, step: sheet(_finished(ema), step),
        report=report,
    )
    return _finished(result.model), {**result.summary, "num_images": len(objective.images)}


def _finished(model: nn.Module) -> Tokenizer:
    if not isinstance(model, Autoencoder):
        raise ValueError(f"model is a {type(model).__name__}, not an Autoencoder")
    return model.finished()


@torch.inference_mode()
def write_sheet(
    tokenizer: Tokenizer,
    images: NDArray[np.uint8],
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    num: int = 16,
) -> None:
    """Write a PNG of originals over reconstructions; the images are spread evenly over `images` (N, 3, h, w)."""
    from vqtool.images.preview import comparison_grid

    chosen = images[np.linspace(0, len(images) - 1, min(num, len(images))).astype(int)]
    chosen = middle(chosen, size or (images.shape[2], images.shape[3]))
    batch = to_float(chosen).to(tokenizer.device)
    rebuilt = to_uint8(tokenizer.decode(tokenizer.encode(batch)))
    with artifacts.atomic_path(path, force=True) as temporary:
        comparison_grid(chosen, rebuilt).save(temporary, format="png")
