"""Say what few network calls cost by the likelihood curve of a prior: nats a grid that cells, drawn together, lose.

A call that opens several cells draws each as if it were alone. What the walk's law is off by for that, beside a walk of
one step a time, is by `vqtool.samplers._planning`: the cross-entropy of the cells that a call opens, given what it
sees, less that of the same cells in T steps. A prior that loses nothing draws in one call as well as in a hundred, and
distillation has nothing to win; a student of L equally likely latents wins log L nats a call at most.

    vqtool eval --likelihood held.h5 --prior prior.safetensors -o likelihood.json
    python scripts/few_calls.py prior.safetensors likelihood.json
"""

import argparse
import math
from itertools import pairwise

import numpy as np

import vqtool
from vqtool.samplers._planning import find_curve, find_slopes, information

CALLS = (1, 2, 4, 8, 16, 32)


def main() -> None:
    """Print a table of the priors that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", help="PRIOR CURVE, in pairs; CURVE is what `eval --likelihood` wrote")
    files = parser.parse_args().files
    print("| prior | bits per token | " + " | ".join(f"{calls} calls" for calls in CALLS) + " |")
    print("|---" * (2 + len(CALLS)) + "|")
    for path, curve in zip(files[::2], files[1::2], strict=True):
        prior = vqtool.load_prior(path)
        slopes = np.asarray(find_slopes(find_curve({}, curve), prior.kernel))
        told, last = np.asarray(information(prior.kernel)), prior.kernel.num_steps

        costs = []
        for calls in (*CALLS, last):
            times = np.linspace(last, 0, calls + 1).round().astype(int)
            costs.append(sum(slopes[t] * (told[s] - told[t]) for t, s in pairwise(times)))
        whole, nats = costs.pop(), math.prod(prior.cells) * math.log(2)
        lost = " | ".join(f"{nats * (cost - whole):.1f}" for cost in costs)
        print(f"| {path} | {whole:.2f} | {lost} |")


if __name__ == "__main__":
    main()
