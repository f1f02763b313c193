"""The text tower of OpenAI's CLIP models, by the names of their published weights, as VQ-Diffusion's files hold it."""

from collections.abc import Mapping

from torch import Tensor

from vqtool.conditions.text_encoders import Config, TextEncoder
from vqtool.errors import FormatError
from vqtool.interop._sources import Source, listed
from vqtool.interop._stacking import block_names, fill_stacked

HEAD_WIDTH = 64  # of all of these towers; the files do not say it
BLOCKS = "transformer.resblocks."
TOP = {
    "tokens.weight": ("token_embedding.weight",),
    "positions": ("positional_embedding",),
    "norm.weight": ("ln_final.weight",),
    "norm.bias": ("ln_final.bias",),
}
BLOCK = {
    "attention_norm": ("ln_1",),
    "out": ("attn.out_proj",),
    "mlp_norm": ("ln_2",),
    "mlp_in": ("mlp.c_fc",),
    "mlp_out": ("mlp.c_proj",),
}


def read_text_encoder(tensors: Mapping[str, Tensor], source: Source) -> TextEncoder:
    """The text tower.

    Args:
        tensors: `token_embedding.weight`, `positional_embedding`, `transformer.resblocks.N....`, `ln_final....`;
            others (`text_projection`, the image tower) are not looked at.
        source: for messages.

    Raises:
        FormatError: tensors are missing or do not fit.
    """
    mlp = f"{BLOCKS}0.mlp.c_fc.weight"
    needed = {"token_embedding.weight": 2, "positional_embedding": 2, mlp: 2}
    if missing := [name for name, ndim in needed.items() if name not in tensors or tensors[name].ndim != ndim]:
        raise FormatError(f"{source.path}: {len(missing)} tensors of the text tower are missing: {listed(missing)}")
    size, width = tensors["token_embedding.weight"].shape
    config = Config(
        vocabulary_size=size,
        max_length=len(tensors["positional_embedding"]),
        width=width,
        num_layers=len({name.removeprefix(BLOCKS).split(".")[0] for name in tensors if name.startswith(BLOCKS)}),
        num_heads=max(1, width // HEAD_WIDTH),
        mlp_width=len(tensors[mlp]),
    )
    names = {**TOP, **block_names(BLOCK, "blocks.", BLOCKS, config.num_layers)}
    for number in range(config.num_layers):
        for part in ("weight", "bias"):
            names[f"blocks.{number}.qkv.{part}"] = (f"{BLOCKS}{number}.attn.in_proj_{part}",)
    return (
        fill_stacked(lambda: TextEncoder(config), names, tensors, source, ignored=[".*"]).eval().requires_grad_(False)
    )
