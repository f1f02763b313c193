"""Measure what README.md claims of speed and memory: ratios within one run, least times of several turns.

    python scripts/bench.py                      # all, as a Markdown table on stdout
    python scripts/bench.py startup encode       # some
    python scripts/bench.py --num-images 2000

Run it on an otherwise idle machine. What is compared with what stands in each function's docstring, in
scripts/benchmarks/.
"""

import argparse
import platform
import tempfile
from datetime import date
from pathlib import Path

import torch
from benchmarks import Measure, commands, network, pipeline, sampling, strides, tokenizer, training

MEASURES: dict[str, Measure] = {
    "startup": commands.startup,
    "encode": commands.encode,
    "memory": commands.memory,
    "step": sampling.step,
    "outside": sampling.outside,
    "training": training.loss,
    "guidance": network.guidance,
    "ceiling": network.ceiling,
    "pipeline": pipeline.pipeline,
    "release-fast": strides.release_fast,
    "tokenizer": tokenizer.tokenizer,
}


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
    torch.set_num_threads(options.threads)
    print(f"{date.today()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__} with {options.threads} threads\n")
    print("| measured | figure |\n|---|---|")
    for name in options.names or MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            for what, figure in MEASURES[name](Path(folder), options.num_images):
                print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
