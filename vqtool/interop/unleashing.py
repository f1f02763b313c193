"""Unleashing Transformers' absorbing priors (.th): a bare state dict of buffers and of a network that is not told t.

It says neither how many heads attention has (8 in the published models, 512 wide) nor how the cells are laid out.
Source: github.com/samb-t/unleashing-transformers, models/absorbing_diffusion.py and models/transformer.py.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from vqtool.conditions import NoCondition
from vqtool.denoisers import vq_diffusion
from vqtool.diffusion import kernels
from vqtool.errors import FormatError
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, count_numbers, tensors_in, without
from vqtool.interop._stacking import Names, block_names, fill_stacked
from vqtool.priors import GridSpec, Prior

PUBLISHED_WIDTH, PUBLISHED_HEADS = 512, 8
PREFIX = "_denoise_fn."
IGNORED = (r"_denoise_fn\.start_tok", "Lt_history", "Lt_count", "loss_history")


def recognise(source: Source) -> bool:
    """Whether it holds the weights of an absorbing prior."""
    tensors = tensors_in(source.content)
    return "_denoise_fn.tok_emb.weight" in tensors or "_denoise_fn.pos_emb" in tensors


def load(source: Source, options: Options) -> Imported:
    """The prior; its tokenizer is a file of its own.

    Raises:
        FormatError: tensors are missing, left over or do not fit, or the number of heads is not known.
    """
    tensors = without(PREFIX, tensors_in(source.content))
    sizes = {"pos_emb": 3, "tok_emb.weight": 2, "blocks.0.mlp.0.weight": 2}
    missing = [PREFIX + name for name, ndim in sizes.items() if name not in tensors or tensors[name].ndim != ndim]
    if missing:
        raise FormatError(f"{source.path}: tensors are missing: {', '.join(missing)}")
    notes: list[str] = []
    codebook_size = len(tensors["tok_emb.weight"]) - 1
    num_cells, width = tensors["pos_emb"].shape[1:]
    num_steps = _num_steps(tensors_in(source.content), num_cells, source, options)
    try:
        config = vq_diffusion.Config(
            codebook_size=codebook_size,
            grid_size=_grid_size(num_cells, source, options, notes),
            num_steps=num_steps,
            num_layers=count_numbers(name.split(".")[1] for name in tensors if name.startswith("blocks.")),
            width=width,
            num_heads=_num_heads(width, source, options, notes),
            mlp_ratio=max(1, len(tensors["blocks.0.mlp.0.weight"]) // width),
            activation="gelu",
            time="none",
            positions="flat",
            head_bias=False,
        )
    except ValueError as error:
        raise FormatError(f"{source.path}: {error}") from error
    found = tensors_in(source.content) | {f"{PREFIX}pos_emb": tensors["pos_emb"][0]}
    denoiser = fill_stacked(lambda: vq_diffusion.Network(config), names_of(config), found, source, ignored=IGNORED)
    prior = Prior(
        kernel=kernels.build("absorbing", schedule="linear", codebook_size=codebook_size, num_steps=num_steps),
        denoiser=denoiser.eval().requires_grad_(False),
        denoiser_name="vq-diffusion",
        conditioner=NoCondition(),
        grid_spec=GridSpec("", "", config.grid_size, config.grid_size, ""),
        parameterisation="direct",
    )
    return Imported(prior=prior, notes=notes)


def _num_heads(width: int, source: Source, options: Options, notes: list[str]) -> int:
    if options.num_heads is not None:
        return options.num_heads
    if width != PUBLISHED_WIDTH:
        raise FormatError(
            f"{source.path}: the weights do not say how many heads attention has, and {width} is not the width of the "
            "published models: say it with `num_heads`"
        )
    notes.append(
        f"attention heads: {PUBLISHED_HEADS}, as in the published models; the weights do not say (`num_heads`)"
    )
    return PUBLISHED_HEADS


def _num_steps(tensors: Mapping[str, Tensor], num_cells: int, source: Source, options: Options) -> int:
    if "Lt_count" in tensors:
        return len(tensors["Lt_count"]) - 1
    if options.num_steps is None:
        raise FormatError(
            f"{source.path}: the buffer Lt_count, which tells the number of diffusion steps, is missing: say it with "
            f"`num_steps` (published: one a cell, here {num_cells})"
        )
    return options.num_steps


def _grid_size(num_cells: int, source: Source, options: Options, notes: list[str]) -> tuple[int, int]:
    side = math.isqrt(num_cells)
    size = options.grid_size or (side, side)
    if math.prod(size) != num_cells:
        what = f"a grid of {size[0]}x{size[1]} cells" if options.grid_size else "no square grid"
        raise FormatError(f"{source.path}: has {num_cells} positions, {what}: give their layout, `grid_size`")
    if options.grid_size is None:
        notes.append(f"grids: {side}x{side} cells, from {num_cells} positions (`grid_size`)")
    return size


def names_of(config: vq_diffusion.Config) -> Names:
    """Our names of a network's weights -> theirs."""
    top = {
        "tokens.weight": ("tok_emb.weight",),
        "positions": ("pos_emb",),
        "norm.weight": ("ln_f.weight",),
        "norm.bias": ("ln_f.bias",),
        "head.weight": ("head.weight",),
    }
    block = {
        "attention_norm": ("ln1",),
        "attention.qkv": ("attn.query", "attn.key", "attn.value"),
        "attention.out": ("attn.proj",),
        "mlp_norm": ("ln2",),
        "mlp.first": ("mlp.0",),
        "mlp.second": ("mlp.2",),
    }
    names = {**top, **block_names(block, "blocks.", "blocks.", config.num_layers)}
    return {ours: tuple(PREFIX + name for name in theirs) for ours, theirs in names.items()}
