"""Measure what README.md claims of speed and memory: ratios within one run, in turns.

    python scripts/bench.py                      # all, as a Markdown table on stdout
    python scripts/bench.py startup encode       # some
    python scripts/bench.py --num-images 2000

Run it on an otherwise idle machine. What is compared with what stands in each function's docstring, in
scripts/benchmarks/.
"""

import argparse
import importlib.util
import platform
import tempfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from vqtool.extras import install_command

MEASURES = {  # name -> module of benchmarks/ and its function
    "startup": "commands.startup",
    "encode": "commands.encode",
    "memory": "commands.memory",
    "step": "sampling.step",
    "outside": "sampling.outside",
    "training": "training.loss",
    "training-step": "training.step",
    "parts": "training.parts",
    "guidance": "network.guidance",
    "ceiling": "network.ceiling",
    "pipeline": "pipeline.pipeline",
    "peers": "pipeline.peers",
    "release-fast": "strides.release_fast",
    "tokenizer": "tokenizer.tokenizer",
    "runtime": "runtime.runtime",
    "runtime-beside": "runtime.beside",
    "threads": "runtime.threads",
    "cache": "cache.cache",
    "scale": "scale.grids",
    "scale-conditions": "scale.conditions_of_grids",
    "scale-files": "scale.files",
    "scale-encode": "scale_encode.shards",
    "scale-pictures": "scale_pictures.pictures",
    "scale-found": "scale_pictures.found",
    "scale-million": "scale_million.million",
    "zoo-sample": "zoo.halton",
    "zoo-import": "zoo.importing",
    "zoo-decode": "zoo.decoding",
    "frechet": "scoring.frechet",
    "prdc": "scoring.neighbours",
    "prdc-many": "scoring.many",
}
LONG = ("prdc-many", "scale-million")  # only if they are named

PEERS = ("sampling", "network", "pipeline", "tokenizer")  # modules that need diffusers, of the extra dev


def missing_extra(names: Iterable[str]) -> str | None:
    """What is said if a measure needs an extra that is not installed; None if all can run."""
    needing = [name for name in names if MEASURES[name].split(".")[0] in PEERS]
    if not needing or importlib.util.find_spec("diffusers") is not None:
        return None
    return f"{', '.join(needing)}: compare with diffusers, of the extra dev: {install_command('dev')}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)}; default: all")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2, help="of torch, for what runs in this process")
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASURES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(MEASURES)}")
    names = options.names or [name for name in MEASURES if name not in LONG]
    if missing := missing_extra(names):
        parser.error(missing)
    import torch

    torch.set_num_threads(options.threads)
    print(f"{date.today()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__} with {options.threads} threads\n")
    print("| measured | figure |\n|---|---|")
    for name in names:
        module, _, function = MEASURES[name].partition(".")
        measure = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        with tempfile.TemporaryDirectory() as folder:
            for what, figure in measure(Path(folder), options.num_images):
                print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
