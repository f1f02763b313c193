"""Put a trained text prior into the package: its weights as 16-bit numbers, its scores in its header.

    python scripts/finish_prior.py build/prior/prior.safetensors --scores build/prior/scores.json \\
        --sampling '{"sampler": "purity", "temperature": 0.8}'

The scores are those of scripts/score_prior.py; the settings of sampling are used where nobody asks for others. The
prior has to be of the built-in tokenizer.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from vqtool import artifacts
from vqtool.errors import VqtoolError
from vqtool.priors import load_prior
from vqtool.samplers import Method
from vqtool.tokenizers import load_tokenizer

MAX_BYTES = 16_000_000


def finish(
    source: Path, output: Path, scores: dict[str, Any], sampling: dict[str, Any] | None = None
) -> artifacts.Header:
    """Write a prior with 16-bit weights that names the built-in tokenizer.

    Args:
        source: the prior as it was trained.
        output: where it goes; an earlier one is overwritten.
        scores: what its summary gets.
        sampling: arguments of `vqtool.sample` that suit it best; None for those that it has, if any.

    Raises:
        VqtoolError: it is of another tokenizer, or larger than MAX_BYTES, or there are no such arguments; then nothing
            is written.
    """
    if sampling is not None:
        Method.build(load_prior(source), has_condition=True, **sampling)
    header, tensors = artifacts.load(source, "prior")
    origin = header.config["origin"]
    builtin = load_tokenizer("builtin").fingerprint
    if origin["tokenizer_fingerprint"] != builtin:
        named = origin["tokenizer_fingerprint"]
        raise VqtoolError(f"{source}: of tokenizer {named}; the built-in one is {builtin}")
    halved = {
        # Schedules have differences that 16 bits would lose.
        name: tensor.half() if tensor.dtype == torch.float32 and name.startswith("denoiser.") else tensor
        for name, tensor in tensors.items()
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in halved.values())
    if size > MAX_BYTES:
        raise VqtoolError(f"{source}: {size} bytes of weights, more than {MAX_BYTES}: train a smaller network")
    return artifacts.save(
        output,
        kind="prior",
        config=header.config
        | {"origin": origin | {"tokenizer_location": "builtin"}}
        | ({} if sampling is None else {"sampling": sampling}),
        tensors=halved,
        parents=header.parents,
        history=header.history,
        summary=header.summary | scores,
        force=True,
    )


def main() -> int:
    """Finish the prior that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("prior", type=Path, help="from vqtool train-prior")
    parser.add_argument(
        "--scores", type=Path, help="JSON of scripts/score_prior.py; its `summary` goes into the header"
    )
    parser.add_argument(
        "--output", type=Path, default=artifacts.builtin_path("prior"), help="default: inside the package"
    )
    parser.add_argument("--sampling", type=json.loads, help="JSON: arguments of vqtool.sample that suit it best")
    options = parser.parse_args()
    try:
        scores = json.loads(options.scores.read_text(encoding="utf-8"))["summary"] if options.scores else {}
        saved = finish(options.prior, options.output, scores, options.sampling)
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}: prior {saved.fingerprint}, {options.output.stat().st_size} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
