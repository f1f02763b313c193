"""The picture of samples that a run of a prior draws now and then."""

from pathlib import Path
from typing import Any

import torch

from vqtool.images import to_uint8
from vqtool.images.preview import preview_grid, save_image
from vqtool.priors import Prior
from vqtool.samplers import sample
from vqtool.tokenizers import Tokenizer

PREVIEW_SAMPLES = 16


def write_preview(prior: Prior, tokenizer: Tokenizer, path: Path) -> None:
    """Draw samples of a prior as it is; the same seeds and conditions every time."""
    texts = prior.conditioner.examples[:PREVIEW_SAMPLES]
    captions = [texts[i % len(texts)] for i in range(PREVIEW_SAMPLES)] if texts else None
    condition = prior.conditioner.encode(captions) if captions else None
    options: dict[str, Any] = {"sampler": "purity"} if prior.kernel.has_mask else {}
    grids = sample(prior, PREVIEW_SAMPLES, condition=condition, cfg_scale=2.0 if texts else 1.0, **options)
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(grids.to(tokenizer.device)))
    save_image(preview_grid(images, captions), path, force=True)
