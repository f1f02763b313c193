"""Which loss serves each denoiser best: priors trained by each loss for so many steps, scored on grids held out.

    python scripts/compare_losses.py --train train.h5 --held held.h5 --ref held/ --work build/losses
    python scripts/compare_losses.py --train train.h5 --held held.h5 --work w --denoisers muse --losses mlm

Three numbers a run: bits per token (the bound), the same with each step weighted by the share of cells that it masks,
which is what sampling in few calls meets, and KID of samples. Each run is a JSON file in --work, and is not done again;
on stdout is the table of all that are there, with standard errors over the seeds.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vqtool
from vqtool.metrics import compare, measure_likelihood

DENOISERS = ("transformer", "vq-diffusion", "unet", "guided-unet", "halton-maskgit", "maskbit", "muse", "titok")
WAYS = {  # name -> options of `train_prior`
    "reweighted": {"loss": "reweighted", "times": "stratified"},
    "bound": {"loss": "bound", "times": "importance"},
    "mlm": {"loss": "mlm", "times": "stratified"},
}
OPTIONS = {"maskbit": {"num_parts": 1}}  # codes of any number
CALLS, NUM = 8, 64
SHOWN = ("bits", "bits-masked", "KID")


def masked_bits(curve: dict[str, list[float | None]]) -> float:
    """The bits of all steps, each weighted by twice the share t / T of the cells that it masks, as to sum to the same
    where every step costs as much.

    Args:
        curve: of `measure_likelihood`.
    """
    t, bits = np.array(curve["t"], float), np.array(curve["bits_per_token"], float)
    return float((bits * 2 * t / (len(t) + 1)).sum())


def run(denoiser: str, way: str, seed: int, settings: argparse.Namespace) -> dict[str, Any]:
    """Train a prior and score it."""
    path = settings.work / f"{denoiser}-{way}-{seed}.safetensors"
    prior = vqtool.train_prior(
        settings.train, path, from_="none", denoiser=denoiser, size="tiny", kernel=settings.kernel, condition="class",
        batch_size=32, steps=settings.steps, preview_every=0, seed=seed, force=True, keep="last", **WAYS[way],
        **OPTIONS.get(denoiser, {}),
    )  # fmt: skip
    found = measure_likelihood(prior, [settings.held], times=settings.times)
    scores = {score.name: score.value for score in found.scores}
    values = {"bits": scores["bits-per-token"], "bits-masked": masked_bits(found.about["curve"])}
    if settings.ref:
        trials = {"sampler": ["purity"], "steps": (CALLS,), "num": NUM, "seeds": (seed,), "max_images": 256}
        (row,) = compare(path, ref=settings.ref, **trials).rows
        values["KID"] = next(value for name, value in row.values.items() if name.startswith("KID"))
    for each in settings.work.glob(f"{path.stem}.*"):
        each.unlink()
    return {"denoiser": denoiser, "loss": way, "seed": seed, "steps": settings.steps, "values": values}


def markdown(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A row a denoiser and loss: means over the seeds with standard errors."""
    yield "| denoiser | loss | seeds | " + " | ".join(SHOWN) + " |"
    yield "|---" * (3 + len(SHOWN)) + "|"
    for denoiser, way in dict.fromkeys((each["denoiser"], each["loss"]) for each in runs):
        own = [each["values"] for each in runs if (each["denoiser"], each["loss"]) == (denoiser, way)]
        cells = []
        for name in SHOWN:
            values = np.array([each[name] for each in own if name in each])
            error = f" +- {values.std(ddof=1) / len(values) ** 0.5:.1g}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3g}{error}" if len(values) else "")
        yield f"| {denoiser} | {way} | {len(own)} | " + " | ".join(cells) + " |"


def main() -> int:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="grids to learn from")
    parser.add_argument("--held", type=Path, required=True, help="grids for the bound")
    parser.add_argument("--ref", type=Path, nargs="*", default=[], help="pictures for KID; none: no samples")
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--denoisers", nargs="+", default=DENOISERS)
    parser.add_argument("--losses", nargs="+", choices=WAYS, default=["reweighted", "bound"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--times", type=int, default=8, help="timesteps a grid of the bound")
    parser.add_argument("--kernel", default="absorbing")
    settings = parser.parse_args()
    settings.work.mkdir(parents=True, exist_ok=True)
    for seed in settings.seeds:
        for denoiser in settings.denoisers:
            for way in settings.losses:
                path = settings.work / f"{denoiser}-{way}-{seed}.json"
                if not path.exists():
                    found = run(denoiser, way, seed, settings)
                    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
                    print(path.stem, found["values"], file=sys.stderr, flush=True)
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(settings.work.glob("*.json"))]
    print("\n".join(markdown(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
