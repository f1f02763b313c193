"""Make a tokenizer's network wider and deeper without changing what it does, to train it on from there.

    python scripts/grow_tokenizer.py small.safetensors --channels 64 128 192 --encoder-blocks 1 1 3 \\
        --decoder-blocks 2 3 5 -o grown.safetensors

New channels start on random features that nothing reads yet, new residual blocks add zero: codes, tokens and pictures
stay what they are. Channels must be multiples of 16, the group of the normalisation, so that its groups stay whole.
Source: Chen et al. 2016, Net2Net (arXiv:1511.05641); differs from it: new channels are random, not copies.
"""

import argparse
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

from vqtool.artifacts import history_record
from vqtool.errors import VqtoolError
from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from vqtool.tokenizers.vqvae import ResidualBlock, VqVaeConfig

GROUP = 16  # channels


def grow(old: Tokenizer, config: VqVaeConfig, seed: int) -> Tokenizer:
    """A tokenizer of a larger config that does what the old one does.

    Raises:
        VqtoolError: the config is smaller somewhere, or the old network is of another kind.
    """
    if not isinstance(old.config, VqVaeConfig):
        raise VqtoolError(f"{old.location} is a {old.network}: only a vqvae can grow")
    for name in ("channels", "encoder_blocks", "decoder_blocks"):
        before, after = getattr(old.config, name), getattr(config, name)
        if len(before) != len(after) or any(now < then for then, now in zip(before, after, strict=True)):
            raise VqtoolError(f"--{name.replace('_', '-')} {after}: give {len(before)} numbers, at least {before}")
    if any(width % GROUP for width in (*old.config.channels, *config.channels)):
        raise VqtoolError(f"--channels {config.channels}: give multiples of {GROUP}")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        new = Tokenizer(config)
        new.codebook.copy_(old.codebook)
        for small, large in ((old.encoder, new.encoder), (old.decoder, new.decoder)):
            _copy_layers(list(small.layers), list(large.layers))
    return new.eval()


def _copy_layers(small: list[nn.Module], large: list[nn.Module]) -> None:
    """Copy a sequence of layers into one that has more residual blocks in places."""
    runs = [[list(run) for _, run in groupby(layers, lambda layer: isinstance(layer, ResidualBlock))]
            for layers in (small, large)]  # fmt: skip
    for few, many in zip(*runs, strict=True):
        for before, after in zip(few, many, strict=False):
            for name, part in before.named_modules():
                _copy_weights(part, after.get_submodule(name))
        for added in many[len(few) :]:
            nn.init.zeros_(added.conv2.bias)  # its weight is 0 already


def _copy_weights(small: nn.Module, large: nn.Module) -> None:
    if isinstance(small, nn.Conv2d):
        outer, inner = small.weight.shape[:2]
        large.weight[:outer, inner:] = 0
        large.weight[:outer, :inner] = small.weight
        large.bias[:outer] = small.bias
    elif isinstance(small, nn.GroupNorm):
        large.weight[: len(small.weight)] = small.weight
        large.bias[: len(small.bias)] = small.bias


def main() -> int:
    """Grow the tokenizer that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tokenizer", help="a file, or builtin")
    for name in ("channels", "encoder-blocks", "decoder-blocks"):
        parser.add_argument(f"--{name}", type=int, nargs="+", required=True, help="at each resolution")
    parser.add_argument("--seed", type=int, default=0, help="of the new channels")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    try:
        old = load_tokenizer(options.tokenizer)
        larger = {name: tuple(getattr(options, name)) for name in ("channels", "encoder_blocks", "decoder_blocks")}
        new = grow(old, replace(old.config, **larger), options.seed)
        record = history_record("grow_tokenizer", inputs={"tokenizer": old.fingerprint}, seed=options.seed)
        header = save_tokenizer(options.output, new, parent=old, history=[*old.history, record], force=True)
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}: tokenizer {header.fingerprint}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
