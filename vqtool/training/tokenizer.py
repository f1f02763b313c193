"""Training of a VQ-VAE with an EMA codebook.

Loss: reconstruction + `edge_weight` x edges + `commitment` x commitment; the codebook follows by moving averages.
Source: van den Oord et al. 2017 (arXiv:1711.00937).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtool import artifacts, rng
from vqtool.images import to_float, to_uint8
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.losses import edges, reconstruction
from vqtool.tokenizers.quantizers import EmaQuantizer
from vqtool.tokenizers.vqvae import VqVaeConfig
from vqtool.training import loop
from vqtool.training.loop import Indices, LoopConfig


@dataclass(frozen=True)
class TokenizerLoss:
    """What is minimised."""

    reconstruction: str = "l1"
    edge_weight: float = 0.5
    commitment: float = 0.25
    flip: bool = True  # mirror half of the images left to right
    quantize_from: float = 0.05  # share of the run before which latents pass unquantised: codes then start on data
    revive_until: float = 0.8  # share of the run in which dead codes are revived


class VqVae(nn.Module):
    """The tokenizer's networks with a codebook in training."""

    def __init__(self, config: VqVaeConfig) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(config)
        del self.tokenizer.codebook  # the quantizer's takes its place: see `finished`
        self.quantizer = EmaQuantizer(config.codebook_size, config.code_dim)

    def forward(
        self, images: Tensor, picks: Tensor, *, quantize: bool = True, revive: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, h, w) -> rebuilt (B, 3, h, w), commitment loss (), tokens (B, H, W)."""
        latents = self.tokenizer.latents(images)
        if not quantize:
            tokens = torch.zeros(latents.shape[:-1], dtype=torch.int64, device=latents.device)
            return self.tokenizer.decode_codes(latents), latents.new_zeros(()), tokens
        codes, commitment, tokens = self.quantizer(latents, picks, revive=revive)
        return self.tokenizer.decode_codes(codes), commitment, tokens

    def finished(self) -> Tokenizer:
        """The tokenizer with the codebook as it is now."""
        tokenizer = Tokenizer(self.tokenizer.config).to(self.quantizer.codebook.device)
        tokenizer.load_state_dict({**self.tokenizer.state_dict(), "codebook": self.quantizer.codebook})
        return tokenizer.eval()


def build_objective(
    images: NDArray[np.uint8], config: VqVaeConfig, loss: TokenizerLoss, run: LoopConfig
) -> loop.Objective:
    """The objective of the training loop.

    Args:
        images: (N, 3, h, w), in memory or memory-mapped.
        config: of the network.
        loss: what is minimised.
        run: seed and length.
    """

    def objective(model: nn.Module, indices: Indices, samples: Indices, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(model.parameters()).device
        batch = to_float(images[indices]).to(device, memory_format=torch.channels_last)
        if loss.flip:
            mirrored = rng.uniform(run.seed, samples, 0, (1, 1, 1), stream=rng.TRAINING).to(device) < 0.5
            batch = torch.where(mirrored, batch.flip(-1), batch)
        picks = rng.uniform(run.seed, [0], step, (config.codebook_size,), stream=rng.SELECTION)[0]
        progress = step / run.num_steps
        rebuilt, commitment, tokens = model(
            batch, picks, quantize=progress >= loss.quantize_from, revive=progress < loss.revive_until
        )
        distance = reconstruction(batch, rebuilt, loss.reconstruction)
        outline = edges(batch, rebuilt)
        total = distance + loss.edge_weight * outline + loss.commitment * commitment
        with torch.no_grad():
            error = (batch - rebuilt.clamp(-1, 1)).square().mean((1, 2, 3)).clamp(min=1e-10)
            psnr = (10 * torch.log10(4.0 / error)).mean()
            share = torch.bincount(tokens.flatten(), minlength=config.codebook_size) / tokens.numel()
            perplexity = torch.exp(-torch.xlogy(share, share).sum())
        metrics = {"reconstruction": distance, "edges": outline, "commitment": commitment}
        metrics |= {"psnr": psnr, "perplexity": perplexity, "usage": (share > 0).float().mean()}
        return total, {name: value.detach() for name, value in metrics.items()}

    return objective


def train_tokenizer(
    images: NDArray[np.uint8],
    *,
    config: VqVaeConfig,
    loss: TokenizerLoss,
    run: LoopConfig,
    state_path: Path,
    log_path: Path,
    identity: Mapping[str, Any],
    resume: bool = False,
    sheet: Callable[[Tokenizer, int], None] | None = None,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[Tokenizer, dict[str, Any]]:
    """Train a tokenizer on images.

    Args:
        images: (N, 3, h, w).
        config: of the network.
        loss: what is minimised.
        run: of the training loop.
        state_path: file that the run can be resumed from.
        log_path: JSON-lines log.
        identity: of the data; a resume with another one is refused.
        resume: go on from `state_path`.
        sheet: draws a picture of the progress.
        report: is told (step, metrics).

    Returns:
        The tokenizer and its training summary.
    """
    model = build_model(config, run.seed)
    identity = {**identity, **{f"network.{k}": v for k, v in asdict(config).items()}, **asdict(loss)}
    result = loop.run(
        model,
        build_objective(images, config, loss, run),
        num_items=len(images),
        config=run,
        state_path=state_path,
        log_path=log_path,
        identity=identity,
        resume=resume,
        sheet=None if sheet is None else lambda ema, step: sheet(_finished(ema), step),
        report=report,
    )
    return _finished(result.model), {**result.summary, "num_images": len(images)}


def build_model(config: VqVaeConfig, seed: int) -> VqVae:
    """A new model with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VqVae(config)


def _finished(model: nn.Module) -> Tokenizer:
    if not isinstance(model, VqVae):
        raise ValueError(f"model is a {type(model).__name__}, not a VqVae")
    return model.finished()


@torch.inference_mode()
def write_sheet(tokenizer: Tokenizer, images: NDArray[np.uint8], path: Path, *, num: int = 16) -> None:
    """Write a PNG of originals over reconstructions; the images are spread evenly over `images` (N, 3, h, w)."""
    from vqtool.sheets import comparison_sheet

    chosen = images[np.linspace(0, len(images) - 1, min(num, len(images))).astype(int)]
    batch = to_float(chosen).to(tokenizer.device)
    rebuilt = to_uint8(tokenizer.decode(tokenizer.encode(batch)))
    with artifacts.atomic_path(path, force=True) as temporary:
        comparison_sheet(chosen, rebuilt).save(temporary, format="png")
