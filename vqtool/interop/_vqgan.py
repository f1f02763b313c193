"""What the importers of the VQGAN family share: names, shapes read from weights, and the tokenizer made of both.

All of them bring their tensors to the names of `vqtool.tokenizers.vqgan`, which are taming's own; the settings of the
network are then read from the shapes and from which layers there are.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.interop._sources import Source, count_numbers, fill, listed
from vqtool.tokenizers import NetworkConfig, Tokenizer
from vqtool.tokenizers.vqgan import VqganConfig


class Names:
    """Names of layers in another project <-> ours.

    A rule is a pair of beginnings, theirs and ours, with {i} for a resolution, finest first, {r} for one counted from
    the other end, and {j} for a block. The first rule that fits is used; a name that none fits stays as it is.
    """

    def __init__(self, rules: Iterable[tuple[str, str]], num_levels: int = 0) -> None:
        self._rules = [*rules]
        self._num_levels = num_levels

    def ours(self, name: str) -> str:
        """Our name of a tensor of theirs."""
        return self._translate(name, ((theirs, ours) for theirs, ours in self._rules))

    def theirs(self, name: str) -> str:
        """Their name of a tensor of ours."""
        return self._translate(name, ((ours, theirs) for theirs, ours in self._rules))

    def _translate(self, name: str, rules: Iterable[tuple[str, str]]) -> str:
        for begins, becomes in rules:
            pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(begins))
            if match := re.match(pattern, name):
                found = {key: int(value) for key, value in match.groupdict().items()}
                if level := found.keys() & {"i", "r"}:
                    value = found[level.pop()]
                    found = {"i": self._num_levels - 1 - value, "r": self._num_levels - 1 - value, **found}
                return becomes.format(**found) + name[match.end() :]
        return name


def count(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that the group of a regular expression finds in names; 0 if it finds none."""
    return count_numbers(match[1] for name in names if (match := re.match(pattern, name)))


def has_taming_names(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of taming's network, which others use too."""
    levels = count(tensors, r"(?:encoder\.down|decoder\.up)\.(\d+)\.block\.")
    foreign = ("encoder.mid.0.", "encoder.mid_block.", "encoder.quant_conv.")
    return levels > 0 and not any(name.startswith(foreign) for name in tensors)


@dataclass(frozen=True)
class Codes:
    """The quantiser of a source."""

    codebook: Tensor  # (K, D)
    lookup: str = "nearest"
    projection: Tensor | None = None  # (K, D), with the lookup "projection"
    projection_bias: Tensor | None = None  # (K,)
    code_map: Tensor | None = None  # (K,) int64: code -> reduced code
    name: str = "quantize.embedding.weight"  # of the codebook in the source


def infer_config(
    tensors: Mapping[str, Tensor],
    codes: Codes,
    source: Source,
    names: Names,
    uneven: bool = False,
    **untold: Any,
) -> VqganConfig:
    """The settings of a network, from its weights.

    Args:
        tensors: by our names, without "encoder" and "decoder" missing.
        codes: of its quantiser.
        source: for messages.
        names: for messages.
        uneven: whether each level may have blocks, and the decoder widths, of its own.
        untold: settings that no shape tells, where they are not the usual ones.

    Raises:
        FormatError: a layer that tells a shape is missing, or images do not have 3 channels.
    """
    levels = count(tensors, r"encoder\.down\.(\d+)\.")
    needed = ["encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight", "decoder.conv_out.weight"]
    needed += [f"encoder.down.{i}.block.0.conv1.weight" for i in range(max(1, levels))]
    if uneven:
        needed += [f"decoder.up.{i}.block.0.conv1.weight" for i in range(max(1, levels))]
    missing = [names.theirs(name) for name in needed if name not in tensors]
    if missing:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    stem, colours, *_ = tensors["encoder.conv_in.weight"].shape
    if colours != 3 or len(tensors["decoder.conv_out.weight"]) != 3:
        raise FormatError(f"{source.path}: its images have {colours} channels: 3 are expected")

    def has_attention(part: str, level: int) -> bool:
        return any(name.startswith(f"{part}.{level}.attn.") for name in tensors)

    if uneven:
        sides = ("encoder.down", "decoder.up")
        blocks = [tuple(count(tensors, rf"{side}\.{i}\.block\.(\d+)\.") for i in range(levels)) for side in sides]
        widths = tuple(len(tensors[f"decoder.up.{i}.block.0.conv1.weight"]) for i in range(levels))
        untold = {"encoder_blocks": blocks[0], "decoder_blocks": blocks[1], "decoder_channels": widths, **untold}
    else:
        blocks_of = {"encoder_blocks": r"encoder\.down", "decoder_blocks": r"decoder\.up"}
        untold = {name: count(tensors, rf"{side}\.\d+\.block\.(\d+)\.") for name, side in blocks_of.items()} | untold
    return VqganConfig(
        codebook_size=num_tokens(codes),
        code_dim=codes.codebook.shape[1],
        latent_channels=len(tensors["encoder.conv_out.weight"]),
        stem_channels=stem,
        channels=tuple(len(tensors[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)),
        encoder_attention=tuple(has_attention("encoder.down", i) for i in range(levels)),
        decoder_attention=tuple(has_attention("decoder.up", i) for i in range(levels)),
        mid_attention=any(name.startswith("encoder.mid.attn_1.") for name in tensors),
        quant_conv="encoder.quant_conv.weight" in tensors or "decoder.post_quant_conv.weight" in tensors,
        **untold,
    )


def build_tokenizer(
    config: NetworkConfig, tensors: Mapping[str, Tensor], codes: Codes, source: Source, names: Names
) -> Tokenizer:
    """A tokenizer from weights.

    Args:
        config: of the network.
        tensors: of encoder and decoder, by our names.
        codes: of the quantiser.
        source: for messages.
        names: for messages.

    Raises:
        FormatError: weights are missing, left over or of another shape.
    """
    full = None if codes.code_map is None else len(codes.codebook)
    found: dict[str, Tensor] = {**tensors, "codebook": codes.codebook.float()}
    if codes.lookup == "cosine":
        found["codebook"] = torch.nn.functional.normalize(found["codebook"], dim=-1)
    if codes.code_map is not None:
        found |= {"code_map": codes.code_map, "codebook": found["codebook"][first_codes(codes.code_map)]}
    if codes.projection is not None and codes.projection_bias is not None:
        found |= {"projection": codes.projection, "projection_bias": codes.projection_bias}
    elif codes.code_map is not None:
        found["full_codebook"] = codes.codebook
    shown = dict.fromkeys(("codebook", "full_codebook"), codes.name)

    def theirs(name: str) -> str:
        return shown.get(name, names.theirs(name))

    tokenizer = fill(lambda: Tokenizer(config, lookup=codes.lookup, num_full_codes=full), found, source, names=theirs)
    return tokenizer.eval()


def has_signs(codebook: Tensor, *, first_is_highest: bool) -> bool:
    """Whether a codebook (2^b, b) holds the bits of each row's number as -1 and 1, highest or lowest first."""
    num, bits = codebook.shape
    places = torch.arange(bits - 1, -1, -1) if first_is_highest else torch.arange(bits)
    return num == 1 << bits and torch.equal(codebook, (torch.arange(num)[:, None] >> places & 1) * 2.0 - 1)


def codes_of(
    tensors: Mapping[str, Tensor], source: Source, code_map: Tensor | None, *, lookup: str = "nearest"
) -> Codes:
    """The quantiser of a source whose codebook is `quantize.embedding.weight`.

    Raises:
        FormatError: it is missing.
        MismatchError: the code map does not fit it.
    """
    if "quantize.embedding.weight" not in tensors:
        raise FormatError(f"{source.path}: its codebook is missing: quantize.embedding.weight")
    codebook = tensors["quantize.embedding.weight"].float()
    return Codes(codebook, lookup, code_map=check_code_map(code_map, len(codebook), source))


def num_tokens(codes: Codes) -> int:
    """K, after the code map."""
    return len(codes.codebook) if codes.code_map is None else int(codes.code_map.max()) + 1


def first_codes(code_map: Tensor) -> Tensor:
    """The first full code of each reduced one: (K_full,) int64 -> (K,) int64."""
    codes = torch.arange(len(code_map))
    return torch.full((int(code_map.max()) + 1,), len(codes)).scatter_reduce_(0, code_map, codes, "amin")


def check_code_map(code_map: Tensor | None, num_codes: int, source: Source) -> Tensor | None:
    """A code map that fits a codebook of so many codes.

    Raises:
        MismatchError: it does not, or names a reduced code that nothing leads to.
    """
    if code_map is None:
        return None
    if code_map.shape != (num_codes,):
        raise MismatchError(
            f"{source.path}: a code map of {code_map.numel()} entries does not fit its {num_codes} codes: "
            "give the map that was made for this tokenizer"
        )
    code_map = code_map.long()
    reached = torch.unique(code_map)
    if int(reached[0]) != 0 or int(reached[-1]) != len(reached) - 1:
        raise MismatchError(
            f"{source.path}: the code map leads to {len(reached)} codes from {int(reached[0])} to {int(reached[-1])}: "
            "each reduced code from 0 on has to be led to"
        )
    return code_map


def compare(settings: Mapping[str, tuple[Any, Any]], source: Source) -> None:
    """Compare settings that stand in a file with those that the weights have.

    Args:
        settings: name -> (value in the file, value by the weights); None in the file if it does not say.
        source: for messages.

    Raises:
        FormatError: one differs.
    """
    for name, (declared, found) in settings.items():
        if declared is not None and _plain(declared) != _plain(found):
            raise FormatError(
                f"{source.path}: {name} is {_plain(declared)} in its settings but {_plain(found)} by its weights: "
                "give the settings that belong to it with `config`"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def describe(tokenizer: Tokenizer) -> str:
    """A line on what was found."""
    config = tokenizer.config
    line = f"tokenizer: factor {config.factor}, {config.codebook_size} codes of {config.code_dim} numbers"
    if isinstance(config, VqganConfig):
        line += f", channels {_plain(config.channels)}, attention at {_attention(config)}"
        line += f", images in [{config.pixel_range[0]:g}, {config.pixel_range[1]:g}]"
    return line


def _attention(config: VqganConfig) -> str:
    found = [f"1/{2**i}" for i, present in enumerate(config.encoder_attention) if present]
    return listed(found + ["the middle"] * config.mid_attention) or "no resolution"


def drop(tensors: Mapping[str, Tensor], patterns: Mapping[str, str], notes: list[str]) -> dict[str, Tensor]:
    """The tensors that no regular expression matches; what was left out is noted.

    Args:
        tensors: by name.
        patterns: what is meant -> its regular expression.
        notes: gets a line for each that matches something.
    """
    kept = dict(tensors)
    for meaning, pattern in patterns.items():
        dropped = [name for name in kept if re.match(pattern, name)]
        if dropped:
            notes.append(f"left out: {len(dropped)} tensors of {meaning} ({listed(dropped[:1])}, ...)")
        for name in dropped:
            del kept[name]
    return kept


def exportable(
    tokenizer: Tokenizer,
    project: str,
    *,
    lookups: Iterable[str],
    pixel_ranges: tuple[tuple[float, float], ...] = ((-1.0, 1.0),),
) -> VqganConfig:
    """The settings of a tokenizer that other projects of the family can hold.

    Raises:
        VqtoolError: they cannot; says why.
    """
    config = tokenizer.config
    if not isinstance(config, VqganConfig):
        raise VqtoolError(f"{project} has no network {tokenizer.network!r}: only tokenizers of VQGANs can be exported")
    shown = " or ".join(f"[{low:g}, {high:g}]" for low, high in pixel_ranges)
    refuse_unless(
        {
            f"the lookup is {' or '.join(lookups)}": tokenizer.lookup in lookups,
            "there is no code map": tokenizer.num_full_codes is None,
            "a swish stands before the last convolutions": config.swish_out,
            f"images are in {shown}": config.pixel_range in pixel_ranges,
            "there are 1x1 convolutions around the quantiser": config.quant_conv,
            "the decoder has one block more at each resolution": isinstance(config.encoder_blocks, int)
            and config.decoder_blocks == config.encoder_blocks + 1,
        },
        project,
    )
    return config


def refuse_unless(conditions: Mapping[str, bool], project: str) -> None:
    """Raise VqtoolError on the first condition of a project that is not met."""
    for condition, met in conditions.items():
        if not met:
            raise VqtoolError(f"{project} cannot hold this tokenizer: there, {condition}")
