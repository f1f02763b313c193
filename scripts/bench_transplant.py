"""Measure what carrying a prior over to other codes saves against training one anew, as a Markdown table.

A prior is trained on grids in the codes of the built-in tokenizer, the codebook is refitted on the pictures, and grids
are encoded anew. Then as many steps are taken from fresh weights and from the prior that was carried over, by counted
links and by nearest codes. Shown are bounds on held-out grids, nats a token.

    python scripts/bench_transplant.py imgs/ --work build/transplant --before 2000 --after 400

What is there in the work folder is not made again.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqtool import codebooks, encode, train_prior
from vqtool.grids import read_grids
from vqtool.priors import GridSpec, load_prior
from vqtool.training.data import build_data
from vqtool.training.objectives import validate
from vqtool.training.transplanting import Carrier, transplant


def measure(images: str, work: Path, settings: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Name of a run -> step -> bound on held-out grids, nats a token."""
    work.mkdir(parents=True, exist_ok=True)
    old, new = work / "old.h5", work / "new.h5"
    if not old.exists():
        encode([images], old, image_size=(settings.size, settings.size))
    common = {"condition": "none", "size": "tiny", "batch_size": settings.batch, "preview_every": 0}
    if not (work / "prior.safetensors").exists():
        train_prior(old, work / "prior.safetensors", steps=settings.before, resume="auto", **common)
    tokenizer = work / "refit.safetensors"
    if not new.exists():
        carrier = Carrier.open(work / "prior.safetensors", tokenizer, force=True)
        made = codebooks.refit(images, tokenizer, size=str(settings.size), codebook_size=settings.codes, force=True)
        carrier.carry(made.links, made.parent, made.fingerprint, tokenizer)
        transplant(work / "prior.safetensors", work / "nearest.prior.safetensors", tokenizer=tokenizer, force=True)
        encode([images], new, tokenizer, image_size=(settings.size, settings.size))
    fresh = {"steps": settings.after, **common}
    found = {"anew": train(new, work / "anew.safetensors", fresh)}
    del fresh["size"]
    for name, start in (("counted links", "refit"), ("nearest codes", "nearest")):
        source = work / f"{start}.prior.safetensors"
        rate = {} if settings.rate is None else {"learning_rate": settings.rate}
        found[name] = {0: bound(source, new)}
        found[name] |= train(new, work / f"{start}-tuned.safetensors", {**fresh, **rate, "from_": source})
    return {"before, in the old codes": {0: bound(work / "prior.safetensors", old)}, **found}


def train(grids: Path, output: Path, options: Mapping[str, Any]) -> dict[int, float]:
    """Step -> bound on held-out grids, of the averaged weights."""
    if not output.exists():
        train_prior(grids, output, resume="auto", **options)
    log = output.with_name(output.name.replace(".safetensors", ".log.jsonl"))
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["validation_bound"] for line in lines if "validation_bound" in line}


def bound(path: Path, grids: Path) -> float:
    """The bound of a prior on those of the grids that a run with seed 0 holds out."""
    prior = load_prior(path)
    header, batch = read_grids(grids)
    _, held_out = build_data(batch, prior.conditioner, GridSpec.of(header)).split(0)
    if held_out is None:
        raise SystemExit("200 pictures or more are needed, of which some are held out")
    return float(validate(prior.denoiser, prior, held_out, 0))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("--work", type=Path, default=Path("build/transplant"))
    parser.add_argument("--before", type=int, default=2000, help="steps of the prior that is carried over")
    parser.add_argument("--after", type=int, default=400, help="steps in the new codes")
    parser.add_argument("--codes", type=int, default=512, help="of the refitted codebook")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, help="learning rate in the new codes; default: that of train-prior")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    settings = parser.parse_args()
    found = measure(settings.images, settings.work, settings)
    steps = sorted({step for bounds in found.values() for step in bounds})
    print(f"| steps | {' | '.join(map(str, steps))} |")
    print("|---" * (len(steps) + 1) + "|")
    for name, bounds in found.items():
        print(f"| {name} | {' | '.join(f'{bounds[step]:.3f}' if step in bounds else '' for step in steps)} |")


if __name__ == "__main__":
    main()
