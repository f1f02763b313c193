"""Measure what carrying a prior over to other codes saves against training one anew, as a Markdown table.

A prior is trained on grids in the codes of the built-in tokenizer, the codebook is refitted on the pictures, and grids
are encoded anew. Then as many steps are taken from fresh weights and from the prior that was carried over, by counted
links and by nearest codes. Shown are bounds on held-out grids, nats a token.

    python scripts/bench_transplant.py imgs/ --work build/transplant --before 2000 --anew 400 2000 --after 100 400

What is there in the work folder is not made again.
"""

import argparse
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
    common = {"condition": "none", "batch_size": settings.batch, "preview_every": 0, "keep": "last"}
    train(old, work / "prior.safetensors", {**common, "steps": settings.before, "size": "tiny"})
    tokenizer = work / "refit.safetensors"
    if not new.exists():
        carrier = Carrier.open(work / "prior.safetensors", tokenizer, force=True)
        made = codebooks.refit(images, tokenizer, size=str(settings.size), codebook_size=settings.codes, force=True)
        carrier.carry(made.links, made.parent, made.fingerprint, tokenizer)
        transplant(work / "prior.safetensors", work / "nearest.prior.safetensors", tokenizer=tokenizer, force=True)
        encode([images], new, tokenizer, image_size=(settings.size, settings.size))
    found = {"before, in the old codes": {0: bound(work / "prior.safetensors", old)}}
    for steps in settings.anew:
        output = work / f"anew-{steps}.safetensors"
        train(new, output, {**common, "steps": steps, "size": "tiny"})
        found.setdefault("anew", {})[steps] = bound(output, new)
    for name, start in (("counted links", "refit"), ("nearest codes", "nearest")):
        source = work / f"{start}.prior.safetensors"
        found[name] = {0: bound(source, new)}
        for steps in settings.after:
            rate = "" if settings.rate is None else f"-{settings.rate:g}"
            output = work / f"{start}-{steps}{rate}.safetensors"
            train(new, output, {**common, "steps": steps, "from_": source, "learning_rate": settings.rate})
            found[name][steps] = bound(output, new)
    return found


def train(grids: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Train a prior, unless it is there."""
    if not output.exists():
        train_prior(grids, output, resume="auto", **options)


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
    parser.add_argument("--anew", type=int, nargs="+", default=[400, 2000], help="steps of new priors in the new codes")
    parser.add_argument("--after", type=int, nargs="+", default=[100, 400], help="steps of carried ones there")
    parser.add_argument("--codes", type=int, default=512, help="of the refitted codebook")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, help="learning rate in the new codes; default: that of train-prior")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    settings = parser.parse_args()
    found = measure(settings.images, settings.work, settings)
    steps = sorted({step for bounds in found.values() for step in bounds})
    print(f"| steps in the new codes | {' | '.join(map(str, steps))} |")
    print("|---" * (len(steps) + 1) + "|")
    for name, bounds in found.items():
        print(f"| {name} | {' | '.join(f'{bounds[step]:.3f}' if step in bounds else '' for step in steps)} |")


if __name__ == "__main__":
    main()
