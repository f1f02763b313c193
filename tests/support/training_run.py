"""A small training run for test_loop.py: to call, or to start as a process that can be killed or launched twice."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support.prior_run import die
from vqtool.tokenizers.vqvae import VqVaeConfig
from vqtool.training._autoencoder import TokenizerLoss, build_model
from vqtool.training.clock import LoopConfig
from vqtool.training.discriminator import DiscriminatorConfig
from vqtool.training.fitting import TokenizerObjective, fit

CONFIG = VqVaeConfig(
    codebook_size=16, code_dim=4, channels=(16, 16), encoder_blocks=(0, 1), decoder_blocks=(1, 0)
)  # factor 4


def train(
    folder: Path,
    *,
    quantizer: str = "ema",
    adversarial: bool = False,
    resume: bool = False,
    report: Any = None,
    preview: Any = None,
    **changes: Any,
) -> Any:
    """Train a small tokenizer on 10 pictures of noise; returns (tokenizer, summary)."""
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8)).astype(np.uint8)
    settings = {"num_steps": 60, "batch_size": 4, "warmup_steps": 5, "save_seconds": 0.0, **changes}
    config = LoopConfig(**settings)
    model = build_model(
        CONFIG, config.seed, quantizer=quantizer, discriminator=DiscriminatorConfig(1, 8) if adversarial else None
    )
    loss = TokenizerLoss(quantize_from=0.1, adversarial=0.8, adversarial_start=10)
    return fit(
        model,
        TokenizerObjective(images, model, loss, config),
        state_path=folder / "state.safetensors",
        log_path=folder / "log.jsonl",
        data={"images": "noise"},
        resume=resume,
        report=report,
        preview=preview,
    )


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of the log without the times, which no two runs share."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    pause = settings.pop("pause", 0.0)  # seconds after each step: time for whoever wants to kill the run
    told = die if settings.pop("dies", False) else lambda step, metrics: time.sleep(pause)
    train(Path(sys.argv[1]), report=told, **settings)
