"""Compare quantizers: train a tokenizer with each for an equal time, and print what held-out pictures say.

    python scripts/compare_quantizers.py train.h5 --held-out heldout.h5 --minutes 20 --seeds 0 1
    python scripts/compare_quantizers.py imgs/ --minutes 0.1 --quantizers ema cosine   # seconds, to try it

Each is trained for as many steps as take that long here, timed before; the column "min" says how long it took in the
end. On a busy machine that depends on the other work: there count CPU time, --cpu-time with OMP_NUM_THREADS=1 before
the command. Equal --steps are not equal time.

Usage and perplexity are of the tokens of the held-out pictures, FD is the Frechet distance between them and their
reconstructions on EfficientNet-Lite0 features (extra eval): compare it in one table only, never with another N.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.codebooks.usage import perplexity, usage
from vqtool.errors import VqtoolError
from vqtool.images import find_images, parse_size, read_images, to_float, to_uint8
from vqtool.metrics import EfficientNetLite0, FeatureNetwork, extract
from vqtool.metrics.frechet import frechet_distance
from vqtool.metrics.reconstruction import mean_squared_errors, psnr
from vqtool.tokenizers import SIZES, NetworkConfig, Tokenizer, quantizers
from vqtool.training._autoencoder import TokenizerLoss, build_model
from vqtool.training.clock import LoopConfig
from vqtool.training.fitting import TokenizerObjective, fit

Pictures = NDArray[np.uint8]
HELD_OUT_EVERY = 10  # pictures, where none are given
BATCH = 50


@dataclass(frozen=True)
class Variant:
    """A quantizer with what it takes."""

    quantizer: str
    options: dict[str, Any]


VARIANTS = {
    "ema": Variant("ema", {}),
    "ema, rotation": Variant("ema", {"gradient": "rotation"}),
    "vq": Variant("vq", {}),
    "vq, rotation": Variant("vq", {"gradient": "rotation"}),
    "vq, plain": Variant("vq", {"k_means": 0, "restart": False}),  # codes start on single latents, dead ones stay dead
    "cosine": Variant("cosine", {}),
    "simvq": Variant("simvq", {}),
    "fsq": Variant("fsq", {}),
    "lfq": Variant("lfq", {}),
}


def score(
    tokenizer: Tokenizer, pictures: Pictures, network: FeatureNetwork, features: NDArray[np.float32]
) -> dict[str, float]:
    """Usage, perplexity, PSNR (dB) and Frechet distance of pictures (N, 3, h, w), of such features, rebuilt."""
    counts, rebuilt = np.zeros(tokenizer.codebook_size, np.int64), []
    for start in range(0, len(pictures), BATCH):
        grid = tokenizer.encode(to_float(pictures[start : start + BATCH]).to(tokenizer.device))
        counts += torch.bincount(grid.flatten(), minlength=len(counts)).cpu().numpy()
        rebuilt.append(to_uint8(tokenizer.decode(grid)))
    errors = mean_squared_errors(pictures, np.concatenate(rebuilt))
    return {
        "usage": usage(counts),
        "perplexity": perplexity(counts),
        "PSNR": float(psnr(errors).mean()),
        "FD": frechet_distance(features, extract(network, [np.concatenate(rebuilt)]).pooled),
    }


def train(
    pictures: Pictures,
    network: NetworkConfig,
    variant: Variant,
    run: LoopConfig,
    seconds: float | None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Tokenizer, int, float]:
    """A tokenizer after so many seconds, or the run's steps where they are None; how many steps and seconds it took."""
    model = build_model(network, run.seed, quantizer=variant.quantizer, options=variant.options)

    if seconds is not None:
        run = replace(run, num_steps=None, minutes=seconds / 60)
    with tempfile.TemporaryDirectory() as folder:
        places = {"state_path": Path(folder) / "state.safetensors", "log_path": Path(folder) / "log.jsonl"}
        start = clock()
        objective = TokenizerObjective(pictures, model, TokenizerLoss(), run)
        tokenizer, summary = fit(model, objective, data={}, clock=clock, **places)
        taken = clock() - start
    return tokenizer, summary["steps"], taken


def read(sources: Sequence[Path], size: tuple[int, int], largest: int | None) -> Pictures:
    """Pictures (N, 3, h, w), spread evenly over the sources if there are more than the largest number."""
    items = find_images(sources)
    if largest is not None and len(items) > largest:
        items = [items[i] for i in np.linspace(0, len(items) - 1, largest).astype(int)]
    return read_images(items, size).images


def main(arguments: Sequence[str] | None = None, network: FeatureNetwork | None = None) -> int:
    """Train all and print a Markdown table."""
    options = _parse(arguments)
    size, base = parse_size(options.size), SIZES[options.network]
    pictures = read(options.images, size, options.max_images)
    if options.held_out:
        held_out = read(options.held_out, size, options.max_held_out)
    else:
        kept = np.arange(len(pictures)) % HELD_OUT_EVERY == 0
        pictures, held_out = pictures[~kept], pictures[kept]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network or EfficientNetLite0(device)
    features = extract(network, [held_out]).pooled
    clock, unit = (time.process_time, "CPU min") if options.cpu_time else (time.perf_counter, "min")
    length = f"{options.steps} steps" if options.steps else f"{options.minutes:g} {unit}"
    print(f"{len(pictures)} pictures of {options.size} px, {length} each; N = {len(held_out)} held out\n")
    print(f"| quantizer | seed | K | D | steps | {unit} | usage | perplexity | PSNR, dB | FD |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.quantizers:
        variant = VARIANTS[name]
        codes = quantizers.choose_options(variant.quantizer, variant.options)
        num, dim = codes.shape(options.codebook_size, base.code_dim)
        config = replace(base, codebook_size=num, code_dim=dim)
        for seed in options.seeds:
            run = LoopConfig(options.steps or 1, options.batch_size, options.learning_rate, seed=seed)
            seconds = None if options.steps else 60 * options.minutes
            tokenizer, steps, taken = train(pictures, config, variant, run, seconds, clock=clock)
            found = score(tokenizer.to(device), held_out, network, features)
            print(
                f"| {name} | {seed} | {num} | {dim} | {steps} | {taken / 60:.2f} | "
                f"{found['usage']:.1%} | {found['perplexity']:.0f} | {found['PSNR']:.2f} | {found['FD']:.2f} |",
                flush=True,
            )
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="+", help="folders, tar shards or HDF5 files of images")
    parser.add_argument("--held-out", type=Path, nargs="+", help="others to score; default: every tenth image")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU minutes, on a busy machine")
    parser.add_argument("--steps", type=int, help="of training, each, instead of --minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quantizers", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--network", choices=SIZES, default="vqvae-f8")
    parser.add_argument("--codebook-size", type=int, default=1024, help="of those that have a choice")
    parser.add_argument("--size", default="64", help="pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-images", type=int, help="to train on")
    parser.add_argument("--max-held-out", type=int, help="to score")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VqtoolError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
