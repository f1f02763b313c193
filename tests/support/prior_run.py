"""A small training run of a prior: to call, or to start as a process that can be killed."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from support.exact import grid_spec
from support.matrices import build_kernel
from vqtool import conditions
from vqtool.denoisers import transformer
from vqtool.grids import GridBatch
from vqtool.training import prior as training
from vqtool.training.building import build_prior
from vqtool.training.clock import LoopConfig
from vqtool.training.data import build_data
from vqtool.training.objectives import PriorLoss

# Four pictures of 2x3 cells and K = 7, two of each label.
PICTURES = np.array([[[0, 1, 2], [3, 4, 5]], [[5, 4, 3], [2, 1, 0]], [[6, 6, 6], [0, 0, 0]], [[1, 3, 1], [3, 1, 3]]])
LABELS = ["up", "up", "down", "down"]


def batch(copies):
    """Each of the pictures so many times."""
    count = 4 * copies
    return GridBatch(np.tile(PICTURES, (copies, 1, 1)), [str(i) for i in range(count)], LABELS * copies)


def train(
    folder,
    *,
    kernel="mask-replace",
    kind="class",
    resume=False,
    loss=None,
    copies=4,
    diffusion=40,
    keep_best=False,
    early_stop=False,
    report=None,
    dropout=0.0,
    **changes,
):
    """Train a tiny prior on the pictures."""
    torch.set_num_threads(1)
    grids = batch(copies)
    conditioner = conditions.build(kind, grids.labels)
    data, held_out = build_data(grids, conditioner, grid_spec((2, 3))).split(0)
    forward = build_kernel(kernel, codebook_size=7, num_steps=diffusion)
    # Seven tokens are told apart sooner when they start farther apart.
    with (
        patch.dict(transformer.SIZES, test={"num_layers": 2, "width": 64, "num_heads": 2}),
        patch.object(transformer, "EMBEDDING_SCALE", 0.1),
    ):
        prior = build_prior(forward, conditioner, data.grid_spec, "test", seed=0, tokens=data.tokens, dropout=dropout)
    settings = {"num_steps": 40, "batch_size": 16, "warmup_steps": 5, "ema_decay": 0.9, "save_seconds": 0.0, **changes}
    return training.fit(
        prior,
        data,
        loss=PriorLoss(**loss or {}),
        run=LoopConfig(**settings),
        state_path=folder / "state.safetensors",
        log_path=folder / "log.jsonl",
        resume=resume,
        held_out=held_out,
        keep_best=keep_best,
        early_stop=early_stop,
        report=report,
    )


def read_log(folder):
    """The lines of the log without the times, which no two runs share."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def die(step, metrics):
    """End the second process without a word, and note when."""
    if step == 3 and os.environ["RANK"] == "1":
        Path(sys.argv[1], "died").write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    train(Path(sys.argv[1]), report=die if settings.pop("dies", False) else None, **settings)
