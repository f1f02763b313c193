"""LlamaGen's VQ tokenizers (.pt): levels in the order in which they run, codes and latents of length 1.

Read are the published files, `{"model": weights}`, and training checkpoints, which also hold an average (`ema`) and
their settings (`args`, an argparse.Namespace).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, tensors_in
from vqtool.interop._unpickling import Inert
from vqtool.interop._vqgan import Names

LEFT_OUT = {
    "bookkeeping": r"quantize\.codebook_used$",
    "training losses": r"(loss|discriminator|perceptual_loss)\.",
}


def _names(num_levels: int) -> Names:
    middle = ("block_1", "attn_1", "block_2")
    return Names(
        [
            ("encoder.conv_blocks.{i}.res.{j}.", "encoder.down.{i}.block.{j}."),
            ("encoder.conv_blocks.{i}.", "encoder.down.{i}."),
            ("decoder.conv_blocks.{r}.res.{j}.", "decoder.up.{i}.block.{j}."),
            ("decoder.conv_blocks.{r}.", "decoder.up.{i}."),
            *((f"{part}.mid.{j}.", f"{part}.mid.{middle[j]}.") for part in ("encoder", "decoder") for j in range(3)),
            ("quant_conv.", "encoder.quant_conv."),
            ("post_quant_conv.", "decoder.post_quant_conv."),
        ],
        num_levels,
    )


def recognise(source: Source) -> bool:
    """Whether it holds the layers of such a network, under their names."""
    return _vqgan.count(_state(source, None)[0], r"(?:en|de)coder\.conv_blocks\.(\d+)\.") > 0


def _state(source: Source, weights: str | None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint, and what they stand under.

    Raises:
        FormatError: weights are asked for, but there is no choice.
    """
    nested = source.content if isinstance(source.content, Mapping) else {}
    found = {place: tensors for place in ("ema", "model") if (tensors := tensors_in(nested.get(place)))}
    if weights is not None and len(found) < 2:
        raise FormatError(
            f"{source.path}: holds no averaged weights beside the raw ones: leave out `weights` {weights}"
        )
    if found:
        place = "model" if weights == "raw" else next(iter(found))
        return found[place], place
    return tensors_in(source.content), ""


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a checkpoint.

    Raises:
        FormatError: it is incomplete.
    """
    state, place = _state(source, options.weights)
    notes = [f"weights: {place}"] if place else []
    tensors = _vqgan.drop(state, LEFT_OUT, notes)
    codes = _vqgan.codes_of(tensors, source, options.code_map, lookup=_lookup(source.content, notes))
    names = _names(_vqgan.count(tensors, r"encoder\.conv_blocks\.(\d+)\."))
    network = {names.ours(name): value for name, value in tensors.items() if name != "quantize.embedding.weight"}
    config = _vqgan.infer_config(network, codes, source, names)
    tokenizer = _vqgan.build_tokenizer(config, network, codes, source, names)
    return Imported(tokenizer=tokenizer, notes=[*notes, _vqgan.describe(tokenizer)])


def _lookup(content: Any, notes: list[str]) -> str:
    arguments = content.get("args") if isinstance(content, Mapping) else None
    state = arguments.state if isinstance(arguments, Inert) else arguments
    normalised = state.get("codebook_l2_norm") if isinstance(state, Mapping) else None
    if normalised is None:
        notes.append("it does not say whether codes are normalised: taken as they are published, normalised")
    return "nearest" if normalised is False else "cosine"
